"""Configurations for when the memory has become less, on synthetic models and hosts."""

import itertools

import pytest

from autotune.model import memory
from autotune.search.contest import Contest
from autotune.search.evaluate import build_evaluator
from autotune.search.rank import rank
from autotune.search.smaller import MOST, smaller
from autotune.search.workload import make_workload

GIB = 2**30


@pytest.fixture(scope="session")
def contest_for(make_model, make_costs, room_of):
    """A contest and its winner; options pass to the workload."""

    def call(name="server", *, model=None, costs=None, available_bytes=None, **options):
        model = model or make_model()
        available_bytes = available_bytes or {"cpu": GIB}
        costs = costs or make_costs(len(model.layers), devices=tuple(available_bytes))
        workload = make_workload(name, model, **options)
        ranking = rank([build_evaluator(model, workload, costs, room_of(available_bytes))])[0]
        return ranking.contest, ranking.best

    return call


def needs_of(candidate):
    return {use.device: use.total_bytes for use in candidate.predicted.memory}


def cost_of(contest, candidate):
    """What the workload minimises, and whether a limit is broken before that."""
    evaluator = contest.evaluator
    value = evaluator.at(evaluator.space.point(candidate.configuration))
    return not evaluator.feasible(value, contest.max_tpot_s), float(value.costs[0])


def fitting(candidates, bytes_on):
    """What a loader takes: the first that fits."""
    for candidate in candidates:
        if all(size <= bytes_on.get(device, size) for device, size in needs_of(candidate).items()):
            return candidate
    return None


def test_on_a_cpu_batches_are_halved_down_to_one(contest_for):
    """A smaller batch is slower in all, and needs less."""
    contest, chosen = contest_for()
    found = smaller(contest, chosen)
    batches = [candidate.configuration.batch_size for candidate in found]
    assert contest.evaluator.space.configuration(chosen).batch_size == 8
    assert batches == sorted(batches, reverse=True)
    assert {4, 2, 1} <= set(batches)
    rates = [candidate.predicted.tokens_per_s for candidate in found]
    assert rates == sorted(rates, reverse=True)


def test_where_batches_can_not_be_halved_chunks_are(contest_for):
    """A chat has one sequence: what is left is fewer prompt tokens at once."""
    contest, chosen = contest_for("chat", prompt=512)
    chunks = [candidate.configuration.prefill_chunk for candidate in smaller(contest, chosen)]
    assert chunks == [256, 128, 64, 32]


def test_nothing_is_smaller_than_the_smallest(contest_for, make_costs):
    contest, chosen = contest_for("chat", prompt=32, costs=make_costs(8, chunks=(32,)))
    assert smaller(contest, chosen) == ()


def test_from_a_gpu_layers_come_back_to_the_cpu(contest_for):
    """Layer by layer, to none at all: whatever else takes the GPU's memory."""
    contest, chosen = contest_for("chat", available_bytes={"cpu": GIB, "cuda:0": GIB})
    assert contest.evaluator.space.configuration(chosen).device_layers == {"cuda:0": 8}
    found = smaller(contest, chosen)
    on_gpu = {candidate.configuration.device_layers.get("cuda:0", 0) for candidate in found}
    assert {0, 7} <= on_gpu
    assert all(needs_of(one).get("cuda:0", 0) < needs_of(found[0])["cuda:0"] for one in found[1:] if "cuda:0" not in
               one.configuration.device_layers)  # fmt: skip


def test_from_a_cpu_that_has_too_little_layers_go_to_the_gpu(contest_for, make_costs):
    """Where the GPU is slower than the CPU and has room: it helps where the CPU's memory is short."""
    costs = make_costs(8, devices=("cpu", "cuda:0"), gpu_speedup=0.5)
    contest, chosen = contest_for(costs=costs, available_bytes={"cpu": GIB, "cuda:0": GIB})
    configuration = contest.evaluator.space.configuration(chosen)
    assert configuration.device_layers == {"cpu": 8}
    least = min(smaller(contest, chosen), key=lambda one: needs_of(one)["cpu"])
    assert "cpu" not in least.configuration.device_layers


def test_those_that_break_a_limit_come_last(contest_for, make_costs):
    """A slow GPU-less fallback breaks the limit on TPOT, and is kept for when nothing else fits."""
    costs = make_costs(8, devices=("cpu", "cuda:0"), gpu_speedup=40.0)
    contest, chosen = contest_for(costs=costs, available_bytes={"cpu": GIB, "cuda:0": GIB}, max_tpot_ms=20)
    broken = [cost_of(contest, candidate)[0] for candidate in smaller(contest, chosen)]
    assert broken == sorted(broken)
    assert set(broken) == {False, True}


