import itertools

import numpy as np
import pytest
from msgspec.structs import replace

from autotune.records import Configuration, part_of
from autotune.search.space import MAX_PLACEMENTS, Point, build_space
from autotune.search.workload import make_workload


@pytest.fixture
def space_of(make_model, make_costs):
    """A space over 8 layers, unless told otherwise, on GPUs with the memory given."""

    def build(*gpu_bytes, layers=8, **workload):
        devices = ("cpu", *(f"cuda:{index}" for index in range(len(gpu_bytes))))
        available_bytes = dict(zip(devices, (10**9, *gpu_bytes), strict=True))
        costs = make_costs(layers, devices=devices, threads=(1, 2, 3))
        return build_space(costs, make_workload("server", make_model(layers), **workload), available_bytes)

    return build


def placements(space):
    """Layers per device and the head's device, of each placement."""
    return [(*row, head) for row, head in zip(space.layers.tolist(), space.heads.tolist(), strict=True)]


def test_without_gpus_all_layers_are_on_the_cpu(space_of):
    space = space_of()
    assert placements(space) == [(8, 0)]
    assert space.size == 1 * 3 * 3 * 4 * 5


def test_a_gpu_takes_any_number_of_the_last_layers_with_the_head_or_without(space_of):
    space = space_of(10**9)
    assert placements(space) == [
        (8, 0, 0),
        *((8 - count, count, 1) for count in range(1, 9)),
        *((8 - count, count, 0) for count in range(1, 9)),
    ]


def test_several_gpus_take_layers_in_every_way(space_of):
    """Whatever their memory: every composition once with the head on the last GPU that has layers, once on the CPU."""
    found = placements(space_of(3 * 10**9, 0))
    splits = [
        (8 - first - second, first, second)
        for first, second in itertools.product(range(9), repeat=2)
        if 1 <= first + second <= 8
    ]
    with_head = [(*split, 2 if split[2] else 1) for split in splits]
    assert sorted(found) == sorted([(8, 0, 0, 0), *with_head, *((*split, 0) for split in splits)])


@pytest.mark.parametrize(("layers", "gpus", "all_ways"), [(89, 2, True), (90, 2, False), (8, 4, True), (80, 3, False)])
def test_where_there_are_too_many_ways_gpus_share_layers_in_proportion_to_their_memory(
    space_of, layers, gpus, all_ways
):
    space = space_of(*[10**9] * gpus, layers=layers)
    assert len(space.layers) <= MAX_PLACEMENTS
    assert len(set(placements(space))) == len(space.layers)
    assert (space.layers.sum(axis=1) == layers).all()
    uneven = (space.layers[:, 1] > space.layers[:, 2] + 1) & (space.layers[:, 2] > 0)
    assert uneven.any() == all_ways


def test_shares_follow_memory_and_a_gpu_too_small_for_a_layer_gets_none(space_of):
    space = space_of(3 * 10**9, 10**9, 10, layers=80)
    rows = space.layers.tolist()
    assert rows[0] == [80, 0, 0, 0]
    half = rows[1 : len(rows) // 2 + 1]
    assert half[:80] == [[80 - n, n, 0, 0] for n in range(1, 81)]
    assert half[-1] == [0, 60, 20, 0]
    assert not space.layers[:, 3].any()
    assert rows[len(rows) // 2 + 1 :] == half
    assert space.heads[1 : len(half) + 1].tolist() == [2 if row[2] else 1 for row in half]
    assert not space.heads[len(half) + 1 :].any()


def test_a_first_gpu_without_memory_does_not_keep_the_others_from_sharing(space_of):
    rows = space_of(10, 10**9, 10**9, layers=80).layers.tolist()
    assert [0, 0, 80, 0] in rows
    assert [0, 0, 40, 40] in rows


def test_a_gpu_without_free_memory_is_still_a_valid_input(space_of):
    assert space_of(0).layers.shape == (17, 2)
    assert (space_of(0, 0, 0, layers=80).layers.sum(axis=1) == 80).all()


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


def test_the_head_is_part_of_a_placement(space_of):
    space = space_of(10**9)
    on_gpu = Configuration({"cpu": 5, "cuda:0": 3}, "cuda:0", 1, 1, 1, 32)
    on_cpu = Configuration({"cpu": 5, "cuda:0": 3}, "cpu", 1, 1, 1, 32)
    assert space.point(on_gpu).placement != space.point(on_cpu).placement
    assert [space.configuration(space.point(each)) for each in (on_gpu, on_cpu)] == [on_gpu, on_cpu]


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


def test_a_part_lies_where_the_configurations_that_have_it_do(make_model, make_costs):
    """On a GPU alone threads are of no consequence; what isn't a choice lies nowhere."""
    model = make_model(2)
    costs = make_costs(2, devices=("cpu", "cuda:0"), threads=(1, 2))
    workload = make_workload("server", model)
    space = build_space(costs, workload, {"cpu": 2**30, "cuda:0": 2**30})
    for point in map(Point._make, itertools.product(*map(range, space.shape))):
        configuration = space.configuration(point)
        decode, prefill = (part_of(configuration, workload, phase) for phase in ("decode", "prefill"))
        on_cpu = bool(space.works[point.placement, 0])
        assert space.place(decode) == (point.placement, point.decode_threads if on_cpu else None, point.batch)
        assert space.place(prefill) == (point.placement, point.prefill_threads if on_cpu else None, point.chunk)
        assert space.plain(point) == (point if on_cpu else point._replace(decode_threads=0, prefill_threads=0))
    for other in ({"threads": 3}, {"size": 999}, {"head_device": "cuda:1"}, {"device_layers": (("cuda:7", 2),)}):
        assert space.place(replace(decode, **other)) is None


def test_a_split_that_was_chosen_for_other_memory_stays_in_the_space(make_model, make_costs):
    """Where splits follow the memory of many GPUs, with less of it on one they are others: what is given is kept."""
    layers, devices = 80, ("cpu", *(f"cuda:{index}" for index in range(4)))
    costs, workload = make_costs(layers, devices=devices, threads=(1, 2)), make_workload("server", make_model(layers))
    roomy = dict.fromkeys(devices, 10**10)
    short = {**roomy, "cuda:2": 10**9}
    before, plain = build_space(costs, workload, roomy), build_space(costs, workload, short)
    chosen = before.configuration(Point(len(before.layers) // 2 - 1, 0, 0, 0, 0))
    with pytest.raises(ValueError, match="expected a point of the search space"):
        plain.point(chosen)
    again = build_space(costs, workload, short, including=[chosen, chosen])
    assert again.configuration(again.point(chosen)) == chosen
    assert len(again.layers) == len(plain.layers) + 2, "with the head on its last GPU and on the CPU"
    same = build_space(costs, workload, short, including=[plain.configuration(Point(3, 0, 0, 0, 0))])
    assert np.array_equal(same.layers, plain.layers)
