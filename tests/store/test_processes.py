"""The store under real processes: many at once, killed, out of space; and what the fast path imports."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from autotune.store import cache
from autotune.store.schema import decode_result
from tests.builders import build_campaign, build_result
from tests.store.conftest import KEY, Layers

Start = Callable[..., "subprocess.Popen[str]"]

WRITER = """
import sys
from autotune.store import cache
from tests.builders import build_campaign, build_result
print("ready", flush=True)
for write in range(int(sys.argv[1])):
    # Another size each time: a mixture of two writes could not pass for either.
    cache.write(build_result(campaign=build_campaign(points=1 + write * 37 % 400)), {"write": write})
"""

READER = f"""
import sys, time
from autotune.store import cache
from autotune.store.schema import decode_result
print("ready", flush=True)
reads, until = 0, time.monotonic() + float(sys.argv[1])
while time.monotonic() < until:
    assert cache.read_as(decode_result, {KEY.host!r}, {KEY.model!r}, "server") is not None
    reads += 1
print(reads)
"""


HEAVY = {"msgspec", "filelock", "platformdirs", "pathlib", "typing", "dataclasses", "json", "re"} | {
    "numpy",
    "torch",
    "optuna",
    "pandas",
}


def finish(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return output


def test_readers_see_only_whole_entries_while_writers_race(layers: Layers, start: Start) -> None:
    """Several processes write one key while others read it: every read is complete, none is bad or missing."""
    cache.write(build_result(), {})
    readers = [start(READER, "1.5", options=("-W", "error")) for _ in range(2)]
    writers = [start(WRITER, "25", options=("-W", "error")) for _ in range(3)]
    for writer in writers:
        finish(writer)
    assert all(int(finish(reader).split()[-1]) > 0 for reader in readers)
    assert cache.read(KEY.host, KEY.model, KEY.workload) is not None
    assert not (layers.named / "quarantine").exists()


def test_a_writer_killed_at_any_moment_leaves_no_torn_entry(layers: Layers, start: Start) -> None:
    """SIGKILL at random moments: what is read is always whole, and the lock is free again."""
    cache.write(build_result(), {})
    moments = random.Random(2)
    for _ in range(8):
        writer = start(WRITER, "1000000")
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        time.sleep(moments.uniform(0, 0.05))
        writer.kill()
        writer.wait()
        assert cache.read_as(decode_result, KEY.host, KEY.model, KEY.workload) is not None
        cache.write(build_result(), {})
    assert not (layers.named / "quarantine").exists()


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_writer_killed_with_its_file_half_done_is_cleaned_up_by_the_next(
    layers: Layers, start: Start, moment: str
) -> None:
    """Its temporary file is never read, and the next write uses it up."""
    cache.write(build_result(), {"write": "first"})
    script = f"import os, signal; os.{moment} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n{WRITER}"
    killed = start(script, "1")
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    folder = Path(KEY.path_in(str(layers.named))).parent
    assert (folder / ".writing").exists()
    found = cache.read(KEY.host, KEY.model, KEY.workload)
    assert found is not None
    assert found.request == {"write": "first"}
    cache.write(build_result(), {"write": "next"})
    assert not (folder / ".writing").exists()


def test_a_full_disk_leaves_the_previous_entry(layers: Layers, start: Start) -> None:
    """Out of space (here: the process's limit on file sizes, a real error of write): one sentence, nothing changed."""
    path = Path(cache.write(build_result(), {"write": "first"}))
    before = path.read_bytes()
    process = start(
        """
import resource
from autotune.errors import StoreError
from autotune.store import cache
from tests.builders import build_campaign, build_result
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    cache.write(build_result(campaign=build_campaign(points=400)), {})
except StoreError as error:
    print(error)
"""
    )
    reason = finish(process)
    assert reason == f"the result was not saved: no cache folder takes it ({layers.named}: File too large)\n"
    assert path.read_bytes() == before
    assert sorted(file.name for file in path.parent.iterdir()) == [".lock", path.name]
    assert not layers.user.exists()


@pytest.mark.parametrize(
    "statement", ["import autotune", f"cache.read({KEY.host!r}, {KEY.model!r}, 'server').request_json"]
)
def test_the_fast_path_imports_nothing_that_takes_long(layers: Layers, statement: str) -> None:
    """Finding, reading and verifying an entry stays within the time that starting an interpreter takes."""
    cache.write(build_result(campaign=build_campaign(points=50)), {})
    preamble = "" if statement == "import autotune" else "from autotune.store import cache; "
    script = (
        f"import sys; before = set(sys.modules); {preamble}{statement}; "
        f"print(sorted((set(sys.modules) - before) & {HEAVY!r}))"
    )
    # Not under coverage's measurement of child processes, which imports most of these itself.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**environment, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
