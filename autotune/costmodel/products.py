"""Time of a site's product at any m and thread count, as measured roofline time over measured utilisation."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from autotune.costmodel.roofline import Ceilings, Form
from autotune.costmodel.scaling import over_threads
from autotune.errors import BenchmarkError
from autotune.records import Campaign, Measurement, Site

Floats = NDArray[np.float64]
Key = tuple[str, int, int]
"""What tells products apart: format, n_out, k_in."""

Grid = dict[Key, dict[int, dict[int, float]]]
"""Median seconds by product, thread count and m."""


def key_of(site: Site) -> Key:
    """A site's product."""
    return site.format, site.n_out, site.k_in


def measured_products(campaign: Campaign, device: str = "cpu") -> Grid:
    """All timed products of one device. Of several kernels for one product the fastest counts."""
    grid: Grid = {}
    for outcome in campaign.outcomes:
        point = outcome.point
        if not isinstance(outcome, Measurement) or point.op != "matmul" or point.device != device:
            continue
        curve = grid.setdefault((point.format, point.n_out, point.k_in), {}).setdefault(point.threads, {})
        curve[point.m] = min(outcome.median_s, curve.get(point.m, np.inf))
    return grid


class Products:
    """Predicts products from a grid of measured ones.

    Utilisation is roofline time over measured time. Over m it is interpolated linearly in the logarithms, and kept at its
    last value beyond the ends. Over threads it follows the Universal Scalability Law, but no prediction between measured
    thread counts is faster than reading the weights at the measured bandwidth. A product that wasn't timed takes the
    roofline time times a slope plus an overhead, both fitted to the other products of its format.

    Args:
        grid: Measured products.
        ceilings: The device's ceilings.
        form: How the roofline combines memory and compute time.
    """

    def __init__(self, grid: Grid, ceilings: Ceilings, form: Form) -> None:
        self._grid = grid
        self._ceilings = ceilings
        self._form: Form = form

    def time_s(self, site: Site, m: Iterable[float], threads: NDArray[np.int64]) -> Floats:
        """Seconds of one product, shape (T, M).

        Raises:
            BenchmarkError: Neither this product nor any other of its format was timed.
        """
        tokens = np.asarray(list(m), np.float64)
        curves = self._grid.get(key_of(site), {})
        if not curves:
            return self._from_others(site, tokens, threads)
        counts = np.array(sorted(curves))
        at_counts = np.stack([self._over_tokens(site, curves[int(count)], int(count), tokens) for count in counts])
        if len(counts) == 1:
            # One thread count tells nothing about scaling: assume that utilisation stays as it is.
            roofline = self._roofline(site, tokens, threads)
            same_utilisation: Floats = at_counts * roofline / self._roofline(site, tokens, counts)
            return same_utilisation
        predicted = over_threads(counts, at_counts.T, threads).T
        floor = self._ceilings.time_s(site, np.zeros_like(tokens), threads, "max")
        capped: Floats = np.where(np.isin(threads, counts)[:, None], predicted, np.maximum(predicted, floor))
        return capped

    def largest_m(self, site: Site) -> int:
        """Largest m that was timed of a product, 0 if none: predictions beyond it are extrapolated."""
        return max((max(curve) for curve in self._grid.get(key_of(site), {}).values()), default=0)

    def _roofline(self, site: Site, tokens: Floats, threads: NDArray[np.int64]) -> Floats:
        return self._ceilings.time_s(site, tokens, threads, self._form)

    def _over_tokens(self, site: Site, curve: dict[int, float], threads: int, tokens: Floats) -> Floats:
        nodes = np.array(sorted(curve), np.float64)
        times = np.array([curve[int(node)] for node in nodes])
        count = np.array([threads])
        log_utilisation = np.log(self._roofline(site, nodes, count)[0] / times)
        utilisation = np.exp(np.interp(np.log(tokens), np.log(nodes), log_utilisation))
        return self._roofline(site, tokens, count)[0] / utilisation

    def _from_others(self, site: Site, tokens: Floats, threads: NDArray[np.int64]) -> Floats:
        others = [key for key in self._grid if key[0] == site.format]
        if not others:
            raise BenchmarkError(
                f"{site.name} ({site.format} {site.n_out} x {site.k_in}) can't be predicted: "
                "neither it nor another product of that format was timed"
            )
        sites = [Site(site.name, n_out, k_in, held) for held, n_out, k_in in others]
        times = np.stack([self.time_s(other, tokens, threads) for other in sites])
        rooflines = np.stack([self._roofline(other, tokens, threads) for other in sites])
        slope, overhead = _fit_line(rooflines, times)
        line: Floats = slope * self._roofline(site, tokens, threads) + overhead
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
