"""Time of what a layer does besides its products: attention over the KV cache, and the small operations."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autotune.costmodel.scaling import over_threads
from autotune.records import Campaign, Measurement

Floats = NDArray[np.float64]


class AttentionTimes:
    """Attention of m new tokens of one sequence over a context, one layer.

    At each timed m the time is piecewise linear in the context; between values of m it is a power law; over threads it
    follows the Universal Scalability Law.

    Args:
        campaign: Holds the ``attention`` points.
        device: Which device's.

    Attributes:
        longest_context: Longest context that was timed, 0 if none: predictions beyond it are extrapolated.
    """

    def __init__(self, campaign: Campaign, device: str = "cpu") -> None:
        self._times: dict[int, dict[int, dict[int, float]]] = {}
        for outcome in campaign.outcomes:
            point = outcome.point
            if isinstance(outcome, Measurement) and point.op == "attention" and point.device == device:
                by_threads = self._times.setdefault(point.m, {}).setdefault(point.context, {})
                by_threads[point.threads] = outcome.median_s
        contexts = [context for by_context in self._times.values() for context in by_context]
        self.longest_context = max(contexts, default=0)

    def time_s(self, m: float, contexts: Floats, threads: NDArray[np.int64]) -> Floats:
        """Seconds summed over the contexts, shape (T,); 0 where attention was not timed at all."""
        tokens = sorted(self._times)
        if not tokens:
            return np.zeros(len(threads))
        totals: Floats = np.stack([self._over_contexts(self._times[node], contexts, threads) for node in tokens])
        if len(tokens) == 1:
            only: Floats = totals[0] * m / tokens[0]
            return only
        nodes, position = np.log(np.array(tokens, np.float64)), np.log(m)
        upper = int(np.clip(np.searchsorted(nodes, position), 1, len(nodes) - 1))
        share = (position - nodes[upper - 1]) / (nodes[upper] - nodes[upper - 1])
        logs = np.log(totals)
        between: Floats = np.exp(logs[upper - 1] * (1 - share) + logs[upper] * share)
        return between

    def _over_contexts(
        self, by_context: dict[int, dict[int, float]], contexts: Floats, threads: NDArray[np.int64]
    ) -> Floats:
        nodes = sorted(by_context)
        counts = [np.array(sorted(by_context[node])) for node in nodes]
        times = np.stack(
            [
                over_threads(count, np.array([by_context[node][int(p)] for p in count]), threads)
                for node, count in zip(nodes, counts, strict=True)
            ]
        )
        if len(nodes) == 1:
            same: Floats = times[0] * len(contexts)
            return same
        # Straight lines between the nodes and on beyond the last ones.
        at = np.array(nodes, np.float64)
        upper = np.clip(np.searchsorted(at, contexts), 1, len(at) - 1)
        share = ((contexts - at[upper - 1]) / (at[upper] - at[upper - 1]))[:, None]
        between = times[upper - 1] * (1 - share) + times[upper] * share
        # Extrapolating noise downwards must not yield a free operation.
        total: Floats = np.maximum(between, times.min(axis=0) / 2).sum(axis=0)
        return total


class SmallOpsTimes:
    """Norms, rotation, gate and quantisation of one layer on m tokens; they run on one thread.

    Args:
        campaign: Holds the ``layer_ops`` points.
        device: Which device's.
    """

    def __init__(self, campaign: Campaign, device: str = "cpu") -> None:
        self._times = {
            outcome.point.m: outcome.median_s
            for outcome in campaign.measurements()
            if outcome.point.op == "layer_ops" and outcome.point.device == device
        }

    def time_s(self, m: float) -> float:
        """Seconds; between timed values of m a power law, beyond the last proportional to m; 0 if none was timed."""
        if not self._times:
            return 0.0
        nodes = np.array(sorted(self._times), np.float64)
        times = np.array([self._times[int(node)] for node in nodes])
        inside = float(np.exp(np.interp(np.log(m), np.log(nodes), np.log(times))))
        return inside * max(1.0, m / float(nodes[-1]))
