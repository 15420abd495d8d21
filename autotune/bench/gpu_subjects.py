"""The GPU worker's side of a point: calls on cold memory, launched one by one or as a graph, and how they are timed."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from autotune.bench.plan import Task
from autotune.bench.rig import Call, Subject
from autotune.model.sites import layer_geometry
from autotune.records import Model, Point
from ternary_kernels.cuda.activations import Quantized, quantize
from ternary_kernels.cuda.arena import DeviceArena
from ternary_kernels.cuda.ceilings import Arithmetic, Peak, copy
from ternary_kernels.cuda.graphs import capture, event_stopwatch
from ternary_kernels.cuda.product import get_product

_FEWEST_REPEATS = 8
_MOST_REPEATS = 512
"""Calls in a graph: no more than can be recorded in milliseconds."""

_SHORTEST_REPLAY_S = 2e-4
"""From the end of one graph to the start of the next some 2 us pass: a hundredth of this."""
_LONGEST_REPLAY_S = 0.01
"""A graph of long calls holds fewer: they are bound by computing, and sampling must go round."""

_HEAD_START_CYCLES = 1_000_000
"""Half a millisecond, which is longer than launching any call takes."""

_ARITHMETIC: dict[str, Arithmetic] = {"I8": "int8", "F16": "float16"}


class GpuSubjects:
    """Builds the calls of all points over one arena and one set of buffers.

    Args:
        model: Gives the geometry of attention and the gate; None where no task is of that kind.
        arena: Cold memory; its device is where all runs.
        device: Where the arena lies.
        cold_bytes: As many bytes must be read before a window comes round again.
    """

    def __init__(self, model: Model | None, arena: DeviceArena, device: torch.device, cold_bytes: int) -> None:
        self._model = model
        self._arena = arena
        self._device = device
        self._cold_bytes = cold_bytes
        self._has_graphs = device.type == "cuda"
        self._inputs = torch.empty(0, device=device)
        self._quantized: dict[tuple[int, int], Quantized] = {}
        self._outputs = torch.empty(0, device=device)

    def build(self, task: Task) -> Subject:
        """What is to be timed of a task.

        Raises:
            ValueError: There is no such kernel, or the format can't hold the shape.
        """
        match task.point.op:
            case "matmul":
                return self._launched(task.point, *self._matmul(task))
            case "attention":
                return self._launched(task.point, *self._attention(task.point))
            case "layer_ops":
                return self._launched(task.point, self._small_ops(task.point), 0)
            case "read":
                return self._launched(task.point, *self._read(task.point))
            case "peak":
                return self._launched(task.point, self._peak(task.point), 0)
            case "upload" | "download" | "handover":
                # The host waits for each, so what it costs is the host's time.
                return Subject(self._transfer(task.point))

    def _launched(self, point: Point, call: Call, window_bytes: int) -> Subject:
        """A call as it is to be launched, timed on the device."""
        if not self._has_graphs:
            return Subject(call)
        if point.launch == "eager":
            call()
            torch.cuda.synchronize()
            return Subject(call, 1, event_stopwatch)
        call()
        # The GPU is kept busy until all of the call is launched: it would wait for that longer than it works.
        torch.cuda._sleep(_HEAD_START_CYCLES)  # type: ignore[no-untyped-call]
        call_s = max(event_stopwatch(call, 1), 1e-6)
        # Each replay reads the same windows, so between two reads of one the graph must have read all that cache holds.
        cold = math.ceil(self._cold_bytes / window_bytes) if window_bytes else 0
        fewest = max(cold, _FEWEST_REPEATS, round(_SHORTEST_REPLAY_S / call_s))
        repeats = min(fewest, max(int(_LONGEST_REPLAY_S / call_s), 1), _MOST_REPEATS)
        return Subject(capture(call, repeats, self._device), repeats, event_stopwatch)

    def _matmul(self, task: Task) -> tuple[Call, int]:
        point = task.point
        rows = task.rows or point.n_out
        product = get_product(point.kernel, point.format)(point.format, rows, point.k_in, point.m, self._device)
        shape = point.m, point.k_in
        x = self._quantized_input(*shape) if product.format.ternary else self._input(*shape)
        out = self._output(point.m, rows)

        def call() -> None:
            product(x, product.window(self._arena.take(product.code_bytes)), out)

        return call, product.code_bytes

    def _attention(self, point: Point) -> tuple[Call, int]:
        # Imported only where it is needed: with it comes much of torch.
        from ternary_kernels.cuda.backends import get_backend

        assert self._model is not None
        geometry = self._model.attention
        attention = get_backend(point.kernel).attention(
            geometry.heads,
            geometry.kv_heads,
            geometry.head_dim,
            point.sequences,
            point.m,
            point.context,
            self._device,
        )
        query = self._input(point.sequences * point.m, geometry.heads * geometry.head_dim).view(attention.shape)
        out = self._output(point.sequences * point.m, geometry.heads * geometry.head_dim).view(attention.shape)
        size_bytes = 2 * math.prod(attention.cache_shape)

        def call() -> None:
            keys, values = (
                self._arena.take(size_bytes).view(torch.float16).view(attention.cache_shape) for _ in range(2)
            )
            attention(query, keys, values, out)

        return call, 2 * size_bytes

    def _small_ops(self, point: Point) -> Call:
        from ternary_kernels.cuda.backends import get_backend

        assert self._model is not None
        return get_backend(point.kernel).small_ops(layer_geometry(self._model), point.m, self._device)

    def _read(self, point: Point) -> tuple[Call, int]:
        half = point.k_in // 2

        def call() -> None:
            window = self._arena.take(2 * half)
            copy(window[:half], window[half:])

        return call, 2 * half

    def _peak(self, point: Point) -> Call:
        return Peak(self._device, (point.m, point.n_out, point.k_in), _ARITHMETIC[point.format])

    def _transfer(self, point: Point) -> Call:
        """Bytes from the host's memory to the device's and back; it returns when they are there."""
        if point.kernel not in ("pinned", "pageable"):
            raise ValueError(f"{point.op}: expected pinned or pageable memory, got {point.kernel!r}")
        pinned = point.kernel == "pinned" and self._has_graphs
        outward, back = (torch.full((point.k_in,), 1, dtype=torch.uint8, pin_memory=pinned) for _ in range(2))
        there = torch.zeros(point.k_in, dtype=torch.uint8, device=self._device)
        counter = torch.zeros(1, device=self._device)
        wait: Callable[[], None] = torch.cuda.current_stream().synchronize if self._has_graphs else _nothing

        def upload() -> None:
            there.copy_(outward, non_blocking=True)
            wait()

        def download() -> None:
            back.copy_(there, non_blocking=True)
            wait()

        def handover() -> None:
            there.copy_(outward, non_blocking=True)
            counter.add_(1)  # as little as a kernel can do
            back.copy_(there, non_blocking=True)
            wait()

        return {"upload": upload, "download": download}.get(point.op, handover)

    def _input(self, rows: int, columns: int) -> Tensor:
        """Activations of that shape, float32, out of one buffer that all subjects read."""
        size = rows * columns
        if size > len(self._inputs):
            drawn = np.random.default_rng(1).standard_normal(size, np.float32)
            self._inputs = torch.from_numpy(drawn).to(self._device)
        return self._inputs[:size].view(rows, columns)

    def _quantized_input(self, rows: int, columns: int) -> Quantized:
        """The same, quantised; kept, because many products differ in nothing that it depends on."""
        key = rows, columns
        if key not in self._quantized:
            self._quantized[key] = quantize(self._input(rows, columns))
        return self._quantized[key]

    def _output(self, rows: int, columns: int) -> Tensor:
        """Room for a result, float32, out of one buffer that all subjects overwrite."""
        size = rows * columns
        if size > len(self._outputs):
            self._outputs = torch.empty(size, device=self._device)
        return self._outputs[:size].view(rows, columns)


def _nothing() -> None:
    """Nothing to wait for."""