@pytest.mark.parametrize("name", ["chat", "server", "offline"])
@pytest.mark.parametrize("seed", range(4))
def test_each_needs_less_on_some_device_than_each_better_one(contest_for, make_random_costs, name, seed):
    """And none is of no use: a loader takes the first that fits, so a later one must need less somewhere."""
    devices = ("cpu", "cuda:0", "cuda:1")[: 1 + seed % 3]
    costs = make_random_costs(seed, 8, devices=devices, threads=(1, 2, 4), batches=(1, 2, 4, 8), chunks=(32, 128, 512))
    contest, chosen = contest_for(
        name, costs=costs, available_bytes=dict.fromkeys(devices, GIB), prompt=512, **({} if name != "server" else
        {"max_tpot_ms": 60_000})
    )  # fmt: skip
    first = contest.evaluator.candidate(chosen)
    found = [first, *smaller(contest, chosen)]
    assert len(found) <= 1 + MOST
    for better, worse in itertools.combinations(found, 2):
        own, other = needs_of(worse), needs_of(better)
        assert any(own.get(device, 0) < 0.99 * other.get(device, 0) for device in other)
    costs_in_order = [cost_of(contest, candidate) for candidate in found[1:]]
    assert costs_in_order == sorted(costs_in_order)
    for candidate in found:
        plan = memory.plan(
            contest.evaluator.model, candidate.configuration, contest.evaluator.workload.context_tokens,
            contest.evaluator.room,
        )  # fmt: skip
        assert candidate.predicted.memory == plan
        assert all(use.total_bytes <= use.available_bytes for use in plan)


@pytest.mark.parametrize("seed", range(6))
def test_what_fits_first_is_the_best_of_all_that_fit(contest_for, make_model, make_random_costs, seed):
    """Against every placement, batch and chunk up to the chosen ones, whatever memory each device has left."""
    devices = ("cpu", "cuda:0")[: 1 + seed % 2]
    costs = make_random_costs(seed, 4, devices=devices, threads=(1, 2), batches=(1, 2, 4, 8), chunks=(32, 128))
    contest, chosen = contest_for(
        "offline", model=make_model(4), costs=costs, available_bytes=dict.fromkeys(devices, GIB)
    )
    evaluator = contest.evaluator
    found = smaller(contest, chosen)
    assert len(found) < MOST  # so that none was left out for their number
    every = [
        evaluator.candidate(chosen._replace(placement=placement, batch=batch, chunk=chunk, **threads))
        for placement in range(len(evaluator.space.layers))
        for batch in range(chosen.batch + 1)
        for chunk in range(chosen.chunk + 1)
        for threads in [
            {
                "decode_threads": int(evaluator.decode.fastest_threads[placement, batch]),
                "prefill_threads": int(evaluator.prefill.fastest_threads[placement, chunk]),
            }
        ]
    ]
    full = needs_of(evaluator.candidate(chosen))
    for share in (0.97, 0.9, 0.75, 0.5, 0.4):
        for device in full:
            left = {device: int(full[device] * share)}
            taken = fitting(found, left)
            # One that needs hardly less than a better one is left out, so it may take a hundredth more.
            tight = {device: int(left[device] * 0.99)}
            best = min((cost_of(contest, one) for one in every if fitting([one], tight)), default=None)
            if best is not None:
                assert taken is not None
                assert cost_of(contest, taken) <= (best[0], best[1] * (1 + 1e-9))


def test_of_very_many_the_least_needy_are_kept(contest_for, make_model, make_costs):
    """The saved file stays small, and what fits into the least memory is still there."""
    devices = ("cpu", "cuda:0", "cuda:1", "cuda:2")
    costs = make_costs(60, devices=devices, batches=(1, 2, 4, 8, 16, 32))
    contest, chosen = contest_for(
        "offline", model=make_model(60), costs=costs, available_bytes=dict.fromkeys(devices, 4 * GIB), max_batch=32
    )
    found = smaller(contest, chosen)
    assert MOST - len(devices) - 1 <= len(found) <= MOST
    alone = [one for one in found if one.configuration.device_layers == {"cpu": 60}]
    assert alone  # no GPU at all
    assert min(sum(needs_of(one).values()) for one in found) == sum(needs_of(min(
        alone, key=lambda one: sum(needs_of(one).values()))).values())  # fmt: skip


def test_what_is_chosen_needs_not_be_the_best_predicted(contest_for):
    """One that runs found to be better: what is predicted to be better, but needs no less, is no replacement."""
    contest, best = contest_for()
    proven = best._replace(batch=int(best.batch) - 1)
    found = smaller(Contest(contest.evaluator, contest.max_tpot_s), proven)
    assert max(candidate.configuration.batch_size for candidate in found) <= 4
    limit = needs_of(contest.evaluator.candidate(proven))["cpu"]
    assert all(needs_of(candidate)["cpu"] < limit for candidate in found)
