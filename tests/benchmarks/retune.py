"""Time to choose again from saved measurements: ``python tests/benchmarks/retune.py [MODEL]``.

Prints, inside the process: `autotune.retune` of a saved result (the model is tuned first if there is none), reading
included; and for made-up hosts with GPUs and deep models the same steps from measurements on, and without the cost
table: ranking, the curve over the split, and the reasons.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec
import numpy as np

from autotune import Options, tune
from autotune.costmodel.model import CostModel
from autotune.costmodel.steps import StepCosts
from autotune.model.memory import Room
from autotune.pipeline import retune
from autotune.records import Campaign, Configuration, Decision, Measurement, Result
from autotune.search.decide import Alternative, decide
from autotune.search.workload import batch_grid, chunk_grid, make_workload

REPEATS = 9
THREADS = (1, 2, 4, 8, 16, 32, 64, 128)
CROSSING_S, TOKEN_S = 1e-4, 2e-5
GIB = 2**30


class Case(NamedTuple):
    """A made-up host and model; each GPU is so many times as fast as one CPU thread and has so many GiB."""

    layers: int
    threads: int
    max_batch: int
    gpu_speeds: Mapping[str, float]
    gpu_gib: Mapping[str, float]

    def __str__(self) -> str:
        return f"{self.layers} layers, {self.threads} threads, {len(self.gpu_speeds)} GPUs, batch {self.max_batch}"


CASES = (
    Case(120, 128, 32, {"cuda:0": 20.0, "cuda:1": 20.0, "cuda:2": 10.0}, {"cuda:0": 2, "cuda:1": 2, "cuda:2": 1}),
    Case(80, 64, 256, {"cuda:0": 20.0, "cuda:1": 20.0}, {"cuda:0": 4, "cuda:1": 4}),
)


def enlarged(campaign: Campaign) -> Campaign:
    """Made up: every single-threaded measurement of the CPU, and on more threads in proportionally less time."""
    outcomes = []
    for outcome in campaign.measurements():
        if outcome.point.device == "cpu" and outcome.point.threads == 1:
            for count in THREADS if outcome.point.op != "layer_ops" else (1,):
                point = msgspec.structs.replace(outcome.point, threads=count)
                times = tuple(sample / count for sample in outcome.samples_s)
                outcomes.append(Measurement(point, times, outcome.calls_per_sample, outcome.stopped))
    return msgspec.structs.replace(campaign, outcomes=tuple(outcomes), gpus=())


def with_gpus(costs: StepCosts, speeds: Mapping[str, float]) -> StepCosts:
    """Made up: GPUs, each so many times as fast as one CPU thread."""

    def rows(cpu: np.ndarray) -> np.ndarray:
        one_thread = cpu[:, :, :1] if cpu.ndim == 4 else cpu[:, :1]
        return np.concatenate([cpu, *(np.broadcast_to(one_thread / by, cpu.shape) for by in speeds.values())])

    def handovers(cpu: np.ndarray, time_s: float) -> np.ndarray:
        return np.concatenate([cpu, np.full((len(speeds), *cpu.shape[1:]), time_s)])

    return StepCosts(
        devices=("cpu", *speeds),
        layer_kinds=costs.layer_kinds,
        threads=costs.threads,
        batches=costs.batches,
        chunks=costs.chunks,
        decode_layer_s=rows(costs.decode_layer_s),
        decode_ends_s=rows(costs.decode_ends_s),
        prefill_layer_s=rows(costs.prefill_layer_s),
        prefill_ends_s=rows(costs.prefill_ends_s),
        decode_crossing_s=handovers(costs.decode_crossing_s, CROSSING_S),
        prefill_crossing_s=handovers(costs.prefill_crossing_s, CROSSING_S),
        decode_token_s=handovers(costs.decode_token_s, TOKEN_S),
        prefill_token_s=handovers(costs.prefill_token_s, TOKEN_S),
    )


class Prepared:
    """The steps of one case: from measurements to a cost table, and from that to a decision."""

    def __init__(self, case: Case, saved: Result, campaign: Campaign) -> None:
        self._case, self._campaign, self._roofline = case, campaign, saved.cost_model.roofline
        self._model = msgspec.structs.replace(saved.model, layers=saved.model.layers[:1] * case.layers)
        self._workload = make_workload("server", self._model, max_batch=case.max_batch, max_tpot_ms=60_000)
        available = {"cpu": 64 * GIB, **{gpu: int(size * GIB) for gpu, size in case.gpu_gib.items()}}
        self._room = Room(available, dict.fromkeys(available, GIB // 4), GIB // 2)

    def costs(self) -> StepCosts:
        """The cost table of the whole host."""
        costs = CostModel(self._campaign, {"cpu": self._roofline}).steps(
            self._model,
            self._workload,
            range(1, self._case.threads + 1),
            batch_grid(self._workload.max_batch),
            chunk_grid(self._workload.prompt_tokens),
        )
        return with_gpus(costs, self._case.gpu_speeds)

    def decide_from_measurements(self) -> Decision:
        """All of it."""
        return self.decide(self.costs())

    def decide(self, costs: StepCosts) -> Decision:
        """Ranking, curve and reasons."""
        _, decision, _ = decide(
            [Alternative("I2_S", self._model, costs, lambda _: "")],
            self._workload,
            room=self._room,
            default=Configuration({"cpu": self._case.layers}, "cpu", 4, 4, 1, self._workload.prompt_tokens),
            noise=0.02,
        )
        return decision


def timed(what: str, call: Callable[[], Decision]) -> None:
    """Print the median time of a call and the size of the space it ranked."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        decision = call()
        times.append(time.perf_counter() - start)
    times = sorted(times[1:])
    print(
        f"{what}: median {times[REPEATS // 2] * 1e3:.1f} ms, worst {times[-1] * 1e3:.1f} ms, "
        f"{decision.search.points:,} points"
    )


def main() -> None:
    """Print one line per case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="bitnet-b1.58-2B-4T")
    model = parser.parse_args().model
    saved = tune(model)
    large = enlarged(saved.campaign)
    timed("retune", lambda: retune(model, Options(max_tpot_ms=60_000)).decision)
    for case in CASES:
        prepared = Prepared(case, saved, large)
        timed(f"{case}, from measurements", prepared.decide_from_measurements)
        timed(f"{case}, from the cost table", functools.partial(prepared.decide, prepared.costs()))


if __name__ == "__main__":
    main()
