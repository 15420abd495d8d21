"""What a worker needs of a device: to check kernels on it, to build calls, and to tell what became of an error."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from autotune.bench.messages import Event, Prepared
from autotune.bench.plan import Task
from autotune.bench.sampler import Stopwatch
from autotune.records.measurement import FailureKind

Call = Callable[[], object]
Send = Callable[[Event], None]


class Subject(NamedTuple):
    """What is timed of a task.

    Attributes:
        call: Runs the operation, on cold memory.
        repeats: How often one call runs it.
        stopwatch: How calls are timed; None: by the clock.
    """

    call: Call
    repeats: int = 1
    stopwatch: Stopwatch | None = None


class DeviceLostError(Exception):
    """Raised when this process can't use its device any more; another process may."""


class DeviceUnusableError(Exception):
    """Raised when no process can time anything on a device; says why in words for the user."""


class Rig(Protocol):
    """A device, set up for timing within a ``with`` block."""

    def __enter__(self) -> Self:
        """Take hold of the device.

        Raises:
            DeviceUnusableError: It can't be used.
        """

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of it."""

    def load(self, tasks: Sequence[Task]) -> None:
        """Import what the tasks need; errors are left to the check. Comes before the block is entered."""

    def check(self, tasks: Sequence[Task], skip: Collection[int]) -> set[int]:
        """Check the kernels of tasks that aren't skipped against the oracle, report those that fail, return them.

        May be called again for others.
        """

    def prepare(self) -> Prepared:
        """Fill the memory through which weights rotate."""

    def build(self, task: Task) -> Subject:
        """What is to be timed of a task.

        Raises:
            ValueError: There is no such kernel, or the format can't hold the shape.
        """

    def between_blocks(self) -> None:
        """A block of samples was taken: time to look at the device itself."""

    def failure_of(self, error: Exception) -> tuple[FailureKind, str]:
        """An error that a kernel raised, as the kind and message of a failure.

        Raises:
            DeviceLostError: After it nothing more can be timed by this process.
        """
