"""All that only a machine with a GPU can show, in one command of under ten minutes; needs no network.

    python tests/benchmarks/gpu.py --out FOLDER

1. that every GPU kernel equals the oracle, and the engine's stage a plain model, on the GPU itself;
2. the kernel table: `python -m ternary_kernels.bench.gpu`, for 2B-4T and Llama3-8B;
3. a full `python -m autotune` for both models, with the curve over GPU layers;
4. the host as a recording, and whether its replay decides the same as each tune did.

Needs Python 3.11 with its headers, a C compiler for Triton, torch 2.11 built for CUDA, triton 3.6, and these packages,
all of which are small and pure or have wheels: archspec, filelock, gguf, llvmlite, msgspec, numpy, nvidia-ml-py,
optuna, psutil, rich, threadpoolctl; and for step 1 pytest and hypothesis. What is missing is named at once.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
MODELS = ("bitnet-b1.58-2B-4T", "Llama3-8B-1.58-100B-tokens")
NEEDED = {
    "torch": "torch",
    "triton": "triton",
    "archspec": "archspec",
    "filelock": "filelock",
    "gguf": "gguf",
    "llvmlite": "llvmlite",
    "msgspec": "msgspec",
    "numpy": "numpy",
    "pynvml": "nvidia-ml-py",
    "optuna": "optuna",
    "psutil": "psutil",
    "rich": "rich",
    "threadpoolctl": "threadpoolctl",
    "pytest": "pytest",
    "hypothesis": "hypothesis",
}
"""Modules, and the distributions that hold them."""

_LIMIT_S = 580
_TESTS_LIMIT_S = 200
"""Of that for step 1, so that there is time for the others whatever becomes of it."""


def main() -> int:
    """Run all steps that there is time for; exit code 1 if one failed, 2 if they can't run here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for tables, results and the recording")
    out = parser.parse_args().out.resolve()
    missing = sorted(dist for module, dist in NEEDED.items() if importlib.util.find_spec(module) is None)
    if missing:
        parser.error(f"missing packages: {', '.join(missing)}")
    import torch

    if not torch.cuda.is_available():
        parser.error("there is no GPU that torch can use")
    out.mkdir(parents=True, exist_ok=True)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}", flush=True)
    runner = Runner(out)
    # Not -x: what else fails is worth as much. Warnings of a library on a GPU never seen before say nothing of kernels.
    words = "-q", "--maxfail=25", "--durations=10", "-W", "default", "-p", "no:cacheprovider"
    folders = "tests/kernels/cuda", "tests/engine/test_gpu_stage.py"
    runner.run("kernels_exact", "pytest", *words, *folders, limit_s=_TESTS_LIMIT_S)
    for model in MODELS:
        table = out / f"kernels_{model}.json"
        runner.run(
            f"kernels_{model}", "ternary_kernels.bench.gpu", "--model", model, "--seconds", "30", "--json", str(table)
        )
    for model in MODELS:
        runner.run(f"tune_{model}", "autotune", model, "--force", "--quiet")
        runner.run(f"explain_{model}", "autotune", "explain", model)
        runner.save(f"result_{model}.json", "autotune", "show", model, "--json")
    recording = out / "host.json"
    models = [word for model in MODELS for word in ("--model", model)]
    runner.run("record", "autotune", "host", "--record", str(recording), "--quiet", *models)
    for model in MODELS:
        replayed = runner.save(f"replay_{model}.json", "autotune", model, "--replay", str(recording), "--json")
        tuned = out / f"result_{model}.json"
        if replayed is not None and tuned.exists():
            print(compare(model, *(json.loads(path.read_text())["result"] for path in (tuned, replayed))), flush=True)
    return runner.summary()


def compare(model: str, tuned: dict, replayed: dict) -> str:
    """Whether two independent measurements of one host lead to the same decision, in a line."""
    first, second = tuned["decision"]["chosen"], replayed["decision"]["chosen"]
    same = "the same configuration" if first["configuration"] == second["configuration"] else "another configuration"
    ratio = second["predicted"]["tokens_per_s"] / first["predicted"]["tokens_per_s"]
    return (
        f"{model}: the recording decides for {same} as the tune, predicted tokens/s {ratio:.3f} of it\n"
        f"  tune    {json.dumps(first['configuration'])}\n  replay  {json.dumps(second['configuration'])}"
    )


class Runner:
    """Runs modules one after the other, each in a process of its own, until the time is up.

    Args:
        out: Folder for what they print.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._end = time.monotonic() + _LIMIT_S
        self._lines: list[str] = []
        self._failed = False
        paths = os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "kernels"), os.environ.get("PYTHONPATH", "")])
        self._environ = {**os.environ, "PYTHONPATH": paths, "AUTOTUNE_CACHE": str(out / "cache")}

    def run(self, name: str, *words: str, limit_s: float = _LIMIT_S) -> None:
        """Run a module for so long at most, show what it prints, and keep that in ``<name>.txt``."""
        done = self._start(name, words, limit_s)
        text = "" if done is None else done.stdout.decode(errors="replace") + done.stderr.decode(errors="replace")
        (self._out / f"{name}.txt").write_text(text)
        print(f"\n== {name}: python -m {' '.join(words)}\n{text}", flush=True)

    def save(self, file: str, *words: str) -> Path | None:
        """Run a module and keep its standard output as a file; None if it failed."""
        done = self._start(file, words)
        if done is None or done.returncode != 0:
            print(f"\n== {file}: {'' if done is None else done.stderr.decode(errors='replace')}", flush=True)
            return None
        (self._out / file).write_bytes(done.stdout)
        return self._out / file

    def summary(self) -> int:
        """Print how long each step took and how it ended; the exit code."""
        print("\n== steps\n" + "\n".join(self._lines), flush=True)
        return int(self._failed)

    def _start(
        self, name: str, words: tuple[str, ...], limit_s: float = _LIMIT_S
    ) -> subprocess.CompletedProcess[bytes] | None:
        """What became of a module; None: there was no time for it; exit code -1: it took too long."""
        start, left_s = time.monotonic(), min(limit_s, self._end - time.monotonic())
        command = [sys.executable, "-m", *words]
        done, how = None, "out of time"
        if left_s > 0:
            try:
                done = subprocess.run(
                    command, capture_output=True, timeout=left_s, env=self._environ, cwd=CHECKOUT, check=False
                )
                how = f"exit code {done.returncode}"
            except subprocess.TimeoutExpired as ended:
                done = subprocess.CompletedProcess(command, -1, ended.stdout or b"", ended.stderr or b"")
        self._failed |= done is None or done.returncode != 0
        self._lines.append(f"{name}: {time.monotonic() - start:.1f} s, {how}")
        return done


if __name__ == "__main__":
    sys.exit(main())
