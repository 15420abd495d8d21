"""What the search asks of a runtime that runs configurations: the reference engine here, other runtimes beside it."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from autotune.records import Configuration, PartRun, Phase, RunFailure, Workload


class Engine(Protocol):
    """Runs a model's configurations for real, within a ``with`` block.

    A configuration that can't be run is a value, never an exception: the next one may still run.

    Attributes:
        name: Of the runtime, for people.
        reused_layers: Layers whose weights are another layer's, because the memory doesn't hold all.
    """

    name: str
    reused_layers: int

    def __enter__(self) -> Self:
        """Start it.

        Raises:
            BenchmarkError: It can't be started.
        """

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it; nothing of it stays behind."""

    def prepare(self, configuration: Configuration, workload: Workload) -> RunFailure | None:
        """Bring weights and KV caches to where a configuration has them.

        Returns:
            None, or why it can't run.
        """

    def measure(
        self, configuration: Configuration, workload: Workload, phase: Phase, *, at_least: int, at_most_s: float
    ) -> PartRun | RunFailure:
        """Run one half of a configuration several times: decode steps of its batch, or prefills of one prompt.

        Args:
            configuration: What to run; it is prepared if need be.
            workload: Its lengths.
            phase: Which half.
            at_least: Samples to take whatever they take, at least 1.
            at_most_s: When to stop beyond those, and sooner where their median is known within 2 %.

        Returns:
            The samples of this call, or why there are none.
        """

    def memory_used(self) -> dict[str, int]:
        """Bytes per device that the process held at its peak so far."""

    def overhead_share(self, configuration: Configuration, workload: Workload) -> float | None:
        """Share of a decode step that is spent outside the kernels: products, attention and small operations.

        None where the runtime doesn't tell.
        """
