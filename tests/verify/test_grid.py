"""The grid on a synthetic engine: which parts, in which order, and what becomes of failures."""

import itertools

import pytest
from msgspec.structs import replace

from autotune.model.memory import Room
from autotune.records import PartRun, RunFailure, part_of
from autotune.search.space import Point
from autotune.verify.grid import PHASES, Subject, measure_grid, measure_memory, plan_grid, shared
from tests.verify.conftest import SyntheticEngine, evaluator_of, every_part, law_s, on_cpu, small_workload


def parts_of(configuration, workload=None):
    return {shared(part_of(configuration, workload or small_workload(), phase)) for phase in PHASES}


def subject_of(evaluator, *kept, max_tpot_s=None):
    return Subject(evaluator, max_tpot_s, kept)


def configurations_of(evaluator):
    """All of a space that fit the memory."""
    for index in itertools.product(*map(range, evaluator.space.shape)):
        point = Point(*index)
        if evaluator.at(point).excess_bytes <= 0:
            yield evaluator.space.configuration(point)


def test_an_unbounded_grid_has_every_part_of_every_configuration_once():
    plan = plan_grid([subject_of(evaluator_of())])
    assert set(plan.tasks) == set(every_part())
    assert plan.feasible_parts == 8
    for part, (configuration, workload) in plan.tasks.items():
        assert part in parts_of(configuration, workload)


def test_parts_that_only_belong_to_configurations_too_large_for_the_memory_are_left_out():
    """Against all configurations one by one, with two GPUs, and on the CPU room for a part of the layers only."""
    room = Room({"cpu": 2_200_000, "cuda:0": 10**9, "cuda:1": 10**9}, {"cpu": 10**6, "cuda:0": 0, "cuda:1": 0})
    evaluator = evaluator_of(gpus=2, room=room)
    wanted = set().union(*map(parts_of, configurations_of(evaluator)))
    plan = plan_grid([subject_of(evaluator)])
    assert set(plan.tasks) == wanted
    assert plan.feasible_parts == len(wanted)
    roomy = plan_grid([subject_of(evaluator_of(gpus=2))])
    assert 0 < plan.feasible_parts < roomy.feasible_parts
    for configuration, _ in plan.tasks.values():
        assert evaluator.at(evaluator.space.point(configuration)).excess_bytes <= 0


def test_where_the_cpu_does_nothing_one_thread_count_stands_for_all():
    evaluator = evaluator_of(gpus=1)
    plan = plan_grid([subject_of(evaluator)])
    on_gpu = [part for part in plan.tasks if part.device_layers == (("cuda:0", 4),) and part.head_device == "cuda:0"]
    assert len(on_gpu) == 4
    assert {part.threads for part in on_gpu} == {1}
    with_head = [part for part in plan.tasks if part.device_layers == (("cuda:0", 4),) and part.head_device == "cpu"]
    assert len(with_head) == 8


def test_workloads_of_one_run_share_their_parts():
    """Chat's batch of one is a server's too; another prompt length has parts of its own."""
    chat, longer = small_workload("chat"), small_workload(prompt_tokens=80)
    plan = plan_grid([subject_of(evaluator_of()), subject_of(evaluator_of(chat))])
    assert set(plan.tasks) == set(every_part())
    both = plan_grid([subject_of(evaluator_of()), subject_of(evaluator_of(longer))])
    assert both.feasible_parts == len(both.tasks) == 16


@pytest.mark.parametrize("limit", [6, 20, 33])
def test_a_bounded_grid_keeps_what_it_must_and_has_whole_configurations(limit):
    """The slowest on the CPU is kept, as a chosen one or a baseline might be; what it leaves out is counted."""
    evaluator = evaluator_of(gpus=1, layers=12)
    slowest = replace(on_cpu(1, 1, 1, 32), device_layers={"cpu": 12})
    other = replace(slowest, device_layers={"cpu": 5, "cuda:0": 7}, head_device="cuda:0")
    plan = plan_grid([subject_of(evaluator, slowest, other)], limit)
    assert limit <= len(plan.tasks) <= limit + 1
    assert plan.feasible_parts == len(plan_grid([subject_of(evaluator)]).tasks) > 100
    assert parts_of(slowest) | parts_of(other) <= set(plan.tasks)
    for configuration, workload in plan.tasks.values():
        assert parts_of(configuration, workload) <= set(plan.tasks)


