"""This host as it is, and tiny products to time on it."""

from __future__ import annotations

import pytest

from autotune.bench.plan import Task
from autotune.host.detect import detect
from autotune.records import Point


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
