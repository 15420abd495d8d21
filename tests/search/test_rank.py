import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.errors import ConstraintError, MemoryLimitError
from autotune.search.contest import TIE, Contest
from autotune.search.evaluate import build_evaluator
from autotune.search.rank import rank
from autotune.search.space import Point
from autotune.search.workload import batch_grid, chunk_grid, make_workload

GIB = 2**30


def rank_one(evaluator):
    """The ranking of one space alone."""
    (ranking,) = rank([evaluator])
    return ranking


@pytest.fixture(scope="session")
def evaluator_for(make_model, make_costs, room_of):
    """An evaluator of a synthetic model on devices with the memory given; a workload's options pass through."""

    def build(name="server", *, costs=None, model=None, available_bytes=None, **options):
        model = model or make_model()
        available_bytes = available_bytes or {"cpu": GIB}
        return build_evaluator(
            model,
            make_workload(name, model, **options),
            costs or make_costs(len(model.layers), devices=tuple(available_bytes)),
            room_of(available_bytes),
        )

    return build


def brute_force(evaluator, max_tpot_s):
    """All feasible points with their figures, one at a time, and the best after the ties."""
    feasible = {}
    for index in itertools.product(*(range(length) for length in evaluator.space.shape)):
        value = evaluator.at(Point(*index))
        if value.excess_bytes > 0 or (max_tpot_s is not None and value.tpot_s > max_tpot_s):
            continue
        if evaluator.workload.max_ttft_s is not None and value.ttft_s > evaluator.workload.max_ttft_s:
            continue
        feasible[Point(*index)] = value
    return feasible, first_of(evaluator, feasible)


def first_of(evaluator, feasible):
    if not feasible:
        return None
    rivals = list(feasible)
    for place in range(2):
        lowest = min(feasible[point].costs[place] for point in rivals)
        rivals = [point for point in rivals if feasible[point].costs[place] <= lowest * (1 + TIE)]
    return min(
        rivals,
        key=lambda point: (
            evaluator.space.works[point.placement].sum(),
            point.decode_threads,
            point.prefill_threads,
            feasible[point].total_bytes,
            point.batch,
            point.placement,
            point.chunk,
        ),
    )


def assert_ranked_as_by_brute_force(evaluator):
    fitting, _ = brute_force(evaluator, None)
    try:
        ranking = rank_one(evaluator)
    except MemoryLimitError:
        assert (np.asarray(evaluator.excess_bytes) > 0).all()
        return
    except ConstraintError:
        assert not brute_force(evaluator, evaluator.workload.max_tpot_s)[0]
        return
    limit_s = evaluator.workload.max_tpot_s
    if evaluator.workload.relaxed_tpot_ratio is not None:
        fastest_s = min(value.tpot_s for value in fitting.values())
        limit_s = limit_s if fastest_s <= limit_s else 1.25 * fastest_s
    assert ranking.max_tpot_s == limit_s
    feasible, best = brute_force(evaluator, limit_s)
    assert ranking.best == best
    assert ranking.feasible == len(feasible)

    on_cpu = evaluator.space.works[best.placement, 0]
    others = {
        point: value
        for point, value in feasible.items()
        if (point.placement, point.batch) != (best.placement, best.batch)
        or (on_cpu and point.decode_threads != best.decode_threads)
    }
    assert ranking.runner_up == first_of(evaluator, others)
    assert ranking.contest.best_of_each(evaluator.space.gpu_layers) == {
        count: first_of(evaluator, those)
        for count in range(len(evaluator.model.layers) + 1)
        if (those := {point: value for point, value in feasible.items() if gpu_layers(evaluator, point) == count})
    }


def gpu_layers(evaluator, point):
    return evaluator.space.layers[point.placement, 1:].sum()


@given(
    seed=st.integers(0, 2**32 - 1),
    gpus=st.sampled_from([0, 1, 2]),
    layers=st.sampled_from([2, 3]),
    name=st.sampled_from(["chat", "server", "offline"]),
    output=st.integers(1, 40),
    max_tpot_ms=st.none() | st.integers(1, 60).map(lambda eighths: eighths * 125),
    max_ttft_ms=st.none() | st.integers(1, 60).map(lambda eighths: eighths * 125),
    megabytes=st.lists(st.sampled_from([1, 1.5, 2, 4, 8]), min_size=3, max_size=3),
)
@settings(deadline=None, max_examples=300)
def test_ranking_equals_trying_every_configuration(
    make_model, make_random_costs, room_of, seed, gpus, layers, name, output, max_tpot_ms, max_ttft_ms, megabytes
):
    """Best, runner-up, counts and errors on random small spaces, full of ties, under random limits and memory."""
    devices = ("cpu", *(f"cuda:{index}" for index in range(gpus)))
    model = make_model(layers, wide_first=True)
    evaluator = build_evaluator(
        model,
        make_workload(
            name, model, prompt=64, output=output, context=128, max_tpot_ms=max_tpot_ms, max_ttft_ms=max_ttft_ms
        ),
        make_random_costs(seed, layers, devices=devices, threads=(1, 2, 3), batches=(1, 2), chunks=(32, 64)),
        room_of({device: int(size * 2**20) for device, size in zip(devices, megabytes, strict=False)}, 1000),
    )
    assert_ranked_as_by_brute_force(evaluator)


