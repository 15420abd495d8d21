"""Kernels that crash, hang, run out of memory or are wrong, in real worker processes on this host.

Whatever one of them does, it becomes a failure of its own points, and the points of the others are measured.
"""

from __future__ import annotations

import pytest

from autotune.bench import campaign
from autotune.records import Failure, Measurement
from tests.builders import build_model

MODULES = ("ternary_kernels.reference.products", "tests.bench.faulty_kernels")
BUDGET_S = 9.0
"""Far more than any of these campaigns needs."""

FAULT_KINDS = {
    "crashing": ("crashed", "died of signal 11"),
    "aborting": ("crashed", "died of signal 6"),
    "exiting": ("crashed", "exited with status 3"),
    "killed": ("out_of_memory", "was killed (SIGKILL)"),
    "exhausting": ("out_of_memory", "not enough memory: no room for 7 elephants"),
    "raising": ("crashed", "RuntimeError: out of luck"),
    "refusing": ("unsupported", "ValueError: expected an even k_in, got 256"),
}
HANGS = {"hanging", "hogging"}


@pytest.fixture(scope="module")
def time_tasks(host):
    """Times tasks in real workers; returns the campaign and its outcomes by kernel."""

    def run(tasks, budget_s=BUDGET_S):
        found = campaign.run(build_model(), host, tasks, budget_s=budget_s, kernel_modules=MODULES)
        tried = [outcome.point for outcome in found.outcomes]
        assert tried == [task.point for task in tasks if task.point in tried]
        by_kernel = {}
        for outcome in found.outcomes:
            by_kernel.setdefault(outcome.point.kernel, []).append(outcome)
        return by_kernel

    return run


def assert_failed(outcomes, kind, message):
    for outcome in outcomes:
        assert isinstance(outcome, Failure)
        assert outcome.kind == kind
        assert message in outcome.message


def assert_measured(outcomes):
    for outcome in outcomes:
        assert isinstance(outcome, Measurement), outcome
        assert min(outcome.samples_s) > 0


@pytest.fixture(scope="module")
def faulty_at_once(time_tasks, product):
    """One campaign over all kernels that fail on a small matrix already, with two points each."""
    kernels = ["numpy", *FAULT_KINDS, "wrong", "unfinished", "abacus"]
    return time_tasks([product(kernel, m=m) for m in (1, 2) for kernel in kernels])


@pytest.fixture(scope="module")
def faulty_when_timed(time_tasks, product):
    """One campaign over all kernels that pass the check and fail when they are timed.

    Their products are larger than numpy's, so that they are tried as the control.
    """
    late = [product(f"late-{name}", n_out=512) for name in FAULT_KINDS]
    return time_tasks([product(), *late, product("picky", n_out=512), product(m=2)])


@pytest.mark.parametrize("name", FAULT_KINDS)
def test_a_kernel_that_fails_on_a_small_matrix_is_out_at_all_its_points(faulty_at_once, name):
    assert len(faulty_at_once[name]) == 2
    assert_failed(faulty_at_once[name], *FAULT_KINDS[name])


@pytest.mark.parametrize("name", FAULT_KINDS)
def test_a_kernel_that_fails_when_it_is_timed_is_out(faulty_when_timed, name):
    assert_failed(faulty_when_timed[f"late-{name}"], *FAULT_KINDS[name])


def test_a_kernel_that_refuses_a_shape_is_out_there(faulty_when_timed):
    assert_failed(faulty_when_timed["picky"], "unsupported", "ValueError: picky: expected at most 128 rows, got 512")


def test_a_control_that_fails_is_out_and_another_takes_its_place(time_tasks, product):
    """The largest product is the control, which is timed before all others."""
    found = time_tasks([product("tiring", n_out=512), product()])
    assert_failed(found["tiring"], "crashed", "the worker exited with status 1: RuntimeError: tired of it")
    assert_measured(found["numpy"])


def test_a_wrong_result_is_out_where_it_is_wrong_and_not_timed(faulty_at_once):
    right, wrong = faulty_at_once["wrong"]
    assert_measured([right])
    assert_failed([wrong], "wrong_result", "wrong I2_S k_in=256 m=2, 1 threads: differs from the oracle")


def test_a_result_that_is_not_written_whole_is_wrong(faulty_at_once):
    assert_failed(faulty_at_once["unfinished"], "wrong_result", "differs from the oracle")


def test_an_unknown_kernel_is_unsupported(faulty_at_once):
    assert_failed(faulty_at_once["abacus"], "unsupported", "no kernel 'abacus' for format 'I2_S'")


def test_the_other_points_are_measured_all_the_same(faulty_at_once, faulty_when_timed):
    assert len(faulty_at_once["numpy"]) == len(faulty_when_timed["numpy"]) == 2
    assert_measured(faulty_at_once["numpy"] + faulty_when_timed["numpy"])


@pytest.mark.parametrize("name", sorted(HANGS))
def test_a_kernel_that_hangs_is_out_and_the_others_are_measured(time_tasks, product, monkeypatch, name):
    """In the check one hang stands for all points of the kernel; when timed, each is on its own."""
    monkeypatch.setattr(campaign, "_MAX_PATIENCE_S", 1.0)  # to save time
    tasks = [product(name), product(name, m=2), product(), product(f"late-{name}"), product(m=2)]
    found = time_tasks(tasks)
    assert_failed(found[name] + found[f"late-{name}"], "hung", "nothing came back in time")
    assert_measured(found["numpy"])


def test_a_kernel_may_print(time_tasks, product):
    """Standard output belongs to the worker's events; what a kernel prints doesn't get among them."""
    assert_measured(time_tasks([product("printing"), product()])["printing"])


def test_when_all_fail_the_campaign_ends_at_once_and_says_so(host, product):
    tasks = [product("late-raising"), product("late-exhausting"), product("crashing")]
    found = campaign.run(build_model(), host, tasks, budget_s=60, kernel_modules=MODULES)
    assert {outcome.kind for outcome in found.failures()} == {"crashed", "out_of_memory"}
    assert not found.measurements()
    assert found.noise.points == 0
    assert found.noise.median_relative_interval is None
    assert found.spent_s < 30


# Rivals


def test_a_kernel_that_is_clearly_beaten_is_spared_further_points(time_tasks, product):
    """The reference loses at 1 and 64 tokens, so 16 tokens are the other kernel's alone."""
    found = time_all(time_tasks, product, ("instant", "numpy"))
    assert_measured(found["instant"])
    assert [outcome.stopped for outcome in found["numpy"]] == ["beaten", "beaten"]
    assert [outcome.point.m for outcome in found["numpy"]] == [1, 64]
    assert [outcome.point.m for outcome in found["instant"]] == [1, 64, 16]


@pytest.mark.parametrize("rival", ["wrong", "late-crashing"])
def test_where_the_other_kernel_fails_the_reference_is_timed_throughout(time_tasks, product, rival):
    found = time_all(time_tasks, product, (rival, "numpy"))
    assert [outcome.point.m for outcome in found["numpy"]] == [1, 64, 16]
    assert_measured(found["numpy"])


def test_compiling_a_kernel_is_no_hang(time_tasks, product, monkeypatch):
    """It may take longer than any call is waited for."""
    monkeypatch.setattr(campaign, "_MAX_PATIENCE_S", 0.3)
    assert_measured(time_tasks([product("compiling")])["compiling"])


def time_all(time_tasks, product, kernels):
    """Times products at three values of m with several kernels; returns outcomes by kernel."""
    return time_tasks([product(kernel, m=m, n_out=1024) for m in (1, 64, 16) for kernel in kernels])
