"""A synthetic engine whose times follow a table, and small spaces over it: nothing of this was measured anywhere."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from msgspec.structs import replace

from autotune.model.memory import Room
from autotune.records import (
    Candidate,
    Configuration,
    Confirmation,
    Grid,
    GridPart,
    Measured,
    Part,
    PartRun,
    Result,
    RunFailure,
    Workload,
    part_of,
)
from autotune.search.evaluate import Evaluator, build_evaluator
from autotune.verify.grid import PHASES, shared
from tests.builders import build_result
from tests.search.conftest import build_costs, build_model

STEP_S = {(1, 1): 4.0, (1, 2): 6.0, (2, 1): 2.0, (2, 2): 3.0}
"""Seconds of a decode step by threads and batch."""
PROMPT_S = {(1, 32): 4.0, (1, 64): 3.0, (2, 32): 2.0, (2, 64): 1.0}
"""Seconds of a prompt by threads and chunk."""


def law_s(part: Part) -> float:
    """The seconds of a part on the CPU."""
    return (STEP_S if part.phase == "decode" else PROMPT_S)[part.threads, part.size]


class SyntheticEngine:
    """Follows the ``Engine`` protocol; takes no time.

    Args:
        time_s: Of a part.
        failing: Parts that can't be run, from the so-manieth call on.
        unplaceable: Devices that weights can't be brought to.
    """

    name = "synthetic engine"

    def __init__(
        self,
        time_s: Callable[[Part], float] = law_s,
        *,
        failing: dict[Part, int] | None = None,
        unplaceable: str | None = None,
        reused_layers: int = 0,
    ) -> None:
        self.reused_layers = reused_layers
        self.order: list[Part] = []
        self.moves: list[dict[str, int]] = []
        self.contexts: list[tuple[str, int]] = []
        self._time_s, self._failing, self._unplaceable = time_s, failing or {}, unplaceable
        self.entered = False

    def __enter__(self):
        self.entered = True
        return self

    def __exit__(self, kind, error, trace):
        self.entered = False

    def prepare(self, configuration: Configuration, workload: Workload) -> RunFailure | None:
        if not self.moves or self.moves[-1] != configuration.device_layers:
            self.moves.append(configuration.device_layers)
        if self._unplaceable in configuration.device_layers:
            part = part_of(configuration, workload, "decode")
            return RunFailure(part, "out_of_memory", f"{self._unplaceable} is full")
        return None

    def measure(self, configuration, workload, phase, *, at_least, at_most_s):
        part = part_of(configuration, workload, phase)
        self.order.append(part)
        self.contexts.append((phase, part.context))
        if part in self._failing and self.order.count(part) >= self._failing[part]:
            return RunFailure(part, "crashed", "the process died")
        time_s = self._time_s(part)
        # Every call a little slower, so that the order of samples can be told.
        samples_s = tuple(time_s * (1 + 0.001 * (len(self.order) + index)) for index in range(at_least))
        return PartRun(part, samples_s, {"cpu": samples_s})

    def memory_used(self) -> dict[str, int]:
        return {"cpu": 10**9}

    def overhead_share(self, configuration, workload) -> float | None:
        return None


def small_workload(name: str = "offline", **overrides) -> Workload:
    """A prompt of 64 and 3 output tokens: a batch of B takes B prompts and two steps."""
    workload = Workload(
        name=name,
        prompt_tokens=64,
        output_tokens=3,
        context_tokens=128,
        max_batch=1 if name == "chat" else 2,
        max_tpot_s=None,
        max_ttft_s=None,
    )
    return replace(workload, **overrides)


def evaluator_of(
    workload: Workload | None = None, *, gpus: int = 0, scale: float = 1.0, layers: int = 4, room: Room | None = None
) -> Evaluator:
    """A space over 1 and 2 threads, batches of 1 and 2, chunks of 32 and 64; on the CPU alone predictions are the law.

    Args:
        workload: What it is for.
        gpus: How many there are; with any, predictions follow the law of ``build_costs``.
        scale: Factor on all predictions.
        layers: Of the model.
        room: The memory there is; None: enough.
    """
    devices = ("cpu", *(f"cuda:{index}" for index in range(gpus)))
    costs = build_costs(layers, devices=devices, batches=(1, 2), chunks=(32, 64), prompt=64)
    if not gpus:
        for table, law in (("decode", STEP_S), ("prefill", PROMPT_S)):
            times_s = np.array([[law[threads, size] for size in sorted({s for _, s in law})] for threads in (1, 2)])
            getattr(costs, f"{table}_layer_s")[:] = scale * times_s / layers
            getattr(costs, f"{table}_ends_s")[:] = 0
    room = room or Room(dict.fromkeys(devices, 10**9), dict.fromkeys(devices, 10**6))
    return build_evaluator(build_model(layers), workload or small_workload(), costs, room)


def on_cpu(decode: int, prefill: int, batch: int, chunk: int) -> Configuration:
    """A configuration of four layers on the CPU."""
    return Configuration({"cpu": 4}, "cpu", decode, prefill, batch, chunk)


def result_of(chosen: Configuration, workload: Workload | None = None, **overrides) -> Result:
    """A result that chose a configuration, with nothing run unless told."""
    result = build_result(model=build_model(4))
    decision = replace(result.decision, chosen=Candidate(chosen, result.decision.chosen.predicted))
    return replace(result, **{"workload": workload or small_workload(), "decision": decision, **overrides})


def confirmation_of(parts, workload):
    """A search that ran these parts; it says nothing else."""
    return Confirmation(
        engine="synthetic engine",
        budget_s=1.0,
        spent_s=1.0,
        stopped="decided",
        workload=workload,
        trials=(),
        runs=tuple(PartRun(part, (1.0,), {"cpu": (1.0,)}) for part in parts),
        failures=(),
        corrections=(),
        chosen=Measured(tokens_per_s=1.0, tpot_s=1.0, ttft_s=1.0, relative_interval=None),
        default=None,
        runner_up=None,
        overhead_share=None,
        memory_used={},
        reused_layers=0,
    )


def grid_of(samples: dict[Part, tuple[float, ...]], *, spent_s: float = 1.0, **overrides) -> Grid:
    """A grid of parts with these samples."""
    parts = tuple(GridPart(PartRun(part, own, {"cpu": own}), spent_s) for part, own in samples.items())
    grid = Grid("synthetic engine", parts, feasible_parts=len(parts), rounds=3, spent_s=100.0)
    return replace(grid, **overrides)


def every_part(workload: Workload | None = None, batches=(1, 2)) -> list[Part]:
    """The eight parts of a small workload's configurations on the CPU; six for ``chat``."""
    workload = workload or small_workload()
    found = [
        shared(part_of(on_cpu(threads, threads, batch, chunk), workload, phase))
        for phase in PHASES
        for threads in (1, 2)
        for batch, chunk in zip(batches if phase == "decode" else (1, 1), (32, 64), strict=False)
    ]
    return list(dict.fromkeys(found))


def steady(parts: list[Part], count: int = 8) -> dict[Part, tuple[float, ...]]:
    """Samples without any noise."""
    return {part: (law_s(part),) * count for part in parts}


@pytest.fixture
def engine() -> SyntheticEngine:
    return SyntheticEngine()
