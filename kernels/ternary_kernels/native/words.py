"""Arguments of compiled kernels, and the memory they point to."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

LINE_BYTES = 64


class Words:
    """The arguments of one compiled kernel: integers, and addresses of arrays.

    Args:
        count: How many there are.

    Attributes:
        address: Where they lie.
    """

    def __init__(self, count: int) -> None:
        self._words = (ctypes.c_int64 * count)()
        self._pointed: dict[int, NDArray[Any]] = {}
        self.address = ctypes.addressof(self._words)

    def __setitem__(self, index: int, value: int) -> None:
        self._words[index] = value

    def point(self, index: int, array: NDArray[Any]) -> None:
        """Point to an array's first element. An array that comes again costs nothing, and is kept until then."""
        if self._pointed.get(index) is not array:
            self._pointed[index] = array
            self._words[index] = address(array)


def address(array: NDArray[Any]) -> int:
    """Where an array's elements start; cheaper than ``array.ctypes.data``."""
    return int(array.__array_interface__["data"][0])


def aligned(size_bytes: int) -> NDArray[np.uint8]:
    """Uninitialised memory that starts at a cache line: vectors that lie across two take twice as long to load."""
    memory = np.empty(size_bytes + LINE_BYTES, np.uint8)
    start = -address(memory) % LINE_BYTES
    return memory[start : start + size_bytes]