def test_what_must_be_kept_is_kept_even_beyond_the_bound():
    kept = on_cpu(1, 2, 1, 32), on_cpu(2, 1, 2, 64)
    plan = plan_grid([subject_of(evaluator_of(), *kept)], 1)
    assert set(plan.tasks) == set().union(*map(parts_of, kept))
    assert plan.feasible_parts == 8


def test_half_of_a_bounded_grid_is_the_most_promising_and_half_is_spread_evenly():
    """All layers on the GPU is predicted to be the best, and the fewer there are the worse it gets."""
    evaluator = evaluator_of(gpus=1, layers=12)
    plan = plan_grid([subject_of(evaluator)], 24)
    layers = [dict(part.device_layers).get("cuda:0", 0) for part in plan.tasks]
    assert min(layers[:12]) >= 10
    assert min(layers) <= 2
    assert max(b - a for a, b in itertools.pairwise(sorted(set(layers)))) <= 4


def test_what_is_predicted_to_break_a_limit_is_the_least_promising():
    """A batch of two has the most tokens/s, but its steps are too slow for a limit of 2.5 s."""
    unlimited = plan_grid([subject_of(evaluator_of())], 2)
    assert {part.size for part in unlimited.tasks} == {2, 64}
    limited = plan_grid([subject_of(evaluator_of(), max_tpot_s=2.5)], 2)
    assert {part.size for part in limited.tasks} == {1, 64}
    for plan in (unlimited, limited):
        assert {part.threads for part in plan.tasks} == {2}


def test_chat_finds_those_promising_whose_prompts_are_faster_where_steps_tie():
    plan = plan_grid([subject_of(evaluator_of(small_workload("chat")))], 2)
    assert {(part.phase, part.threads, part.size) for part in plan.tasks} == {("decode", 2, 1), ("prefill", 2, 64)}


def test_workloads_take_turns_in_a_bounded_grid():
    first, second = small_workload(), small_workload(prompt_tokens=80)
    plan = plan_grid([subject_of(evaluator_of(first)), subject_of(evaluator_of(second))], 8)
    prompts = [part.context for part in plan.tasks if part.phase == "prefill"]
    assert {64, 80} == set(prompts)
    assert abs(prompts.count(64) - prompts.count(80)) <= 1


def test_no_subjects_make_an_empty_grid():
    assert plan_grid([]) == ({}, 0)


def test_every_round_runs_every_part_once_in_another_order(engine):
    plan = plan_grid([subject_of(evaluator_of())])
    with engine:
        grid = measure_grid(engine, plan, repeats=3)
    rounds = [tuple(engine.order[start : start + 8]) for start in (0, 8, 16)]
    assert len(engine.order) == 24
    assert all(set(one) == set(plan.tasks) for one in rounds)
    assert len(set(rounds)) == 3
    assert (grid.engine, grid.rounds, grid.feasible_parts) == ("synthetic engine", 3, 8)
    assert [part.outcome.part for part in grid.parts] == list(plan.tasks)


