"""The small operations of a step in torch's operations: norm, rotation, KV cache, gate, quantisation.

They are those of ``reference.step_ops``, with one difference: nothing is bound beforehand, each runs when it is called.
What binds them is the CUDA graph that records the calls; a result lies in memory that the graph hands out again.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor
from torch.nn import functional

from ternary_kernels.cuda.activations import Quantized, quantize
from ternary_kernels.geometry import Activation
from ternary_kernels.reference.step_ops import EPSILON

Activations = Quantized | Tensor
"""What a product takes: of a ternary format quantised, else float32."""

_ANY = -1


def rms_norm(x: Tensor, weight: Tensor, epsilon: float = EPSILON) -> Tensor:
    """Root-mean-square norm of each token: x (m, n), weight (n,), to (m, n)."""
    return functional.rms_norm(x, weight.shape, weight, epsilon)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding, halves of a head as pairs: x (m, heads, d), cos and sin (m, d / 2)."""
    first, second = x.chunk(2, dim=2)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=2)


def gate(gated: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """activation(gated) * up, both (m, n)."""
    if activation == "relu2":
        return functional.relu(gated).square_() * up
    if activation == "silu":
        return functional.silu(gated) * up
    return functional.gelu(gated, approximate="tanh") * up


class StepOps:
    """The small operations on a device.

    Tensors are float32 and contiguous, where nothing else is said. What a product of several matrices put together
    writes side by side, as q, k and v, may be a part of its output: then only a token's elements are contiguous.

    Raises:
        ValueError: By any method, of a tensor that doesn't fit; says which, what was expected and what came.
    """

    def norm(self, x: Tensor, weight: Tensor, residual: Tensor | None = None, *, quantized: bool) -> Activations:
        """Root-mean-square norm of each token; with a residual, that is first added to x, in place.

        Args:
            x: Shape (m, n).
            weight: Shape (n,).
            residual: Shape (m, n).
            quantized: Whether the result is wanted quantised.

        Returns:
            The norm (m, n), in memory of its own.
        """
        check("norm, x", x, (_ANY, _ANY), x)
        check("norm, weight", weight, x.shape[1:], x)
        if residual is not None:
            check("norm, residual", residual, x.shape, x)
        return self._norm(x, weight, residual, quantized)

    def quantize(self, x: Tensor) -> Quantized:
        """Quantise each token as ``activations.quantize`` does, to the last bit: x finite, shape (m, n)."""
        check("activations", x, (_ANY, _ANY), x)
        return self._quantize(x)

    def rotate(
        self, query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """Rotate queries, and put rotated keys and with them values where they belong in the KV cache.

        Args:
            query: Shape (m, heads, d), d even; may be a part of a product's output.
            key: Shape (m, kv_heads, d); may be such a part.
            value: Shape (m, kv_heads, d); may be such a part.
            cos: Shape (m, d / 2): of each token's angles.
            sin: Shape (m, d / 2).
            keys: float16, shape (m, kv_heads, d): each token's slots in the cache, in which a head's elements alone
                are contiguous; overwritten.
            values: The same.

        Returns:
            The rotated queries as attention rounds them: float16, shape (m, heads, d).
        """
        check("rotation, query", query, (_ANY, _ANY, _ANY), query, apart=1)
        m, _, head_dim = query.shape
        if head_dim % 2:
            raise ValueError(f"rotation: expected heads of an even size, got {head_dim}")
        check("rotation, key", key, (m, _ANY, head_dim), query, apart=1)
        check("rotation, value", value, key.shape, query, apart=1)
        for name, angles in (("cos", cos), ("sin", sin)):
            check(f"rotation, {name}", angles, (m, head_dim // 2), query)
        for name, slots in (("keys", keys), ("values", values)):
            check(f"rotation, {name}", slots, key.shape, query, torch.float16, apart=2)
        if keys.stride() != values.stride():
            raise ValueError(
                f"rotation: expected caches laid out alike, got strides {keys.stride()}, {values.stride()}"
            )
        return self._rotate(query, key, value, cos, sin, keys, values)

    def gate(
        self, gated: Tensor, up: Tensor, activation: Activation, weight: Tensor | None = None, *, quantized: bool
    ) -> Activations:
        """activation(gated) * up of each token, normed if there is a weight.

        Args:
            gated: Shape (m, n); may be a part of a product's output.
            up: Shape (m, n); may be such a part.
            activation: The function.
            weight: Shape (n,).
            quantized: Whether the result is wanted quantised.

        Returns:
            The result (m, n), in memory of its own.
        """
        if activation not in get_args(Activation):
            raise ValueError(f"gate: expected {', '.join(get_args(Activation))}, got {activation!r}")
        check("gate, gated", gated, (_ANY, _ANY), gated, apart=1)
        check("gate, up", up, gated.shape, gated, apart=1)
        if weight is not None:
            check("gate, weight", weight, gated.shape[1:], gated)
        return self._gate(gated, up, activation, weight, quantized)

    # How torch does it -----------------------------------------------------------------------------------------

    def _norm(self, x: Tensor, weight: Tensor, residual: Tensor | None, quantized: bool) -> Activations:
        if residual is not None:
            x.add_(residual)
        normed = rms_norm(x, weight)
        return quantize(normed) if quantized else normed

    def _quantize(self, x: Tensor) -> Quantized:
        return quantize(x)

    def _rotate(
        self, query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        keys.copy_(rotate(key, cos, sin))
        values.copy_(value)
        return rotate(query, cos, sin).to(torch.float16)

    def _gate(
        self, gated: Tensor, up: Tensor, activation: Activation, weight: Tensor | None, quantized: bool
    ) -> Activations:
        product = gate(gated, up, activation)
        if weight is not None:
            product = rms_norm(product, weight)
        return quantize(product) if quantized else product


def check(
    what: str,
    tensor: Tensor,
    shape: tuple[int, ...],
    beside: Tensor,
    dtype: torch.dtype = torch.float32,
    *,
    apart: int = 0,
) -> None:
    """Refuse a tensor that doesn't fit.

    Args:
        what: The operation and the tensor, for the message.
        tensor: Looked at.
        shape: What it must have; -1 stands for any size but 0.
        beside: A tensor on whose device it must lie.
        dtype: What it must be of.
        apart: Leading dimensions whose elements may lie apart; the others are contiguous.

    Raises:
        ValueError: It has another shape, dtype, memory order or device.
    """
    fits = tensor.ndim == len(shape) and all(want in (_ANY, has) for want, has in zip(shape, tensor.shape, strict=True))
    contiguous = tensor[(slice(1),) * min(apart, tensor.ndim)].is_contiguous()
    if not fits or 0 in tensor.shape or tensor.dtype != dtype or not contiguous or tensor.device != beside.device:
        sizes = str(tuple(shape)).replace("-1", "any")
        order = "contiguous" if contiguous else "non-contiguous"
        raise ValueError(
            f"{what}: expected contiguous {dtype} of shape {sizes} on {beside.device}, "
            f"got {order} {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}"
        )
