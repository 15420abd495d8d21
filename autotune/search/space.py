"""The search space: where layers may lie, threads, batch sizes and prompt chunks."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autotune.costmodel.steps import StepCosts
from autotune.records import Configuration, Part, Workload

Index = int | NDArray[np.intp]

MAX_PLACEMENTS = 8192
"""Enough for all ways to split up to 89 layers between the CPU and two GPUs, or 27 between it and three."""


Place = tuple[int, int | None, int]
"""Half of a configuration as indices: placement, threads, and batch or chunk; None as threads: they don't matter."""


class Point(NamedTuple):
    """Indices into the axes of a space: one configuration, or many where they are arrays that broadcast."""

    placement: Index
    decode_threads: Index
    prefill_threads: Index
    batch: Index
    chunk: Index


@dataclass(frozen=True)
class Space:
    """The full product of placements, decode threads, prefill threads, batch sizes and chunks.

    Attributes:
        devices: ``"cpu"`` first, then the GPUs, in the order data flows through them.
        layers: Layers on each device per placement, shape (P, D). The first layers are on the CPU and the
            last ones on GPUs, as in llama.cpp. The first placement is the CPU alone.
        heads: Index of the device that holds the head per placement, shape (P,): the last one that has layers, or
            the CPU.
        threads: CPU thread counts, ascending, shape (T,); for decode and prefill alike.
        batches: Batch sizes, ascending, shape (B,).
        chunks: Prefill chunks in tokens, ascending, shape (C,).
    """

    devices: tuple[str, ...]
    layers: NDArray[np.int64]
    heads: NDArray[np.intp]
    threads: NDArray[np.int64]
    batches: NDArray[np.int64]
    chunks: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Length of each axis, in the order of :class:`Point`."""
        threads = len(self.threads)
        return len(self.layers), threads, threads, len(self.batches), len(self.chunks)

    @property
    def size(self) -> int:
        """How many configurations there are."""
        return math.prod(self.shape)

    @functools.cached_property
    def gpu_layers(self) -> NDArray[np.int64]:
        """Layers on GPUs per placement, shape (P,)."""
        return np.asarray(self.layers[:, 1:].sum(axis=1))

    @functools.cached_property
    def works(self) -> NDArray[np.bool_]:
        """Whether a device has layers or the head per placement, shape (P, D)."""
        return np.asarray((self.layers > 0) | (np.arange(len(self.devices)) == self.heads[:, None]))

    def configuration(self, point: Point) -> Configuration:
        """The configuration at one point."""
        row = self.layers[point.placement].tolist()
        return Configuration(
            device_layers={device: count for device, count in zip(self.devices, row, strict=True) if count},
            head_device=self.devices[int(self.heads[point.placement])],
            decode_threads=int(self.threads[point.decode_threads]),
            prefill_threads=int(self.threads[point.prefill_threads]),
            batch_size=int(self.batches[point.batch]),
            prefill_chunk=int(self.chunks[point.chunk]),
        )

    def point(self, configuration: Configuration) -> Point:
        """Where a configuration lies in the space.

        Raises:
            ValueError: It isn't a point of this space.
        """
        row = [configuration.device_layers.get(device, 0) for device in self.devices]
        heads = np.array(self.devices)[self.heads]
        matches = (
            (self.layers == row).all(axis=1) & (heads == configuration.head_device),
            self.threads == configuration.decode_threads,
            self.threads == configuration.prefill_threads,
            self.batches == configuration.batch_size,
            self.chunks == configuration.prefill_chunk,
        )
        point = Point(*(int(match.argmax()) for match in matches))
        found = self.configuration(point)
        if found != configuration:
            raise ValueError(f"expected a point of the search space, for example {found}, got {configuration}")
        return point

    def place(self, part: Part) -> Place | None:
        """Where a part lies in the space; None: it isn't in it."""
        layers = dict(part.device_layers)
        row = [layers.pop(device, 0) for device in self.devices]
        on_head = np.array(self.devices)[self.heads] == part.head_device
        sizes = self.batches if part.phase == "decode" else self.chunks
        matches = (self.layers == row).all(axis=1) & on_head, self.threads == part.threads, sizes == part.size
        if layers or not all(match.any() for match in matches):
            return None
        placement, threads, column = (int(match.argmax()) for match in matches)
        return placement, threads if self.works[placement, 0] else None, column

    def plain(self, point: Point) -> Point:
        """The same point, with the fewest threads where the CPU has nothing to do and they are of no consequence."""
        return point if self.works[point.placement, 0] else point._replace(decode_threads=0, prefill_threads=0)


