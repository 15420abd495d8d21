import numpy as np
import pytest

from autotune.records import Configuration
from autotune.search.space import Point, build_space
from autotune.search.workload import make_workload


@pytest.fixture
def space_of(make_model, make_costs):
    """A space over 8 layers on ``gpus`` GPUs with the memory given."""

    def build(*gpu_bytes, **workload):
        devices = ("cpu", *(f"cuda:{index}" for index in range(len(gpu_bytes))))
        available_bytes = dict(zip(devices, (10**9, *gpu_bytes), strict=True))
        costs = make_costs(8, devices=devices, threads=(1, 2, 3))
        return build_space(costs, make_workload("server", make_model(8), **workload), available_bytes)

    return build


def test_without_gpus_all_layers_are_on_the_cpu(space_of):
    space = space_of()
    assert space.layers.tolist() == [[8]]
    assert space.size == 1 * 3 * 3 * 4 * 5


def test_a_gpu_takes_any_number_of_the_last_layers(space_of):
    space = space_of(10**9)
    assert space.layers.tolist() == [[8 - count, count] for count in range(9)]
    assert space.heads.tolist() == [0] + [1] * 8


def test_gpus_share_layers_in_proportion_to_their_memory(space_of):
    space = space_of(3 * 10**9, 10**9)
    assert space.layers[-1].tolist() == [0, 6, 2]
    assert {tuple(row) for row in space.layers[1:9].tolist()} == {(8 - n, n, 0) for n in range(1, 9)}
    assert (space.layers.sum(axis=1) == 8).all()
    assert len(np.unique(space.layers, axis=0)) == len(space.layers)


def test_a_gpu_too_small_for_a_layer_gets_no_placement_of_its_own(space_of):
    assert space_of(10**9, 10).layers.tolist() == [[8 - n, n, 0] for n in range(9)]


def test_a_gpu_without_free_memory_is_still_a_valid_input(space_of):
    assert space_of(0).layers.shape == (9, 2)


def test_batches_beyond_the_workloads_largest_are_left_out(space_of):
    assert space_of(max_batch=3).batches.tolist() == [1, 2]


def test_points_and_configurations_are_one_to_one(space_of):
    space = space_of(3 * 10**9, 10**9)
    seen = set()
    for index in range(0, space.size, 7):
        point = Point(*(int(axis) for axis in np.unravel_index(index, space.shape)))
        configuration = space.configuration(point)
        assert space.point(configuration) == point
        assert sum(configuration.device_layers.values()) == 8
        seen.add(repr(configuration))
    assert len(seen) == len(range(0, space.size, 7))


def test_device_layers_are_in_the_order_data_flows(space_of):
    configuration = space_of(10**9).configuration(Point(3, 0, 0, 0, 0))
    assert list(configuration.device_layers.items()) == [("cpu", 5), ("cuda:0", 3)]
    assert configuration.head_device == "cuda:0"


@pytest.mark.parametrize(
    "change",
    [
        {"device_layers": {"cpu": 7}},
        {"device_layers": {"cpu": 8, "tpu": 1}},
        {"head_device": "cuda:0"},
        {"decode_threads": 9},
        {"prefill_threads": 9},
        {"batch_size": 3},
        {"prefill_chunk": 500},
    ],
)
def test_a_configuration_outside_the_space_is_refused(space_of, change):
    fields = {
        "device_layers": {"cpu": 8},
        "head_device": "cpu",
        "decode_threads": 2,
        "prefill_threads": 2,
        "batch_size": 1,
        "prefill_chunk": 512,
    }
    space = space_of(10**9)
    assert space.configuration(space.point(Configuration(**fields))) == Configuration(**fields)
    with pytest.raises(ValueError, match=r"expected a point of the search space, .* got Configuration"):
        space.point(Configuration(**(fields | change)))
