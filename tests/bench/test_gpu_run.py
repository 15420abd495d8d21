"""What timing a GPU came to, on synthetic events."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from autotune.bench.gpu_run import describe_run, visible_gpu
from autotune.bench.ledger import Ledger
from autotune.bench.messages import Block, Clocks, Failed, GpuFacts, Prepared, Unusable
from autotune.bench.plan import Task
from autotune.bench.sampler import TARGET_INTERVAL, Sample
from autotune.records import GpuClocks, Noise, Point
from tests.bench.conftest import GPU

NOISE = Noise(None, 0, 3, 0, 0.0, None, None)
FACTS = GpuFacts(500, 900, 7000, 50, 132, 0.25, {"torch": "9.9"})
TASKS = (
    Task(Point("read", "cuda:0", "torch", 1, k_in=64, launch="graph")),
    Task(Point("peak", "cuda:0", "torch", 1, 4, "I8", 4, 4, launch="graph")),
    Task(Point("matmul", "cuda:0", "triton", 1, 1, "I2_S", 256, 256, launch="graph")),
    Task(Point("matmul", "cuda:0", "torch", 1, 1, "I2_S", 256, 256, launch="graph")),
    Task(Point("handover", "cuda:0", "pinned", 1, k_in=8)),
)


@pytest.fixture
def describe(on_gpu):
    """Has a ledger take events after each task, but those left out, has one sample; returns the run."""

    def run(*events, without=(), failure=None):
        ledger = Ledger(TASKS)
        ledger.select(dict.fromkeys(range(len(TASKS)), TARGET_INTERVAL))
        samples = tuple(Sample(index, 1.0, 1, 0) for index in range(len(TASKS)) if index not in without)
        for event in (Block(samples, 0.0), *events):
            ledger.take(event)
        tasks = on_gpu(*TASKS, devices=("cuda:0", "cuda:1"))
        return describe_run(tasks, ledger, NOISE, spent_s=3.0, share_s=12.0, failure=failure)

    return run


def test_what_the_worker_found_is_told(describe):
    run = describe(Prepared(700, FACTS))
    assert (run.devices, run.failure, run.noise, run.spent_s) == (("cuda:0", "cuda:1"), None, NOISE, 3.0)
    assert (run.cold_bytes, run.context_bytes, run.host_bytes, run.free_bytes) == (700, 500, 900, 7000)
    assert (run.l2_bytes, run.multiprocessors, run.libraries) == (50, 132, {"torch": "9.9"})


def test_clocks_are_summed_up_over_all_that_was_read(describe):
    read = [Clocks(1.9e9, 2e9, ("sw_power_cap",)), Clocks(1.2e9, None, ("hw_slowdown",)), Clocks(None, 2e9, ())]
    clocks = describe(Prepared(700, FACTS), *read).clocks
    assert clocks == GpuClocks(1.2e9, 1.9e9, 2e9, ("hw_slowdown", "sw_power_cap"), 0.25)


def test_what_was_not_told_is_unknown(describe):
    run = describe()
    assert (run.clocks, run.free_bytes, run.l2_bytes, run.libraries) == (None, None, None, {})
    assert describe(Prepared(700, FACTS)).clocks == GpuClocks(None, None, None, (), 0.25)


@pytest.mark.parametrize(
    ("missing", "name"), [((0,), "read"), ((1,), "peak"), ((2, 3), "matmul I2_S 256 x 256"), ((4,), "handover")]
)
def test_what_a_decision_needs_and_the_time_did_not_reach_is_named(describe, missing, name):
    failure = describe(without=missing).failure
    assert failure == f"its share of the time budget, 12 s, ended before {name} was timed"


def test_one_kernel_is_enough_for_a_site(describe):
    assert describe(Failed(2, "crashed", "no")).failure is None


def test_what_a_decision_needs_and_failed_is_told_with_the_reason(describe):
    run = describe(Failed(2, "hung", "it hung"), Failed(3, "crashed", "RuntimeError: no luck"))
    assert run.failure == "matmul I2_S 256 x 256 could not be timed: it hung"


def test_a_device_that_cannot_be_used_outweighs_what_is_missing(describe):
    run = describe(Unusable("the driver is too old"), without=(0,), failure="a worker died")
    assert run.failure == "the driver is too old"
    assert describe(without=(0,), failure="a worker died").failure == "a worker died"


@pytest.mark.parametrize(
    ("uuid", "visible"), [("GPU-a", "GPU-a"), ("MIG-b", "MIG-b"), (None, "3")], ids=["GPU", "MIG", "no UUID"]
)
def test_a_gpu_is_named_as_cuda_names_it(uuid, visible):
    assert visible_gpu(replace(GPU, index=3, uuid=uuid)) == visible
