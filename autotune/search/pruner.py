"""Stops trials that can't win any more, whatever the rest of their measurements says."""

# Optuna tells a pruner more than this one needs.
# ruff: noqa: ARG002

from __future__ import annotations

from collections.abc import Callable, Sequence

from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial

from autotune.search.figures import beats

BOUND = "bound_s"
"""User attribute of trials: the costs that one could have at best, most important first."""


class HopelessPruner(BasePruner):
    """Prunes a trial whose bound doesn't beat the best that was run by more than the noise.

    Args:
        noise: Relative; below it two times are not told apart.
        incumbent: The costs of the best that was run and keeps the limits, most important first; None: there is none.
            Finished trials say what theirs were when they ended: since then more samples may have corrected them.
    """

    def __init__(self, noise: float, incumbent: Callable[[], Sequence[float] | None]) -> None:
        self._noise, self._incumbent = noise, incumbent

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether a trial is hopeless."""
        costs = self._incumbent()
        return costs is not None and not beats(trial.user_attrs[BOUND], costs, self._noise)
