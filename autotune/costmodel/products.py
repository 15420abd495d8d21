"""Time of a site's product at any m and thread count, as measured roofline time over measured utilisation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autotune.costmodel.points import fastest
from autotune.costmodel.roofline import Ceilings, Form, Product
from autotune.costmodel.scaling import ScalabilityLaw
from autotune.errors import BenchmarkError
from autotune.records import Campaign

Floats = NDArray[np.float64]
Grid = dict[Product, dict[int, dict[int, float]]]
"""Median seconds by product, thread count and m."""


def measured_products(campaign: Campaign, device: str = "cpu") -> Grid:
    """All timed products of one device."""
    grid: Grid = {}
    for point, time_s in fastest(campaign, "matmul", device).items():
        product = Product(point.format, point.n_out, point.k_in)
        grid.setdefault(product, {}).setdefault(point.threads, {})[point.m] = time_s
    return grid


class Products:
    """Predicts products from a grid of measured ones.

    Utilisation is roofline time over measured time. Over m it is interpolated linearly in the logarithms, and kept at
    its last value beyond the ends. Over threads time follows the Universal Scalability Law, but no prediction is
    faster than reading the weights at the measured bandwidth. A product that wasn't timed takes the roofline time
    times a slope plus an overhead, both fitted to the others of its format.

    Args:
        grid: Measured products.
        ceilings: The device's ceilings.
        form: How the roofline combines memory and compute time.
    """

    def __init__(self, grid: Grid, ceilings: Ceilings, form: Form) -> None:
        self._grid = grid
        self._ceilings = ceilings
        self._form: Form = form

    def time_s(self, product: Product, tokens: Floats, threads: NDArray[np.int64]) -> Floats:
        """Seconds of one product at every m of ``tokens``, shape (T, M).

        Raises:
            BenchmarkError: Neither this product nor any other of its format was timed.
        """
        curves = self._grid.get(product)
        if curves is None:
            return self._from_others(product, tokens, threads)
        times = {count: self._over_tokens(product, curve, count, tokens) for count, curve in curves.items()}
        counts = np.array(list(times))
        if len(counts) == 1:
            # One thread count tells nothing about scaling: assume that utilisation stays as it is.
            (only,) = times.values()
            scale = self._roofline(product, tokens, threads) / self._roofline(product, tokens, counts)
            same_utilisation: Floats = scale * only
            return same_utilisation
        return np.maximum(ScalabilityLaw(times).at(threads).T, self._reading_s(product, times, threads))

    def largest_m(self, product: Product, threads: int) -> int:
        """Largest m that a timed product was timed with on so many threads, or on all counts where that one wasn't."""
        curves = self._grid[product]
        return max(curves[threads]) if threads in curves else min(max(curve) for curve in curves.values())

    def thread_counts(self, product: Product) -> tuple[int, ...]:
        """Thread counts that a product was timed with, ascending; empty if it wasn't."""
        return tuple(sorted(self._grid.get(product, {})))

    def _roofline(self, product: Product, tokens: Floats, threads: NDArray[np.int64]) -> Floats:
        return self._ceilings.time_s(product, tokens, threads, self._form)

    def _over_tokens(self, product: Product, curve: dict[int, float], threads: int, tokens: Floats) -> Floats:
        nodes = np.array(sorted(curve), np.float64)
        times = np.array([curve[int(node)] for node in nodes])
        roofline = self._roofline(product, np.concatenate([nodes, tokens]), np.array([threads]))[0]
        log_utilisation = np.log(roofline[: len(nodes)] / times)
        predicted: Floats = roofline[len(nodes) :] / np.exp(np.interp(np.log(tokens), np.log(nodes), log_utilisation))
        return predicted

    def _reading_s(self, product: Product, times: dict[int, Floats], threads: NDArray[np.int64]) -> Floats:
        """Time to read the weights, shape (T, M), at the measured bandwidth or as much faster as ``times`` show it."""
        measured = product.weight_bytes * self._ceilings.byte_s(np.array(list(times)))[:, None]
        speedup = np.maximum((measured / np.stack(list(times.values()))).max(axis=0), 1.0)
        reading: Floats = product.weight_bytes * self._ceilings.byte_s(threads)[:, None] / speedup
        return reading

    def _from_others(self, product: Product, tokens: Floats, threads: NDArray[np.int64]) -> Floats:
        others = [other for other in self._grid if other.format == product.format]
        if not others:
            raise BenchmarkError(
                f"the time of {product} can't be predicted: neither it nor another {product.format} product was timed"
            )
        times = np.stack([self.time_s(other, tokens, threads) for other in others])
        rooflines = np.stack([self._roofline(other, tokens, threads) for other in others])
        slope, overhead = _fit_line(rooflines, times)
        line: Floats = slope * self._roofline(product, tokens, threads) + overhead
        return line


def _fit_line(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Slope and overhead, neither below zero, of y = slope x + overhead along axis 0, by least relative error."""
    scaled, ones = x / y, 1 / y
    xx, xo, oo = (scaled * scaled).sum(0), (scaled * ones).sum(0), (ones * ones).sum(0)
    determinant = xx * oo - xo * xo
    proportional = scaled.sum(0) / xx
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = (oo * scaled.sum(0) - xo * ones.sum(0)) / determinant
        overhead = (xx * ones.sum(0) - xo * scaled.sum(0)) / determinant
    # Products of one size, or a fit that leaves the quadrant: the line goes through the origin.
    usable = (determinant > 1e-9 * xx * oo) & (slope > 0) & (overhead >= 0)
    return np.where(usable, slope, proportional), np.where(usable, overhead, 0.0)
