"""The worker's side of a point: memory that is cold when it is used, and a call that runs the operation once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from autotune.bench.plan import Task
from autotune.records import Model
from ternary_kernels.activations import Quantized, quantize
from ternary_kernels.layer_ops import Attention, SmallOps
from ternary_kernels.matmul import get_kernel
from ternary_kernels.team import Team, share

Call = Callable[[], object]

_ALIGNMENT = 64
_TILE_BYTES = 4 << 20


class Arena:
    """Memory through which all weights rotate: each use takes the next window, so none is still in cache.

    It is larger than the last-level cache (the campaign sees to that); a window comes round again only after all of
    the arena was used, except for less than a window at its end. The bytes are valid in every format at once: pairs
    of bits are 0, 1 or 2, as I2_S codes are, and read as F16 they are normal numbers of the size that weights have,
    so that no product runs into subnormals or infinities.

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
        memory = np.empty(size_bytes + _ALIGNMENT, np.uint8)
        aligned = -memory.ctypes.data % _ALIGNMENT
        self._bytes = memory[aligned : aligned + size_bytes]
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
        self._next = -(-(start + size_bytes) // _ALIGNMENT) * _ALIGNMENT
        return self._bytes[start : start + size_bytes]


class Subjects:
    """Builds the calls of all points over one arena and one set of buffers.

    Args:
        model: Gives the geometry of attention and the gate; None where no task is of that kind.
        arena: Cold memory.
        teams: A team per thread count.
    """

    def __init__(self, model: Model | None, arena: Arena, teams: Mapping[int, Team]) -> None:
        self._model = model
        self._arena = arena
        self._teams = teams
        self._inputs = np.empty(0, np.float32)
        self._quantized: dict[tuple[int, int], Quantized] = {}
        self._outputs = np.empty(0, np.float32)

    def build(self, task: Task) -> Call:
        """The call that runs a task's operation once.

        Raises:
            ValueError: There is no such kernel, or the format can't hold the shape.
        """
        point = task.point
        match point.op:
            case "matmul":
                return self._matmul(task)
            case "attention":
                return self._attention(task)
            case "layer_ops":
                return self._small_ops(task)
            case "read":
                return self._read(task)
            case "peak":
                return self._peak(task)

    def _matmul(self, task: Task) -> Call:
        point = task.point
        rows = task.rows or point.n_out
        team = self._teams[point.threads]
        product = get_kernel(point.kernel, point.format)(point.format, rows, point.k_in, point.m, team)
        ternary = product.format.ternary
        x = self._quantized_input(point.m, point.k_in) if ternary else self._input(point.m, point.k_in)
        shape = point.m, rows

        def call() -> None:
            product(x, self._arena.take(product.size_bytes), self._output(shape))

        return call

    def _small_ops(self, task: Task) -> Call:
        assert self._model is not None
        model, geometry = self._model, self._model.attention
        return SmallOps(
            model.hidden_size,
            model.intermediate_size,
            geometry.heads,
            geometry.kv_heads,
            geometry.head_dim,
            model.activation,
            task.point.m,
        )

    def _attention(self, task: Task) -> Call:
        assert self._model is not None
        point, geometry = task.point, self._model.attention
        team = self._teams[point.threads]
        attention = Attention(geometry.heads, geometry.kv_heads, geometry.head_dim, point.m, point.context, team)
        query = self._input(point.m, geometry.heads * geometry.head_dim).reshape(attention.shape)
        size = 2 * int(np.prod(attention.cache_shape))

        def call() -> None:
            keys, values = (self._arena.take(size).view(np.float16).reshape(attention.cache_shape) for _ in "kv")
            attention(query, keys, values, self._output(attention.shape))

        return call

    def _read(self, task: Task) -> Call:
        team = self._teams[task.point.threads]
        lines = task.point.k_in // _ALIGNMENT

        def call() -> None:
            words = self._arena.take(lines * _ALIGNMENT).view(np.uint64).reshape(lines, -1)

            def work(member: int) -> None:
                first, last = share(lines, team.threads, member)
                np.bitwise_or.reduce(words[first:last], axis=None)

            team.run(work)

        return call

    def _peak(self, task: Task) -> Call:
        point = task.point
        team = self._teams[point.threads]
        left, right = self._input(point.m, point.k_in), self._input(point.k_in, point.n_out)

        def call() -> None:
            def work(member: int) -> None:
                np.matmul(left, right, out=team.scratch(member, (point.m, point.n_out)))

            team.run(work)

        return call

    def _input(self, rows: int, columns: int) -> NDArray[np.float32]:
        """Activations of that shape, out of one buffer that all subjects read."""
        size = rows * columns
        if size > self._inputs.size:
            self._inputs = np.random.default_rng(1).standard_normal(size, np.float32)
        return self._inputs[:size].reshape(rows, columns)

    def _quantized_input(self, rows: int, columns: int) -> Quantized:
        """The same, quantised; kept, because many products differ in nothing that it depends on."""
        key = rows, columns
        if key not in self._quantized:
            self._quantized[key] = quantize(self._input(rows, columns))
        return self._quantized[key]

    def _output(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Room for a result, out of one buffer that all subjects overwrite."""
        size = int(np.prod(shape))
        if size > self._outputs.size:
            self._outputs = np.empty(size, np.float32)
        return self._outputs[:size].reshape(shape)
