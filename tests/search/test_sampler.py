"""A space as Optuna's parameters, and the sampler and the pruner as Optuna calls them."""

import itertools

import optuna
import pytest

from autotune.search.parameters import axes, parameters_of, point_at, silenced
from autotune.search.pruner import BOUND, HopelessPruner
from autotune.search.sampler import BoundSampler
from autotune.search.space import Point, build_space
from autotune.search.workload import make_workload


@pytest.fixture
def space(make_model, make_costs):
    model = make_model(3)
    costs = make_costs(3, devices=("cpu", "cuda:0"), threads=(1, 2))
    return build_space(costs, make_workload("server", model), {"cpu": 2**30, "cuda:0": 2**30})


def test_every_point_has_parameters_and_they_name_it(space):
    last = axes(space)
    for point in map(Point._make, itertools.product(*map(range, space.shape))):
        parameters = parameters_of(space, point)
        assert point_at(space, parameters) == point
        assert all(0 <= parameters[axis] <= last[axis] for axis in last)


def test_without_layers_on_a_gpu_the_head_is_on_the_cpu(space):
    first = dict.fromkeys(axes(space), 0)
    assert point_at(space, {**first, "head_on_cpu": 1}) == point_at(space, first) == Point(0, 0, 0, 0, 0)


def test_the_sampler_proposes_what_it_is_told_to(space):
    proposals = [Point(3, 1, 0, 2, 1), Point(0, 0, 1, 0, 0)]
    left = iter(proposals)
    with silenced():
        study = optuna.create_study(sampler=BoundSampler(space, lambda: next(left)))
    for point in proposals:
        trial = study.ask()
        values = {axis: trial.suggest_int(axis, 0, last) for axis, last in axes(space).items()}
        assert point_at(space, values) == point
        study.tell(trial, 1.0)


def test_what_an_enqueued_trial_leaves_open_is_proposed(space):
    point = Point(3, 1, 1, 2, 1)
    with silenced():
        study = optuna.create_study(sampler=BoundSampler(space, lambda: point))
    study.enqueue_trial({"batch": 0})
    trial = study.ask()
    assert trial.suggest_int("batch", 0, 3) == 0
    assert trial.suggest_int("chunk", 0, 4) == 1
    with pytest.raises(ValueError, match=r"expected one of the parameters split, head_on_cpu, .*, got width"):
        trial.suggest_int("width", 0, 9)


@pytest.mark.parametrize(
    ("bound", "hopeless"),
    [((0.90, 1.0), False), ((0.98, 1.0), True), ((1.5, 0.1), True), ((1.01, 0.5), False)],
)
def test_a_trial_is_pruned_when_its_bound_is_no_better_beyond_the_noise(bound, hopeless):
    """Where the first cost ties, the next one may still win."""
    with silenced():
        study = optuna.create_study(pruner=HopelessPruner(0.05, lambda: (1.0, 1.0)))
    trial = study.ask()
    trial.set_user_attr(BOUND, bound)
    trial.report(bound[0], 0)
    assert trial.should_prune() is hopeless


def test_nothing_is_pruned_before_anything_feasible_is_complete():
    with silenced():
        study = optuna.create_study(pruner=HopelessPruner(0.05, lambda: None))
    trial = study.ask()
    trial.set_user_attr(BOUND, (9.0, 9.0))
    trial.report(9.0, 0)
    assert not trial.should_prune()
