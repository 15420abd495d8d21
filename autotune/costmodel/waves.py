"""A GPU's roofline: what launching costs, memory, and work that multiprocessors take in waves of tiles."""

from __future__ import annotations

from itertools import chain, combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autotune.costmodel.fitting import fit_nonnegative
from autotune.costmodel.roofline import Ceilings, Product

Floats = NDArray[np.float64]

_SIDES = (16, 32, 64, 128)
_TILES = ((0, 0), *((rows, tokens) for rows in _SIDES for tokens in _SIDES))
"""Rows and tokens of the tiles that are tried; first work that isn't cut."""

_WIDTH = 0.5
"""How near points must be to an m to count, in doublings of m: the standard deviation of what their errors weigh."""

_OVERHEAD_S = 1e-6
"""What the overhead is counted in: the terms of a fit must not differ by orders of magnitude."""

_ACTIVE_SETS = tuple(chain.from_iterable(combinations(range(3), size) for size in (1, 2, 3)))


class _Points(NamedTuple):
    """The timed points of one format: their log2 m (P,), seconds (P,), and terms for each tile (P, tiles, 3)."""

    log_m: Floats
    times_s: Floats
    terms: Floats


class _Coefficients(NamedTuple):
    """What was fitted around one m: index of the tile, and factors of its terms, shape (3,)."""

    tile: int
    coefficients: Floats


class Waves:
    """Product times of the form overhead + a x memory time + b x compute time of whole waves.

    A product is cut into tiles of so many rows and tokens, of which every multiprocessor takes one at a time: the last
    wave takes as long as a full one. Overhead, a, b and the tile are fitted to the products of a format, separately
    around every m, because kernels choose their tiles by it; none of them is negative.

    Args:
        grid: Seconds by product, thread count and m.
        ceilings: The device's.

    Source: Williams, Waterman, Patterson, Roofline; NVIDIA, Matrix Multiplication Background User's Guide, on wave
    quantization.
    """

    def __init__(self, grid: dict[Product, dict[int, dict[int, float]]], ceilings: Ceilings) -> None:
        one_thread = np.ones(1, np.int64)
        self._byte_s, self._operation_s = ceilings.byte_s(one_thread), ceilings.operation_s(one_thread)
        self._multiprocessors = ceilings.multiprocessors
        self._points: dict[str, _Points] = {}
        self._fits: dict[tuple[str, float], _Coefficients] = {}
        for name in dict.fromkeys(product.format for product in grid):
            found = [
                (product, np.array(list(curve), np.float64), list(curve.values()))
                for product, curves in grid.items()
                for curve in curves.values()
                if product.format == name
            ]
            self._points[name] = _Points(
                np.log2(np.concatenate([tokens for _, tokens, _ in found])),
                np.concatenate([times for _, _, times in found]),
                np.concatenate([self._terms(product, tokens) for product, tokens, _ in found]),
            )

    def time_s(self, product: Product, tokens: Floats, around: Floats) -> Floats:
        """Seconds of a product with so many tokens, if its kernel were the one for ``around``.

        Args:
            product: Of a format that was timed.
            tokens: Values of m, shape (M,).
            around: Values of m to which the coefficients belong, shape (M,).

        Returns:
            Shape (M,).
        """
        self._fit(product.format, around)
        fits = [self._fits[product.format, m] for m in around.tolist()]
        tiles, coefficients = [fit.tile for fit in fits], np.stack([fit.coefficients for fit in fits])
        terms = self._terms(product, tokens)[np.arange(len(tokens)), tiles]
        times: Floats = (terms * coefficients).sum(axis=1)
        return times

    def _terms(self, product: Product, tokens: Floats) -> Floats:
        """Overhead, memory time and compute time of whole waves for each tile, shape (M, tiles, 3)."""
        processors = self._multiprocessors
        rows, columns = np.array(_TILES[1:], np.float64).T
        waves = np.ceil(np.ceil(product.n_out / rows) * np.ceil(tokens[:, None] / columns) / processors)
        operations = np.empty((len(tokens), len(_TILES)))
        operations[:, 0] = product.operations(tokens)
        operations[:, 1:] = 2 * waves * processors * rows * columns * product.k_in
        memory_s = product.moved_bytes(tokens)[:, None] * self._byte_s
        compute_s = operations * self._operation_s
        return np.stack(np.broadcast_arrays(_OVERHEAD_S, memory_s, compute_s), axis=2)

    def _fit(self, format_name: str, around: Floats) -> None:
        """Fits the coefficients around every m that has none yet."""
        wanted = [m for m in dict.fromkeys(around.tolist()) if (format_name, m) not in self._fits]
        if not wanted:
            return
        points, tiles = self._points[format_name], len(_TILES)
        distance = np.square(points.log_m - np.log2(wanted)[:, None])
        weights = np.exp((distance.min(axis=1, keepdims=True) - distance) / (4 * _WIDTH**2))
        relative = np.moveaxis(points.terms / points.times_s[:, None, None], 1, 0)
        # A problem per m and tile.
        design = (relative[None] * weights[:, None, :, None]).reshape(len(wanted) * tiles, -1, 3)
        found, left = fit_nonnegative(design, np.repeat(weights, tiles, axis=0), _ACTIVE_SETS)
        best = left.reshape(-1, tiles).argmin(axis=1)
        for m, tile, coefficients in zip(wanted, best, found.reshape(-1, tiles, 3), strict=True):
            self._fits[format_name, m] = _Coefficients(int(tile), coefficients[tile])
