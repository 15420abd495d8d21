"""Where a stage gets its weights from: random ones, made as fast as memory can be written, or such that can be read."""

from __future__ import annotations

import math
import zlib
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from autotune.model import memory
from autotune.model.fusion import fused
from autotune.model.sizes import readable_bytes
from autotune.records import Model, Site
from ternary_kernels.formats import Bytes, get_format
from ternary_kernels.formats.tail import TAIL_BYTES, make_tail
from ternary_kernels.memory import aligned

Floats = NDArray[np.float32]

_TILE_BYTES = 1 << 20
"""It stays in the level-2 cache while it is copied."""
_CODES = {"I2_S": (2, 3), "I2_S_ARM": (2, 3), "TL1": (4, 9), "TL2": (4, 9)}
"""Bits of a code, and how many codes there are, of the formats that are codes throughout and then one scale.

(TL2's triples have more than 9, but its pairs don't. Its signs may be any bits.)"""
_LEAST, _MOST = 0.25, 1.58
"""Magnitudes of typical numbers: their mean square is 1."""


class WeightSource(Protocol):
    """Gives each weight matrix and norm of a model; asked twice for the same it gives the same."""

    def matrix(self, layer: int | None, site: Site) -> Bytes:
        """Packed weights, in memory that no other matrix uses; not to be changed.

        Args:
            layer: Its index; None for embedding and head, which are the same where their shapes and formats are.
            site: In the format that the device holds it in. It may be one of ``fusion.fused``.

        Returns:
            uint8, as the format lays them out.

        Raises:
            MemoryError: There isn't so much memory.
        """

    def norm(self, layer: int | None, name: str, width: int) -> Floats:
        """Weights of a norm, float32, shape (width,): values near 1.

        Args:
            layer: Its index; None for the norm before the head.
            name: As ``structure`` names them: by what it comes before.
            width: How many.
        """


