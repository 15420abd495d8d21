"""Where arrays lie in memory: addresses, and cache lines."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LINE_BYTES = 64


def address(array: NDArray[Any]) -> int:
    """Where an array's elements start; cheaper than ``array.ctypes.data``."""
    return int(array.__array_interface__["data"][0])


def aligned(size_bytes: int) -> NDArray[np.uint8]:
    """Uninitialised memory that starts at a cache line: vectors that lie across two take twice as long to load."""
    memory = np.empty(size_bytes + LINE_BYTES, np.uint8)
    start = -address(memory) % LINE_BYTES
    return memory[start : start + size_bytes]
