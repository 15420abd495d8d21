"""What to fall back on where the memory has become less: configurations that need less than the chosen one.

They are found when a result is made and saved with it, so that a loader shrinks a configuration without a cost model.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from autotune.records import Candidate
from autotune.search.contest import Contest
from autotune.search.evaluate import device_bytes
from autotune.search.space import Point

MOST = 32
"""Configurations that are kept: they are saved with every result, and a loader reads them all."""

_WORTH = 0.01
"""What needs less than a better one by no more than this share is of no use: loaders leave ten times as much free."""

_SHARES = 24
"""Ways to share the layers among devices that are told apart, so that finding the best of each stays cheap."""


def smaller(contest: Contest, chosen: Point) -> tuple[Candidate, ...]:
    """Configurations that need less memory than the chosen one on some device, best first.

    Batches and chunks are at most the chosen ones. Those that keep the workload's limits come before those that don't,
    then the workload's objective counts. One that needs hardly less on any device than a better one is left out. Of
    more than `MOST` an even selection is kept, and always those that need the least on each device and in all.

    Args:
        contest: What the choice was made in.
        chosen: The choice.
    """
    evaluator = contest.evaluator
    rivals = _rivals(contest, chosen)
    # The chosen one comes first, so that only what needs less than it on some device is not beaten by it.
    points = np.stack([np.append(own, index) for own, index in zip(chosen, rivals, strict=True)], axis=1)
    needed = _needed_bytes(contest, Point(*points.T))
    best = _unbeaten(needed)[1:]
    kept = points[best[_selected(needed[best])]].tolist()
    return tuple(evaluator.candidate(evaluator.space.plain(Point(*point))) for point in kept)


def _rivals(contest: Contest, chosen: Point) -> Point:
    """The best of each share of the layers with each smaller batch and chunk, best first, with their fastest threads.

    Points as index arrays of shape (rivals,).
    """
    evaluator = contest.evaluator
    value, shape = evaluator.fastest, evaluator.excess_bytes.shape
    smaller = np.s_[:, : int(chosen.batch) + 1, : int(chosen.chunk) + 1]
    cost_s, later_s = (np.broadcast_to(cost, shape)[smaller] for cost in value.costs)
    fits = value.excess_bytes[smaller] <= 0
    keeps = evaluator.feasible(value, contest.max_tpot_s)[smaller]
    slowest_s = cost_s.max(where=fits, initial=0.0)
    # What breaks a limit is worse than all that keep it.
    rank_s = np.where(keeps, cost_s, np.where(fits, cost_s + slowest_s, np.inf))
    groups = _shares(contest)
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    # The best placement of each share, shape (shares, B, C).
    leaders = np.stack([members[rank_s[members].argmin(axis=0)] for members in np.split(order, starts[1:])])
    columns = np.indices(leaders.shape)[1:]
    ranks_s = rank_s[leaders, *columns]
    possible = ranks_s < np.inf
    placement, batch, chunk = (index[possible] for index in (leaders, *columns))
    best_first = np.lexsort((later_s[placement, batch, chunk], ranks_s[possible]))
    placement, batch, chunk = (index[best_first] for index in (placement, batch, chunk))
    return Point(
        placement,
        evaluator.decode.fastest_threads[placement, batch],
        evaluator.prefill.fastest_threads[placement, chunk],
        batch,
        chunk,
    )


def _shares(contest: Contest) -> NDArray[np.int64]:
    """A number per placement, shape (P,): the same for about as many layers on each GPU and the same head."""
    space = contest.evaluator.space
    on_gpus = space.layers[:, 1:]
    layers, gpus = int(space.layers[0, 0]), on_gpus.shape[1]
    # As many steps from none to all layers on a GPU as leave no more ways to share them than are told apart.
    steps = next(steps for steps in range(layers, 0, -1) if steps == 1 or math.comb(steps + gpus, gpus) <= _SHARES)
    share = -(-on_gpus * steps // layers)
    return np.asarray(share @ (steps + 1) ** np.arange(gpus) * 2 + (space.heads > 0))


def _needed_bytes(contest: Contest, points: Point) -> NDArray[np.int64]:
    """What points need on each device, shape (points, D)."""
    evaluator = contest.evaluator
    space = evaluator.space
    placements, row = np.unique(points.placement, return_inverse=True)
    few = dataclasses.replace(space, layers=space.layers[placements], heads=space.heads[placements])
    needed = device_bytes(evaluator.model, evaluator.workload, few, evaluator.room)
    return np.stack([own[row, points.batch, points.chunk] for own in needed], axis=1)


def _unbeaten(needed: NDArray[np.int64]) -> NDArray[np.intp]:
    """Which of some rows, best first, need less on some device than each better one that is kept; best first."""
    left: NDArray[np.intp] = np.arange(len(needed))
    kept = []
    while len(left):
        kept.append(int(left[0]))
        left = left[(needed[left] < needed[left[0]] * (1 - _WORTH)).any(axis=1)]
    return np.array(kept, np.intp)


def _selected(needed: NDArray[np.int64]) -> NDArray[np.intp]:
    """Which rows to keep, ascending: all, or `MOST` at even distances, among them the least needy ones."""
    if len(needed) <= MOST:
        return np.arange(len(needed))
    least = {int(needed.sum(axis=1).argmin()), *needed.argmin(axis=0).tolist()}
    even = np.linspace(0, len(needed) - 1, MOST - len(least)).round().astype(np.intp)
    return np.array(sorted(least | set(even.tolist())), np.intp)
