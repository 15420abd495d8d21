"""What a saved answer costs: ``python tests/benchmarks/startup.py [MODEL]`` (tune the model first).

Whole processes, interleaved: ``python -c pass``, ``import autotune``, the cached answer as JSON, and the commands that
say more of a saved result, as medians and as ratios to the first. Then, in this process, a call of
``get_optimal_device_config`` after the first one.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

import autotune

RUNS = 21
CALLS = 1000


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="bitnet-b1.58-2B-4T")
    model = parser.parse_args().model
    commands = {
        "python -c pass": ["-c", "pass"],
        "import autotune": ["-c", "import autotune"],
        "autotune MODEL --json": ["-m", "autotune", model, "--json"],
        "autotune show MODEL": ["-m", "autotune", "show", model],
        "autotune export MODEL --to env": ["-m", "autotune", "export", model, "--to", "env"],
        "autotune explain MODEL": ["-m", "autotune", "explain", model],
        "autotune explain MODEL --batch 4": ["-m", "autotune", "explain", model, "--batch", "4"],
        "autotune report MODEL -o -": ["-m", "autotune", "report", model, "-o", "-"],
    }
    autotune.tune(model)
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(RUNS):
        for name, arguments in commands.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            times[name].append(time.perf_counter() - start)
    base = statistics.median(times["python -c pass"])
    for name, found in times.items():
        median = statistics.median(found)
        print(f"{name:45s} {median * 1e3:6.1f} ms (min {min(found) * 1e3:.1f}), {median / base:.2f}x")
    calls = []
    autotune.get_optimal_device_config(model)
    for _ in range(CALLS):
        start = time.perf_counter()
        autotune.get_optimal_device_config(model)
        calls.append(time.perf_counter() - start)
    print(f"get_optimal_device_config after the first call: median {statistics.median(calls) * 1e6:.1f} us of {CALLS}")


if __name__ == "__main__":
    main()
