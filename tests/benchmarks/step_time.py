"""Predicted against measured time of a decode step on the CPU: ``python tests/benchmarks/step_time.py [MODEL]``.

Runs all layers' kernels and the head in sequence over memory as large as the whole model, for 1 thread and all
usable ones, m = 1 and 16 sequences, and prints measured / predicted. The prediction comes from the saved result of the
server workload (it is tuned first if there is none).
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
from msgspec.structs import replace

from autotune import Options, tune
from autotune.bench.plan import Task, attention_point, product_point, small_ops_point
from autotune.bench.subjects import Subjects
from autotune.costmodel.kernels import fastest_kernels
from autotune.costmodel.model import CostModel
from autotune.costmodel.roofline import product_of
from autotune.host.topology import pin_order
from autotune.model.memory import kv_cache_bytes, model_bytes
from autotune.records import Result, Site
from ternary_kernels.arena import Arena
from ternary_kernels.team import Team

SEQUENCES = (1, 16)


def step(result: Result, subjects: Subjects, threads: int, m: int) -> Callable[[], None]:
    """One decode step of m sequences as a call: everything that the cost model counts, in the order a model runs it.

    Each product runs on the kernel that was fastest when the model was tuned.
    """
    model, workload = result.model, result.workload
    configuration = replace(
        result.decision.chosen.configuration,
        device_layers={"cpu": len(model.layers)},
        head_device="cpu",
        decode_threads=threads,
        batch_size=m,
    )
    kernels = {
        (site.format, site.n_out, site.k_in): site.decode[str(m)]
        for site in fastest_kernels(result.campaign, model, configuration)
    }
    other = next(found.point.kernel for found in result.campaign.measurements() if found.point.op == "attention")
    context = workload.prompt_tokens + workload.output_tokens // 2

    def product(site: Site) -> Callable[[], object]:
        kernel = kernels[product_of(site)]
        return subjects.build(Task(product_point(site, m, threads, kernel)))  # also of the head: all rows

    attention = subjects.build(Task(attention_point(model, 1, context, threads, other)))
    small = subjects.build(Task(small_ops_point(model, m, threads if m > 1 else 1, other)))
    calls: list[Callable[[], object]] = []
    for layer in model.layers:
        calls.append(small)
        for site in layer.sites:
            if site.name == "o":
                calls += [attention] * m
            calls.append(product(site))
    calls.append(product(model.head))

    def run() -> None:
        for call in calls:
            call()

    return run


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="bitnet-b1.58-2B-4T")
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    result = tune(args.model, Options())
    model, workload, host = result.model, result.workload, result.host
    threads = sorted({1, host.limits.usable_threads})
    cost_model = CostModel(replace(result.campaign, gpus=()), {"cpu": result.cost_model.roofline})
    costs = cost_model.steps(model, workload, threads, SEQUENCES, [workload.prompt_tokens])
    predicted = costs.decode_layer_s[0].take(costs.layer_kinds, axis=0).sum(axis=0) + costs.decode_ends_s[0]
    chosen = result.decision.chosen.configuration
    print(f"{model.name}; chosen: {chosen.device_layers}, {chosen.decode_threads} threads, batch {chosen.batch_size}")
    cache_bytes = kv_cache_bytes(model, len(model.layers), workload.context_tokens)
    with ExitStack() as stack:
        cpus = pin_order(host.cpu.cores, host.limits.usable_threads)
        teams = {count: stack.enter_context(Team(count, cpus)) for count in threads}
        subjects = Subjects(model, Arena(model_bytes(model) + cache_bytes), teams)
        steps = {(t, m): step(result, subjects, t, m) for t in threads for m in SEQUENCES}
        times: dict[tuple[int, int], list[float]] = {key: [] for key in steps}
        order = list(steps)
        for key in order:
            steps[key]()
        for _ in range(args.repeat):
            random.shuffle(order)
            for key in order:
                start = time.perf_counter()
                steps[key]()
                times[key].append(time.perf_counter() - start)
    print("threads   m  predicted s  measured s (min, median, max)  measured / predicted")
    for row, count in enumerate(threads):
        for column, m in enumerate(SEQUENCES):
            found, expected = times[count, m], predicted[row, column]
            print(
                f"{count:7d} {m:3d} {expected:12.4f} {min(found):9.4f} {np.median(found):8.4f} {max(found):8.4f}   "
                f"{np.median(found) / expected:20.3f}"
            )


if __name__ == "__main__":
    main()
