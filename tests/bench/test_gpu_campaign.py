"""Campaigns over a synthetic GPU: real worker processes and real kernels, with torch's CPU device in its place."""

from __future__ import annotations

import msgspec
import pytest
from msgspec.structs import replace

from autotune.bench import campaign
from autotune.bench.gpu_plan import plan_gpus
from autotune.bench.plan import Task
from autotune.bench.rivals import choose_kernels
from autotune.records import Campaign, Gpus, Kernel, Point, Site
from tests.bench.conftest import GPU
from tests.builders import build_model, build_workload

torch = pytest.importorskip("torch")

FOUND = (
    *(Kernel("numpy", name, None, None) for name in ("I2_S", "F16")),
    *(Kernel("torch", name, "sm_90", None, "gpu") for name in ("I2_S", "F16")),
)
BUDGET_S = 40.0
"""Far more than any of these campaigns needs."""

OVERRUN = 1.10
"""The budget's own promise."""


def smaller(task):
    """A GPU's peak is of a size that takes a CPU minutes."""
    return Task(replace(task.point, m=32, n_out=64, k_in=64)) if task.point.op == "peak" else task


@pytest.fixture(scope="module")
def gpus(host):
    """All that is to be timed of a tiny model on a synthetic GPU."""
    has_gpu = replace(host, gpus=Gpus((GPU,), "999.0", None))
    kernels = choose_kernels(FOUND, ("I2_S", "F16"), None)
    workload = build_workload(prompt_tokens=4, output_tokens=4, context_tokens=8, max_batch=2)
    (planned,) = plan_gpus((build_model(max_context=64),), has_gpu, workload, kernels)
    return (planned._replace(tasks=tuple(map(smaller, planned.tasks))),)


@pytest.fixture(scope="module")
def reports():
    return []


@pytest.fixture(scope="module")
def found(host, product, gpus, reports):
    """One campaign over a GPU and the CPU."""
    return campaign.run(
        build_model(max_context=64),
        host,
        [product(), product(m=2)],
        gpus=gpus,
        budget_s=BUDGET_S,
        progress=lambda *told: reports.append(told),
        torch_device="cpu",
    )


def test_the_cpus_outcomes_come_first_and_then_the_gpus_in_the_order_of_their_tasks(found, product, gpus):
    wanted = [product().point, product(m=2).point, *(task.point for task in gpus[0].tasks)]
    assert [outcome.point for outcome in found.outcomes] == wanted
    assert not found.failures()


def test_every_operation_of_a_step_and_every_transfer_is_timed(found):
    timed = {outcome.point.op for outcome in found.measurements() if outcome.point.device == "cuda:0"}
    assert timed == {"read", "peak", "matmul", "attention", "layer_ops", "upload", "download", "handover"}
    for outcome in found.measurements():
        assert min(outcome.samples_s) > 0


def test_the_run_says_what_was_found_of_the_gpu(found):
    """NVML knows no synthetic GPU, and torch's CPU device has no cache, no context and no memory of its own."""
    (run,) = found.gpus
    assert (run.devices, run.failure) == (("cuda:0",), None)
    assert run.noise.points > 0
    assert run.libraries["torch"] == torch.__version__
    assert run.cold_bytes > 128 << 20
    assert 50 << 20 < run.host_bytes < 2 << 30
    assert (run.context_bytes, run.free_bytes, run.l2_bytes, run.multiprocessors) == (0, None, None, None)
    clocks = run.clocks
    assert (clocks.lowest_sm_hz, clocks.highest_sm_hz, clocks.memory_hz, clocks.busy_before) == (None,) * 4
    assert clocks.throttle_reasons == ()


def test_noise_cold_memory_and_overhead_of_the_campaign_are_the_cpus(found):
    on_cpu = [outcome for outcome in found.measurements() if outcome.point.device == "cpu"]
    assert found.noise.points == len(on_cpu) == 2
    assert found.cold_bytes != found.gpus[0].cold_bytes
    assert found.runtime_overhead_bytes < found.gpus[0].host_bytes


