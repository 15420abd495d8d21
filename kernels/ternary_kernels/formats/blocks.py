"""What formats have in common whose rows are blocks with scales of their own, as upstream ggml stores them."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ternary_kernels.formats.base import Bytes, Format


class BlockFormat(Format):
    """Row after row, each of k_in / block blocks of ``block_bytes``; ``split`` views uint8 (n_out, bytes per row).

    Attributes:
        block_bytes: Bytes of a block, its scales included.
    """

    block_bytes: ClassVar[int]

    def _size(self, n_out: int, k_in: int) -> int:
        return n_out * k_in // self.block * self.block_bytes

    def _split(self, data: Bytes, n_out: int, k_in: int) -> tuple[NDArray[Any], float]:
        return data.reshape(n_out, k_in // self.block * self.block_bytes), 1.0


class FloatBlocks(BlockFormat):
    """Blocks of floating-point weights, rounded to what the format can hold.

    Attributes:
        largest: Largest magnitude that a block with a float16 scale reaches.
    """

    largest: ClassVar[float]

    def _pack(self, weights: NDArray[Any], scale: float) -> Bytes:  # noqa: ARG002 - 1, as the base class checked
        if not np.abs(weights).max() <= self.largest:  # NaN is never below
            raise ValueError(f"{self.name} packs finite weights of magnitude up to {self.largest:g}, got others")
        return self._encode(weights.astype(np.float32).reshape(-1, self.block)).reshape(-1)

    def _unpack_rows(
        self, stored: NDArray[Any], scale: float, shape: tuple[int, int], first: int, last: int
    ) -> tuple[NDArray[Any], float]:
        return self._decode(stored[first:last].reshape(-1, self.block_bytes)).reshape(last - first, shape[1]), scale

    @abstractmethod
    def _encode(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Blocks of weights (count, block) to blocks of bytes (count, block_bytes)."""

    @abstractmethod
    def _decode(self, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The reverse."""


F16_LARGEST = 65504.0


def as_f16_bytes(scales: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Scales (count, 1) as the two bytes (count, 2) that hold each."""
    return scales.astype(np.float16).view(np.uint8)


def from_f16_bytes(data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The reverse, from a view of any strides."""
    return np.ascontiguousarray(data).view(np.float16).astype(np.float32)
