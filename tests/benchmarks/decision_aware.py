"""What the decision-aware order saves: ``python -m tests.benchmarks.decision_aware [--replay] [MODEL ...]``.

On this host: each model and workload is benchmarked on the fixed grid and in the decision-aware order, in turn and
several times, and a line tells the wall time, points and samples of each, the configuration that either decides for,
and what the order's costs more than the best of all, under the cost model of the fixed grid timed beside it.

With ``--replay``: the same from all recordings under tests/hosts, without timing anything. How many points does the
order ask for until nothing can change the decision, and what is the regret of deciding then?
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

from autotune.bench import campaign as bench
from autotune.bench.campaign import Choose
from autotune.bench.plan import describe_first_missing
from autotune.errors import AutotuneError
from autotune.evidence import plans, workload_of
from autotune.host.detect import detect
from autotune.host.kernels import find_kernels
from autotune.model.source import PRESETS
from autotune.options import DEFAULT_BUDGET_S, GPU_BUDGET_S, Options
from autotune.records import Campaign, Configuration
from autotune.search.variants import read_variants
from autotune.store import recording
from autotune.store.entry import WORKLOADS
from tests.hosts.reveal import Regret, regret, relevance_of, reveal, tasks_of

HOSTS = Path(__file__).parents[1] / "hosts"
MODELS = (*PRESETS, *map(str, sorted((HOSTS / "synthetic" / "models").glob("*.json"))))


def main() -> None:
    """Print a line per run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["bitnet_b1_58-large", "bitnet-b1.58-2B-4T"])
    parser.add_argument("--workload", action="append", choices=list(WORKLOADS))
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--replay", action="store_true")
    args = parser.parse_args()
    if args.replay:
        for line in replayed():
            print(line, flush=True)
        return
    for model in args.models:
        for workload in args.workload or WORKLOADS:
            for line in timed(model, workload, args.repeat):
                print(line, flush=True)


def timed(name: str, workload_name: str, repeat: int) -> Iterator[str]:
    """Both ways, in turn."""
    host = detect()
    kernels = find_kernels(host)
    (model,) = models = read_variants(name, None, kernels)
    workload = workload_of(Options(workload=workload_name), model, host)
    tasks, gpus = plans(models, host, workload, kernels, None, quick=False)
    budget_s = DEFAULT_BUDGET_S + (GPU_BUDGET_S if gpus else 0.0)
    ways: dict[str, Choose | None] = {"fixed grid": None, "decision-aware": relevance_of(models, host, workload, tasks)}
    for _ in range(repeat):
        found = {}
        for way, choose in ways.items():
            started = time.monotonic()
            found[way] = bench.run(model, host, tasks, gpus=gpus, budget_s=budget_s, choose=choose)
            spent_s = time.monotonic() - started
            lost = regret(found["fixed grid"], found[way], model, host, workload)
            yield f"{name:20s} {workload_name:8s} {way:15s} {spent_s:5.1f} s, {counted(found[way])}, {told(lost)}"


def replayed() -> Iterator[str]:
    """All recordings, with the models that they hold."""
    for path in (*sorted(HOSTS.glob("*.json")), *sorted((HOSTS / "synthetic").glob("*.json"))):
        held = recording.read(path)
        host = held.host
        for campaign in held.campaigns:
            for name in MODELS:
                for workload_name in WORKLOADS:
                    models = read_variants(name, None, campaign.kernels, host.cpu.architecture)
                    workload = workload_of(Options(workload=workload_name), models[0], host)
                    tasks = tasks_of(campaign, models, host, workload)
                    if describe_first_missing(tasks, (found.point for found in campaign.measurements())):
                        break  # it was recorded with another model
                    started = time.perf_counter()
                    found = reveal(campaign, tasks, relevance_of(models, host, workload, tasks))
                    spent_s = (time.perf_counter() - started) / (len(found.rounds) + 1)
                    label = f"{path.stem:32s} {models[0].name:26s} {workload_name:8s}"
                    try:
                        lost = told(regret(campaign, found.campaign, models[0], host, workload))
                    except AutotuneError as error:
                        lost = f"none: {error}"
                    yield (
                        f"{label} {counted(found.campaign)} of {counted(campaign)}, "
                        f"{len(found.rounds)} rounds, {spent_s * 1e3:.0f} ms to choose, {lost}"
                    )


def counted(campaign: Campaign) -> str:
    """Points and samples on the CPU."""
    timed = [found for found in campaign.measurements() if found.point.device == "cpu"]
    return f"{len(timed):3d} points, {sum(len(found.samples_s) for found in timed):4d} samples"


def told(lost: Regret) -> str:
    """The decision and its regret."""
    broken = "" if lost.feasible else ", which breaks a limit"
    return f"regret {max(lost.costs[0], 0.0):.2%}: {short(lost.chosen)}{broken} (best: {short(lost.best)})"


def short(configuration: Configuration) -> str:
    """A configuration in a few words."""
    layers = ", ".join(f"{device} {count}" for device, count in configuration.device_layers.items())
    threads = f"{configuration.decode_threads}/{configuration.prefill_threads} threads"
    return f"{layers}; {threads}, batch {configuration.batch_size}, chunk {configuration.prefill_chunk}"


if __name__ == "__main__":
    main()
