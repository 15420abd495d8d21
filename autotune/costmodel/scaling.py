"""How time depends on the number of threads: the Universal Scalability Law through the thread counts that were timed."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def over_threads(measured: NDArray[np.int64], times_s: Floats, threads: NDArray[np.int64]) -> Floats:
    """Times at any thread counts, from those at a few.

    The law gives the shape; what it leaves over at the measured counts is interpolated between them, in log p, so a
    measured count returns exactly what was measured. T(p) = T1 (1 + sigma (p - 1) + kappa p (p - 1)) / p is linear in
    T1, T1 sigma and T1 kappa, which are fitted to the relative error and kept at or above zero.

    Args:
        measured: Thread counts that were timed, ascending, shape (P,), at least one.
        times_s: Seconds at each, shape (..., P).
        threads: Thread counts wanted, shape (T,).

    Returns:
        Seconds, shape (..., T). With one measured count the time is the same at all: nothing is known.

    Source: Gunther, Guerrilla Capacity Planning, chapter 4.
    """
    times_s = np.asarray(times_s, np.float64)
    if len(measured) == 1:
        return np.repeat(times_s, len(threads), axis=-1)
    flat = times_s.reshape(-1, len(measured))
    coefficients = _fit(measured.astype(np.float64), flat)
    leftover = np.log(flat) - np.log(coefficients @ _terms(measured).T)
    position = np.log(threads)
    nodes = np.log(measured)
    upper = np.clip(np.searchsorted(nodes, position), 1, len(nodes) - 1)
    share = np.clip((position - nodes[upper - 1]) / (nodes[upper] - nodes[upper - 1]), 0.0, 1.0)
    correction = leftover[:, upper - 1] * (1 - share) + leftover[:, upper] * share
    predicted: Floats = coefficients @ _terms(threads).T * np.exp(correction)
    return predicted.reshape(*times_s.shape[:-1], len(threads))


def _terms(threads: NDArray[np.int64] | Floats) -> Floats:
    p = np.asarray(threads, np.float64)
    return np.stack([1 / p, (p - 1) / p, p - 1], axis=-1)


def _fit(measured: Floats, times_s: Floats) -> Floats:
    """Non-negative least squares of the relative error for every row at once: (N, P) to (N, 3).

    With three unknowns all active sets can simply be tried; T1 is in each. No more unknowns than points are used.
    """
    rows, points = times_s.shape
    design = _terms(measured)[None] / times_s[:, :, None]
    best = np.zeros((rows, 3))
    least = np.full(rows, np.inf)
    for size in range(min(3, points)):
        for others in combinations((1, 2), size):
            active = [0, *others]
            columns = design[:, :, active]
            normal = columns.swapaxes(1, 2) @ columns
            # A hair of ridge keeps collinear terms solvable; it is far below the noise.
            normal += 1e-12 * np.trace(normal, axis1=1, axis2=2)[:, None, None] * np.eye(len(active))
            solved = np.linalg.solve(normal, columns.sum(axis=1)[:, :, None])[:, :, 0]
            residual = np.square(np.einsum("npa,na->np", columns, solved) - 1).sum(axis=1)
            better = (solved >= 0).all(axis=1) & (residual < least - 1e-12)
            least = np.where(better, residual, least)
            best[better] = 0
            best[np.ix_(better, active)] = solved[better]
    return best