def test_progress_goes_on_from_the_gpu_to_the_cpu(found, reports):
    shares, timed, totals = zip(*reports, strict=True)
    assert list(shares) == sorted(shares)
    assert list(timed) == sorted(timed)
    assert timed[-1] == set(totals).pop() == len(found.outcomes)


def test_time_that_the_gpu_does_not_need_is_left_to_the_cpu(host, product, gpu_product, on_gpu):
    """Ten milliseconds of work in each: of two minutes one is the GPU's."""
    found = time_both(host, [product()], [on_gpu(gpu_product())], budget_s=120)
    assert not found.failures()
    assert found.spent_s < 60
    assert found.gpus[0].spent_s < found.spent_s


def test_a_campaign_with_gpus_survives_the_way_through_a_file(found):
    assert msgspec.json.decode(msgspec.json.encode(found), type=Campaign) == found


def test_each_kind_of_gpu_has_its_own_run_and_one_that_failed_before_does_not_hold_up_the_other(
    host, gpu_product, on_gpu
):
    """A head that is cut to a slice beside, in the same worker."""
    point = replace(gpu_product().point, device="cuda:1")
    sliced = Task(replace(point, n_out=4096), rows=1024)
    second = on_gpu(Task(point), sliced, devices=("cuda:1", "cuda:2"))
    found = time_both(host, [], [on_gpu(failure="torch isn't installed"), second])
    first, other = found.gpus
    assert (first.devices, first.failure, first.noise) == (("cuda:0",), "torch isn't installed", None)
    assert other.devices == ("cuda:1", "cuda:2")
    timed, part = found.measurements()
    assert (timed.point, part.rows_timed) == (point, 1024)


def test_a_point_without_which_nothing_can_be_decided_is_named(host, gpu_product, on_gpu):
    ceilings = (Point("read", "cuda:0", "torch", 1, k_in=1 << 20, launch="graph"), gpu_product().point)
    handover = Point("handover", "cuda:0", "papyrus", 1, k_in=64)
    found = time_both(host, [], [on_gpu(*map(Task, (*ceilings, handover)))])
    assert found.gpus[0].failure == (
        "handover could not be timed: ValueError: handover: expected pinned or pageable memory, got 'papyrus'"
    )
    assert [outcome.point for outcome in found.measurements()] == list(ceilings)


def test_a_share_of_the_budget_that_is_too_short_is_told(host, product, gpu_product, on_gpu):
    """Importing torch alone takes longer."""
    found = time_both(host, [product()], [on_gpu(gpu_product())], budget_s=0.6)
    assert found.gpus[0].failure == (
        "its share of the time budget, 0.3 s, ended before matmul I2_S 256 x 256 was timed"
    )
    assert found.spent_s / found.budget_s <= OVERRUN


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_torch_that_cannot_use_the_gpu_says_why_and_the_cpu_is_timed(host, product, gpu_product, on_gpu):
    found = time_both(host, [product()], [on_gpu(gpu_product())], torch_device="cuda:0")
    assert found.gpus[0].failure.startswith(f"torch {torch.__version__} ")
    assert [outcome.point for outcome in found.measurements()] == [product().point]


def test_more_memory_than_there_is_fails_the_run_with_how_much_is_free(host, gpu_product, on_gpu):
    """No address space holds this window; torch's CPU device doesn't tell what is free."""
    found = time_both(host, [], [on_gpu(gpu_product(n_out=1 << 44))])
    assert found.gpus[0].failure.endswith(" MB of its memory, and less is free")


def time_both(host, tasks, gpus, *, budget_s=BUDGET_S, torch_device="cpu"):
    model = build_model(head=Site("head", 1000, 256, "F16"))
    return campaign.run(model, host, tasks, gpus=gpus, budget_s=budget_s, torch_device=torch_device)
