"""Cold memory on a device: the twin of ``ternary_kernels.arena``, with the same bytes."""

from __future__ import annotations

import torch
from torch import Tensor

from ternary_kernels import arena

ALIGNMENT = 256
"""Windows start at multiples of this many bytes, as vectors and tiles need it; torch aligns the whole at least so."""

_TILE_BYTES = 4 << 20


class DeviceArena:
    """Memory on a device through which all weights rotate: each use takes the next window, so none is still in cache.

    The bytes are those of ``ternary_kernels.arena.Arena``: weights in every format.

    Args:
        size_bytes: Size, at least that of the largest window.
        device: Where it lies.

    Attributes:
        size_bytes: Its size.

    Raises:
        ValueError: Fewer bytes than one.
        torch.OutOfMemoryError: There isn't so much.
    """

    def __init__(self, size_bytes: int, device: torch.device | str) -> None:
        if size_bytes < 1:
            raise ValueError(f"arena: expected at least 1 byte, got {size_bytes}")
        self.size_bytes = size_bytes
        self._bytes = torch.empty(size_bytes, dtype=torch.uint8, device=device)
        self._next = 0
        tile = torch.from_numpy(arena.Arena(_TILE_BYTES).take(_TILE_BYTES)).to(device)
        for start in range(0, size_bytes, _TILE_BYTES):
            part = self._bytes[start : start + _TILE_BYTES]
            part.copy_(tile[: len(part)])

    def take(self, size_bytes: int) -> Tensor:
        """The next window of that size: uint8, one-dimensional, contiguous.

        Raises:
            ValueError: It is larger than the arena.
        """
        if size_bytes > self.size_bytes:
            raise ValueError(f"arena: expected a window of at most {self.size_bytes} bytes, got {size_bytes}")
        if self._next + size_bytes > self.size_bytes:
            self._next = 0
        start = self._next
        self._next = -(-(start + size_bytes) // ALIGNMENT) * ALIGNMENT
        return self._bytes[start : start + size_bytes]
