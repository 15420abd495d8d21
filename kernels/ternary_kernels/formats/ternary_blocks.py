"""TQ1_0 and TQ2_0: upstream ggml's ternary formats, 256 weights and a float16 scale to a block."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ternary_kernels.formats.base import Bytes
from ternary_kernels.formats.blocks import BlockFormat, as_f16_bytes, from_f16_bytes


class TernaryBlocks(BlockFormat):
    """Codes w + 1 in 0..2, then the block's scale as float16, which is 0 where all weights are.

    The format allows each block a scale of its own. Matrices that were trained to be ternary have one, and only these
    can be unpacked: another isn't ternary with one scale.
    """

    ternary = True
    block = 256

    def _pack(self, weights: NDArray[Any], scale: float) -> Bytes:
        with np.errstate(over="ignore"):
            stored = np.float32(np.float16(scale))
        if stored == 0 or not np.isfinite(stored):
            limits = np.finfo(np.float16)
            expected = f"a magnitude of {limits.smallest_subnormal:.2g} to {limits.max:g}"
            raise ValueError(f"{self.name} stores its scale as float16: expected {expected}, got {scale}")
        blocks = weights.reshape(-1, self.block)
        scales = np.where(blocks.any(axis=1, keepdims=True), stored, np.float32(0))
        return np.concatenate([self._encode((blocks + 1).astype(np.uint8)), as_f16_bytes(scales)], axis=1).reshape(-1)

    def _unpack_rows(
        self, stored: NDArray[Any], scale: float, shape: tuple[int, int], first: int, last: int
    ) -> tuple[NDArray[Any], float]:
        blocks = stored[first:last].reshape(-1, self.block_bytes)
        scales = from_f16_bytes(blocks[:, -2:])
        weights = self._decode(blocks[:, :-2]).astype(np.int8) - 1
        used = np.unique(scales[weights.any(axis=1, keepdims=True) & (scales != 0)])
        if len(used) > 1:
            return (weights * scales).reshape(last - first, shape[1]), scale
        weights[scales[:, 0] == 0] = 0
        return weights.reshape(last - first, shape[1]), float(used[0]) if len(used) else scale

    @abstractmethod
    def _encode(self, codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Blocks of codes (count, 256) to blocks of bytes without their scales."""

    @abstractmethod
    def _decode(self, packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The reverse."""


class TQ2_0(TernaryBlocks):  # noqa: N801 - the format's name
    """Two bits a weight: 64 bytes of codes, then the scale.

    128 weights lie in 32 bytes: weight j in byte j % 32, shifted left by 2 (j // 32), the reverse of I2_S' order.
    ``pack`` writes what ``gguf.quants`` does for a positive scale; of a negative one it keeps the sign in the scale,
    which gguf turns into the weights'.

    Source: ggml, ggml-quants.c, quantize_row_tq2_0_ref; gguf-py, quants.py, TQ2_0.
    """

    name = "TQ2_0"
    gguf_type = 35
    bits_per_weight = 2.0625
    block_bytes = 66

    _shifts: ClassVar[NDArray[np.uint8]] = np.array([0, 2, 4, 6], np.uint8).reshape(4, 1)

    def _encode(self, codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        packed: NDArray[np.uint8] = np.bitwise_or.reduce(codes.reshape(-1, 2, 4, 32) << self._shifts, axis=2)
        return packed.reshape(-1, 64)

    def _decode(self, packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return (packed.reshape(-1, 2, 1, 32) >> self._shifts & np.uint8(3)).reshape(-1, self.block)


class TQ1_0(TernaryBlocks):  # noqa: N801 - the format's name
    """Five weights a byte: 52 bytes of codes, then the scale.

    A byte holds a fraction: the codes c0..c4 make the number N = 81 c0 + 27 c1 + 9 c2 + 3 c3 + c4 in base 3, and the
    byte is ceil(256 N / 243). So code i is 3 (byte 3^i mod 256) / 256, rounded down: no division to read it.

    Of the 256 weights the first 160 lie in 32 bytes, weight j as code j // 32 of byte j % 32; the next 80 likewise in
    16 bytes; the last 16 in 4, weight j as code j // 4 of byte j % 4, whose fifth code is 0. ``pack`` writes what
    ``gguf.quants`` does for a positive scale, as TQ2_0 does.

    Source: ggml, ggml-quants.c, quantize_row_tq1_0_ref; gguf-py, quants.py, TQ1_0.
    """

    name = "TQ1_0"
    gguf_type = 34
    bits_per_weight = 1.6875
    block_bytes = 54

    _runs: ClassVar[tuple[tuple[int, int], ...]] = ((32, 5), (16, 5), (4, 4))
    """Bytes of a run, and codes in each."""

    def _encode(self, codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        packed, begin = [], 0
        for width, digits in self._runs:
            run = codes[:, begin : begin + width * digits].reshape(-1, digits, width)
            packed.append(np.tensordot(run, np.array([81, 27, 9, 3, 1], np.uint16)[:digits], axes=([1], [0])))
            begin += width * digits
        return ((np.concatenate(packed, axis=1) * 256 + 242) // 243).astype(np.uint8)

    def _decode(self, packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
        codes, begin = [], 0
        for width, digits in self._runs:
            run = packed[:, None, begin : begin + width]
            fractions = run * np.array([1, 3, 9, 27, 81], np.uint8)[:digits, None]
            codes.append((fractions.astype(np.uint16) * 3 >> 8).astype(np.uint8).reshape(len(packed), -1))
            begin += width
        return np.concatenate(codes, axis=1)
