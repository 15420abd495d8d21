"""Time of what a layer does besides its products: attention over the KV cache, and the small operations."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from autotune.costmodel.points import fastest
from autotune.costmodel.scaling import ScalabilityLaw, linear_weights
from autotune.records import Campaign

Floats = NDArray[np.float64]


class AttentionTimes:
    """Attention of m new tokens of one sequence over a context, one layer.

    At each timed m the time is piecewise linear in the context, constant below the shortest timed one; between values
    of m it is a power law; over threads it follows the Universal Scalability Law.

    Args:
        campaign: Holds the ``attention`` points.
        device: Which device's.

    Attributes:
        tokens: The timed values of m, ascending; empty if attention wasn't timed.
    """

    def __init__(self, campaign: Campaign, device: str = "cpu") -> None:
        times: dict[int, dict[int, dict[int, float]]] = {}
        for point, time_s in fastest(campaign, "attention", device).items():
            times.setdefault(point.m, {}).setdefault(point.context, {})[point.threads] = time_s
        self.tokens = tuple(sorted(times))
        self._laws = {
            m: {context: ScalabilityLaw(by_context[context]) for context in sorted(by_context)}
            for m, by_context in times.items()
        }

    def time_s(self, m: int, contexts: Floats, threads: NDArray[np.int64]) -> Floats:
        """Seconds summed over the contexts, shape (T,); 0 where attention was not timed at all."""
        if not self.tokens:
            return np.zeros(len(threads))
        if len(self.tokens) == 1:
            return self._over_contexts(self.tokens[0], contexts, threads) * m / self.tokens[0]
        lower, upper, share = self._around(m)
        between: Floats = (
            self._over_contexts(lower, contexts, threads) ** (1 - share)
            * self._over_contexts(upper, contexts, threads) ** share
        )
        return between

    def longest_context(self, m: int) -> int:
        """Longest context that was timed at the values of m from which this one is predicted: 0 if none was."""
        if len(self.tokens) < 2:
            return max((max(self._laws[only]) for only in self.tokens), default=0)
        lower, upper, share = self._around(m)
        return min(max(self._laws[node]) for node, weight in ((lower, 1 - share), (upper, share)) if weight)

    def _around(self, m: int) -> tuple[int, int, float]:
        """The two timed m between which this one lies, and how far on towards the second in log m."""
        index = min(max(int(np.searchsorted(self.tokens, m)), 1), len(self.tokens) - 1)
        lower, upper = self.tokens[index - 1], self.tokens[index]
        return lower, upper, math.log(m / lower) / math.log(upper / lower)

    def _over_contexts(self, m: int, contexts: Floats, threads: NDArray[np.int64]) -> Floats:
        nodes = np.array(list(self._laws[m]), np.float64)
        times = np.stack([law.at(threads) for law in self._laws[m].values()])
        if len(nodes) == 1:
            # One context: as if all time went to the tokens attended to, half of the new ones among them.
            slope = times[0] / (nodes[0] + (m + 1) / 2)
        else:
            # Noise between close times must not make a longer context cheaper.
            slope = np.maximum((times[-1] - times[-2]) / (nodes[-1] - nodes[-2]), 0.0)
        beyond = np.maximum(contexts - nodes[-1], 0.0).sum()
        total: Floats = linear_weights(contexts, nodes).sum(axis=1) @ times + slope * beyond
        return total


class SmallOpsTimes:
    """Norms, rotation, gate and quantisation of one layer on m tokens.

    Over threads the time at a timed m follows the Universal Scalability Law; between values of m it is a power law.

    Args:
        campaign: Holds the ``layer_ops`` points.
        device: Which device's.

    Attributes:
        tokens: The timed values of m, ascending; empty if they weren't timed.
    """

    def __init__(self, campaign: Campaign, device: str = "cpu") -> None:
        times: dict[int, dict[int, float]] = {}
        for point, time_s in fastest(campaign, "layer_ops", device).items():
            times.setdefault(point.m, {})[point.threads] = time_s
        self.tokens = tuple(sorted(times))
        self._laws = [ScalabilityLaw(times[m]) for m in self.tokens]

    def time_s(self, tokens: Floats, threads: NDArray[np.int64]) -> Floats:
        """Seconds at every m, shape (T, M).

        Beyond the last timed m proportional to m; 0 if none was timed. Timed on one thread alone they are taken to
        run on one.
        """
        if not self.tokens:
            return np.zeros((len(threads), len(tokens)))
        log_times = np.log([law.at(threads) for law in self._laws])
        inside = np.exp(log_times.T @ linear_weights(np.log(tokens), np.log(self.tokens)))
        proportional: Floats = inside * np.maximum(1.0, tokens / self.tokens[-1])
        return proportional
