"""Time of the history of many records: ``python tests/benchmarks/history.py [--records 10000]``.

Writes synthetic records (with as many samples as real ones keep at most) to a temporary folder and prints what whole
processes take, from start to exit: median and spread.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path

from msgspec.structs import replace

from autotune.history.condense import MAX_SAMPLES, history_record
from autotune.history.store import encode
from autotune.history.surroundings import Checkout

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.builders import build_confirmed_result  # noqa: E402 (the tests are no package that is installed)

REPEATS = 5
PER_FOLDER = 2500


def generate(folder: Path, count: int) -> int:
    """Write synthetic records; returns the bytes of all of them."""
    draw = random.Random(0)
    first = datetime(2026, 1, 1, tzinfo=UTC)
    template = history_record(build_confirmed_result(), recorded_at=first.isoformat(), checkout=Checkout())
    size_bytes = 0
    for number in range(count):
        at = first + timedelta(minutes=30 * number)
        samples = [tuple(draw.gauss(mean_s, mean_s / 50) for _ in range(MAX_SAMPLES)) for mean_s in (0.02, 0.1)]
        record = replace(
            template,
            recorded_at=at.isoformat(),
            measured_at=at.isoformat(),
            commit=f"{draw.getrandbits(160):040x}",
            branch="main",
            dirty=False,
            tags={"runner": f"ci-{number % 7}"},
            decode_samples_s=samples[0],
            prefill_samples_s=samples[1],
        )
        path = folder / f"model-{number // PER_FOLDER}" / f"{number:08}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(raw := encode(record))
        size_bytes += len(raw)
    return size_bytes


def timed(*arguments: str) -> list[float]:
    """Seconds that whole processes take, the first one left out."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "kernels")))}
    times_s = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        command = [sys.executable, "-m", "autotune", "history", *arguments]
        subprocess.run(command, env=environment, capture_output=True, check=True)
        times_s.append(time.perf_counter() - start)
    return times_s[1:]


def main() -> None:
    """Print one line per kind of output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=10_000)
    count = parser.parse_args().records
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "results")
        folder.mkdir()
        size_bytes = generate(folder, count)
        print(f"{count:,} records of {size_bytes / count / 1e3:.1f} kB")
        outputs = {"table": (), "--json": ("--json",), "--csv": ("--csv", f"{temporary}/all.csv")}
        if find_spec("pyarrow") is not None:
            outputs["--parquet"] = ("--parquet", f"{temporary}/all.parquet")
        for name, arguments in outputs.items():
            times_s = timed("--results", str(folder), *arguments)
            low, high = min(times_s), max(times_s)
            print(f"{name}: median {statistics.median(times_s):.2f} s, {low:.2f} to {high:.2f} s")


if __name__ == "__main__":
    main()
