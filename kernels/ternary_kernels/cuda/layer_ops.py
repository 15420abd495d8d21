"""What a layer does besides its products: attention over the KV cache, in torch's operations, and the small ones."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ternary_kernels.cuda.step_ops import Activations, StepOps
from ternary_kernels.geometry import LayerGeometry
from ternary_kernels.reference import layer_ops as reference


class Attention:
    """Grouped-query attention of m new tokens of each of several sequences over F16 KV caches.

    It is torch's own ``scaled_dot_product_attention`` in float16: on a GPU a flash kernel, where there is one for the
    geometry.

    Args:
        heads: Query heads, a multiple of ``kv_heads``.
        kv_heads: Key and value heads.
        head_dim: Elements per head.
        sequences: Sequences decoded together; 1 in prefill.
        m: New tokens of each: 1 in decode, a chunk in prefill.
        context: Tokens in each cache before them.
        device: Where all of it lies.
        capacity: Slots of each cache, of which the first are in use; None: no more than those.

    Attributes:
        shape: Of queries and outputs, (sequences, m, heads, head_dim).
        cache_shape: Of keys and values, (sequences, kv_heads, capacity, head_dim).

    Raises:
        ValueError: ``heads`` is no multiple of ``kv_heads``, a size is out of range, or the tokens are more than the
            slots.
    """

    def __init__(
        self,
        heads: int,
        kv_heads: int,
        head_dim: int,
        sequences: int,
        m: int,
        context: int,
        device: torch.device | str,
        capacity: int | None = None,
    ) -> None:
        sizes = heads, kv_heads, head_dim, sequences, m, context
        if min(sizes[:-1]) < 1 or context < 0:
            raise ValueError(f"attention: expected positive sizes, got {sizes}")
        if heads % kv_heads:
            raise ValueError(f"attention: expected heads to be a multiple of {kv_heads} KV heads, got {heads}")
        self._tokens = context + m
        slots = self._tokens if capacity is None else capacity
        if slots < self._tokens:
            raise ValueError(f"attention: expected room for {context} + {m} tokens, got {slots} slots")
        self.shape = (sequences, m, heads, head_dim)
        self.cache_shape = (sequences, kv_heads, slots, head_dim)
        self.device = torch.empty(0, device=device).device
        self._unseen = None
        if m > 1:
            # Here and not above: it brings torch's compiler along, which takes the better part of a second.
            from torch.nn.attention.bias import causal_lower_right

            # The library's own causal flag counts from the first key; this counts from the last, without a mask.
            self._unseen = causal_lower_right(m, self._tokens)

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, out: Tensor) -> Tensor:
        """Attend; token i of a sequence sees its cache and its new tokens up to itself.

        Args:
            query: float32, which is rounded to float16, or float16; shape (sequences, m, heads, head_dim), rotated.
            keys: float16, shape (sequences, kv_heads, capacity, head_dim), rotated, the new tokens' after ``context``.
            values: float16, shape (sequences, kv_heads, capacity, head_dim).
            out: float32 or float16, shape (sequences, m, heads, head_dim), overwritten.

        Returns:
            ``out``.

        Raises:
            ValueError: A shape, dtype or device differs, or a tensor isn't contiguous; names what was expected and
                what came.
        """
        self._check(query, keys, values, out)
        self._attend(query, keys, values, out)
        return out

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, out: Tensor) -> None:
        by_head = query.to(torch.float16).transpose(1, 2)
        keys, values = keys[:, :, : self._tokens], values[:, :, : self._tokens]
        mixed = functional.scaled_dot_product_attention(by_head, keys, values, self._unseen, enable_gqa=True)
        out.copy_(mixed.transpose(1, 2))

    def _check(self, query: Tensor, keys: Tensor, values: Tensor, out: Tensor) -> None:
        single, half = torch.float32, torch.float16
        for name, tensor, shape, dtypes in (
            ("query", query, self.shape, (single, half)),
            ("keys", keys, self.cache_shape, (half,)),
            ("values", values, self.cache_shape, (half,)),
            ("out", out, self.shape, (single, half)),
        ):
            matches = tensor.shape == shape and tensor.dtype in dtypes and tensor.device == self.device
            if not matches or not tensor.is_contiguous():
                wanted = " or ".join(str(dtype) for dtype in dtypes)
                order = "" if tensor.is_contiguous() else "non-contiguous "
                raise ValueError(
                    f"attention {name}: expected {wanted} of shape {shape} on {self.device}, "
                    f"got {order}{tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}"
                )


class Inputs(NamedTuple):
    """Quantised activations that a layer's products take.

    Attributes:
        attention: Of q, k and v.
        output: Of o.
        gate: Of gate and up.
        down: Of down.
    """

    attention: Activations
    output: Activations
    gate: Activations
    down: Activations


class Workspace:
    """What the small operations of a layer work on: the numbers that ``reference.layer_ops.Workspace`` draws.

    Args:
        geometry: The layer's widths.
        m: Tokens.
        device: Where it lies.

    Attributes:
        stream: float32, shape (m, hidden_size): the residual stream.
        residual: Zeros of the same shape: added to the stream, they leave it as it is, call after call.
        query: float32, shape (m, heads, head_dim).
        key: float32, shape (m, kv_heads, head_dim); ``value`` alike.
        mixed: float32, shape (m, heads * head_dim); stands for attention's output.
        gated: float32, shape (m, intermediate_size); stands for the gate's and for the up product's output.
        cos: float32, shape (m, head_dim / 2); ``sin`` alike.
        keys: float16, shape (m, kv_heads, head_dim): slots in the KV cache, as in prefill; ``values`` alike.
        norms: Three norms' weights, float32: of hidden_size, heads * head_dim and intermediate_size elements.
    """

    def __init__(
        self,
        geometry: LayerGeometry,
        m: int,
        device: torch.device | str,
    ) -> None:
        drawn = reference.Workspace(geometry, m)

        def put(array: NDArray[Any]) -> Tensor:
            return torch.from_numpy(array).to(device)

        self.stream, self.residual, self.gated = put(drawn.stream), put(drawn.residual), put(drawn.gated)
        self.query, self.key, self.value = put(drawn.query), put(drawn.key), put(drawn.value)
        self.cos, self.sin = put(drawn.cos), put(drawn.sin)
        self.mixed = put(reference.rotate(drawn.query, drawn.cos, drawn.sin)).flatten(1)
        self.keys, self.values = (put(cache).transpose(0, 1) for cache in (drawn.keys, drawn.values))
        self.norms = [put(weight) for weight in drawn.norms]


class SmallOps:
    """All of a layer but its products and attention, on m tokens: the calls that a runtime makes between its products.

    They are those of ``reference.layer_ops.SmallOps``, of the same numbers.

    Args:
        geometry: The layer's widths.
        m: Tokens.
        device: Where they lie.
        ops: What does each operation; None: torch.
    """

    def __init__(
        self,
        geometry: LayerGeometry,
        m: int,
        device: torch.device | str,
        ops: StepOps | None = None,
    ) -> None:
        self._activation = geometry.activation
        self._memory = Workspace(geometry, m, device)
        self._ops = ops or StepOps()

    def __call__(self) -> Inputs:
        """Run them; returns what the layer's products would take."""
        memory, ops = self._memory, self._ops
        stream_norm, attention_norm, gate_norm = memory.norms
        attention = ops.norm(memory.stream, stream_norm, memory.residual, quantized=True)
        ops.rotate(memory.query, memory.key, memory.value, memory.cos, memory.sin, memory.keys, memory.values)
        output = ops.norm(memory.mixed, attention_norm, quantized=True)
        into_gate = ops.norm(memory.stream, stream_norm, memory.residual, quantized=True)
        down = ops.gate(memory.gated, memory.gated, self._activation, gate_norm, quantized=True)
        return Inputs(attention, output, into_gate, down)
