"""How long a decision takes at 120 layers, 128 thread counts and 4 devices: ``python tests/search/bench_decide.py``.

The costs are made up; the time to decide doesn't depend on them.
"""

import time

from conftest import build_model, build_random_costs

from autotune.records import Configuration
from autotune.search.decide import decide
from autotune.search.workload import batch_grid, chunk_grid, make_workload


def main(repeats=5):
    """Prints the size of the space and the time of each decision, with its ranking's share."""
    model = build_model(120)
    workload = make_workload("server", model, max_tpot_ms=30_000)
    available = {"cpu": 2**30, "cuda:0": 2**30, "cuda:1": 2**29, "cuda:2": 2**28}
    costs = build_random_costs(
        1,
        120,
        devices=tuple(available),
        threads=range(1, 129),
        batches=batch_grid(workload.max_batch),
        chunks=chunk_grid(workload.prompt_tokens),
    )
    default = Configuration(
        device_layers={"cpu": 120},
        head_device="cpu",
        decode_threads=4,
        prefill_threads=4,
        batch_size=1,
        prefill_chunk=512,
    )
    for _ in range(repeats):
        start_s = time.perf_counter()
        decision = decide(
            model,
            workload,
            costs,
            available_bytes=available,
            overhead_bytes=dict.fromkeys(available, 10**6),
            default=default,
            noise=0.02,
            bound_by=lambda configuration: "",
        )
        time_s = time.perf_counter() - start_s
        search = decision.search
        print(
            f"{search.points:,} points, {search.feasible:,} feasible: decided in {time_s * 1e3:.1f} ms, "
            f"ranked in {search.ranking_time_s * 1e3:.1f} ms"
        )


if __name__ == "__main__":
    main()
