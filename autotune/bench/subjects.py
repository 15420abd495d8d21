"""The worker's side of a point: a call that runs the operation once, on cold memory."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from autotune.bench.plan import Task
from autotune.bench.rig import Call
from autotune.model.sites import layer_geometry
from autotune.records import Model
from ternary_kernels.activations import Quantized, quantize
from ternary_kernels.arena import Arena
from ternary_kernels.backends import get_backend
from ternary_kernels.matmul import get_kernel
from ternary_kernels.reference.layer_ops import SmallOps, Workspace
from ternary_kernels.team import Team


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
        self._results: dict[tuple[int, ...], NDArray[np.float32]] = {}
        self._workspace: Workspace | None = None
        self._workspace_tokens = 0

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
            case "upload" | "download" | "handover":
                raise ValueError(f"{point.op}: expected a point on a GPU, got one on {point.device}")

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
        geometry, m = layer_geometry(self._model), task.point.m
        if m > self._workspace_tokens:
            self._workspace, self._workspace_tokens = Workspace(geometry, m), m
        ops = get_backend(task.point.kernel).step_ops(self._teams[task.point.threads])
        return SmallOps(geometry, m, ops, self._workspace)

    def _attention(self, task: Task) -> Call:
        assert self._model is not None
        point, geometry = task.point, self._model.attention
        team = self._teams[point.threads]
        attention = get_backend(point.kernel).attention(
            geometry.heads, geometry.kv_heads, geometry.head_dim, point.m, point.context + point.m, team
        )
        query = self._input(point.m, geometry.heads * geometry.head_dim).reshape(attention.shape)
        size = 2 * int(np.prod(attention.cache_shape))

        def call() -> None:
            keys, values = (self._arena.take(size).view(np.float16).reshape(attention.cache_shape) for _ in "kv")
            attention(query, keys, values, self._output(attention.shape), point.context)

        return call

    def _read(self, task: Task) -> Call:
        point = task.point
        team, read = self._teams[point.threads], get_backend(point.kernel).read

        def call() -> None:
            read(team, self._arena.take(point.k_in))

        return call

    def _peak(self, task: Task) -> Call:
        point = task.point
        return get_backend(point.kernel).peak(self._teams[point.threads], (point.m, point.n_out, point.k_in))

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
        """Room for a result, out of one buffer that all subjects overwrite; the same array for the same shape.

        Kernels that are called with an array they know needn't look at it again, as in a runtime whose buffers stay.
        """
        held = self._results.get(shape)
        if held is None:
            size = math.prod(shape)
            if size > self._outputs.size:
                self._outputs = np.empty(size, np.float32)
                self._results.clear()
            held = self._results[shape] = self._outputs[:size].reshape(shape)
        return held
