"""Memory that is cold when it is used, filled with bytes that are weights in every format."""

from __future__ import annotations

import math
import time

import numpy as np
from numpy.typing import NDArray

from ternary_kernels.memory import LINE_BYTES, aligned

_TILE_BYTES = 4 << 20


class Arena:
    """Memory through which all weights rotate: each use takes the next window, so none is still in cache.

    It is to be larger than the last-level cache; a window comes round again only after all of the arena was used,
    except for less than a window at its end. The bytes are valid in every format at once: pairs of bits are 0, 1 or 2,
    as I2_S codes are, and read as F16 they are normal numbers of the size that weights have, so that no product runs
    into subnormals or infinities.

    Args:
        size_bytes: Size, at least that of the largest window.
        least_bytes: What must be there before ``until`` counts.
        until: When to make do with what is there, on the monotonic clock. Where a virtual machine's memory comes from
            its host page by page, a gigabyte takes seconds.

    Attributes:
        size_bytes: Its size in the end.
    """

    def __init__(self, size_bytes: int, *, least_bytes: int = 0, until: float = math.inf) -> None:
        rng = np.random.default_rng(0)
        tile = np.zeros(_TILE_BYTES, np.uint8)
        for shift in (0, 2, 4, 6):
            tile |= rng.integers(0, 3, _TILE_BYTES, np.uint8) << np.uint8(shift)
        # The high byte of an F16: sign, then exponent bits 4..0 = 0 10xx, that is 2^-7 to 2^-5; no pair becomes 3.
        tile[1::2] = tile[1::2] & 0b1000_1111 | 0b0010_0000
        self._bytes = aligned(size_bytes)
        self.size_bytes = size_bytes
        for start in range(0, size_bytes, _TILE_BYTES):
            if start >= least_bytes and time.monotonic() > until:
                self.size_bytes = start
                break
            self._bytes[start : start + _TILE_BYTES] = tile[: size_bytes - start]
        self._next = 0

    def take(self, size_bytes: int) -> NDArray[np.uint8]:
        """The next window of that size, aligned to a cache line."""
        if self._next + size_bytes > self.size_bytes:
            self._next = 0
        start = self._next
        self._next = -(-(start + size_bytes) // LINE_BYTES) * LINE_BYTES
        return self._bytes[start : start + size_bytes]
