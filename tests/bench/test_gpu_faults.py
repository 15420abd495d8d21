"""GPU kernels that raise, hang, run out of memory, lose the device or are wrong, in real worker processes.

torch's CPU device stands in for the GPU, and the errors are worded as torch words them.
"""

from __future__ import annotations

import pytest

from autotune.bench import campaign
from autotune.records import Failure, Measurement
from tests.builders import build_model

pytest.importorskip("torch")

MODULES = ("ternary_kernels.cuda.torch_products", "tests.bench.faulty_products")
BUDGET_S = 40.0
"""Far more than any of these campaigns needs."""

RAISED = {
    "exhausting": ("out_of_memory", "not enough memory on the GPU: CUDA out of memory"),
    "raising": ("crashed", "RuntimeError: out of luck"),
    "refusing": ("unsupported", "ValueError: expected an even k_in, got 256"),
}
FATAL = {
    "exiting": ("crashed", "the worker exited with status 3: it said nothing"),
    "losing": ("crashed", "the GPU was lost to the process: CUDA error: unspecified launch failure"),
}
FAULT_KINDS = RAISED | FATAL
FAILING_CHECKS = (*RAISED, "losing")


@pytest.fixture(scope="module")
def time_tasks(host, on_gpu):
    """Times tasks on the stand-in, and others on the CPU; returns the run and the outcomes by kernel."""

    def run(tasks, on_cpu=()):
        found = campaign.run(
            build_model(),
            host,
            on_cpu,
            gpus=[on_gpu(*tasks)],
            budget_s=BUDGET_S,
            kernel_modules=MODULES,
            torch_device="cpu",
        )
        by_kernel = {}
        for outcome in found.outcomes:
            by_kernel.setdefault(outcome.point.kernel, []).append(outcome)
        return found.gpus[0], by_kernel

    return run


def assert_failed(outcomes, kind, message):
    for outcome in outcomes:
        assert isinstance(outcome, Failure)
        assert (outcome.kind, outcome.message) == (kind, message)


def assert_measured(outcomes):
    for outcome in outcomes:
        assert isinstance(outcome, Measurement), outcome


@pytest.fixture(scope="module")
def faulty_at_once(time_tasks, gpu_product):
    """All kernels that fail on a small matrix already, with two points each."""
    kernels = ["torch", *FAILING_CHECKS, "wrong", "unfinished", "abacus"]
    return time_tasks([gpu_product(kernel, m=m) for m in (1, 2) for kernel in kernels])[1]


@pytest.fixture(scope="module")
def faulty_when_timed(time_tasks, gpu_product):
    """All kernels that pass the check and fail when they are timed; larger than torch's, so tried as the control."""
    late = [gpu_product(f"late-{name}", n_out=512) for name in FAULT_KINDS]
    return time_tasks([gpu_product(), *late, gpu_product(m=2)])


@pytest.mark.parametrize("name", FAILING_CHECKS)
def test_a_kernel_that_fails_on_a_small_matrix_is_out_at_all_its_points(faulty_at_once, name):
    assert len(faulty_at_once[name]) == 2
    assert_failed(faulty_at_once[name], *FAULT_KINDS[name])


@pytest.mark.parametrize("name", FAULT_KINDS)
def test_a_kernel_that_fails_when_it_is_timed_is_out(faulty_when_timed, name):
    """After an error that loses the device another process goes on."""
    assert_failed(faulty_when_timed[1][f"late-{name}"], *FAULT_KINDS[name])


def test_a_wrong_result_is_out_where_it_is_wrong_and_not_timed(faulty_at_once):
    right, wrong = faulty_at_once["wrong"]
    assert_measured([right])
    assert_failed([wrong], "wrong_result", "wrong I2_S k_in=256 m=2, cuda:0: differs from the oracle")


def test_a_result_that_is_not_written_whole_is_wrong(faulty_at_once):
    for outcome in faulty_at_once["unfinished"]:
        assert (outcome.kind, "differs from the oracle" in outcome.message) == ("wrong_result", True)


def test_an_unknown_kernel_is_unsupported(faulty_at_once):
    for outcome in faulty_at_once["abacus"]:
        assert outcome.kind == "unsupported"
        assert "no kernel 'abacus' for format 'I2_S'" in outcome.message


def test_the_other_points_are_measured_all_the_same(faulty_at_once, faulty_when_timed):
    assert len(faulty_at_once["torch"]) == len(faulty_when_timed[1]["torch"]) == 2
    assert_measured(faulty_at_once["torch"] + faulty_when_timed[1]["torch"])


def test_a_site_that_no_kernel_can_do_fails_the_run_with_its_reason(faulty_when_timed):
    """The first of those that its kernels failed with."""
    assert faulty_when_timed[0].failure == "matmul I2_S 512 x 256 could not be timed: " + RAISED["exhausting"][1]


def test_a_control_that_loses_the_device_is_out_and_another_takes_its_place(time_tasks, gpu_product):
    """The largest product is the control, which is timed before all others."""
    _, found = time_tasks([gpu_product("losing-later", n_out=512), gpu_product()])
    message = "the GPU was lost to the process: CUDA error: an illegal memory access was encountered"
    assert_failed(found["losing-later"], "crashed", message)
    assert_measured(found["torch"])


def test_a_kernel_that_hangs_is_out_and_the_others_are_measured(time_tasks, gpu_product, monkeypatch):
    monkeypatch.setattr(campaign, "_MAX_PATIENCE_S", 1.0)  # to save time
    _, found = time_tasks([gpu_product("late-hanging"), gpu_product(), gpu_product(m=2)])
    assert_failed(found["late-hanging"], "hung", "nothing came back in time, so the worker was ended")
    assert_measured(found["torch"])


def test_a_device_that_is_lost_for_good_fails_the_run_and_what_was_timed_stays(
    time_tasks, product, gpu_product, tmp_path, monkeypatch
):
    """And the CPU is timed all the same."""
    monkeypatch.setenv("LOST", str(tmp_path / "lost"))
    tasks = [gpu_product(), gpu_product("losing-for-good", n_out=512), gpu_product(m=2)]
    run, found = time_tasks(tasks, [product()])
    assert_measured(found["numpy"])
    assert run.failure == (
        "before it came to any task, the benchmark's worker exited with status 1: "
        "RuntimeError: no CUDA-capable device is detected"
    )
    message = "the GPU was lost to the process: CUDA error: device-side assert triggered"
    assert_failed(found["losing-for-good"], "crashed", message)
    assert len(found["torch"]) == 2


def test_the_reference_is_spared_where_it_is_clearly_beaten(time_tasks, gpu_product):
    """Torch is to a GPU what numpy is to a CPU: it loses at 1 and 64 tokens, so 16 are the other kernel's alone."""
    tasks = [gpu_product(kernel, m=m, n_out=1024) for m in (1, 64, 16) for kernel in ("instant", "torch")]
    _, found = time_tasks(tasks)
    assert_measured(found["instant"])
    assert [(outcome.point.m, outcome.stopped) for outcome in found["torch"]] == [(1, "beaten"), (64, "beaten")]
