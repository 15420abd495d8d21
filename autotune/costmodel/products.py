"""Time of a site's product at any m and thread count, as measured roofline time over measured utilisation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autotune.costmodel.fitting import fit_line
from autotune.costmodel.points import fastest
from autotune.costmodel.roofline import Ceilings, Form, Product
from autotune.costmodel.scaling import ScalabilityLaw
from autotune.costmodel.waves import Waves
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
    faster than reading the weights at the measured bandwidth; beyond the counts that were timed around an m
    utilisation is that of the nearest. A product that wasn't timed takes the roofline time times a slope plus an
    overhead, both fitted to the others of its format.

    Args:
        grid: Measured products.
        ceilings: The device's ceilings.
        form: How the roofline combines memory and compute time.
    """

    def __init__(self, grid: Grid, ceilings: Ceilings, form: Form) -> None:
        self._grid = grid
        self._ceilings = ceilings
        self._form: Form = form
        self._waves = Waves(grid, ceilings) if form == "waves" else None

    def time_s(self, product: Product, tokens: Floats, threads: NDArray[np.int64]) -> Floats:
        """Seconds of one product at every m of ``tokens``, shape (T, M).

        Raises:
            BenchmarkError: Neither this product nor any other of its format was timed.
        """
        curves = self._grid.get(product)
        if curves is None:
            return self._from_others(product, tokens, threads)
        # Thread counts that tell of an m: those timed at it or on both sides of it; all, where there are none.
        telling = [
            tuple(count for count, curve in curves.items() if min(curve) <= m <= max(curve)) or tuple(curves)
            for m in tokens.tolist()
        ]
        times = np.empty((len(threads), len(tokens)))
        for counts in dict.fromkeys(telling):
            columns = [column for column, found in enumerate(telling) if found == counts]
            times[:, columns] = self._over_threads(product, curves, counts, tokens[columns], threads)
        return times

    def _over_threads(
        self,
        product: Product,
        curves: dict[int, dict[int, float]],
        counts: tuple[int, ...],
        tokens: Floats,
        threads: NDArray[np.int64],
    ) -> Floats:
        """Seconds of one product at every m of ``tokens``, shape (T, M), from the curves of some thread counts."""
        times = {count: self._over_tokens(product, curves[count], count, tokens) for count in counts}
        if len(counts) == 1:
            # One thread count tells nothing about scaling: assume that utilisation stays as it is.
            return self._as_utilised(product, times[counts[0]], counts[0], tokens, threads)
        for beyond in (count for count in curves if not min(counts) <= count <= max(counts)):
            nearest = min(counts, key=lambda count: abs(count - beyond))
            times[beyond] = self._as_utilised(product, times[nearest], nearest, tokens, np.array([beyond]))[0]
        times = dict(sorted(times.items()))
        return np.maximum(ScalabilityLaw(times).at(threads).T, self._reading_s(product, times, threads))

    def _as_utilised(
        self, product: Product, time_s: Floats, count: int, tokens: Floats, threads: NDArray[np.int64]
    ) -> Floats:
        """Seconds, shape (T, M), at the utilisation that the times (M,) on one thread count are at."""
        if threads.tolist() == [count]:
            return time_s[None]
        roofline = self._roofline(product, tokens, threads)
        scaled: Floats = roofline / self._roofline(product, tokens, np.array([count])) * time_s
        return scaled

    def largest_m(self, product: Product, threads: int) -> int:
        """Largest m that a timed product was timed with on so many threads, or on fewer and on more."""
        curves = self._grid[product]
        sides = (
            [max(curve) for count, curve in curves.items() if count <= threads],
            [max(curve) for count, curve in curves.items() if count >= threads],
        )
        return min(max(side) for side in sides if side)

    def thread_counts(self, product: Product) -> tuple[int, ...]:
        """Thread counts that a product was timed with, ascending; empty if it wasn't."""
        return tuple(sorted(self._grid.get(product, {})))

    def _roofline(
        self, product: Product, tokens: Floats, threads: NDArray[np.int64], around: Floats | None = None
    ) -> Floats:
        """Roofline time, shape (T, M), of the kernel that is used with ``around`` tokens, by default those given."""
        if self._waves is None:
            return self._ceilings.time_s(product, tokens, threads, self._form)
        return self._waves.time_s(product, tokens, tokens if around is None else around)[None]

    def _over_tokens(self, product: Product, curve: dict[int, float], threads: int, tokens: Floats) -> Floats:
        nodes = np.array(sorted(curve), np.float64)
        times = np.array([curve[int(node)] for node in nodes])
        upper = np.minimum(np.searchsorted(nodes, tokens), len(nodes) - 1)
        lower = np.maximum(upper - 1, 0)
        share = np.ones_like(tokens)
        inside = lower < upper
        np.divide(np.log(tokens / nodes[lower]), np.log(nodes[upper] / nodes[lower]), out=share, where=inside)
        share = np.clip(share, 0.0, 1.0)
        # One call for the timed m on either side and for the m between.
        sizes = np.concatenate([nodes[lower], nodes[upper], tokens])
        below, above, roofline = self._roofline(product, sizes, np.array([threads]), np.tile(tokens, 3)).reshape(3, -1)
        log_utilisation = (1 - share) * np.log(below / times[lower]) + share * np.log(above / times[upper])
        predicted: Floats = roofline / np.exp(log_utilisation)
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
            where = "" if self._ceilings.device == "cpu" else f" on {self._ceilings.device}"
            raise BenchmarkError(
                f"the time of {product}{where} can't be predicted: neither it nor another {product.format} product "
                "was timed"
            )
        times = np.stack([self.time_s(other, tokens, threads) for other in others])
        rooflines = np.stack([self._roofline(other, tokens, threads) for other in others])
        slope, overhead = fit_line(rooflines, times)
        line: Floats = slope * self._roofline(product, tokens, threads) + overhead
        return line
