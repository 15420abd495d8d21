"""The evaluator against a walk over the layers, one by one, and against the memory plan."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.model import memory
from autotune.search.evaluate import build_evaluator
from autotune.search.space import Point
from autotune.search.workload import make_workload


def walk_s(costs, configuration, *, step, threads, index):
    """A step's time by walking through the layers in order, adding a crossing where the device changes."""
    layer_s, ends_s, crossing_s = (getattr(costs, f"{step}_{part}_s") for part in ("layer", "ends", "crossing"))
    where = [costs.devices.index(name) for name, count in configuration.device_layers.items() for _ in range(count)]
    thread = costs.threads.tolist().index(threads)
    time_s = ends_s[costs.devices.index(configuration.head_device), thread, index]
    for layer, device in enumerate(where):
        time_s += layer_s[device, costs.layer_kinds[layer], thread, index]
        if layer and device != where[layer - 1]:
            time_s += crossing_s[device, index] + crossing_s[where[layer - 1], index]
    return time_s


@given(
    seed=st.integers(0, 2**32 - 1),
    gpus=st.sampled_from([0, 1, 2, 3]),
    layers=st.integers(1, 9),
    name=st.sampled_from(["chat", "server", "offline"]),
    output=st.integers(1, 50),
    data=st.data(),
)
@settings(deadline=None, max_examples=60)
def test_times_are_those_of_a_walk_and_memory_is_that_of_the_plan(
    make_model, make_random_costs, seed, gpus, layers, name, output, data
):
    """Figures of random configurations, exactly: costs are eighths of a second, bytes are whole numbers."""
    devices = ("cpu", *(f"cuda:{index}" for index in range(gpus)))
    model = make_model(layers, wide_first=True)
    costs = make_random_costs(seed, layers, devices=devices, threads=(1, 2, 4), batches=(1, 2, 3), chunks=(2, 100))
    workload = make_workload(name, model, prompt=100, output=output)
    megabytes = data.draw(st.lists(st.integers(1, 20), min_size=len(devices), max_size=len(devices)))
    available_bytes = {device: size * 2**20 for device, size in zip(devices, megabytes, strict=True)}
    overhead_bytes = {device: 1000 * (index + 1) for index, device in enumerate(devices)}
    evaluator = build_evaluator(model, workload, costs, available_bytes=available_bytes, overhead_bytes=overhead_bytes)
    index = data.draw(st.integers(0, evaluator.space.size - 1))
    point = Point(*(int(axis) for axis in np.unravel_index(index, evaluator.space.shape)))
    configuration = evaluator.space.configuration(point)
    value = evaluator.at(point)

    tpot_s = walk_s(costs, configuration, step="decode", threads=configuration.decode_threads, index=point.batch)
    ttft_s = walk_s(costs, configuration, step="prefill", threads=configuration.prefill_threads, index=point.chunk)
    batch = configuration.batch_size
    assert value.tpot_s == tpot_s
    assert value.ttft_s == ttft_s
    assert value.tokens_per_s == batch * output / (batch * ttft_s + (output - 1) * tpot_s)

    plan = memory.plan(model, configuration, workload.context_tokens, available_bytes, overhead_bytes)
    assert value.total_bytes == sum(use.total_bytes for use in plan)
    assert value.excess_bytes == max(use.total_bytes - use.available_bytes for use in plan)
    assert evaluator.candidate(point).predicted.memory == plan


def test_one_call_evaluates_many_points_at_once(make_model, make_costs):
    model, costs = make_model(), make_costs()
    evaluator = build_evaluator(
        model,
        make_workload("server", model),
        costs,
        available_bytes={"cpu": 2**30},
        overhead_bytes={"cpu": 0},
    )
    axes = [np.arange(length) for length in evaluator.space.shape]
    everything = evaluator.at(Point(*np.meshgrid(*axes, indexing="ij", sparse=True)))
    assert everything.tokens_per_s.shape == evaluator.space.shape
    for index in np.ndindex(evaluator.space.shape):
        assert everything.tokens_per_s[index] == evaluator.at(Point(*index)).tokens_per_s


def test_costs_of_another_model_are_refused(make_model, make_costs):
    model = make_model(5)
    with pytest.raises(ValueError, match="expected step costs of 5 layers, as synthetic has, got 8"):
        build_evaluator(
            model,
            make_workload("server", model),
            make_costs(8),
            available_bytes={"cpu": 2**30},
            overhead_bytes={"cpu": 0},
        )
