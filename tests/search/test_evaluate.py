"""The evaluator against a walk along the path of a step, and against the memory plan."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.model import memory
from autotune.model.memory import Room
from autotune.search.evaluate import build_evaluator
from autotune.search.space import Point
from autotune.search.workload import make_workload


def walk_s(costs, configuration, *, step, threads, index):
    """A step's time by going its way, from tokens on the CPU to tokens on the CPU, one piece of work after the other.

    What is carried from one device to another goes through the CPU's memory: out of a GPU, into the next one.
    """
    layer_s, ends_s, crossing_s = (getattr(costs, f"{step}_{part}_s") for part in ("layer", "ends", "crossing"))
    thread = costs.threads.tolist().index(threads)
    way = [name for name, count in configuration.device_layers.items() for _ in range(count)]
    embedding = "cpu" if configuration.head_device == "cpu" else way[0]
    way = [costs.devices.index(name) for name in ("cpu", embedding, *way, configuration.head_device, "cpu")]
    layers = len(way) - 4
    time_s = ends_s[way[-2], thread, index]
    for place, (here, there) in enumerate(itertools.pairwise(way)):
        tokens_are_carried = place in (0, layers + 2)
        prompt_is_through = step == "prefill" and place >= layers + 1
        for gpu in (here, there) if here != there else ():
            if gpu == 0:
                continue
            if prompt_is_through or (tokens_are_carried and step == "decode"):
                time_s += costs.decode_token_s[gpu]
            elif tokens_are_carried:
                time_s += costs.prefill_token_s[gpu, index]
            else:
                time_s += crossing_s[gpu, index]
        if 1 <= place <= layers:
            time_s += layer_s[there, costs.layer_kinds[place - 1], thread, index]
    return time_s


@given(
    seed=st.integers(0, 2**32 - 1),
    gpus=st.sampled_from([0, 1, 2, 3]),
    layers=st.integers(1, 9),
    name=st.sampled_from(["chat", "server", "offline"]),
    output=st.integers(1, 50),
    weight_format=st.sampled_from(["I2_S", "TL1", "Q8_0", "F16"]),
    tied=st.booleans(),
    gpu_host_bytes=st.sampled_from([0, 500, 10**6]),
    data=st.data(),
)
@settings(deadline=None, max_examples=200)
def test_times_are_those_of_a_walk_and_memory_is_that_of_the_plan(
    make_model, make_random_costs, seed, gpus, layers, name, output, weight_format, tied, gpu_host_bytes, data
):
    """Figures of random configurations, exactly: costs are eighths of a second, bytes are whole numbers."""
    devices = ("cpu", *(f"cuda:{index}" for index in range(gpus)))
    model = make_model(layers, wide_first=True, weight_format=weight_format, tied=tied)
    costs = make_random_costs(seed, layers, devices=devices, threads=(1, 2, 4), batches=(1, 2, 3), chunks=(2, 100))
    workload = make_workload(name, model, prompt=100, output=output)
    megabytes = data.draw(st.lists(st.integers(1, 20), min_size=len(devices), max_size=len(devices)))
    room = Room(
        available_bytes={device: size * 2**20 for device, size in zip(devices, megabytes, strict=True)},
        overhead_bytes={device: 1000 * (index + 1) for index, device in enumerate(devices)},
        gpu_host_bytes=gpu_host_bytes,
    )
    evaluator = build_evaluator(model, workload, costs, room)
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

    plan = memory.plan(model, configuration, workload.context_tokens, room)
    assert value.total_bytes == sum(use.total_bytes for use in plan)
    assert value.excess_bytes == max(use.total_bytes - use.available_bytes for use in plan)
    assert evaluator.candidate(point).predicted.memory == plan


@given(seed=st.integers(0, 2**32 - 1), limit=st.none() | st.integers(1, 80).map(lambda eighths: eighths / 8))
@settings(deadline=None, max_examples=100)
def test_thread_counts_within_a_limit_are_those_that_keep_it_one_by_one(make_model, make_random_costs, seed, limit):
    """Exactly, whatever the costs; and the fastest count is the fewest threads that are the fastest."""
    costs = make_random_costs(seed, 4, devices=("cpu", "cuda:0"), threads=range(1, 8), batches=(1, 2), chunks=(32, 64))
    model = make_model(4)
    room = Room({"cpu": 2**30, "cuda:0": 2**30}, {"cpu": 0, "cuda:0": 0})
    evaluator = build_evaluator(model, make_workload("server", model), costs, room)
    for times in (evaluator.decode, evaluator.prefill):
        counts, fastest = times.within(limit), times.fastest_threads
        for placement, column in np.ndindex(counts.shape):
            each_s = [times.at(placement, threads, column) for threads in range(7)]
            assert counts[placement, column] == sum(limit is None or time_s <= limit for time_s in each_s)
            assert fastest[placement, column] == each_s.index(min(each_s))


def test_one_call_evaluates_many_points_at_once(make_model, make_costs):
    model, costs = make_model(), make_costs()
    evaluator = build_evaluator(model, make_workload("server", model), costs, Room({"cpu": 2**30}, {"cpu": 0}))
    axes = [np.arange(length) for length in evaluator.space.shape]
    everything = evaluator.at(Point(*np.meshgrid(*axes, indexing="ij", sparse=True)))
    assert everything.tokens_per_s.shape == evaluator.space.shape
    for index in np.ndindex(evaluator.space.shape):
        assert everything.tokens_per_s[index] == evaluator.at(Point(*index)).tokens_per_s


def test_costs_of_another_model_are_refused(make_model, make_costs):
    model = make_model(5)
    with pytest.raises(ValueError, match="expected step costs of 5 layers, as synthetic has, got 8"):
        build_evaluator(model, make_workload("server", model), make_costs(8), Room({"cpu": 2**30}, {"cpu": 0}))
