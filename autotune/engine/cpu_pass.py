"""One pass through a stage on the CPU: a list of calls whose arguments are bound before the first of them runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from autotune.engine.stages import Array, Kernels, Pass
from autotune.engine.structure import angles
from autotune.records import Attention, Model, Site
from ternary_kernels.activations import Quantized
from ternary_kernels.backends import get_backend
from ternary_kernels.formats import Bytes, get_format
from ternary_kernels.matmul import Matmul, get_kernel
from ternary_kernels.memory import LINE_BYTES, aligned
from ternary_kernels.reference.layer_ops import Attention as AttentionKernel
from ternary_kernels.reference.layer_ops import Floats
from ternary_kernels.team import Team

Run = Callable[[], object]
Caches = NDArray[np.float16]
"""Keys and values of all layers, shape (layers, 2, sequences, kv_heads, capacity, head_dim)."""


class Packed(NamedTuple):
    """A site with its weights."""

    site: Site
    data: Bytes


class LayerWeights(NamedTuple):
    """The weights of one layer: matrices by their site's name, norms by what they come before."""

    matrices: Mapping[str, Packed]
    norms: Mapping[str, Floats]


class StageWeights(NamedTuple):
    """The weights of a stage; None for an end that it hasn't."""

    embedding: Packed | None
    layers: Sequence[LayerWeights]
    final_norm: Floats | None
    head: Packed | None


