"""Q8_0 and Q6_K: formats of embeddings and heads, which aren't ternary."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ternary_kernels.formats.blocks import F16_LARGEST, FloatBlocks, as_f16_bytes, from_f16_bytes


class Q8_0(FloatBlocks):  # noqa: N801 - the format's name
    """Eight bits a weight: a float16 scale d, then 32 int8 values q; w = d q.

    d = the largest magnitude / 127, q = w / d rounded half away from zero: the bytes that ``gguf.quants`` writes.

    Source: ggml, ggml-quants.c, quantize_row_q8_0_ref; gguf-py, quants.py, Q8_0.
    """

    name = "Q8_0"
    gguf_type = 8
    ternary = False
    bits_per_weight = 8.5
    block = 32
    block_bytes = 34
    largest = 127 * F16_LARGEST

    def _encode(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        scales = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
        scaled = values * _inverse(scales)
        q = np.trunc(scaled + np.copysign(np.float32(0.5), scaled))
        return np.concatenate([as_f16_bytes(scales), q.astype(np.int8).view(np.uint8)], axis=1)

    def _decode(self, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
        return blocks[:, 2:].view(np.int8) * from_f16_bytes(blocks[:, :2])


class Q6_K(FloatBlocks):  # noqa: N801 - the format's name
    """Six bits a weight, 16 weights a scale: w = d s q with q in -32..31, s int8 and d float16.

    A block has 128 bytes of low nibbles, 64 of high bit pairs, 16 scales s and d, for c = q + 32. In each half of 128
    weights, weight j has its low nibble in byte j % 64 of 64, shifted left by 4 (j // 64), and its two high bits in
    byte j % 32 of 32, shifted left by 2 (j // 32).

    ``pack`` rounds to nearest, once: s brings the largest magnitude of 16 to q = -32. ggml's own quantiser searches for
    better scales, so its bytes differ.

    Source: ggml, ggml-common.h, block_q6_K; gguf-py, quants.py, Q6_K.
    """

    name = "Q6_K"
    gguf_type = 14
    ternary = False
    bits_per_weight = 6.5625
    block = 256
    block_bytes = 210
    largest = 32 * 127 * F16_LARGEST

    _low_shifts = np.array([0, 4], np.uint8).reshape(2, 1)
    _high_shifts = np.array([0, 2, 4, 6], np.uint8).reshape(4, 1)

    def _encode(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        runs = values.reshape(-1, 16, 16)
        extremes = np.take_along_axis(runs, np.abs(runs).argmax(axis=2)[..., None], axis=2)[..., 0]
        wanted = extremes / np.float32(-32)
        block_scales = (np.abs(wanted).max(axis=1, keepdims=True) / np.float32(127)).astype(np.float16)
        scales = np.clip(np.rint(wanted * _inverse(block_scales.astype(np.float32))), -127, 127)
        q = np.rint(runs * _inverse(scales * block_scales.astype(np.float32))[..., None])
        codes = (np.clip(q, -32, 31) + 32).astype(np.uint8)
        low = np.bitwise_or.reduce((codes & 15).reshape(-1, 2, 2, 64) << self._low_shifts, axis=2)
        high = np.bitwise_or.reduce((codes >> 4).reshape(-1, 2, 4, 32) << self._high_shifts, axis=2)
        return np.concatenate(
            [
                low.reshape(-1, 128),
                high.reshape(-1, 64),
                scales.astype(np.int8).view(np.uint8),
                block_scales.view(np.uint8),
            ],
            axis=1,
        )

    def _decode(self, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
        low = (blocks[:, :128].reshape(-1, 2, 1, 64) >> self._low_shifts & 15).reshape(-1, self.block)
        high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> self._high_shifts & 3).reshape(-1, self.block)
        q = (low | high << 4).astype(np.int8) - 32
        scales = blocks[:, 192:208].view(np.int8) * from_f16_bytes(blocks[:, 208:])
        return (q.reshape(-1, 16, 16) * scales[..., None]).reshape(-1, self.block)


def _inverse(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 / scale, and 0 where that can't be held: such weights are as good as 0."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scales
    return np.where(np.isfinite(inverse), inverse, np.float32(0))
