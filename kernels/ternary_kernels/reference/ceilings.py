"""What numpy reaches of what the machine can do: reading memory in a stream, and BLAS' product in cache."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ternary_kernels.memory import LINE_BYTES
from ternary_kernels.team import Team, share

PEAK_SIZE = 384, 384, 1024
"""m, n_out and k_in of a peak: three float32 matrices that fit any level-2 cache, long enough for full speed."""

arithmetic: Literal["float32"] = "float32"
"""What ``Peak`` multiplies."""


def read(team: Team, data: NDArray[np.uint8]) -> None:
    """Stream over the data once, shared among the team; what is less than a cache line at its end is left out.

    Args:
        team: The threads.
        data: uint8, one-dimensional and contiguous.
    """
    lines = data.size // LINE_BYTES
    words = data[: lines * LINE_BYTES].view(np.uint64).reshape(lines, LINE_BYTES // 8)

    def work(member: int) -> None:
        # Or needs no memory for its result.
        first, last = share(lines, team.threads, member)
        np.bitwise_or.reduce(words[first:last], axis=None)

    team.run(work)


class Peak:
    """BLAS' float32 product in cache, a copy per member of the team: numpy has no fast integer product.

    Args:
        team: The threads.
        size: m, n_out and k_in of each member's product.

    Attributes:
        operations: Of one call, all members together; a multiplication and an addition are two.
    """

    def __init__(self, team: Team, size: tuple[int, int, int] = PEAK_SIZE) -> None:
        if min(size) < 1:
            raise ValueError(f"peak: expected a positive m, n_out and k_in, got {size}")
        m, n_out, k_in = size
        rng = np.random.default_rng(0)
        self.operations = 2 * m * n_out * k_in * team.threads
        self._team = team
        self._left = rng.standard_normal((m, k_in), np.float32)
        self._right = rng.standard_normal((k_in, n_out), np.float32)

    def __call__(self) -> None:
        """Multiply once per member."""
        shape = len(self._left), self._right.shape[1]

        def work(member: int) -> None:
            np.matmul(self._left, self._right, out=self._team.scratch(member, shape))

        self._team.run(work)
