"""How much memory weights rotate through, on synthetic hosts."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from autotune.bench.campaign import cold_memory_bytes, window_bytes
from autotune.bench.plan import SLICE_BYTES, Task, ceilings, plan
from autotune.errors import BenchmarkError
from autotune.model.memory import model_bytes
from autotune.records import Cache, Core, Layer, Point, Site
from tests.builders import NUMPY, build_host, build_model, build_workload

MIB = 1 << 20
LARGE_MODEL = build_model(layers=(Layer((Site("up", 1 << 16, 1 << 16, "I2_S"),)),))
TASKS = (Task(Point("matmul", "cpu", "numpy", 1, 1, "F16", 4 * MIB, 1)),)
WINDOW = 8 * MIB


def host_with(cache_bytes=None, usable_bytes=64 << 30):
    host = build_host()
    caches = () if cache_bytes is None else (Cache(1, 32 << 10, 1), Cache(3, cache_bytes, 2))
    return replace(host, cpu=replace(host.cpu, caches=caches), memory=replace(host.memory, usable_bytes=usable_bytes))


@pytest.mark.parametrize(
    ("cache_bytes", "usable_bytes", "model", "cold_bytes"),
    [
        (96 * MIB, 64 << 30, LARGE_MODEL, 192 * MIB),
        (96 * MIB, 64 << 30, None, 192 * MIB),
        (2 * MIB, 64 << 30, LARGE_MODEL, 64 * MIB),
        (None, 64 << 30, LARGE_MODEL, 128 * MIB),
        (4 << 30, 64 << 30, LARGE_MODEL, 1024 * MIB),
        (96 * MIB, 400 * MIB, LARGE_MODEL, 100 * MIB),
        (96 * MIB, 40 * MIB, LARGE_MODEL, 10 * MIB),
        (96 * MIB, 64 << 30, build_model(), 64 * MIB),
    ],
    ids=["twice the cache", "no model", "tiny cache", "unknown cache", "huge cache", "a quarter of the memory",
         "hardly any memory", "tiny model"],
)  # fmt: skip
def test_it_is_twice_the_last_level_cache_within_bounds_and_a_window_more(cache_bytes, usable_bytes, model, cold_bytes):
    assert cold_memory_bytes(model, host_with(cache_bytes, usable_bytes), TASKS) == cold_bytes + WINDOW


@pytest.mark.parametrize(
    ("shared_by_cpus", "instances"), [(16, 1), (4, 4), (6, 3), (None, 1)], ids=["one", "chiplets", "uneven", "unknown"]
)
def test_several_last_level_caches_count_together(shared_by_cpus, instances):
    """Each thread finds its own rows in the cache of its own chiplet."""
    host = build_host()
    cores = tuple(Core((cpu, cpu + 8), 0, 0, None, None) for cpu in range(8))
    host = replace(host, cpu=replace(host.cpu, cores=cores, caches=(Cache(3, 40 * MIB, shared_by_cpus),)))
    assert cold_memory_bytes(LARGE_MODEL, host, TASKS) == 2 * instances * 40 * MIB + WINDOW


def test_a_model_smaller_than_twice_the_cache_rotates_through_its_own_size():
    model = build_model(layers=(Layer((Site("up", 1 << 15, 1 << 14, "I2_S"),)),))
    assert 64 * MIB < model_bytes(model) < 256 * MIB
    assert cold_memory_bytes(model, host_with(128 * MIB), TASKS) == model_bytes(model) + WINDOW


def test_it_never_takes_more_than_three_quarters_of_the_memory():
    for usable_bytes in (2 * WINDOW, 10 * WINDOW, 1000 * WINDOW):
        assert cold_memory_bytes(LARGE_MODEL, host_with(4 << 30, usable_bytes), TASKS) <= 3 * usable_bytes / 4


def test_too_little_memory_for_one_window_is_said_in_a_sentence():
    with pytest.raises(BenchmarkError, match=r"a window of 8 MiB and this host has 15 MiB of usable memory"):
        cold_memory_bytes(LARGE_MODEL, host_with(96 * MIB, 15 * MIB), TASKS)


def test_without_tasks_there_is_no_window():
    assert cold_memory_bytes(None, host_with(96 * MIB), ()) == 192 * MIB


def test_every_window_of_a_plan_fits_what_is_set_aside():
    host, model = build_host(), build_model(head=Site("head", 128_256, 2560, "F16"))
    tasks = (*plan((model,), host, build_workload(), NUMPY, quick=False), *ceilings(host, NUMPY))
    windows = [window_bytes(task) for task in tasks]
    assert 0.5 * SLICE_BYTES < max(windows) < cold_memory_bytes(model, host, tasks)
    assert {task.point.op for task, window in zip(tasks, windows, strict=True) if not window} == {"layer_ops", "peak"}
