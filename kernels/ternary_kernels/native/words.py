"""Arguments of compiled kernels."""

from __future__ import annotations

import ctypes
from typing import Any

from numpy.typing import NDArray

from ternary_kernels.memory import address


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
