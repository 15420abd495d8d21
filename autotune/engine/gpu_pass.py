"""One pass through a stage on a GPU: what is computed, recorded as one graph, between an upload and a download."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from autotune.engine.stages import Array, Kernels, Pass
from autotune.engine.structure import angles
from autotune.records import Model, Site
from ternary_kernels.cuda.backends import Backend, get_backend
from ternary_kernels.cuda.graphs import capture
from ternary_kernels.cuda.memory import is_out_of_memory
from ternary_kernels.cuda.product import Product, Weights, get_product
from ternary_kernels.cuda.step_ops import Activations
from ternary_kernels.cuda.support import KERNEL_FORMATS
from ternary_kernels.cuda.unpack import unpack_rows
from ternary_kernels.formats import get_format

_REFERENCE = "torch"
"""The kernel that multiplies in every format a GPU holds."""


class Matrix(NamedTuple):
    """A site with its weights."""

    site: Site
    weights: Weights


class LayerWeights(NamedTuple):
    """The weights of one layer: matrices as ``fusion.fused`` names them, norms by what they precede."""

    matrices: Mapping[str, Matrix]
    norms: Mapping[str, Tensor]


class StageWeights(NamedTuple):
    """The weights of a stage; None for an end that it hasn't."""

    embedding: Matrix | None
    layers: Sequence[LayerWeights]
    final_norm: Tensor | None
    head: Matrix | None


class Caches:
    """The KV caches of a stage's layers. They may be replaced by larger ones; passes look them up when recorded.

    Attributes:
        keys: A tensor per layer, float16, shape (slots, kv_heads, capacity, head_dim).
        values: The same.
        slots: Sequences that they hold.
        capacity: Tokens of each.
    """

    def __init__(self, capacity: int) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.slots = 0
        self.capacity = capacity


class Link:
    """An array in the host's memory with a twin on a device; on a GPU's host its pages stay where they are.

    Args:
        shape: Of both.
        dtype: Of both.
        device: Where the twin is.

    Attributes:
        array: On the host.
        there: On the device; zeros at first.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.there = torch.zeros(shape, dtype=dtype, device=device)
        # From memory that may be moved, or to it, a copy would not go beside the host's own work, and be slower.
        self._here = torch.zeros(shape, dtype=dtype, pin_memory=device.type == "cuda")
        self.array = self._here.numpy()

    def upload(self, array: Array) -> None:
        """Have an array copied to the device; not to be called again before that was waited for."""
        np.copyto(self.array, array)
        self.there.copy_(self._here, non_blocking=True)

    def download(self) -> None:
        """Have the device's twin copied to ``array``, which is valid when that was waited for."""
        self._here.copy_(self.there, non_blocking=True)


class Tools:
    """What passes are made of, with one choice of kernels; products serve all layers and passes that they fit.

    Args:
        kernels: The choice.
        device: What they are listed under.
        place: Where torch finds it.
    """

    def __init__(self, kernels: Kernels, device: str, place: torch.device) -> None:
        self.kernels = kernels
        self.backend: Backend = get_backend(kernels.backends[device])
        self._device, self._place = device, place
        self._products: dict[tuple[str, str, int, int, int], Product] = {}

    def product(self, site: Site, tokens: int, *, prefill: bool) -> Product:
        """The product of a site with so many tokens, on the kernel that is listed for it, else on the backend's own."""
        kernel = self.kernels.of(site, self._device, tokens, prefill=prefill)
        if kernel is None:
            own = self.backend.name
            kernel = own if site.format in KERNEL_FORMATS[own] else _REFERENCE
        key = kernel, site.format, site.n_out, site.k_in, tokens
        if key not in self._products:
            build = get_product(kernel, site.format)
            self._products[key] = build(site.format, site.n_out, site.k_in, tokens, self._place)
        return self._products[key]