def build_space(
    costs: StepCosts,
    workload: Workload,
    available_bytes: Mapping[str, int],
    including: Iterable[Configuration] = (),
) -> Space:
    """The space that a table of step costs and a workload span.

    Args:
        costs: Its devices, thread counts, batch sizes and chunks are the axes.
        workload: Batch sizes beyond its ``max_batch`` are left out.
        available_bytes: Memory per device; where there are too many ways to share the layers among GPUs, they are
            shared in proportion to it.
        including: Their ways to share the layers are in the space as well: what was chosen for other memory stays a
            point of it.
    """
    layers, gpu_bytes = len(costs.layer_kinds), [available_bytes[device] for device in costs.devices[1:]]
    if 1 + 2 * (math.comb(layers + len(gpu_bytes), layers) - 1) <= MAX_PLACEMENTS:
        on_gpus = _all_splits(layers, len(gpu_bytes))
    else:
        given = [[each.device_layers.get(device, 0) for device in costs.devices[1:]] for each in including]
        on_gpus = _with_rows(_proportional_splits(layers, gpu_bytes), given)
    splits = np.column_stack([layers - on_gpus.sum(axis=1), on_gpus])
    # The last GPU with layers, then the CPU again.
    last = len(gpu_bytes) - np.argmax(on_gpus[:, ::-1] > 0, axis=1) if gpu_bytes else np.zeros(0, np.intp)
    cpu_alone = [[layers, *(0 for _ in gpu_bytes)]]
    return Space(
        devices=costs.devices,
        layers=np.concatenate([cpu_alone, splits, splits]),
        heads=np.concatenate([[0], last, np.zeros_like(last)]),
        threads=costs.threads,
        batches=costs.batches[costs.batches <= workload.max_batch],
        chunks=costs.chunks,
    )


def _all_splits(layers: int, gpus: int) -> NDArray[np.int64]:
    """Every way to give at least one and at most all of the layers to the GPUs, shape (splits, gpus).

    Fewer layers come first, and of as many those with more on the first GPUs, which they go to where all else ties.
    """
    counts = np.zeros((1, 0), np.int64)
    for _ in range(gpus):
        left = layers - counts.sum(axis=1)
        grown = np.repeat(counts, left + 1, axis=0)
        next_gpu = np.concatenate([np.arange(most + 1) for most in left])
        counts = np.column_stack([grown, next_gpu])
    order = np.lexsort((*-counts.T[::-1], counts.sum(axis=1)))
    return counts[order][1:]


def _with_rows(splits: NDArray[np.int64], given: list[list[int]]) -> NDArray[np.int64]:
    """The same splits, and after them the given ones that aren't among them and put any layer on a GPU."""
    there = set(map(tuple, splits.tolist()))
    missing = dict.fromkeys(row for row in map(tuple, given) if any(row) and row not in there)
    return np.concatenate([splits, np.array(list(missing), np.int64).reshape(-1, splits.shape[1])])


def _proportional_splits(layers: int, gpu_bytes: list[int]) -> NDArray[np.int64]:
    """1 to all layers on the GPU with the most memory, on the two with the most, ..., shape (splits, gpus).

    A GPU's share is proportional to its memory, rounded at the boundaries between GPUs. Shares that leave a
    GPU without layers are the business of fewer GPUs.

    Source: llama.cpp, ``llama_model::load_tensors`` (the default tensor split follows free memory).
    """
    offloaded = np.arange(1, layers + 1)
    largest_first = sorted(range(len(gpu_bytes)), key=lambda gpu: -gpu_bytes[gpu])
    blocks = []
    for count in range(1, len(gpu_bytes) + 1):
        used = sorted(largest_first[:count])
        shares = np.cumsum([max(gpu_bytes[gpu], 1) for gpu in used], dtype=np.float64)
        last_layers = np.rint(offloaded[:, None] * (shares / shares[-1])).astype(np.int64)
        per_gpu = np.diff(last_layers, prepend=0, axis=1)
        block = np.zeros((layers, len(gpu_bytes)), dtype=np.int64)
        block[:, used] = per_gpu
        blocks.append(block[(per_gpu > 0).all(axis=1)])
    return np.concatenate(blocks)
