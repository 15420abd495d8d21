"""Which of many configurations is the best that is feasible, and which of those that tie.

The space is a full product and may hold 10^9 configurations, but its two thread axes need not be enumerated.
Decode threads enter only through the time of a decode step and prefill threads only through the time of a
prefill, neither needs memory, and every objective and limit is monotone in both times. So the fastest thread
count of each can be found first, per placement and batch size or chunk, and the choice among what is left
(placement, batch size, chunk) is exact.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.costmodel.steps import Seconds
from autotune.search.evaluate import Evaluator
from autotune.search.space import Point
from autotune.search.times import BARRED_S

TIE = 1e-9
"""Relative difference up to which two predictions count as equal: below any measurement, above rounding."""


@dataclasses.dataclass(frozen=True)
class Contest:
    """The points of a space that fit memory and keep the limits.

    Attributes:
        evaluator: The space and its figures.
        max_tpot_s: The limit on TPOT that applies; None: no limit.
        tie: Relative difference up to which two costs count as equal.
    """

    evaluator: Evaluator
    max_tpot_s: float | None
    tie: float = TIE

    def without(self, point: Point) -> Contest:
        """The contest without what decodes as a point does: on its placement with its batch size and threads."""
        evaluator = self.evaluator
        works_on_cpu = evaluator.space.works[point.placement, 0]
        threads = int(point.decode_threads) if works_on_cpu else None
        decode = evaluator.decode.knowing({(int(point.placement), threads, int(point.batch)): BARRED_S})
        return dataclasses.replace(self, evaluator=dataclasses.replace(evaluator, decode=decode))

    def best(self, *, batch: int | None = None) -> Point | None:
        """The best point of all, or None if there is none; ``batch`` as for :meth:`best_of_each`."""
        everywhere = np.zeros(len(self.evaluator.space.layers), np.int64)
        return self.best_of_each(everywhere, batch=batch).get(0)

    def best_of_each(self, groups: NDArray[np.int64], *, batch: int | None = None) -> dict[int, Point]:
        """The best point of each group of placements; without a group that has none.

        Ties go to fewer devices that have layers or the head, then to fewer decode threads, fewer prefill threads,
        less memory, a smaller batch.

        Args:
            groups: A number per placement, shape (P,); placements with a negative one are left out.
            batch: Index of the only batch size that may be chosen; None: all.
        """
        evaluator = self.evaluator
        # What is left of the points, as index arrays; and each one's group.
        rivals, ceiling_s = self._cheapest(groups, slice(None) if batch is None else slice(batch, batch + 1))
        ceilings_s = [ceiling_s]

        def keep_least(amounts: NDArray[Any], tolerance: float = 0.0) -> NDArray[Any]:
            """Keeps the rivals with the least amount in their group; returns up to where that goes."""
            nonlocal rivals
            group = groups[rivals.placement]
            ceilings = _least(amounts, group, len(ceiling_s)) * (1 + tolerance)
            rivals = Point(*(np.asarray(index)[amounts <= ceilings[group]] for index in rivals))
            return ceilings

        ceilings_s.append(keep_least(evaluator.at(rivals).costs[1], self.tie))
        keep_least(evaluator.space.works.sum(axis=1)[rivals.placement])
        counts = np.arange(len(evaluator.space.threads))
        for axis in ("decode_threads", "prefill_threads"):
            columns = Point(*(np.asarray(index)[:, None] for index in rivals))._replace(**{axis: counts})
            value = evaluator.at(columns)
            ties = evaluator.feasible(value, self.max_tpot_s)
            for cost_s, most_s in zip(value.costs, ceilings_s, strict=True):
                ties = ties & (cost_s <= most_s[groups[columns.placement]])
            # Every rival ties with some count, so the first True is the fewest threads that still do.
            rivals = rivals._replace(**{axis: ties.argmax(axis=1)})
            keep_least(np.asarray(getattr(rivals, axis)))
        total_bytes = evaluator.at(rivals).total_bytes
        group = groups[rivals.placement]
        keys = [np.asarray(index) for index in (rivals.chunk, rivals.placement, rivals.batch, total_bytes, group)]
        order = np.lexsort(keys)
        found, first = np.unique(group[order], return_index=True)
        points = np.stack([np.asarray(index) for index in rivals], axis=1)[order[first]]
        return {int(number): Point(*point) for number, point in zip(found, points.tolist(), strict=True)}

    def _cheapest(self, groups: NDArray[np.int64], batches: slice) -> tuple[Point, Seconds]:
        """Points of lowest first cost in each group, with their fastest threads; and up to where a cost is that."""
        evaluator = self.evaluator
        placements = np.flatnonzero(groups >= 0)
        cost_s = self._first_cost_s[placements, batches]
        group = groups[placements]
        lowest_s = cost_s.min(axis=(1, 2))
        ceiling_s = _least(lowest_s, group, int(groups.max()) + 1) * (1 + self.tie)
        near = (lowest_s <= ceiling_s[group]) & (lowest_s < np.inf)
        row, column, chunk = np.nonzero(cost_s[near] <= ceiling_s[group[near], None, None])
        placement, batch = placements[near][row], np.arange(evaluator.space.shape[3])[batches][column]
        decode_threads = evaluator.decode.fastest_threads[placement, batch]
        prefill_threads = evaluator.prefill.fastest_threads[placement, chunk]
        return Point(placement, decode_threads, prefill_threads, batch, chunk), ceiling_s

    @functools.cached_property
    def _first_cost_s(self) -> Seconds:
        """The most important cost with the fastest threads, shape (P, B, C); infinite where that isn't feasible."""
        value = self.evaluator.fastest
        cost_s: Seconds = np.where(self.evaluator.feasible(value, self.max_tpot_s), value.costs[0], np.inf)
        return cost_s


def _least(amounts: NDArray[Any], group: NDArray[np.int64], groups: int) -> NDArray[Any]:
    """The least amount in each group; infinite in one without any."""
    least = np.full(groups, np.inf)
    np.minimum.at(least, group, amounts)
    return least
