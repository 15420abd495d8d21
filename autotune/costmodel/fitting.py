"""Least squares for few unknowns, none of them negative."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def fit_line(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Slope and overhead of y = slope x + overhead along axis 0: non-negative least squares of the relative error.

    Where all values of x are alike there is no telling the two apart: the line then goes through the origin.

    Args:
        x: Above zero, shape (N, ...).
        y: Above zero, of the same shape.

    Returns:
        Slope and overhead, each of shape (...).
    """
    scaled, ones = x / y, 1 / y
    xx, xo, oo = (scaled * scaled).sum(0), (scaled * ones).sum(0), (ones * ones).sum(0)
    determinant = xx * oo - xo * xo
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = (oo * scaled.sum(0) - xo * ones.sum(0)) / determinant
        overhead = (xx * ones.sum(0) - xo * scaled.sum(0)) / determinant
    told_apart = determinant > 1e-9 * xx * oo
    falling = told_apart & (slope <= 0)
    through_origin = ~told_apart | (overhead < 0)
    slope = np.where(through_origin, scaled.sum(0) / xx, slope)
    overhead = np.where(through_origin, 0.0, overhead)
    return np.where(falling, 0.0, slope), np.where(falling, ones.sum(0) / oo, overhead)


def fit_nonnegative(
    design: Floats, target: Floats, active_sets: Iterable[Sequence[int]]
) -> tuple[Floats, NDArray[np.float64]]:
    """Non-negative least squares for many small problems at once, by trying sets of unknowns that aren't zero.

    Args:
        design: Shape (N, P, K).
        target: Shape (N, P).
        active_sets: Sets of unknowns to try, in order of preference.

    Returns:
        The unknowns, shape (N, K), and the sum of squares that they leave, shape (N,); zeros and infinity where no
        set has a solution without a negative one.
    """
    best = np.zeros((len(design), design.shape[2]))
    least = np.full(len(design), np.inf)
    for active in map(list, active_sets):
        columns = design[:, :, active]
        normal = columns.swapaxes(1, 2) @ columns
        # A hair of ridge keeps collinear terms solvable, and ties go to the earlier set; both are far below noise.
        normal += 1e-12 * np.trace(normal, axis1=1, axis2=2)[:, None, None] * np.eye(len(active))
        solved = np.linalg.solve(normal, (columns * target[:, :, None]).sum(axis=1)[:, :, None])
        residual = np.square(columns @ solved - target[:, :, None]).sum(axis=(1, 2))
        better = (solved >= 0).all(axis=(1, 2)) & (residual < least - 1e-12)
        least = np.where(better, residual, least)
        best[better] = 0
        best[np.ix_(better, active)] = solved[better, :, 0]
    return best, least