class Buffers:
    """Named memory that the passes of a stage share: each is as large as the largest of them needs it."""

    def __init__(self) -> None:
        self._held: dict[str, NDArray[np.uint8]] = {}

    def take(self, name: str, rows: int, *widths: int, dtype: DTypeLike = np.float32) -> list[Array]:
        """Uninitialised arrays of shapes (rows, width), one behind the other; valid until the name is taken again."""
        sizes = [rows * width * np.dtype(dtype).itemsize for width in widths]
        starts = [0]
        for size in sizes:
            starts.append(starts[-1] + -(-size // LINE_BYTES) * LINE_BYTES)
        held = self._held.get(name)
        if held is None or len(held) < starts[-1]:
            held = self._held[name] = aligned(starts[-1])
        return [
            held[start : start + size].view(dtype).reshape(rows, width)
            for start, size, width in zip(starts, sizes, widths, strict=False)
        ]


class Tools:
    """What passes are made of, with one choice of kernels and one team; what fits several layers is built once.

    Args:
        kernels: The choice.
        device: What they are listed under.
        team: The threads.
    """

    def __init__(self, kernels: Kernels, device: str, team: Team) -> None:
        self._kernels = kernels
        self._device = device
        self._team = team
        self._backend = get_backend(kernels.backends[device])
        self.ops = self._backend.step_ops(team)
        self._products: dict[tuple[str, str, int, int, int], Matmul] = {}
        self._attention: dict[tuple[Attention, int, int], AttentionKernel] = {}

    def suit(self, kernels: Kernels, team: Team) -> bool:
        """Whether these are the tools for that choice and team."""
        return self._team is team and self._kernels == kernels

    def product(self, site: Site, tokens: int, *, prefill: bool) -> Matmul:
        """The product of a site with so many tokens, on the kernel that is listed for it.

        Where none is listed it is the backend's own, or if that has none for the site's format, the next best.
        """
        kernel = self._kernels.of(site, self._device, tokens, prefill=prefill) or self._own(site.format)
        key = kernel, site.format, site.n_out, site.k_in, tokens
        if key not in self._products:
            build = get_kernel(kernel, site.format)
            self._products[key] = build(site.format, site.n_out, site.k_in, tokens, self._team)
        return self._products[key]

    def attention(self, geometry: Attention, tokens: int, capacity: int) -> AttentionKernel:
        """Attention of so many new tokens of a sequence over a cache of that capacity."""
        key = geometry, tokens, capacity
        if key not in self._attention:
            heads, kv_heads, head_dim = geometry.heads, geometry.kv_heads, geometry.head_dim
            self._attention[key] = self._backend.attention(heads, kv_heads, head_dim, tokens, capacity, self._team)
        return self._attention[key]

    def _own(self, format_name: str) -> str:
        for kernel in (self._backend.name, "native"):
            with suppress(ValueError):
                get_kernel(kernel, format_name)
                return kernel
        return "numpy"


class CpuPass:
    """One pass through a stage: takes tokens or the residual stream, returns the stream or the next tokens.

    Args:
        model: The model.
        step: The pass.
        weights: The stage's.
        caches: Of the pass' sequences.
        buffers: The stage's.
        tools: What to build it with.

    Raises:
        ValueError: The pass' tokens go beyond the KV cache.
    """

    def __init__(
        self, model: Model, step: Pass, weights: StageWeights, caches: Caches, buffers: Buffers, tools: Tools
    ) -> None:
        capacity = caches.shape[4]
        decode = step.rows == step.sequences
        if step.context + (1 if decode else step.rows) > capacity:
            raise ValueError(
                f"KV cache: expected at most {capacity} tokens per sequence, "
                f"got {step.context} and {1 if decode else step.rows} more"
            )
        self._model, self._step, self._decode = model, step, decode
        self._buffers, self._tools = buffers, tools
        self._angles = angles(step, model.attention.head_dim)
        self._calls: list[Run] = []
        self._stream, self._added = buffers.take("stream", step.rows, model.hidden_size, model.hidden_size)
        self._enter: Callable[[Array], None] = partial(np.copyto, self._stream)
        if weights.embedding is not None:
            self._enter = _lookup(weights.embedding, self._stream)
        self._size_buffers(weights.layers)
        for index, layer in enumerate(weights.layers):
            self._attend(layer, *caches[index], first=index == 0)
            self._feed_forward(layer)
        self._logits: Floats | None = None
        self._result: Array | None = self._stream
        if weights.head is not None:
            assert weights.final_norm is not None
            self._result = None
            if step.last:
                self._classify(weights.head, weights.final_norm, after_layers=bool(weights.layers))
        elif weights.layers:
            self._calls.append(tools.ops.add(self._stream, self._added))

    def __call__(self, given: Array) -> Array | None:
        """Run it; see ``stages.Bound``."""
        self._enter(given)
        for call in self._calls:
            call()
        return self._leave()

    def timed(self, given: Array) -> tuple[Array | None, float]:
        """Run it with a clock around each kernel: products, attention, small operations.

        Returns:
            What a call returns, and the seconds in kernels.
        """
        self._enter(given)
        clock, kernels_s = time.perf_counter, 0.0
        for call in self._calls:
            start = clock()
            call()
            kernels_s += clock() - start
        return self._leave(), kernels_s

    def _leave(self) -> Array | None:
        if self._logits is not None:
            np.argmax(self._logits, axis=1, out=self._result)
        return self._result

    def _size_buffers(self, layers: Sequence[LayerWeights]) -> None:
        """Let the buffers grow before anything is bound to them: what is bound would keep the smaller ones as well."""
        for widths in (self._attention_widths, self._gate_widths) if layers else ():
            self._buffers.take("wide", self._step.rows, *widths)
        for site in dict.fromkeys(matrix.site for layer in layers for matrix in layer.matrices.values()):
            self._room([site], self._step.rows)

    @property
    def _attention_widths(self) -> tuple[int, int, int, int]:
        """Of query, key, value, and values mixed."""
        geometry = self._model.attention
        query_width, kv_width = geometry.heads * geometry.head_dim, geometry.kv_heads * geometry.head_dim
        return query_width, kv_width, kv_width, query_width

    @property
    def _gate_widths(self) -> tuple[int, int]:
        """Of gate and up."""
        return self._model.intermediate_size, self._model.intermediate_size

    def _attend(self, layer: LayerWeights, keys: Caches, values: Caches, *, first: bool) -> None:
        """Norm, q, k, v, rotation, attention over the cache and o; leaves what is to be added to the stream."""
        ops, step, geometry = self._tools.ops, self._step, self._model.attention
        query, key, value, mixed = self._buffers.take("wide", step.rows, *self._attention_widths)

        x = self._input(layer, "q", "k", "v")
        self._calls.append(ops.norm(self._stream, layer.norms["attention"], x.target, None if first else self._added))
        self._complete(x)
        for name, out in (("q", query), ("k", key), ("v", value)):
            self._multiply(layer.matrices[name], x, out)

        cos, sin = self._angles
        query, key, value, heads_mixed = (
            array.reshape(step.rows, -1, geometry.head_dim) for array in (query, key, value, mixed)
        )
        sequence = math.prod(keys.shape[1:])
        row_stride = sequence if self._decode else geometry.head_dim
        offset = step.context * geometry.head_dim
        self._calls.append(ops.rotate(query, cos, sin, query))
        self._calls.append(ops.append(key, cos, sin, value, keys, values, row_stride, offset))
        rows = step.rows // step.sequences
        attention = self._tools.attention(geometry, rows, keys.shape[2])
        for turn in range(step.sequences):
            mine = slice(turn * rows, (turn + 1) * rows)
            self._calls.append(attention.bind(query[mine], keys[turn], values[turn], heads_mixed[mine], step.context))

        x = self._input(layer, "o")
        norm = layer.norms.get("o")
        if norm is not None:
            self._calls.append(ops.norm(mixed, norm, x.target))
        elif x.quantized is not None:
            self._calls.append(ops.quantize(mixed, x.quantized))
        else:
            x = _Input(mixed, None)
        self._multiply(layer.matrices["o"], x, self._added)

    def _feed_forward(self, layer: LayerWeights) -> None:
        """Norm, gate, up and down; leaves what is to be added to the stream."""
        ops = self._tools.ops
        gated, up = self._buffers.take("wide", self._step.rows, *self._gate_widths)
        x = self._input(layer, "gate", "up")
        self._calls.append(ops.norm(self._stream, layer.norms["feed_forward"], x.target, self._added))
        self._complete(x)
        self._multiply(layer.matrices["gate"], x, gated)
        self._multiply(layer.matrices["up"], x, up)
        x = self._input(layer, "down")
        self._calls.append(ops.gate(gated, up, self._model.activation, x.target, layer.norms.get("down")))
        self._multiply(layer.matrices["down"], x, self._added)

    def _classify(self, head: Packed, norm: Floats, *, after_layers: bool) -> None:
        """The norm before the head, and the logits of each sequence's last token."""
        sequences = self._step.sequences
        last = slice(self._step.rows - sequences, None)
        x = self._room([head.site], sequences)
        added = self._added[last] if after_layers else None
        self._calls.append(self._tools.ops.norm(self._stream[last], norm, x.target, added))
        (self._logits,) = self._buffers.take("logits", sequences, head.site.n_out)
        self._multiply(head, x, self._logits)
        self._result = np.empty(sequences, np.int64)

    def _input(self, layer: LayerWeights, *names: str) -> _Input:
        return self._room([layer.matrices[name].site for name in names], self._step.rows)

    def _room(self, sites: Sequence[Site], rows: int) -> _Input:
        """Room for what some sites multiply: int8 where they are ternary, else float32, and both where they differ."""
        kinds = {get_format(site.format).ternary for site in sites}
        columns = sites[0].k_in
        floats, quantized = None, None
        if False in kinds:
            (floats,) = self._buffers.take("floats", rows, columns)
        if True in kinds:
            (values,) = self._buffers.take("int8", rows, columns, dtype=np.int8)
            (scale,) = self._buffers.take("scales", rows, 1)
            quantized = Quantized(values, scale.reshape(rows))
        return _Input(floats, quantized)

    def _complete(self, x: _Input) -> None:
        """Sites of both kinds share an input: quantise what was made as float32."""
        if x.floats is not None and x.quantized is not None:
            self._calls.append(self._tools.ops.quantize(x.floats, x.quantized))

    def _multiply(self, weights: Packed, x: _Input, out: Floats) -> None:
        site = weights.site
        product = self._tools.product(site, len(out), prefill=not self._decode)
        taken = x.quantized if product.format.ternary else x.floats
        assert taken is not None
        self._calls.append(product.bind(taken, weights.data, out))


class _Input(NamedTuple):
    """What products multiply: at least one of the two."""

    floats: Floats | None
    quantized: Quantized | None

    @property
    def target(self) -> Quantized | Floats:
        """Where the operation before the products puts its result."""
        if self.floats is not None:
            return self.floats
        assert self.quantized is not None
        return self.quantized


def _lookup(embedding: Packed, stream: Floats) -> Callable[[Array], None]:
    """Writes the embeddings of tokens (rows,) to the stream."""
    site, data = embedding
    held, shape = get_format(site.format), (site.n_out, site.k_in)
    stored, tensor_scale = held.split(data, *shape)
    tile = held.row_multiple(*shape)

    def rows_of(tokens: Array) -> None:
        rows, scale = held.unpack_rows(stored[tokens], tensor_scale, shape, 0, len(tokens))
        np.copyto(stream, rows)
        if scale != 1:
            np.multiply(stream, np.float32(scale), out=stream)

    def tiles_of(tokens: Array) -> None:
        # Rows of these formats are interleaved: a whole tile is unpacked to get at one.
        for out, token in zip(stream, tokens.tolist(), strict=True):
            first = token // tile * tile
            rows, scale = held.unpack_rows(stored, tensor_scale, shape, first, first + tile)
            np.multiply(rows[token - first], np.float32(scale), out=out)

    return rows_of if tile == 1 else tiles_of