@given(seed=st.integers(0, 2**32 - 1), name=st.sampled_from(["chat", "offline"]), output=st.sampled_from([1, 2, 3]))
@settings(deadline=None, max_examples=300)
def test_ties_are_broken_in_the_order_documented(evaluator_for, make_costs, seed, name, output):
    """Times of one or two seconds and one to three bytes, without any pattern: nearly every point ties with others."""
    evaluator = evaluator_for(
        name,
        costs=make_costs(devices=("cpu", "cuda:0"), threads=(1, 2, 3), batches=(1, 2), chunks=(32, 64)),
        available_bytes={"cpu": GIB, "cuda:0": GIB},
        output=output,
        max_batch=1 if name == "chat" else 2,
    )
    random = np.random.default_rng(seed)
    evaluator = dataclasses.replace(
        evaluator,
        decode=random_times(random, evaluator.decode),
        prefill=random_times(random, evaluator.prefill),
        excess_bytes=random.integers(-1, 2, evaluator.excess_bytes.shape),
        total_bytes=random.integers(1, 4, evaluator.total_bytes.shape),
    )
    assert_ranked_as_by_brute_force(evaluator)


def random_times(random, times):
    """One to three seconds; on the CPU for all threads alike where it has nothing to do."""
    cpu_s = random.integers(0, 2, times.cpu_s.shape).astype(float)
    cpu_s[0] = 0
    return dataclasses.replace(times, gpus_s=random.integers(1, 3, times.gpus_s.shape).astype(float), cpu_s=cpu_s)


def test_fewest_threads_win_where_bandwidth_saturates(evaluator_for, make_costs):
    """Six of sixteen threads already stream at full bandwidth: more gain nothing."""
    costs = make_costs(threads=tuple(range(1, 17)), saturates_at=6)
    for name in ("chat", "server", "offline"):
        evaluator = evaluator_for(name, costs=costs)
        best = evaluator.space.configuration(rank_one(evaluator).best)
        assert (best.decode_threads, best.prefill_threads) == (6, 6)


def test_chat_takes_the_lowest_tpot_and_offline_the_most_tokens(evaluator_for):
    chat, offline = evaluator_for("chat"), evaluator_for("offline")
    assert chat.space.configuration(rank_one(chat).best).batch_size == 1
    assert offline.space.configuration(rank_one(offline).best).batch_size == 8


def test_an_explicit_tpot_limit_stops_the_batch(evaluator_for):
    """A step of the batch of 1, 2, 4, 8 takes 36, 37.8, 41.4, 48.6 ms on two threads."""
    evaluator = evaluator_for(max_tpot_ms=42)
    best = rank_one(evaluator).best
    assert evaluator.space.configuration(best).batch_size == 4
    assert evaluator.at(best).tpot_s == pytest.approx(41.4e-3)


def test_the_servers_own_limit_is_relaxed_to_a_ratio_of_the_best(evaluator_for, make_model, make_costs):
    """40 layers take at least 164 ms per token on two threads: over 100 ms, so 1.25 x 164 is allowed."""
    ranking = rank_one(evaluator_for(model=make_model(40), costs=make_costs(40)))
    assert ranking.max_tpot_s == pytest.approx(1.25 * 164e-3)


def test_a_tpot_limit_that_cannot_be_kept_names_the_best(evaluator_for):
    with pytest.raises(ConstraintError) as caught:
        rank_one(evaluator_for(max_tpot_ms=5))
    assert str(caught.value) == (
        "the limit of 5 ms on the time per output token can't be kept: "
        "the best that fits the memory is 36 ms, with a batch of 1"
    )


def test_a_ttft_limit_that_cannot_be_kept_names_the_best(evaluator_for):
    """9 x 512 ms on two threads, and 8/512 more for the chunk."""
    with pytest.raises(ConstraintError) as caught:
        rank_one(evaluator_for(max_ttft_ms=100))
    assert str(caught.value) == (
        "the limit of 100 ms on the time to the first token can't be kept: "
        "the best prefill of 512 tokens that fits the memory takes 2340 ms"
    )


