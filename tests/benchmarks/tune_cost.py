"""What a cold tune costs: ``python tests/benchmarks/tune_cost.py [MODEL]``.

Runs the default tune, the quick one and that over all formats, with no result and no compiled kernel cached, and
prints wall time and peak memory: resident bytes of the tuner and its worker together, sampled every 20 ms.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time

import psutil

SAMPLE_EVERY_S = 0.02


def run(arguments: list[str]) -> tuple[float, int]:
    """Wall seconds and peak resident bytes of one command and its children, with empty caches."""
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        process = psutil.Popen(
            [sys.executable, "-m", "autotune", *arguments],
            env={**os.environ, "AUTOTUNE_CACHE": cache, "TERNARY_KERNELS_CACHE": f"{cache}/kernels"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        peak = 0
        while process.poll() is None:
            resident = 0
            with contextlib.suppress(psutil.NoSuchProcess):
                for member in (process, *process.children(recursive=True)):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        resident += member.memory_info().rss
            peak = max(peak, resident)
            time.sleep(SAMPLE_EVERY_S)
        return time.perf_counter() - start, peak


def main() -> None:
    """Print one line per kind of tune."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="bitnet-b1.58-2B-4T")
    parser.add_argument("--repeat", type=int, default=1)
    args = parser.parse_args()
    for options in ([], ["--quick"], ["--format", "auto"]):
        for _ in range(args.repeat):
            wall_s, peak = run([args.model, "--force", *options])
            print(f"{' '.join(['autotune', args.model, *options]):45s} {wall_s:5.1f} s, {peak / 2**30:.2f} GiB at most")


if __name__ == "__main__":
    main()