def test_the_order_follows_the_seed():
    plan = plan_grid([subject_of(evaluator_of())])
    orders = []
    for seed in (0, 0, 1):
        engine = SyntheticEngine()
        measure_grid(engine, plan, repeats=1, seed=seed)
        orders.append(engine.order)
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize(("repeats", "samples"), [(1, 6), (2, 6), (3, 6), (4, 8), (7, 7)])
def test_there_are_always_samples_enough_for_an_interval(engine, repeats, samples):
    """Those of all rounds, in the order taken."""
    grid = measure_grid(engine, plan_grid([subject_of(evaluator_of())]), repeats=repeats)
    assert len(grid.runs()) == 8
    for run in grid.runs():
        assert len(run.samples_s) == len(run.device_s["cpu"]) == samples
        assert list(run.samples_s) == sorted(run.samples_s)
        assert run.median_s == pytest.approx(law_s(run.part), rel=0.1)
        assert run.relative_interval is not None


def test_weights_move_once_per_placement_and_round():
    engine = SyntheticEngine(lambda part: 1.0)
    plan = plan_grid([subject_of(evaluator_of(gpus=1))])
    measure_grid(engine, plan, repeats=2)
    placements = {(part.device_layers, part.head_device) for part in plan.tasks}
    assert len(engine.moves) <= 2 * len(placements)
    for start in (0, len(plan.tasks)):
        found = [(part.device_layers, part.head_device) for part in engine.order[start : start + len(plan.tasks)]]
        assert len(list(itertools.groupby(found))) == len(placements)


def test_a_part_that_fails_is_a_value_and_is_not_run_again():
    """One from the start, and one in the second round: it isn't to be relied on either."""
    first, second, *rest = every_part()
    engine = SyntheticEngine(failing={first: 1, second: 2})
    grid = measure_grid(engine, plan_grid([subject_of(evaluator_of())]), repeats=3)
    assert engine.order.count(first) == 1
    assert engine.order.count(second) == 2
    assert {failure.part for failure in grid.failures()} == {first, second}
    assert {failure.message for failure in grid.failures()} == {"the process died"}
    assert {run.part for run in grid.runs()} == set(rest)
    assert all(len(run.samples_s) == 6 for run in grid.runs())


def test_a_placement_that_weights_cannot_be_brought_to_fails_without_being_run():
    engine = SyntheticEngine(lambda part: 1.0, unplaceable="cuda:0")
    plan = plan_grid([subject_of(evaluator_of(gpus=1))])
    grid = measure_grid(engine, plan, repeats=2)
    assert {part.device_layers for part in engine.order} == {(("cpu", 4),)}
    failed = {failure.part for failure in grid.failures()}
    assert failed == {part for part in plan.tasks if "cuda:0" in dict(part.device_layers)}
    assert all(failure.kind == "out_of_memory" for failure in grid.failures())
    assert [part.outcome.part for part in grid.parts] == list(plan.tasks)


def test_progress_is_told_after_every_part(engine):
    told = []
    first = every_part()[0]
    failing = SyntheticEngine(failing={first: 1})
    plan = plan_grid([subject_of(evaluator_of())])
    measure_grid(failing, plan, repeats=2, progress=lambda *values: told.append(values))
    shares = [share for share, _, _ in told]
    assert len(told) == 16
    assert shares == [index / 16 for index in range(1, 17)]
    assert told[-1] == (1.0, 7, 8)


def test_a_grid_says_what_the_engine_left_out():
    plan = plan_grid([subject_of(evaluator_of())])
    assert measure_grid(SyntheticEngine(reused_layers=3), plan, repeats=1).reused_layers == 3


def test_memory_is_that_of_both_phases_with_a_full_cache(engine):
    """The decode step is at the last of the 128 slots; the prompt is the workload's own."""
    assert measure_memory(engine, on_cpu(1, 2, 2, 32), small_workload()) == {"cpu": 10**9}
    assert engine.contexts == [("decode", 127), ("prefill", 64)]


def test_memory_of_what_cannot_be_run_is_a_failure():
    part = part_of(on_cpu(1, 2, 2, 32), small_workload(), "prefill")
    found = measure_memory(SyntheticEngine(failing={part: 1}), on_cpu(1, 2, 2, 32), small_workload())
    assert isinstance(found, RunFailure)
    assert not isinstance(found, PartRun)
    assert found.part == part
