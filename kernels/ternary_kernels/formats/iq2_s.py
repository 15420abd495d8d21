"""IQ2_S: a code book of weights, which loses what is ternary."""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ternary_kernels.formats.blocks import F16_LARGEST, FloatBlocks, as_f16_bytes, from_f16_bytes

_MAGNITUDES = (8, 25, 43)
_LEVELS = 16


class IQ2_S(FloatBlocks):  # noqa: N801 - the format's name
    """Eight weights are one of 1,024 points of a grid times signs and a scale: |w| = d (s + 1/2) / 4 times 8, 25 or 43.

    A block is: d as float16; 32 bytes with the low eight bits of the grid indices, one per 8 weights; 32 bytes of sign
    bits, bit i of byte j for weight 8 j + i, set for negative ones; 8 bytes with the indices' two high bits, 2 (j % 4)
    up in byte j // 4; 8 bytes with s in 0..15 for 16 weights each, low nibble first.

    **Lossy on ternary weights**: the grid has no zero, and only 1,024 of its 6,561 combinations. Matrix-vector products
    of random ternary weights (a third each) with activations of both signs differ by 0.27 of their norm, and by 0.33
    where half of the weights are zero (TQ2_0: 0.007, from the activations' rounding alone); the best scales of all,
    found by trying, would leave 0.24 and 0.30. Zeros come back positive, as ggml's quantiser has them too, so that
    products with activations of one sign, as a ReLU leaves them, are useless: their error exceeds their norm.

    ``pack`` takes the scale that brings the largest magnitude of 16 to 43 and the point that is nearest to the weights
    rounded to the three magnitudes. ggml's own quantiser searches further, so its bytes differ.

    Source: ggml, ggml-common.h, block_iq2_s; gguf-py, quants.py, IQ2_S, which also has the grid.
    """

    name = "IQ2_S"
    gguf_type = 22
    ternary = False
    lossy = True
    bits_per_weight = 2.5625
    block = 256
    block_bytes = 82
    largest = _MAGNITUDES[-1] * (_LEVELS - 0.5) / 4 * F16_LARGEST

    _bits: ClassVar[NDArray[np.uint8]] = np.array([0, 2, 4, 6], np.uint8)

    def _encode(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        magnitudes = np.abs(values).reshape(-1, 16, 16)
        wanted = magnitudes.max(axis=2) * np.float32(4 / _MAGNITUDES[-1])
        block_scales = (wanted.max(axis=1, keepdims=True) / np.float32(_LEVELS - 0.5)).astype(np.float16)
        unit = block_scales.astype(np.float32)
        levels = np.rint(np.divide(wanted, unit, out=np.zeros_like(wanted), where=unit > 0) - np.float32(0.5))
        levels = np.clip(levels, 0, _LEVELS - 1)
        steps = (unit * (levels + np.float32(0.5)) / 4)[..., None]
        # Digits 0, 1, 2 for 8, 25, 43, cut half-way; eight of them are a number in base 3.
        digits = (magnitudes > 16.5 * steps).astype(np.uint16) + (magnitudes > 34 * steps)
        combinations = digits.reshape(-1, 32, 8) @ (3 ** np.arange(7, -1, -1)).astype(np.uint16)
        indices = _nearest_points()[combinations]
        signs = np.packbits(values < 0, axis=1, bitorder="little")
        high = np.bitwise_or.reduce((indices >> 8).astype(np.uint8).reshape(-1, 8, 4) << self._bits, axis=2)
        nibbles = levels.astype(np.uint8)
        low = (indices & 255).astype(np.uint8)
        return np.concatenate([as_f16_bytes(unit), low, signs, high, nibbles[:, 0::2] | nibbles[:, 1::2] << 4], axis=1)

    def _decode(self, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
        low, signs, high, scales = np.split(blocks[:, 2:], [32, 64, 72], axis=1)
        indices = low | (high[:, :, None] >> self._bits & 3).astype(np.uint16).reshape(-1, 32) << 8
        levels = (scales[:, :, None] >> np.array([0, 4], np.uint8) & 15).reshape(-1, 16)
        steps = from_f16_bytes(blocks[:, :2]) * (np.float32(0.5) + levels) * np.float32(0.25)
        points: NDArray[np.float32] = _grid()[indices].reshape(-1, 16, 16) * steps[..., None]
        negative = np.unpackbits(signs, axis=1, bitorder="little").view(np.bool_).reshape(-1, 16, 16)
        np.negative(points, out=points, where=negative)
        return points.reshape(-1, self.block)


@cache
def _grid() -> NDArray[np.float32]:
    """The grid's points, (1024, 8)."""
    from gguf import quants  # slow to import, and nothing else here needs it

    quants.IQ2_S.init_grid()  # type: ignore[no-untyped-call]
    return np.array(quants.IQ2_S.grid, np.float32).reshape(-1, 8)


@cache
def _nearest_points() -> NDArray[np.uint16]:
    """Index of the grid's point nearest to each of the 3^8 combinations of magnitudes, in lexicographic order."""
    grid = _grid()
    combinations = np.array(list(product(_MAGNITUDES, repeat=8)), np.float32)
    # |c - g|^2 without |c|^2, which is the same for all points; exact, as all are small integers
    distances = (grid**2).sum(axis=1) - 2 * combinations @ grid.T
    nearest: NDArray[np.uint16] = distances.argmin(axis=1).astype(np.uint16)
    return nearest
