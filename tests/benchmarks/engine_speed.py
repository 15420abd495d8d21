"""How fast the reference engine decodes: ``python tests/benchmarks/engine_speed.py [MODEL]``.

Prints tokens/s with 1 and all threads and batches of 1, 4 and 16, in turns, beside the bytes that a step must read
(weights, and the KV cache with half of the output in it) as a share of the measured read bandwidth on as many threads.
Kernels and bandwidth are those of the saved result for the server workload, which is tuned first if there is none.
"""

from __future__ import annotations

import argparse
import random

from msgspec.structs import replace

from autotune import Options, tune
from autotune.confirmation import open_engine
from autotune.evidence import recall
from autotune.host.detect import detect
from autotune.model.memory import ends_bytes, kv_cache_bytes, weight_bytes
from autotune.records import PartRun, pooled

BATCHES = (1, 4, 16)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="bitnet-b1.58-2B-4T")
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()
    result = tune(args.model, Options())
    model, workload, host = result.model, result.workload, detect()
    evidence = recall(result, host)
    chosen = replace(result.decision.chosen.configuration, device_layers={"cpu": len(model.layers)}, head_device="cpu")
    wanted = [
        replace(chosen, decode_threads=threads, batch_size=batch)
        for threads in sorted({1, host.limits.usable_threads})
        for batch in BATCHES
    ]
    taken: list[PartRun] = []
    overhead: dict[tuple[int, int], float | None] = {}
    with open_engine(evidence, model) as engine:
        for _ in range(args.rounds):
            for each in random.sample(wanted, len(wanted)):
                found = engine.measure(each, workload, "decode", at_least=6, at_most_s=0.5)
                if isinstance(found, PartRun):
                    taken.append(found)
        for each in wanted:
            overhead[each.decode_threads, each.batch_size] = engine.overhead_share(each, workload)
    weights = sum(map(weight_bytes, model.layers)) + ends_bytes(model, embedding=False, head=True)
    print("| threads | batch | ms per step | interval % | tokens/s | GB/s | % of read bandwidth | outside kernels % |")
    print(f"|{' --- |' * 8}")
    for run in sorted(pooled(taken), key=lambda run: (run.part.threads, run.part.size)):
        threads, batch = run.part.threads, run.part.size
        read = weights + kv_cache_bytes(model, len(model.layers), batch * run.part.context)
        rate = read / run.median_s
        share = rate / result.cost_model.read_bytes_per_s[str(threads)]
        outside, interval = overhead[threads, batch], run.relative_interval
        cells = (
            threads,
            batch,
            f"{run.median_s * 1e3:.1f}",
            "-" if interval is None else f"{interval * 100:.1f}",
            f"{batch / run.median_s:.1f}",
            f"{rate / 1e9:.1f}",
            f"{share * 100:.0f}",
            "-" if outside is None else f"{outside * 100:.1f}",
        )
        print(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main()
