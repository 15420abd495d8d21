"""An Optuna study over the cost model: what a search that can't enumerate finds, and how far off that is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from autotune.records import Study
from autotune.search.evaluate import Evaluator
from autotune.search.parameters import axes, parameters_of, point_at, silenced
from autotune.search.rank import Ranking
from autotune.search.space import Point

if TYPE_CHECKING:
    import optuna

TRIALS = 128
"""About 0.4 s. Of thousands of configurations TPE comes within a few per cent of the best; of millions, where layers
are split between devices, often only within tens: which is why the ranking decides."""


def run_study(
    evaluator: Evaluator, ranking: Ranking, *, start: Point | None = None, trials: int = TRIALS, seed: int = 0
) -> Study:
    """Searches the space that was ranked exactly, under the same constraints, with Optuna.

    The same arguments give the same trials. A space of no more points than ``trials`` is tried out whole.

    Args:
        evaluator: Space, figures and constraints.
        ranking: The exact answer to compare with, and the TPOT limit that applied to it.
        start: Tried first, where the space is too large to be tried out whole; then the same with as many layers on
            GPUs as fit.
        trials: Configurations to try.
        seed: Of the sampler.
    """
    # Here and not above: it takes a quarter of a second, and a re-computed result doesn't run a study.
    import optuna

    ranges = axes(evaluator.space)

    def objective(trial: optuna.Trial) -> float:
        # Batch size and the rest as integers on their axis, not as categories: neighbours do alike.
        point = point_at(evaluator.space, {axis: trial.suggest_int(axis, 0, last) for axis, last in ranges.items()})
        value = evaluator.at(point)
        # In every trial: one without constraints would count as feasible.
        for name, violation in evaluator.violations(value, ranking.max_tpot_s).items():
            trial.set_constraint(name, float(violation))
        return float(value.costs[0])

    sampler: optuna.samplers.BaseSampler
    combinations = math.prod(last + 1 for last in ranges.values())
    if combinations <= trials:
        trials = combinations
        sampler = optuna.samplers.GridSampler({axis: range(last + 1) for axis, last in ranges.items()}, seed=seed)
    else:
        sampler = optuna.samplers.TPESampler(seed=seed)
    with silenced():
        study = optuna.create_study(sampler=sampler)
        if start is not None and isinstance(sampler, optuna.samplers.TPESampler):
            for point in _seeds(evaluator, start):
                study.enqueue_trial(parameters_of(evaluator.space, point))
        study.optimize(objective, n_trials=trials)

    feasible = [
        point_at(evaluator.space, trial.params)
        for trial in study.trials
        if all(violation <= 0 for violation in trial.constraints.values())
    ]
    # Trials that tie in the objective, as in chat all prefill settings do, differ in the costs that come after it.
    best = min(feasible, key=lambda point: tuple(map(float, evaluator.at(point).costs)), default=None)
    exact_s = float(evaluator.at(ranking.best).costs[0])
    return Study(
        sampler=type(sampler).__name__,
        seed=seed,
        trials=len(study.trials),
        feasible_trials=len(feasible),
        best=None if best is None else evaluator.space.configuration(best),
        # The ranking prefers fewer threads within a rounding error, so a study can come out ahead by that.
        gap=None if best is None else max(0.0, float(evaluator.at(best).costs[0]) / exact_s - 1),
    )


def _seeds(evaluator: Evaluator, start: Point) -> list[Point]:
    """Where a person would begin: without tuning, and with as much on GPUs as fits, so that each has some room left."""
    space, excess = evaluator.space, evaluator.excess_bytes[:, start.batch, start.chunk]
    order = np.lexsort((excess, space.heads == 0, -space.gpu_layers, excess > 0))
    return list(dict.fromkeys([start, start._replace(placement=int(order[0]))]))
