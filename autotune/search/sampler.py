"""Proposes the configuration with the best lower confidence bound under the corrected cost model."""

# Optuna tells a sampler more than this one needs.
# ruff: noqa: ARG002

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from autotune.search.parameters import axes, parameters_of
from autotune.search.space import Point, Space


class BoundSampler(BaseSampler):
    """A sampler that knows the cost model: all of the space is ranked for every proposal.

    Source: Srinivas et al., Gaussian Process Optimization in the Bandit Setting (2010), for choosing by the confidence
    bound; here the process models what the cost model misses.

    Args:
        space: The configurations.
        propose: The one whose costs could be the best, given all that was run, see ``Belief.promising``.
    """

    def __init__(self, space: Space, propose: Callable[[], Point]) -> None:
        self._space, self._propose = space, propose

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All axes: a proposal is a whole configuration."""
        return {axis: IntDistribution(0, last) for axis, last in axes(self._space).items()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The proposal."""
        return parameters_of(self._space, self._propose())

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Nothing is sampled by itself.

        Raises:
            ValueError: The parameter isn't an axis of the space.
        """
        raise ValueError(f"expected one of the parameters {', '.join(axes(self._space))}, got {param_name}")