class RandomWeights:
    """Weights of the size that real ones have, made by copying a small tile of them from ever another place on.

    Activations keep a size around 1 from layer to layer, so that no number becomes infinite or subnormal: a CPU takes
    longer for these. Of real weights nothing else matters to a kernel's speed.

    Args:
        seed: Of the random numbers.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._tiles: dict[tuple[str, int], Bytes] = {}

    def matrix(self, layer: int | None, site: Site) -> Bytes:
        """As ``WeightSource`` says."""
        held = get_format(site.format)
        tile = self._tile(site.format, site.k_in)
        unit = 1 if site.format in _CODES else held.size_bytes(1, held.block)
        # Embedding and head are alike, as they may be tied.
        rng = _generator(self._seed, layer, "" if layer is None else site.name)
        tile = np.roll(tile, -unit * int(rng.integers(len(tile) // unit)))
        packed = aligned(held.size_bytes(site.n_out, site.k_in))
        for start in range(0, len(packed), len(tile)):
            packed[start : start + len(tile)] = tile[: len(packed) - start]
        if site.format in _CODES:
            packed[-TAIL_BYTES:] = make_tail(_ternary_scale(site.k_in))
        return packed

    def norm(self, layer: int | None, name: str, width: int) -> Floats:
        """As ``WeightSource`` says."""
        return _norm(self._seed, layer, name, width)

    def _tile(self, name: str, k_in: int) -> Bytes:
        key = name, k_in
        if key not in self._tiles:
            rng = np.random.default_rng(self._seed)
            held = get_format(name)
            if name in _CODES:
                bits, values = _CODES[name]
                tile = np.zeros(_TILE_BYTES, np.uint8)
                for shift in range(0, 8, bits):
                    tile |= rng.integers(0, values, _TILE_BYTES, np.uint8) << np.uint8(shift)
            else:
                shape = _TILE_BYTES // held.size_bytes(1, held.block), held.block
                if held.ternary:
                    tile = held.pack(rng.integers(-1, 2, shape, np.int8), _ternary_scale(k_in))
                else:
                    tile = held.pack(typical(rng, shape) / np.float32(np.sqrt(k_in)))
            self._tiles[key] = tile
        return self._tiles[key]


class PackedWeights:
    """Random weights each of its own, packed by the formats themselves; for small models, as it takes a while.

    Args:
        model: The model as a CPU holds it.
        seed: Of the random numbers.
    """

    def __init__(self, model: Model, seed: int = 0) -> None:
        self._seed = seed
        self._weights: dict[tuple[int | None, str], NDArray[np.int8] | Floats] = {}
        for index, layer in enumerate(model.layers):
            parts = [self._make(index, site) for site in layer.sites]
            ends = list(accumulate(len(part) for part in parts))
            last = 0
            for site in fused(layer):
                first, last = last, last + site.n_out
                rows: list[NDArray[Any]] = [part for part, end in zip(parts, ends, strict=True) if first < end <= last]
                self._weights[index, site.name] = np.concatenate(rows)
        self._make(None, model.embedding)
        if model.tied:
            self._weights[None, model.head.name] = self._weights[None, model.embedding.name]
        else:
            self._make(None, model.head)

    def _make(self, layer: int | None, site: Site) -> NDArray[np.int8] | Floats:
        rng = _generator(self._seed, layer, site.name)
        shape = site.n_out, site.k_in
        if get_format(site.format).ternary:
            made: NDArray[np.int8] | Floats = rng.integers(-1, 2, shape, np.int8)
        else:
            made = typical(rng, shape) / np.float32(np.sqrt(site.k_in))
        self._weights[layer, site.name] = made
        return made

    def matrix(self, layer: int | None, site: Site) -> Bytes:
        """As ``WeightSource`` says."""
        weights, scale = self._weights[layer, site.name], _ternary_scale(site.k_in)
        held = get_format(site.format)
        if held.ternary:
            packed = held.pack(weights, scale)
        else:
            packed = held.pack(weights if weights.dtype != np.int8 else weights * np.float32(scale))
        own = aligned(len(packed))
        own[:] = packed
        return own

    def norm(self, layer: int | None, name: str, width: int) -> Floats:
        """As ``WeightSource`` says."""
        return _norm(self._seed, layer, name, width)


class HeldWeights:
    """Another source's matrices and norms, each kept once: stages come and go, and find there what they had.

    Where memory doesn't hold the matrices of all layers, layers take turns with those of as many as it does hold.

    Args:
        source: Makes them.
        model: The model, in the formats that it is held in.
    """

    def __init__(self, source: WeightSource, model: Model) -> None:
        self._source = source
        self._model = model
        self._matrices: dict[tuple[int | None, Site], Bytes] = {}
        self._norms: dict[tuple[int | None, str], Floats] = {}
        self._stand_ins: dict[int, int] = {}

    def make_room(
        self, layers: range, *, embedding: bool, head: bool, room_bytes: int | None, least_bytes: int = 0
    ) -> int:
        """Prepare for the matrices of some layers and ends; what there is no room for beside them is dropped.

        Args:
            layers: The layers that will be asked for.
            embedding: Whether the embedding will be.
            head: Whether the head will be.
            room_bytes: What the matrices may take together; None: whatever they take.
            least_bytes: What the matrices that layers take turns with must take, so that none is still in a cache when
                its turn comes again.

        Returns:
            How many layers have no matrices of their own.

        Raises:
            MemoryError: There is no room for so much.
        """
        self._stand_ins = {}
        if room_bytes is None:
            return 0
        ends_bytes = memory.ends_bytes(self._model, embedding=embedding, head=head)
        ends = [*([self._model.embedding] * embedding), *([self._model.head] * head)]
        sums = [0, *accumulate(memory.weight_bytes(self._model.layers[index]) for index in layers)]
        own = max(count for count, size in enumerate(sums) if not count or ends_bytes + size <= room_bytes)
        if ends_bytes + sums[own] > room_bytes or (own < len(layers) and (not own or sums[own] < least_bytes)):
            needed, there = (readable_bytes(size) for size in (ends_bytes + sums[-1], room_bytes))
            raise MemoryError(
                f"{self._model.name}: its weights on the CPU take {needed}, and there is room for {there}"
            )
        self._stand_ins = {layers[turn]: layers[turn % own] for turn in range(own, len(layers))}
        wanted: set[tuple[int | None, Site]] = {
            (layer, site) for layer in layers[:own] for site in self._model.layers[layer].sites
        }
        wanted |= {self._key(None, site) for site in ends}
        others_bytes = sum(len(held) for key, held in self._matrices.items() if key not in wanted)
        if ends_bytes + sums[own] + others_bytes > room_bytes:
            self._matrices = {key: held for key, held in self._matrices.items() if key in wanted}
        return len(self._stand_ins)

    def matrix(self, layer: int | None, site: Site) -> Bytes:
        """As ``WeightSource`` says."""
        if layer is not None:
            layer = self._stand_ins.get(layer, layer)
        key = self._key(layer, site)
        if key not in self._matrices:
            self._matrices[key] = self._source.matrix(layer, site)
        return self._matrices[key]

    def norm(self, layer: int | None, name: str, width: int) -> Floats:
        """As ``WeightSource`` says."""
        if (layer, name) not in self._norms:
            self._norms[layer, name] = self._source.norm(layer, name, width)
        return self._norms[layer, name]

    def _key(self, layer: int | None, site: Site) -> tuple[int | None, Site]:
        """A tied head is the embedding's matrix."""
        return layer, self._model.embedding if layer is None and self._model.tied else site


def typical(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Random numbers of both signs whose mean square is 1, none of them small: float32."""
    numbers = rng.uniform(_LEAST, _MOST, shape).astype(np.float32)
    np.negative(numbers, out=numbers, where=rng.integers(0, 2, shape, np.uint8).view(np.bool_))
    return numbers


def _generator(seed: int, layer: int | None, name: str) -> np.random.Generator:
    """Of a matrix' or norm's own numbers."""
    return np.random.default_rng([seed, 0 if layer is None else 1 + layer, zlib.crc32(name.encode())])


def _norm(seed: int, layer: int | None, name: str, width: int) -> Floats:
    """Weights of a norm: from 0.75 to 1.25."""
    return _generator(seed, layer, f"{name} norm").uniform(0.75, 1.25, width).astype(np.float32)


def _ternary_scale(k_in: int) -> float:
    """What keeps activations at the size they have: two thirds of the weights are not zero."""
    return math.sqrt(1.5 / k_in)