class Forward:
    """What a pass computes: takes tokens or the residual stream, leaves the stream or the next tokens, on the device.

    What lies between is allocated as it is needed, which in a graph costs nothing and gives the memory of one operation
    to the next.

    Args:
        model: The model in the formats that a GPU holds.
        step: The pass.
        weights: The stage's.
        caches: The stage's.
        stream: Of the residual stream, float32, shape (rows, hidden_size).
        tools: What to build it with.
        place: Where torch finds the GPU.

    Attributes:
        tokens: What goes in if the stage has the embedding, int64, shape (rows,).
        following: What comes out if it has the head, int64, shape (sequences,).
    """

    def __init__(
        self,
        model: Model,
        step: Pass,
        weights: StageWeights,
        caches: Caches,
        stream: Link,
        tools: Tools,
        place: torch.device,
    ) -> None:
        self._model, self._step, self._weights, self._caches = model, step, weights, caches
        self._stream, self._tools = stream, tools
        self._decode = step.rows == step.sequences
        self._ops = tools.backend.step_ops
        geometry = model.attention
        self._widths = [heads * geometry.head_dim for heads in (geometry.heads, geometry.kv_heads, geometry.kv_heads)]
        self._cos, self._sin = (torch.from_numpy(angle).to(place) for angle in angles(step, geometry.head_dim))
        self._attention = tools.backend.attention(
            geometry.heads,
            geometry.kv_heads,
            geometry.head_dim,
            step.sequences,
            step.rows // step.sequences,
            step.context,
            place,
            caches.capacity,
        )
        self.tokens = Link((step.rows,), torch.int64, place) if weights.embedding is not None else None
        wanted = weights.head is not None and step.last
        self.following = Link((step.sequences,), torch.int64, place) if wanted else None
        # Products have memory of their own, which is not to come from a graph's.
        for site in {matrix.site for layer in weights.layers for matrix in layer.matrices.values()}:
            self._product(site, step.rows)
        if self.following is not None and weights.head is not None:
            self._product(weights.head.site, step.sequences)

    def __call__(self) -> None:
        """Run it, without waiting for the device."""
        weights, stream = self._weights, self._stream.there
        if self.tokens is not None:
            assert weights.embedding is not None
            stream.copy_(_look_up(weights.embedding, self.tokens.there))
        residual: Tensor | None = None
        for index, layer in enumerate(weights.layers):
            residual = self._attend(layer, self._caches.keys[index], self._caches.values[index], residual)
            residual = self._feed_forward(layer, residual)
        if self.following is not None:
            self._classify(residual, self.following.there)
        elif weights.head is None and residual is not None:
            stream.add_(residual)

    def _attend(self, layer: LayerWeights, keys: Tensor, values: Tensor, residual: Tensor | None) -> Tensor:
        """Norm, q, k, v, rotation, attention over the cache and o; returns what is to be added to the stream."""
        ops, step, weight, stream = self._ops, self._step, layer.norms["attention"], self._stream.there
        outputs = self._multiply(
            layer,
            ("qkv", "q", "k", "v"),
            lambda quantized: ops.norm(stream, weight, residual, quantized=quantized),
        )
        parts = torch.split(outputs[0], self._widths, dim=1) if len(outputs) == 1 else outputs
        query, key, value = (part.view(step.rows, -1, self._model.attention.head_dim) for part in parts)
        mine = slice(step.slot, step.slot + step.sequences)
        slots = [self._slots(cache[mine]) for cache in (keys, values)]
        rotated = ops.rotate(query, key, value, self._cos, self._sin, *slots)
        shape = self._attention.shape
        mixed = torch.empty(shape, device=rotated.device)
        self._attention(rotated.view(shape), keys[mine], values[mine], mixed)
        mixed = mixed.view(step.rows, -1)
        norm = layer.norms.get("o")

        def normed(quantized: bool) -> Activations:
            if norm is not None:
                return ops.norm(mixed, norm, quantized=quantized)
            return ops.quantize(mixed) if quantized else mixed

        (output,) = self._multiply(layer, ("o",), normed)
        return output

    def _slots(self, cache: Tensor) -> Tensor:
        """Where in the pass' caches its tokens belong: (rows, kv_heads, head_dim)."""
        step = self._step
        if self._decode:
            return cache[:, :, step.context]
        return cache[0, :, step.context : step.context + step.rows].transpose(0, 1)

    def _feed_forward(self, layer: LayerWeights, residual: Tensor) -> Tensor:
        """Norm, gate, up and down; returns what is to be added to the stream."""
        ops, weight, stream = self._ops, layer.norms["feed_forward"], self._stream.there
        outputs = self._multiply(
            layer,
            ("gate_up", "gate", "up"),
            lambda quantized: ops.norm(stream, weight, residual, quantized=quantized),
        )
        gated, up = outputs[0].chunk(2, dim=1) if len(outputs) == 1 else outputs
        activation, norm = self._model.activation, layer.norms.get("down")
        (output,) = self._multiply(
            layer, ("down",), lambda quantized: ops.gate(gated, up, activation, norm, quantized=quantized)
        )
        return output

    def _classify(self, residual: Tensor | None, following: Tensor) -> None:
        """The norm before the head, the logits of each sequence's last token, and the largest of them."""
        assert self._weights.head is not None
        assert self._weights.final_norm is not None
        site, held = self._weights.head
        count = self._step.sequences
        product = self._product(site, count)
        x = self._ops.norm(
            self._stream.there[-count:],
            self._weights.final_norm,
            None if residual is None else residual[-count:],
            quantized=product.format.ternary,
        )
        logits = product(x, held, torch.empty(count, site.n_out, device=following.device))
        torch.argmax(logits, dim=1, out=following)

    def _multiply(self, layer: LayerWeights, names: Sequence[str], make: Callable[[bool], Activations]) -> list[Tensor]:
        """Multiply one input by those of the named matrices that there are.

        Args:
            layer: The layer.
            names: The matrices, in the order of the results.
            make: Makes the input, quantised or not; called once.
        """
        matrices = [layer.matrices[name] for name in names if name in layer.matrices]
        kinds = {get_format(site.format).ternary for site, _ in matrices}
        first = make(False not in kinds)
        inputs: dict[bool, Activations] = dict.fromkeys(kinds, first)
        if len(kinds) == 2:
            assert isinstance(first, Tensor)
            inputs[True] = self._ops.quantize(first)
        outputs = []
        for site, held in matrices:
            product = self._product(site, self._step.rows)
            out = torch.empty(product.m, product.n_out, device=product.device)
            outputs.append(product(inputs[product.format.ternary], held, out))
        return outputs

    def _product(self, site: Site, tokens: int) -> Product:
        return self._tools.product(site, tokens, prefill=not self._decode)


