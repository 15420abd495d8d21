"""This host as it is, and tiny products to time on it."""

from __future__ import annotations

import pytest

from autotune.bench.gpu_plan import GpuTasks
from autotune.bench.plan import Task
from autotune.host.detect import detect
from autotune.records import Gpu, Point

GPU = Gpu(0, "Synthetic GPU", "GPU-synthetic", 1 << 30, 1 << 30, (9, 0), mig=False, unusable_reason=None)


@pytest.fixture(scope="session")
def host():
    """The host that the tests run on."""
    return detect()


@pytest.fixture(scope="session")
def product():
    """Builds the task of timing a tiny I2_S product."""

    def build(kernel="numpy", threads=1, m=1, n_out=256, k_in=256, rows=None, weight_format="I2_S"):
        return Task(Point("matmul", "cpu", kernel, threads, m, weight_format, n_out, k_in), rows)

    return build


@pytest.fixture(scope="session")
def gpu_product():
    """Builds the task of timing a small I2_S product on a GPU."""

    def build(kernel="torch", m=1, n_out=256, k_in=256, rows=None, launch="graph"):
        return Task(Point("matmul", "cuda:0", kernel, 1, m, "I2_S", n_out, k_in, launch=launch), rows)

    return build


@pytest.fixture(scope="session")
def on_gpu():
    """Builds what is to be timed on a synthetic GPU."""

    def build(*tasks, devices=("cuda:0",), failure=None):
        return GpuTasks(devices, GPU, tasks, failure)

    return build