def test_limits_that_cannot_be_kept_together_are_said_to_be(evaluator_for, make_costs):
    """The GPU prefills fast and the CPU decodes fast: either limit alone could be kept."""
    costs = make_costs(devices=("cpu", "cuda:0"), crossing_s=1.0)
    costs.decode_layer_s[1] *= 1000
    costs.decode_ends_s[1] *= 1000
    available = {"cpu": GIB, "cuda:0": GIB}
    rank_one(evaluator_for(costs=costs, available_bytes=available, max_tpot_ms=40))
    rank_one(evaluator_for(costs=costs, available_bytes=available, max_ttft_ms=300))
    with pytest.raises(ConstraintError, match=r"keeps the time to the first token within 300 ms is .* ms, with"):
        rank_one(evaluator_for(costs=costs, available_bytes=available, max_tpot_ms=40, max_ttft_ms=300))


def test_a_model_that_fits_nowhere_says_what_would_fit(evaluator_for):
    with pytest.raises(MemoryLimitError) as caught:
        rank_one(evaluator_for(available_bytes={"cpu": 10**6}))
    assert len(str(caught.value)) > 20


def test_a_fast_gpu_with_little_memory_gives_a_hybrid(evaluator_for, make_model, needs):
    """Each layer is faster on the GPU: it takes the five that fit, in the shortest chunks."""
    room = needs(make_model(), {"cpu": 3, "cuda:0": 5}, batch=1, chunk=32, context=2048)["cuda:0"]
    evaluator = evaluator_for("chat", available_bytes={"cpu": GIB, "cuda:0": room})
    best = evaluator.space.configuration(rank_one(evaluator).best)
    assert best.device_layers == {"cpu": 3, "cuda:0": 5}


def test_a_split_is_chosen_for_speed_not_to_fill_the_gpu(evaluator_for, make_costs):
    """A GPU that is no faster than the CPU, behind a slow bus, is left alone although all would fit."""
    costs = make_costs(devices=("cpu", "cuda:0"), gpu_speedup=1.0, crossing_s=0.1)
    evaluator = evaluator_for(costs=costs, available_bytes={"cpu": GIB, "cuda:0": GIB})
    assert evaluator.space.configuration(rank_one(evaluator).best).device_layers == {"cpu": 8}


def test_one_gpu_is_enough_if_more_only_add_crossings(evaluator_for):
    available = {"cpu": GIB, "cuda:0": GIB, "cuda:1": GIB, "cuda:2": GIB}
    evaluator = evaluator_for("chat", available_bytes=available)
    best = evaluator.space.configuration(rank_one(evaluator).best)
    assert best.device_layers == {"cuda:0": 8}
    assert (best.decode_threads, best.prefill_threads) == (1, 1)


def test_three_small_gpus_take_together_what_one_cannot(evaluator_for, make_model, needs):
    room = needs(make_model(), {"cpu": 5, "cuda:0": 3}, batch=1, chunk=32, context=2048)["cuda:0"]
    available = {"cpu": GIB} | {f"cuda:{index}": room for index in range(3)}
    evaluator = evaluator_for("chat", available_bytes=available)
    best = evaluator.space.configuration(rank_one(evaluator).best)
    assert len(best.device_layers.keys() - {"cpu"}) == 3, best


def test_a_space_of_ten_to_the_eighth_points_is_ranked_exactly(make_model, make_random_costs, room_of):
    """120 layers, 128 thread counts, CPU and three GPUs: no sampled point beats the best."""
    model, batches, chunks = make_model(120), batch_grid(32), chunk_grid(512)
    available = {"cpu": GIB, "cuda:0": GIB, "cuda:1": GIB // 2, "cuda:2": GIB // 4}
    costs = make_random_costs(1, 120, devices=tuple(available), threads=range(1, 129), batches=batches, chunks=chunks)
    evaluator = build_evaluator(
        model,
        make_workload("offline", model),
        costs,
        room_of(available),
    )
    assert evaluator.space.size > 10**8
    best = evaluator.at(rank_one(evaluator).best).tokens_per_s
    random = np.random.default_rng(0)
    sample = evaluator.at(Point(*(random.integers(0, length, 10**5) for length in evaluator.space.shape)))
    assert sample.tokens_per_s[sample.excess_bytes <= 0].max() <= best * (1 + TIE)


def test_a_wider_tie_goes_to_fewer_threads(evaluator_for, make_costs):
    """Each thread beyond two is worth little: within a tenth the best does with two of eight."""
    evaluator = evaluator_for(costs=make_costs(threads=(1, 2, 4, 8), saturates_at=2.1))
    threads = [
        evaluator.space.threads[Contest(evaluator, None, tie=tie).best().decode_threads] for tie in (TIE, 0.1, 2.0)
    ]
    assert threads == [4, 2, 1]
