"""Time to choose again from saved measurements: ``python tests/benchmarks/retune.py [MODEL]``.

Prints, inside the process: `autotune.retune` of a saved result (the model is tuned first if there is none), reading
included; and the same steps for a made-up host of 128 threads and three GPUs and a model of 120 layers.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import msgspec
import numpy as np

from autotune import Options, tune
from autotune.costmodel.model import CostModel
from autotune.costmodel.steps import StepCosts
from autotune.pipeline import retune
from autotune.records import Campaign, Configuration, Decision, Measurement, Result
from autotune.search.decide import Alternative, decide
from autotune.search.workload import batch_grid, chunk_grid, make_workload

REPEATS = 9
THREADS = (1, 2, 4, 8, 16, 32, 64, 128)
LAYERS = 120
GPU_SPEEDS = {"cuda:0": 20.0, "cuda:1": 20.0, "cuda:2": 10.0}
CROSSING_S = 1e-4
GIB = 2**30


def enlarged(campaign: Campaign) -> Campaign:
    """Made up: every single-threaded measurement, and the same on more threads in proportionally less time."""
    outcomes = []
    for outcome in campaign.measurements():
        if outcome.point.threads == 1:
            for count in THREADS if outcome.point.op != "layer_ops" else (1,):
                point = msgspec.structs.replace(outcome.point, threads=count)
                times = tuple(sample / count for sample in outcome.samples_s)
                outcomes.append(Measurement(point, times, outcome.calls_per_sample, outcome.stopped))
    return msgspec.structs.replace(campaign, outcomes=tuple(outcomes))


def with_gpus(costs: StepCosts) -> StepCosts:
    """Made up: three GPUs, each so many times as fast as one CPU thread."""

    def rows(cpu: np.ndarray) -> np.ndarray:
        one_thread = cpu[:, :, :1] if cpu.ndim == 4 else cpu[:, :1]
        return np.concatenate([cpu, *(np.broadcast_to(one_thread / by, cpu.shape) for by in GPU_SPEEDS.values())])

    def crossings(cpu: np.ndarray) -> np.ndarray:
        return np.concatenate([cpu, np.full((len(GPU_SPEEDS), cpu.shape[1]), CROSSING_S)])

    return StepCosts(
        devices=("cpu", *GPU_SPEEDS),
        layer_kinds=costs.layer_kinds,
        threads=costs.threads,
        batches=costs.batches,
        chunks=costs.chunks,
        decode_layer_s=rows(costs.decode_layer_s),
        decode_ends_s=rows(costs.decode_ends_s),
        prefill_layer_s=rows(costs.prefill_layer_s),
        prefill_ends_s=rows(costs.prefill_ends_s),
        decode_crossing_s=crossings(costs.decode_crossing_s),
        prefill_crossing_s=crossings(costs.prefill_crossing_s),
    )


def decide_large(saved: Result, campaign: Campaign) -> Decision:
    """From measurements to a decision for 120 layers, 128 threads and 4 devices."""
    model = msgspec.structs.replace(saved.model, layers=saved.model.layers[:1] * LAYERS)
    workload = make_workload("server", model, max_tpot_ms=60_000)
    costs = CostModel(campaign, saved.cost_model.roofline).steps(
        model,
        workload,
        range(1, max(THREADS) + 1),
        batch_grid(workload.max_batch),
        chunk_grid(workload.prompt_tokens),
    )
    _, decision = decide(
        [Alternative("I2_S", model, with_gpus(costs), lambda _: "")],
        workload,
        available_bytes={"cpu": 64 * GIB, "cuda:0": 2 * GIB, "cuda:1": 2 * GIB, "cuda:2": GIB},
        overhead_bytes=dict.fromkeys(("cpu", *GPU_SPEEDS), GIB // 4),
        default=Configuration({"cpu": LAYERS}, "cpu", 4, 4, 1, workload.prompt_tokens),
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
    timed(f"{LAYERS} layers, {max(THREADS)} threads, 4 devices", lambda: decide_large(saved, large))


if __name__ == "__main__":
    main()
