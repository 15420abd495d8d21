"""Whole results, evidence included, for hosts that nobody has here: decided from recordings, once per test run."""

from __future__ import annotations

import functools
from pathlib import Path

from autotune.options import Options
from autotune.recorded import replay
from autotune.records import Result
from autotune.store.recording import read

HOSTS = Path(__file__).parent / "hosts"


@functools.cache
def on_cpu(workload: str = "server") -> Result:
    """A measured host with 2 threads and no GPU."""
    return replay(read(HOSTS / "xeon-2-threads-native.json"), "bitnet-b1.58-2B-4T", Options(workload=workload))


@functools.cache
def on_gpu(workload: str = "server") -> Result:
    """A synthetic laptop whose GPU holds the whole model."""
    return replay(read(HOSTS / "synthetic" / "laptop-8gb-gpu.json"), "bitnet-b1.58-2B-4T", Options(workload=workload))


@functools.cache
def hybrid(workload: str = "server") -> Result:
    """A synthetic office computer: some layers on its small GPU, the first ones on the CPU."""
    model = "Llama3-8B-1.58-100B-tokens"
    return replay(read(HOSTS / "synthetic" / "office-4gb-gpu.json"), model, Options(workload=workload))
