"""The search space: where layers may lie, threads, batch sizes and prompt chunks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autotune.costmodel.steps import StepCosts
from autotune.records import Configuration, Workload

Index = int | NDArray[np.intp]


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
            last ones on GPUs, as in llama.cpp.
        threads: CPU thread counts, ascending, shape (T,); for decode and prefill alike.
        batches: Batch sizes, ascending, shape (B,).
        chunks: Prefill chunks in tokens, ascending, shape (C,).
    """

    devices: tuple[str, ...]
    layers: NDArray[np.int64]
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

    @property
    def heads(self) -> NDArray[np.intp]:
        """Index of the device that holds the head per placement, shape (P,): where the last layers are."""
        from_last = np.argmax(self.layers[:, ::-1] > 0, axis=1)
        return np.asarray(len(self.devices) - 1 - from_last)

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
        matches = (
            (self.layers == row).all(axis=1),
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


def build_space(costs: StepCosts, workload: Workload, available_bytes: Mapping[str, int]) -> Space:
    """The space that a table of step costs and a workload span.

    Args:
        costs: Its devices, thread counts, batch sizes and chunks are the axes.
        workload: Batch sizes beyond its ``max_batch`` are left out.
        available_bytes: Memory per device; layers are shared among GPUs in proportion to it.
    """
    return Space(
        devices=costs.devices,
        layers=_placements(len(costs.layer_kinds), [available_bytes[device] for device in costs.devices[1:]]),
        threads=costs.threads,
        batches=costs.batches[costs.batches <= workload.max_batch],
        chunks=costs.chunks,
    )


def _placements(layers: int, gpu_bytes: list[int]) -> NDArray[np.int64]:
    """Layers per device, shape (P, D): CPU only, then 1 to all layers on the first one, two, ... GPUs.

    A GPU's share is proportional to its memory, rounded at the boundaries between GPUs. Shares that leave a
    GPU without layers are the business of fewer GPUs.

    Source: llama.cpp, ``llama_model::load_tensors`` (the default tensor split follows free memory).
    """
    offloaded = np.arange(1, layers + 1)
    blocks = [np.array([[layers] + [0] * len(gpu_bytes)])]
    for used in range(1, len(gpu_bytes) + 1):
        shares = np.cumsum(np.maximum(gpu_bytes[:used], 1), dtype=np.float64)
        last_layers = np.rint(offloaded[:, None] * (shares / shares[-1])).astype(np.int64)
        per_gpu = np.diff(last_layers, prepend=0, axis=1)
        block = np.zeros((layers, 1 + len(gpu_bytes)), dtype=np.int64)
        block[:, 0] = layers - offloaded
        block[:, 1 : 1 + used] = per_gpu
        blocks.append(block[(per_gpu > 0).all(axis=1)])
    return np.concatenate(blocks)
