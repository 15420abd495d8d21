from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from autotune.store import paths
from autotune.store.entry import Key
from tests.builders import HOST_FINGERPRINT, MODEL_DIGEST

ROOT = Path(__file__).parents[2]
KEY = Key(HOST_FINGERPRINT, MODEL_DIGEST, "server")


@dataclass(frozen=True)
class Layers:
    """The three layers, each a folder of its own that doesn't exist yet."""

    named: Path
    user: Path
    system: Path


@pytest.fixture
def layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layers:
    """Points every layer into the test's own folder, for this process and its children."""
    monkeypatch.setenv("AUTOTUNE_CACHE", str(tmp_path / "named"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(paths, "SYSTEM_LAYER", str(tmp_path / "system"))
    return Layers(tmp_path / "named", tmp_path / "home" / "bitnet-autotune", tmp_path / "system")


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts another Python that runs a script with this checkout on its path; ended with the test."""
    started = []

    def start_python(script: str, *arguments: str, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        # Not under coverage: its data file doesn't survive a kill.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
        environment["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
        process = subprocess.Popen(
            [sys.executable, *options, "-c", script, *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start_python
    for process in started:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def permissions_bind() -> Iterator[None]:
    """Holds back root's power to ignore a file's permissions, so that chmod binds root too.

    Source: capset(2), version 3 of the structures; capabilities(7).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    before, after = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, before) == 0
    after[:] = before[:]
    after[0] &= ~0b110  # effective: CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, after) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0
