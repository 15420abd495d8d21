"""I2_S: two bits a weight, the format of the published 2B-4T file."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary_kernels.formats.base import Bytes, Format
from ternary_kernels.formats.tail import TAIL_BYTES, make_tail, read_scale


class I2S(Format):
    """Two bits a weight, code = w + 1, four weights a byte, one float32 scale in a 32-byte tail; x86 layout.

    128 weights lie in 32 bytes: weight j in byte j % 32, shifted left by 6 - 2 (j // 32). This is the layout of
    the default build (ACT_PARALLEL); one built without it puts four rows into a byte instead.
    Source: microsoft/BitNet 16da220, src/ggml-bitnet-mad.cpp, quantize_i2_s.
    """

    name = "I2_S"
    gguf_type = 36
    ternary = True
    bits_per_weight = 2.0
    block = 128

    def _size(self, n_out: int, k_in: int) -> int:
        return n_out * k_in // 4 + TAIL_BYTES

    def _pack(self, weights: NDArray[Any], scale: float) -> Bytes:
        n_out, k_in = weights.shape
        planes = (weights + 1).astype(np.uint8).reshape(n_out, k_in // self.block, 4, self.block // 4)
        packed = planes[:, :, 0] << 6 | planes[:, :, 1] << 4 | planes[:, :, 2] << 2 | planes[:, :, 3]
        return np.concatenate([packed.reshape(-1), make_tail(scale)])

    def _split(self, data: Bytes, n_out: int, k_in: int) -> tuple[NDArray[Any], float]:
        return data[:-TAIL_BYTES].reshape(n_out, k_in // 4), read_scale(data)

    def _unpack_rows(
        self, stored: NDArray[Any], scale: float, shape: tuple[int, int], first: int, last: int
    ) -> tuple[NDArray[Any], float]:
        packed = stored[first:last].reshape(last - first, -1, 1, self.block // 4)
        codes = packed >> np.array([6, 4, 2, 0], np.uint8).reshape(4, 1) & 3
        return codes.astype(np.int8).reshape(last - first, shape[1]) - 1, scale


class I2SArm(I2S):
    """I2_S as Arm builds lay it out.

    64 weights lie in 16 bytes: weight j in byte j % 16, shifted left by 6 - 2 (j // 16). A file written for one
    architecture is not a file for the other. Source: as for ``I2S``.
    """

    name = "I2_S_ARM"
    block = 64
