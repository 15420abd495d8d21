"""Times of a step at every point of a space, kept in factors: a GPU's part has no threads, the CPU's few placements."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from autotune.costmodel.steps import Seconds, StepCosts
from autotune.search.space import Index, Place, Space

BARRED_S = 1e300
"""Stands for the time of a step that may not be chosen; unlike infinity it can be multiplied by 0."""


@dataclass(frozen=True)
class StepTimes:
    """Time of a decode step, or of a prompt's prefill, per placement, CPU threads and one axis X: batch or chunk.

    It is the sum of what happens on GPUs and on the way to them, for which CPU threads don't matter, and of what
    happens on the CPU, for which it matters only how many layers and whether the head is there.

    Attributes:
        gpus_s: Layers and head on GPUs, and handing over, shape (P, X).
        cpu_s: Layers and head on the CPU, shape (W, T, X).
        work: What the CPU has to do per placement, an index on axis W, shape (P,).
        handover_s: The part of ``gpus_s`` that is handing over, shape (P, X).
    """

    gpus_s: Seconds
    cpu_s: Seconds
    work: NDArray[np.intp]
    handover_s: Seconds

    def at(self, placement: Index, threads: Index, column: Index) -> Seconds:
        """Time at one point, or at many whose index arrays broadcast."""
        time_s: Seconds = self.gpus_s[placement, column] + self.cpu_s[self.work[placement], threads, column]
        return time_s

    @functools.cached_property
    def fastest_threads(self) -> NDArray[np.intp]:
        """Index of the fewest threads with the shortest time, shape (P, X)."""
        return np.asarray(self.cpu_s.argmin(axis=1)[self.work])

    @functools.cached_property
    def fastest_s(self) -> Seconds:
        """The shortest time over the thread counts, shape (P, X)."""
        time_s: Seconds = self.gpus_s + self.cpu_s.min(axis=1)[self.work]
        return time_s

    def knowing(self, times_s: Mapping[Place, float]) -> StepTimes:
        """The same times but for some places, whose times are given; where threads don't matter, with all of them."""
        if not times_s:
            return self
        rows = {placement: index for index, placement in enumerate(dict.fromkeys(key[0] for key in times_s))}
        own_s, work = self.cpu_s[self.work[list(rows)]], self.work.copy()
        work[list(rows)] = len(self.cpu_s) + np.arange(len(rows))
        for (placement, threads, column), time_s in times_s.items():
            every = slice(None) if threads is None else threads
            own_s[rows[placement], every, column] = time_s - self.gpus_s[placement, column]
        return replace(self, cpu_s=np.concatenate([self.cpu_s, own_s]), work=work)

    def within(self, limit_s: float | None) -> NDArray[np.int64]:
        """With how many of the thread counts the time is within a limit, shape (P, X)."""
        most = self.cpu_s.shape[1]
        if limit_s is None:
            return np.full(self.gpus_s.shape, most)
        ascending = np.sort(self.cpu_s, axis=1)
        # The same sums as at the points, so that no rounding tells them apart; where all or none keep the limit, as
        # at nearly all points, the fastest and the slowest tell.
        kept = np.where(self.gpus_s + ascending[self.work, -1] <= limit_s, most, 0)
        placement, column = np.nonzero((kept == 0) & (self.gpus_s + ascending[self.work, 0] <= limit_s))
        gpus_s, work = self.gpus_s[placement, column], self.work[placement]
        low, high = np.ones(len(placement), np.int64), np.full(len(placement), most)
        for _ in range(most.bit_length()):
            middle = (low + high) // 2
            keeps = gpus_s + ascending[work, np.minimum(middle, most - 1), column] <= limit_s
            low, high = np.where(keeps, middle + 1, low), np.where(keeps, high, middle)
        kept[placement, column] = low
        return kept


def decode_times(space: Space, costs: StepCosts) -> StepTimes:
    """Times of one decode step, over the batch sizes of a space."""
    columns = slice(len(space.batches))
    with_ids, handed_on = _ways(space)
    crossings = handed_on.sum(axis=0) @ costs.decode_crossing_s[:, columns]
    token_s = with_ids.sum(axis=0) @ costs.decode_token_s
    return _step_times(
        space,
        costs,
        costs.decode_layer_s[..., columns],
        costs.decode_ends_s[..., columns],
        crossings + token_s[:, None],
    )


def prefill_times(space: Space, costs: StepCosts) -> StepTimes:
    """Times of one prompt's prefill, over the chunks of a space."""
    (ids_enter, _), (enter, leave) = _ways(space)
    # Only a prompt's last token comes out of the last layer's device.
    last = _last_gpu(space)
    handover_s = ids_enter @ costs.prefill_token_s
    handover_s += np.add(enter, leave & ~last, dtype=np.float64) @ costs.prefill_crossing_s
    handover_s += (last @ costs.decode_token_s)[:, None]
    return _step_times(space, costs, costs.prefill_layer_s, costs.prefill_ends_s, handover_s)


def _last_gpu(space: Space) -> NDArray[np.bool_]:
    """Whether a device is the last GPU with layers, shape (P, D); never the CPU."""
    gpus = space.layers[:, 1:] > 0
    last = gpus & (np.cumsum(gpus[:, ::-1], axis=1)[:, ::-1] == 1)
    return np.pad(last, ((0, 0), (1, 0)))


def _ways(space: Space) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """How GPUs are entered and left.

    The way of a step begins and ends on the CPU, with token ids, which become activations at the embedding and come
    from the head. The embedding is where the first layer is, but on the CPU if the head is there. Between two GPUs
    activations go through the CPU's memory.

    Returns:
        Whether a GPU is entered, and whether it is left, with token ids, shape (2, P, D); and with activations.
    """
    used = space.layers > 0
    first = used & (np.cumsum(used, axis=1) == 1)
    on_head = np.arange(used.shape[1]) == space.heads[:, None]
    with_ids = np.stack([first & (space.heads > 0)[:, None], on_head])
    used[:, 0] = with_ids[..., 0] = False
    return with_ids, used & ~with_ids


def _step_times(space: Space, costs: StepCosts, layer_s: Seconds, ends_s: Seconds, handover_s: Seconds) -> StepTimes:
    """Adds up a step.

    Args:
        space: The placements.
        costs: Tells the kind of each layer.
        layer_s: Of a layer of each kind, shape (D, G, T, X).
        ends_s: Of both ends, shape (D, T, X). They are taken to be on the head's device: the embedding only gathers
            a row per token.
        handover_s: Of handing over, shape (P, X).
    """
    count = len(costs.layer_kinds)
    kinds = np.eye(layer_s.shape[1])[costs.layer_kinds]
    # Layers of each kind before a layer, (L + 1, G): differences are those between two.
    before = np.concatenate([np.zeros_like(kinds[:1]), np.cumsum(kinds, axis=0)])
    ends = np.cumsum(space.layers, axis=1)
    on_gpus = before[ends[:, 1:]] - before[ends[:, :-1]]
    head_s = np.concatenate([np.zeros_like(ends_s[:1, 0]), ends_s[1:, 0]])
    gpus_s = np.tensordot(on_gpus, layer_s[1:, :, 0], axes=2) + head_s[space.heads] + handover_s
    layers_s = np.tensordot(before, layer_s[0], axes=1)
    return StepTimes(
        gpus_s=gpus_s,
        cpu_s=np.concatenate([layers_s, layers_s + ends_s[0]]),
        work=space.layers[:, 0] + (count + 1) * (space.heads == 0),
        handover_s=handover_s,
    )
