"""Kills a search again and again, and resumes it: ``python tests/benchmarks/kill_and_resume.py [MODEL]``.

Runs ``autotune MODEL --storage sqlite:///...`` with an empty cache, sends it SIGKILL at a random moment among its runs,
and starts it again, several times; at last it may finish. After every kill it looks for processes that were left
behind, and for samples that the database had before and hasn't any more.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import optuna
import psutil

ENOUGH_S = 5.0
"""How long a child may take to notice that its parent is gone."""


def samples_in(url: str) -> tuple[Counter[str], int]:
    """All runs that a database holds, as text; and how many trials there are."""
    held: Counter[str] = Counter()
    trials = 0
    for name in optuna.get_all_study_names(url):
        study = optuna.load_study(study_name=name, storage=url)
        found = study.get_trials(deepcopy=False)
        trials += len(found)
        for attributes in (study.user_attrs, *(trial.user_attrs for trial in found)):
            held.update(str(value) for key, value in attributes.items() if key.startswith("run "))
    return held, trials


def wait_for_engine(process: psutil.Process) -> bool:
    """Wait until the process has started the engine; whether it came to that."""
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        with contextlib.suppress(psutil.Error):
            if any("autotune.engine.worker" in child.cmdline() for child in process.children()):
                return True
        time.sleep(0.02)
    return False


def left_behind(children: list[psutil.Process]) -> int:
    """How many of these processes are still there after a while."""
    _, alive = psutil.wait_procs(children, timeout=ENOUGH_S)
    return sum(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in alive)


def main() -> None:
    """Print a line per kill, and what came of it in the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="bitnet_b1_58-large")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument(
        "--within", type=float, default=12.0, help="seconds from the engine's start in which it is killed"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'study.db'}"
        # The largest batches: their search takes the longest.
        command = [sys.executable, "-m", "autotune", args.model, "--workload", "offline", "--storage", url]
        environment = {**os.environ, "AUTOTUNE_CACHE": folder}
        held: Counter[str] = Counter()
        print("kill   after s   trials   runs kept   runs lost   processes left")
        for kill in range(1, args.kills + 1):
            with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
                parent = psutil.Process(process.pid)
                if not wait_for_engine(parent):
                    print(f"{kill:4d}   the search had ended before")
                    continue
                after_s = rng.uniform(0, args.within)
                time.sleep(after_s)
                ended = process.poll() is not None
                children = [] if ended else parent.children(recursive=True)
                process.kill()
            now, trials = samples_in(url)
            lost = sum((held - now).values())
            note = "   (it had ended)" if ended else ""
            print(
                f"{kill:4d} {after_s:9.2f} {trials:8d} {sum(now.values()):11d} {lost:11d} "
                f"{left_behind(children):16d}{note}",
                flush=True,
            )
            held = now
        last = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, check=False)
        now, trials = samples_in(url)
        print(
            f"then it ended with exit code {last.returncode}, {trials} trials, {sum((held - now).values())} runs lost"
        )
        print(next((line for line in last.stderr.splitlines() if line.startswith("run ")), ""))


if __name__ == "__main__":
    main()
