"""An Optuna study over the cost model: what a search that can't enumerate finds, and how far off that is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autotune.records import Study
from autotune.search.evaluate import Evaluator
from autotune.search.rank import Ranking
from autotune.search.space import Point

if TYPE_CHECKING:
    import optuna

TRIALS = 64
"""Enough for TPE to leave its random start (10 trials) well behind; about 0.2 s."""


def run_study(
    evaluator: Evaluator, ranking: Ranking, *, start: Point | None = None, trials: int = TRIALS, seed: int = 0
) -> Study:
    """Searches the space that was ranked exactly, under the same constraints, with Optuna.

    The same arguments give the same trials. A space of no more points than ``trials`` is tried out whole.

    Args:
        evaluator: Space, figures and constraints.
        ranking: The exact answer to compare with, and the TPOT limit that applied to it.
        start: Tried first, where the space is too large to be tried out whole.
        trials: Configurations to try.
        seed: Of the sampler.
    """
    # Here and not above: it takes a quarter of a second, and a re-computed result doesn't run a study.
    import optuna

    axes = dict(zip(Point._fields, evaluator.space.shape, strict=True))

    def objective(trial: optuna.Trial) -> float:
        # Batch size and the rest as integers on their axis, not as categories: neighbours do alike.
        point = Point(**{axis: trial.suggest_int(axis, 0, length - 1) for axis, length in axes.items()})
        value = evaluator.at(point)
        # In every trial: one without constraints would count as feasible.
        for name, violation in evaluator.violations(value, ranking.max_tpot_s).items():
            trial.set_constraint(name, float(violation))
        return float(value.costs[0])

    sampler: optuna.samplers.BaseSampler
    if evaluator.space.size <= trials:
        trials = evaluator.space.size
        sampler = optuna.samplers.GridSampler({axis: range(length) for axis, length in axes.items()}, seed=seed)
    else:
        sampler = optuna.samplers.TPESampler(seed=seed)
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(sampler=sampler)
        if start is not None and isinstance(sampler, optuna.samplers.TPESampler):
            study.enqueue_trial(start._asdict())
        study.optimize(objective, n_trials=trials)
    finally:
        optuna.logging.set_verbosity(verbosity)

    feasible = [
        Point(**trial.params)
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
