"""How time depends on the number of threads: the Universal Scalability Law through those that were timed."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autotune.costmodel.fitting import fit_nonnegative

Floats = NDArray[np.float64]


class ScalabilityLaw:
    """Time at any thread count, from that at a few.

    The law gives the shape; what it leaves over at the measured counts is interpolated between them, in log p, so a
    measured count returns exactly what was measured. T(p) = T1 (1 + sigma (p - 1) + kappa p (p - 1)) / p is linear in
    T1, T1 sigma and T1 kappa, which are fitted to the relative error and kept at or above zero. Fewer threads than
    were timed are never predicted to be faster than the fewest that were.

    Args:
        times_s: Seconds by thread count, of any shape (...), the same at each count; at least one count. One alone
            tells nothing about scaling: the time is then the same at all (sigma = 1).

    Attributes:
        coefficients: T1, T1 sigma and T1 kappa, seconds, shape (..., 3).

    Source: Gunther, Guerrilla Capacity Planning, chapter 4.
    """

    def __init__(self, times_s: Mapping[int, ArrayLike]) -> None:
        self._measured = np.array(sorted(times_s))
        self._times_s: Floats = np.stack([np.asarray(times_s[int(p)], np.float64) for p in self._measured], axis=-1)
        self.coefficients = _fit(self._measured, self._times_s.reshape(-1, len(self._measured))).reshape(
            *self._times_s.shape[:-1], 3
        )
        self._leftover = np.log(self._times_s) - np.log(self.coefficients @ _terms(self._measured))

    def at(self, threads: NDArray[np.int64]) -> Floats:
        """Seconds at thread counts of shape (T,), shape (..., T)."""
        correction = self._leftover @ linear_weights(np.log(threads), np.log(self._measured))
        predicted: Floats = self.coefficients @ _terms(threads) * np.exp(correction)
        least = np.where(threads < self._measured[0], self._times_s[..., :1], 0.0)
        return np.maximum(predicted, least)


def linear_weights(at: Floats, nodes: Floats) -> Floats:
    """Weights (N, K) to interpolate values at N ascending nodes linearly at K places; constant beyond the ends."""
    return np.stack([np.interp(at, nodes, unit) for unit in np.eye(len(nodes))])


def _terms(threads: NDArray[np.int64]) -> Floats:
    """What T1, T1 sigma and T1 kappa are multiplied by, shape (3, T)."""
    p = threads.astype(np.float64)
    return np.stack([1 / p, (p - 1) / p, p - 1])


def _fit(measured: NDArray[np.int64], times_s: Floats) -> Floats:
    """Non-negative least squares of the relative error for every row at once: (N, P) to (N, 3).

    No more unknowns than points are used.
    """
    points = times_s.shape[1]
    if points == 1:
        alone: Floats = times_s * np.array([1.0, 1.0, 0.0])
        return alone
    sets = [
        active
        for size in range(1, min(3, points) + 1)
        for active in combinations(range(3), size)
        if measured[0] > 1 or 0 in active  # T1 is all there is of the time on one thread
    ]
    return fit_nonnegative(_terms(measured).T / times_s[:, :, None], np.ones_like(times_s), sets)[0]
