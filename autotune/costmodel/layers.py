"""Time of what a layer does besides its products: attention over the KV cache, and the small operations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from autotune.costmodel.points import fastest
from autotune.costmodel.scaling import ScalabilityLaw, linear_weights
from autotune.records import Campaign

Floats = NDArray[np.float64]


class AttentionTimes:
    """Attention of new tokens over a context, one layer.

    At each timed size the time is piecewise linear in the context, constant below the shortest timed one; between
    sizes it is a power law; over threads it follows the Universal Scalability Law. A size is m, the new tokens of one
    sequence, or the number of sequences that decode a token each: where one alone was timed (a CPU takes them in
    turn), more take proportionally longer.

    Args:
        campaign: Holds the ``attention`` points.
        device: Which device's.

    Attributes:
        timed: Whether there are any.
        tokens: The timed values of m, ascending.
        sequences: The timed numbers of decoding sequences, ascending.
    """

    def __init__(self, campaign: Campaign, device: str = "cpu") -> None:
        times: dict[tuple[int, int], dict[int, dict[int, float]]] = {}
        for point, time_s in fastest(campaign, "attention", device).items():
            by_context = times.setdefault((point.m, point.sequences), {})
            by_context.setdefault(point.context, {})[point.threads] = time_s
        over_contexts = {size: _OverContexts(size[0], by_context) for size, by_context in sorted(times.items())}
        self._prompts = {m: law for (m, sequences), law in over_contexts.items() if sequences == 1}
        self._batches = {sequences: law for (m, sequences), law in over_contexts.items() if m == 1}
        self.timed = bool(times)
        self.tokens = tuple(self._prompts)
        self.sequences = tuple(self._batches)

    def time_s(self, m: int, contexts: Floats, threads: NDArray[np.int64]) -> Floats:
        """Seconds of m tokens of one sequence summed over the contexts, shape (T,); 0 where none was timed at all."""
        if not self.tokens:
            return np.zeros(len(threads))
        if len(self.tokens) == 1:
            return self._prompts[self.tokens[0]].time_s(contexts, threads) * m / self.tokens[0]
        lower, upper, share = _around(m, self.tokens)
        between: Floats = (
            self._prompts[lower].time_s(contexts, threads) ** (1 - share)
            * self._prompts[upper].time_s(contexts, threads) ** share
        )
        return between

    def decode_s(self, batches: Floats, context: int, threads: NDArray[np.int64]) -> Floats:
        """Seconds of a decode step of such batches, every sequence over the same context, shape (T, B).

        Beyond the most sequences that were timed, proportional to their number.
        """
        at = np.array([context], np.float64)
        if not self._batches:
            return np.outer(self.time_s(1, at, threads), batches)
        times = np.stack([law.time_s(at, threads) for law in self._batches.values()], axis=-1)
        if len(self.sequences) == 1:
            return np.outer(times, batches / self.sequences[0])
        inside = np.exp(np.log(times) @ linear_weights(np.log(batches), np.log(self.sequences)))
        beyond: Floats = inside * np.maximum(1.0, batches / self.sequences[-1])
        return beyond

    def longest_context(self, m: int) -> int:
        """Longest context that was timed at the values of m from which this one is predicted: 0 if none was."""
        return _longest(m, self._prompts)

    def longest_decode_context(self, batch: int) -> int:
        """The same for a batch of sequences that decode a token each."""
        return _longest(batch, self._batches) if self._batches else self.longest_context(1)


class _OverContexts:
    """Attention at one timed size, over contexts and threads.

    Args:
        m: New tokens of each sequence.
        times_s: Seconds by context and thread count.
    """

    def __init__(self, m: int, times_s: dict[int, dict[int, float]]) -> None:
        self._m = m
        self._contexts = sorted(times_s)
        self._laws = [ScalabilityLaw(times_s[context]) for context in self._contexts]
        self.longest = self._contexts[-1]

    def time_s(self, contexts: Floats, threads: NDArray[np.int64]) -> Floats:
        """Seconds summed over the contexts, shape (T,)."""
        nodes = np.array(self._contexts, np.float64)
        times = np.stack([law.at(threads) for law in self._laws])
        if len(nodes) == 1:
            # One context: as if all time went to the tokens attended to, half of the new ones among them.
            slope = times[0] / (nodes[0] + (self._m + 1) / 2)
        else:
            # Noise between close times must not make a longer context cheaper.
            slope = np.maximum((times[-1] - times[-2]) / (nodes[-1] - nodes[-2]), 0.0)
        beyond = np.maximum(contexts - nodes[-1], 0.0).sum()
        total: Floats = linear_weights(contexts, nodes).sum(axis=1) @ times + slope * beyond
        return total


def _around(size: int, nodes: Sequence[int]) -> tuple[int, int, float]:
    """The two timed sizes between which this one lies, and how far on towards the second in the logarithm."""
    index = min(max(int(np.searchsorted(nodes, size)), 1), len(nodes) - 1)
    lower, upper = nodes[index - 1], nodes[index]
    return lower, upper, math.log(size / lower) / math.log(upper / lower)


def _longest(size: int, laws: Mapping[int, _OverContexts]) -> int:
    if len(laws) < 2:
        return max((law.longest for law in laws.values()), default=0)
    lower, upper, share = _around(size, list(laws))
    return min(laws[node].longest for node, weight in ((lower, 1 - share), (upper, share)) if weight)


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