class GpuPass:
    """A pass made ready: its input is uploaded, one graph replayed, and its output downloaded and waited for.

    Args:
        forward: What is computed.
        stream: Of the residual stream, which goes in where tokens don't.
        hands_on: Whether the stream goes out, and not tokens.
        place: Where torch finds the GPU.
        device: Its name, for errors.

    Raises:
        MemoryError: There isn't enough.
    """

    def __init__(self, forward: Forward, stream: Link, *, hands_on: bool, place: torch.device, device: str) -> None:
        self._forward, self._place, self._device = forward, place, device
        self._entry = stream if forward.tokens is None else forward.tokens
        self._exit = stream if hands_on else forward.following
        self._replay: Callable[[], object] | None = None
        self.record()

    def record(self) -> None:
        """Record the graph."""
        with memory_errors(self._device, "a pass"):
            self._replay = capture(self._forward, 1, self._place)

    def forget(self) -> None:
        """Let go of the graph, because memory that it knows by its address goes; the next call records another."""
        self._replay = None

    def __call__(self, given: Array) -> Array | None:
        """Run it; see ``stages.Bound``."""
        if self._replay is None:
            self.record()
        assert self._replay is not None
        # All of it in the device's current stream, one after the other.
        self._entry.upload(given)
        self._replay()
        if self._exit is not None:
            self._exit.download()
        if self._place.type == "cuda":
            torch.cuda.current_stream(self._place).synchronize()
        return None if self._exit is None else self._exit.array


@contextmanager
def memory_errors(device: str, what: str) -> Iterator[None]:
    """Raise MemoryError where torch says in one of its ways that there isn't enough."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(f"{device}: out of memory for {what}") from error


def _look_up(embedding: Matrix, tokens: Tensor) -> Tensor:
    """Embeddings of tokens (rows,): (rows, hidden_size), float16 or float32."""
    site, (codes, scales) = embedding
    rows = codes.view(site.n_out, -1).index_select(0, tokens)
    if scales is None:
        return rows.view(torch.float16)
    # In the formats that a GPU holds no row is interleaved with another: some rows are a matrix as well.
    shape = len(tokens), site.k_in
    unpacked = unpack_rows(get_format(site.format), rows.view(-1), shape, 0, len(tokens))
    return (unpacked.to(torch.float32) - 1) * scales.index_select(0, tokens)[:, None]
