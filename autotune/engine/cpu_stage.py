"""A stage on the CPU: the weights and KV cache of some layers and ends, and the passes that are made over them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from autotune.engine.cpu_pass import Buffers, Caches, CpuPass, LayerWeights, Packed, StageWeights, Tools
from autotune.engine.stages import Kernels, Pass
from autotune.engine.structure import FINAL_NORM, norm_widths
from autotune.engine.weights import WeightSource, typical
from autotune.records import Model
from ternary_kernels.memory import aligned
from ternary_kernels.team import Team

_TILE_ELEMENTS = 1_000_003
"""Keys and values are copies of so many numbers; this being no multiple of anything, each sequence has others."""
_ELEMENT_BYTES = 2
_NOTHING: Caches = np.empty((0,) * 6, np.float16)


class CpuStage:
    """Consecutive layers on the CPU, with the embedding before them or the head after them where those are there.

    Args:
        model: The model, in the formats that its file has.
        layers: Indices of the layers; none where it has only an end.
        device: Its name: ``cpu``.
        teams: Gives the team of a number of threads.
        weights: Gives the matrices and norms.
        embedding: Whether it has the embedding: its passes take tokens.
        head: Whether it has the head: its passes return tokens.
        capacity: Slots of the KV cache per sequence.

    Attributes:
        device: As given.

    Raises:
        MemoryError: There isn't enough for the weights.
    """

    def __init__(
        self,
        model: Model,
        layers: range,
        *,
        device: str,
        teams: Callable[[int], Team],
        weights: WeightSource,
        embedding: bool,
        head: bool,
        capacity: int,
    ) -> None:
        self.device = device
        self._model = model
        self._teams = teams
        self._capacity = capacity
        widths = norm_widths(model)
        self._weights = StageWeights(
            embedding=Packed(model.embedding, weights.matrix(None, model.embedding)) if embedding else None,
            layers=tuple(
                LayerWeights(
                    {site.name: Packed(site, weights.matrix(index, site)) for site in model.layers[index].sites},
                    {name: weights.norm(index, name, width) for name, width in widths.items()},
                )
                for index in layers
            ),
            final_norm=weights.norm(None, FINAL_NORM, model.hidden_size) if head else None,
            head=Packed(model.head, weights.matrix(None, model.head)) if head else None,
        )
        self._buffers = Buffers()
        self._elements = self._caches = _NOTHING
        self._filled = 0
        self._tools: Tools | None = None

    def reserve(self, sequences: int, tokens: int) -> None:
        """Lay the KV cache out for so many sequences; what bound passes have in it may be lost.

        A step at a known position needs no slots behind it: they are left out, as to write to them takes seconds per
        gigabyte where a virtual machine's memory comes from its host page by page.

        Args:
            sequences: How many.
            tokens: How many of each hold keys and values, random ones, before the next; 0: passes will write them, from
                the first on, into as many slots as there are.

        Raises:
            MemoryError: There isn't so much memory.
            ValueError: There are no slots for so many tokens.
        """
        if tokens >= self._capacity:
            raise ValueError(f"KV cache: expected fewer than {self._capacity} tokens per sequence, got {tokens}")
        heads = self._model.attention
        slots = tokens + 1 if tokens else self._capacity
        shape = len(self._weights.layers), 2, sequences, heads.kv_heads, slots, heads.head_dim
        size = math.prod(shape)
        if size > self._elements.size:
            self._caches = self._elements = _NOTHING  # before another takes as much memory
            self._elements = aligned(_ELEMENT_BYTES * size).view(np.float16)
            self._filled = 0
        self._caches = self._elements[:size].reshape(shape)
        if tokens and size > self._filled:
            tile = typical(np.random.default_rng(0), (_TILE_ELEMENTS,)).astype(np.float16)
            for start in range(self._filled, size, len(tile)):
                self._elements[start : min(start + len(tile), size)] = tile[: size - start]
            self._filled = size

    def bind(self, step: Pass, threads: int, kernels: Kernels) -> CpuPass:
        """Everything of one pass, made ready to be called many times.

        Raises:
            ValueError: No room was made for its sequences, or its tokens go beyond the KV cache.
        """
        team = self._teams(threads)
        if self._tools is None or not self._tools.suit(kernels, team):
            self._tools = Tools(kernels, self.device, team)
        wanted, there = step.slot + step.sequences, self._caches.shape[2]
        if wanted > there:
            raise ValueError(f"KV cache: expected room for {wanted} sequences, got {there}: reserve them first")
        caches = self._caches[:, :, step.slot : step.slot + step.sequences]
        return CpuPass(self._model, step, self._weights, caches, self._buffers, self._tools)

    def close(self) -> None:
        """Give its memory back; no pass of it may be called any more."""
        self._weights = StageWeights(None, (), None, None)
        self._elements = self._caches = _NOTHING
        self._tools = None
        self._buffers = Buffers()
