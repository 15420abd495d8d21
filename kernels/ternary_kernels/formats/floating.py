"""Unquantised weights: F16 and F32."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ternary_kernels.formats.base import Bytes, Format


class F16(Format):
    """IEEE half precision, row after row."""

    name = "F16"
    gguf_type = 1
    ternary = False
    bits_per_weight = 16.0
    dtype: ClassVar[type[np.floating[Any]]] = np.float16

    def _size(self, n_out: int, k_in: int) -> int:
        return n_out * k_in * np.dtype(self.dtype).itemsize

    def _pack(self, weights: NDArray[Any], scale: float) -> Bytes:  # noqa: ARG002 - 1, as the base class checked
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(weights, self.dtype)
        if not np.isfinite(stored).all():
            limit = np.finfo(self.dtype).max
            raise ValueError(f"{self.name} packs finite weights of magnitude up to {limit:g}, got others")
        return stored.view(np.uint8).reshape(-1)

    def _split(self, data: Bytes, n_out: int, k_in: int) -> tuple[NDArray[Any], float]:
        itemsize = np.dtype(self.dtype).itemsize
        if misaligned := data.ctypes.data % itemsize:
            raise ValueError(
                f"{self.name}: expected bytes aligned to {itemsize}, got an address {misaligned} past a multiple"
            )
        return data.view(self.dtype).reshape(n_out, k_in), 1.0

    def _unpack_rows(
        self,
        stored: NDArray[Any],
        scale: float,
        shape: tuple[int, int],  # noqa: ARG002 - the rows know theirs
        first: int,
        last: int,
    ) -> tuple[NDArray[Any], float]:
        return stored[first:last].copy(), scale


class F32(F16):
    """IEEE single precision, row after row."""

    name = "F32"
    gguf_type = 0
    bits_per_weight = 32.0
    dtype = np.float32
