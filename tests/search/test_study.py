import warnings

import optuna
import pytest

from autotune.search.evaluate import build_evaluator
from autotune.search.rank import rank
from autotune.search.space import Point
from autotune.search.study import run_study
from autotune.search.workload import make_workload


def rank_one(evaluator):
    """The ranking of one space alone."""
    (ranking,) = rank([evaluator])
    return ranking


@pytest.fixture
def evaluator_for(make_model, make_costs, room_of):
    def build(name="server", *, available_bytes=2**30, threads=(1, 2), **options):
        model = make_model()
        return build_evaluator(
            model,
            make_workload(name, model, **options),
            make_costs(threads=threads),
            room_of({"cpu": available_bytes}, 0),
        )

    return build


def test_a_space_small_enough_is_tried_out_whole_and_the_best_found(evaluator_for):
    evaluator = evaluator_for("chat")
    assert evaluator.space.size == 20
    study = run_study(evaluator, rank_one(evaluator), trials=64)
    assert (study.sampler, study.trials, study.feasible_trials, study.gap) == ("GridSampler", 20, 20, 0.0)
    assert study.best == evaluator.space.configuration(rank_one(evaluator).best)


@pytest.mark.parametrize("name", ["server", "offline"])
def test_a_large_space_is_sampled_and_the_gap_said(evaluator_for, name):
    evaluator = evaluator_for(name, threads=tuple(range(1, 17)))
    ranking = rank_one(evaluator)
    study = run_study(evaluator, ranking, trials=40)
    assert (study.sampler, study.trials) == ("TPESampler", 40)
    found = evaluator.at(evaluator.space.point(study.best))
    assert study.gap == pytest.approx(found.costs[0] / evaluator.at(ranking.best).costs[0] - 1)
    assert 0 <= study.gap < 0.2


def test_the_same_seed_gives_the_same_study(evaluator_for):
    evaluator = evaluator_for(threads=tuple(range(1, 17)))
    ranking = rank_one(evaluator)
    first, again, other = (run_study(evaluator, ranking, trials=20, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert (first.best, first.gap) != (other.best, other.gap)


def test_a_single_trial_is_the_start(evaluator_for):
    evaluator = evaluator_for(threads=tuple(range(1, 17)))
    start = Point(0, 3, 5, 1, 2)
    study = run_study(evaluator, rank_one(evaluator), start=start, trials=1)
    assert study.best == evaluator.space.configuration(start)


def test_trials_that_break_a_constraint_never_win(evaluator_for):
    """Under the limit only some batch sizes and thread counts remain; the faster ones in tokens/s are broken."""
    evaluator = evaluator_for(threads=tuple(range(1, 9)), max_tpot_ms=11, max_ttft_ms=700)
    ranking = rank_one(evaluator)
    study = run_study(evaluator, ranking, trials=64)
    assert 0 < study.feasible_trials < study.trials
    value = evaluator.at(evaluator.space.point(study.best))
    assert value.tpot_s <= 11e-3
    assert value.ttft_s <= 0.7
    assert study.gap >= 0


def test_memory_is_a_constraint_of_the_study_too(evaluator_for):
    roomy = evaluator_for("offline")
    # Room for the second of four batch sizes with the shortest chunk, and no more.
    evaluator = evaluator_for("offline", available_bytes=int(roomy.total_bytes[0, 1, 0]))
    study = run_study(evaluator, rank_one(evaluator), trials=evaluator.space.size)
    assert study.feasible_trials == (evaluator.excess_bytes <= 0).sum() * 4
    assert (study.best.batch_size, study.gap) == (2, 0.0)


def test_a_study_without_a_feasible_trial_has_no_best(evaluator_for):
    evaluator = evaluator_for(threads=tuple(range(1, 17)), max_tpot_ms=4.6)
    study = run_study(evaluator, rank_one(evaluator), start=Point(0, 0, 0, 0, 0), trials=1)
    assert (study.feasible_trials, study.best, study.gap) == (0, None, None)


def test_a_study_is_silent_and_leaves_optunas_log_level_alone(evaluator_for, capfd):
    evaluator = evaluator_for()
    optuna.logging.set_verbosity(optuna.logging.INFO)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_study(evaluator, rank_one(evaluator), trials=12)
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == optuna.logging.INFO


@pytest.fixture
def split(make_model, make_costs, room_of):
    """A space of a model split between a CPU and two GPUs of which the first can't hold it."""
    model, devices = make_model(8), ("cpu", "cuda:0", "cuda:1")
    costs = make_costs(8, devices=devices, threads=(1, 2))
    room = room_of({"cpu": 2**30, "cuda:0": 3 * 2**20, "cuda:1": 2**30}, 0)
    return build_evaluator(model, make_workload("server", model), costs, room)


def test_a_split_space_is_searched_by_split_and_head(split):
    """It begins as a person would, without tuning and with all on GPUs, more on the larger; and goes on from there."""
    ranking = rank_one(split)
    start = Point(0, 0, 0, 0, 0)
    study = run_study(split, ranking, start=start, trials=2)
    assert (study.trials, study.feasible_trials) == (2, 2)
    assert study.best.head_device == "cuda:1"
    assert sum(study.best.device_layers.values()) == study.best.device_layers["cuda:1"] == 8
    longer = run_study(split, ranking, start=start, trials=100)
    assert sum(longer.best.device_layers.values()) == 8
    assert 0 <= longer.gap < study.gap


def test_a_small_split_space_is_tried_out_whole(make_model, make_costs, room_of):
    """With the head at either place, and without layers on GPUs."""
    model = make_model(2)
    costs = make_costs(2, devices=("cpu", "cuda:0"), threads=(1,), batches=(1,), chunks=(32,))
    workload = make_workload("chat", model)
    evaluator = build_evaluator(model, workload, costs, room_of({"cpu": 2**30, "cuda:0": 2**30}, 0))
    study = run_study(evaluator, rank_one(evaluator), trials=64)
    assert (study.sampler, study.trials, study.gap) == ("GridSampler", 6, 0.0)
