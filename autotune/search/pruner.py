"""Stops trials that can't win any more, whatever the rest of their measurements says."""

from __future__ import annotations

from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autotune.search.figures import beats

BOUND, COSTS = "bound_s", "costs_s"
"""User attributes of trials: the costs that one could have at best, and those that one had, most important first."""


class HopelessPruner(BasePruner):
    """Prunes a trial whose bound doesn't beat the best feasible trial by more than the noise.

    Args:
        noise: Relative; below it two times are not told apart.
    """

    def __init__(self, noise: float) -> None:
        self._noise = noise

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether a trial is hopeless."""
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        costs = [
            other.user_attrs[COSTS]
            for other in complete
            if COSTS in other.user_attrs and all(by <= 0 for by in other.constraints.values())
        ]
        return bool(costs) and not beats(trial.user_attrs[BOUND], min(costs), self._noise)
