"""Whether `autotune compare` tells what is true: ``python tests/benchmarks/compare_runs.py [MODEL] [--runs N]``.

Compares this version with itself, and with itself slowed down: an interpreter whose engine really takes a tenth longer
for every decode step and prompt, within what is timed. Prints a table; exits with 1 where the planted slow-down was not
found or a comparison with itself was called worse or better. Takes some minutes, best on a host that does nothing else.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from autotune.compare.verdict import Comparison

SLOWDOWN = 0.1
SITE = f'''\
"""Makes the engine of whoever imports this take longer: Python does so when it starts."""
import sys

if "autotune.engine.worker" in sys.orig_argv:
    import time

    from autotune.engine.transformer import RunningPart

    undisturbed = RunningPart.sample

    def sample(self):
        start = time.perf_counter()
        total_s, device_s = undisturbed(self)
        while (now_s := time.perf_counter() - start) < total_s * {1 + SLOWDOWN}:
            pass
        return now_s, {{device: part_s * now_s / total_s for device, part_s in device_s.items()}}

    RunningPart.sample = sample
'''


def interpreter(folder: Path, name: str, *, slow: bool) -> Path:
    """A script that is this interpreter with this autotune."""
    places = [path for path in sys.path if path]
    if slow:
        site = folder / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(SITE)
        places.insert(0, str(site))
    script = folder / name
    path = shlex.quote(os.pathsep.join(places))
    script.write_text(f'#!/bin/sh\nPYTHONPATH={path} exec {shlex.quote(sys.executable)} "$@"\n')
    script.chmod(0o755)
    return script


def compare(base: Path, head: Path, model: str, budget_s: float) -> tuple[int, Comparison]:
    """The command's exit code and its answer."""
    words = ["compare", base, head, "--model", model, "--workload", "chat", "--budget", f"{budget_s:g}"]
    done = subprocess.run(
        [sys.executable, "-m", "autotune", *map(str, words), "--quiet", "--json"], stdout=subprocess.PIPE
    )
    return done.returncode, msgspec.json.decode(done.stdout, type=Comparison)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="bitnet_b1_58-large")
    parser.add_argument("--runs", type=int, default=10, help="comparisons with itself")
    parser.add_argument("--planted", type=int, default=3, help="comparisons with the slow one")
    parser.add_argument("--budget", type=float, default=40.0, help="seconds for each")
    args = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["AUTOTUNE_CACHE"] = str(folder / "cache")
        tune = ["tune", args.model, "--workload", "chat", "--prompt", "64", "--output", "64", "--no-confirm", "--quiet"]
        subprocess.run([sys.executable, "-m", "autotune", *tune], check=True, stderr=subprocess.DEVNULL)
        plain, slow = (interpreter(folder, name, slow=name == "slow") for name in ("plain", "slow"))
        print("| HEAD | verdict | exit | rounds | s | TPOT %, interval | TTFT %, interval | tokens/s %, interval |")
        print(f"|{' --- |' * 8}")
        for label, head, count in (("a tenth slower", slow, args.planted), ("the same", plain, args.runs)):
            for _ in range(count):
                code, found = compare(plain, head, args.model, args.budget)
                wrong += found.verdict != "worse" if head == slow else found.verdict in ("worse", "better")
                changes = [
                    f"{100 * change.change:+.1f}, {100 * change.low:+.1f} to {100 * change.high:+.1f}"
                    for change in found.compared[0].changes
                ]
                cells = label, found.verdict, code, len(found.rounds), f"{found.spent_s:.0f}", *changes
                print(f"| {' | '.join(map(str, cells))} |", flush=True)
    print(f"\n{wrong} of {args.planted + args.runs} wrong: the slow one not found, or the same called worse or better")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
