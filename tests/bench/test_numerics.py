"""The check against the oracle: every kernel there is, with every format it is written for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from autotune.bench.messages import Started
from autotune.bench.numerics import Checker
from autotune.bench.plan import Task
from autotune.host.detect import detect
from autotune.host.kernels import find_kernels
from autotune.records import Point
from ternary_kernels.team import Team

RUNNABLE = [kernel for kernel in find_kernels(detect()) if kernel.reason is None]
K_IN = (2560, 6912)


@pytest.fixture(scope="module")
def teams():
    with Team(1) as one:
        yield {1: one}


def tasks_of(kernels, tokens=(1, 64), k_in=K_IN):
    return [
        Task(Point("matmul", "cpu", kernel.kernel, 1, m, kernel.format, 1024, columns))
        for kernel, m, columns in itertools.product(kernels, tokens, k_in)
    ]


@pytest.mark.parametrize("kernel", RUNNABLE, ids=lambda kernel: f"{kernel.kernel}-{kernel.format}")
def test_what_the_registry_says_can_run_passes(kernel, teams):
    tokens = (16, 64) if kernel.kernel == "amx" else (1, 64)
    events = []
    with np.errstate(invalid="raise", over="raise", divide="raise"):
        assert Checker(teams, events.append).check(tasks_of([kernel], tokens), ()) == set(), events[-1]


def test_building_a_kernel_is_announced_as_something_that_may_compile(teams):
    events = []
    kernel = next(kernel for kernel in RUNNABLE if (kernel.kernel, kernel.format) == ("numpy", "I2_S"))
    Checker(teams, events.append).check(tasks_of([kernel], (1,), (256,)), ())
    assert events == [Started((0,), None, compiles=True), Started((0,), None)]


def test_what_is_skipped_is_not_checked(teams):
    events = []
    tasks = tasks_of(RUNNABLE[-1:], (1,), (256,))
    assert Checker(teams, events.append).check(tasks, [0]) == set()
    assert not events


def test_the_oracle_runs_once_for_all_ternary_formats_kernels_and_values_of_m(teams, monkeypatch):
    """It is the slow part: formats and kernels multiply, and the check must not."""
    from autotune.bench import numerics

    matmul, calls = numerics.oracle.matmul, []
    monkeypatch.setattr(numerics.oracle, "matmul", lambda *args: calls.append(args) or matmul(*args))
    kernels = [kernel for kernel in RUNNABLE if kernel.format in ("I2_S", "I2_S_ARM")]
    Checker(teams, lambda event: None).check(tasks_of(kernels, (16, 33, 64), (512,)), ())
    assert len(calls) == 1
