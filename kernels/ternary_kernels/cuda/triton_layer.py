"""What a layer does besides its products and attention, fused in Triton: norm, rotation, gate, and quantisation.

What stands between two products is one kernel: a residual or a gate is applied, the result normed, quantised and its
sum taken in one pass, a program to a token. Starting a kernel takes longer than such a pass over a token does.
"""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor

from ternary_kernels.cuda.activations import Quantized
from ternary_kernels.cuda.layer_kernels import (
    gate_norm_quantize_kernel,
    norm_quantize_kernel,
    quantize_kernel,
    rotate_kernel,
)
from ternary_kernels.cuda.layer_ops import Inputs, SmallOps
from ternary_kernels.geometry import Activation, LayerGeometry
from ternary_kernels.reference.layer_ops import EPSILON


class TritonQuantizer:
    """Quantises each token of a tensor to int8, to the last bit as ``activations.quantize`` does.

    Args:
        x: float32, shape (m, k_in), contiguous; read at every call, when it must be finite.

    Raises:
        ValueError: Another dtype, rank or memory order.
    """

    def __init__(self, x: Tensor) -> None:
        _check("activations", x, (-1, -1))
        self._x = x
        self._into = room(x)

    def __call__(self) -> Quantized:
        """Quantise what the tensor holds now; the result is overwritten by the next call."""
        _by_token(quantize_kernel, self._x, *self._into)
        return self._into


def room(x: Tensor) -> Quantized:
    """Uninitialised memory for the quantised activations of x, (m, k_in), with their sums."""
    m = len(x)
    return Quantized(
        torch.empty(x.shape, dtype=torch.int8, device=x.device),
        torch.empty(m, dtype=torch.float32, device=x.device),
        torch.empty(m, dtype=torch.int32, device=x.device),
    )


def norm_quantize(
    x: Tensor, weight: Tensor, into: Quantized, residual: Tensor | None = None, epsilon: float = EPSILON
) -> None:
    """Quantise the root-mean-square norm of each token; with a residual, that is first added to x, in place.

    Args:
        x: float32, shape (m, n), contiguous.
        weight: float32, shape (n,).
        into: Overwritten; see ``room``.
        residual: float32, shape (m, n).
        epsilon: Added to the mean square.

    Raises:
        ValueError: A shape, dtype or memory order differs.
    """
    _check("norm, x", x, (-1, -1))
    _check("norm, weight", weight, x.shape[1:])
    added = x if residual is None else residual
    _check("norm, residual", added, x.shape)
    _by_token(norm_quantize_kernel, x, added, weight, epsilon, *into, ADD=residual is not None)


def gate_norm_quantize(
    gated: Tensor, up: Tensor, activation: Activation, weight: Tensor, into: Quantized, epsilon: float = EPSILON
) -> None:
    """Quantise the root-mean-square norm of activation(gated) * up.

    Args:
        gated: float32, shape (m, n), contiguous.
        up: float32, shape (m, n), contiguous.
        activation: The gate's function.
        weight: float32, shape (n,).
        into: Overwritten; see ``room``.
        epsilon: Added to the mean square.

    Raises:
        ValueError: A shape, dtype or memory order differs, or there is no such activation.
    """
    if activation not in get_args(Activation):
        raise ValueError(f"gate: expected {', '.join(get_args(Activation))}, got {activation!r}")
    _check("gate, gated", gated, (-1, -1))
    _check("gate, up", up, gated.shape)
    _check("gate, weight", weight, gated.shape[1:])
    _by_token(gate_norm_quantize_kernel, gated, up, weight, epsilon, *into, ACTIVATION=activation)


def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, rotated: tuple[Tensor, Tensor]) -> None:
    """Rotary position embedding of queries and keys, halves of a head as pairs.

    Args:
        query: float32, shape (m, heads, d), contiguous, d even.
        key: float32, shape (m, kv_heads, d), contiguous.
        cos: float32, shape (m, d / 2); ``sin`` alike.
        sin: See ``cos``.
        rotated: Rotated query and key, of the same shapes; overwritten.

    Raises:
        ValueError: A shape, dtype or memory order differs, or d is odd.
    """
    _check("rotation, query", query, (-1, -1, -1))
    m, heads, head_dim = query.shape
    if head_dim % 2:
        raise ValueError(f"rotation: expected heads of an even size, got {head_dim}")
    half = head_dim // 2
    _check("rotation, key", key, (m, -1, head_dim))
    for name, angles in (("cos", cos), ("sin", sin)):
        _check(f"rotation, {name}", angles, (m, half))
    for name, target, source in (("query", rotated[0], query), ("key", rotated[1], key)):
        _check(f"rotation, rotated {name}", target, source.shape)
    kv_heads = key.shape[1]
    block = _power_of_two(half)
    rotate_kernel[m, heads + kv_heads](
        query, key, cos, sin, *rotated, heads, kv_heads, half, BLOCK=block, num_warps=1, enable_fp_fusion=False
    )


class TritonSmallOps(SmallOps):
    """All of a layer but its products and attention, on m tokens: the kernels that a runtime starts between products.

    As in ``SmallOps``, but each residual is added in the pass that norms and quantises the sum.

    Args:
        geometry: The layer's widths.
        m: Tokens.
        device: Where they lie.
    """

    def __init__(
        self,
        geometry: LayerGeometry,
        m: int,
        device: torch.device | str,
    ) -> None:
        super().__init__(geometry, m, device)
        memory = self._memory
        # Added to the stream, it leaves that as it is, call after call.
        self._residual = torch.zeros_like(memory.stream)
        self._rotated = torch.empty_like(memory.query), torch.empty_like(memory.key)
        self._mixed = self._rotated[0].flatten(1)
        self._inputs = Inputs(*(room(x) for x in (memory.stream, self._mixed, memory.stream, memory.gated)))

    def __call__(self) -> Inputs:
        """Run them; returns what the layer's products would take, which the next call overwrites."""
        memory, inputs = self._memory, self._inputs
        stream_norm, attention_norm, gate_norm = memory.norms
        norm_quantize(memory.stream, stream_norm, inputs.attention, self._residual)
        rotate(memory.query, memory.key, memory.cos, memory.sin, self._rotated)
        norm_quantize(self._mixed, attention_norm, inputs.output)
        norm_quantize(memory.stream, stream_norm, inputs.gate, self._residual)
        gate_norm_quantize(memory.gated, memory.gated, self._activation, gate_norm, inputs.down)
        return inputs


def _by_token(kernel: Any, x: Tensor, *arguments: Tensor | float, **constants: object) -> None:
    """Start a program per token, which holds all of its columns: 16 to a thread, up to 16,384 columns."""
    m, columns = x.shape
    block = _power_of_two(columns)
    warps = min(max(block // 512, 4), 32)
    # Fused, a product and a sum would round once, and differ from what they are compared with.
    kernel[m,](x, *arguments, columns, BLOCK=block, **constants, num_warps=warps, enable_fp_fusion=False)


def _power_of_two(size: int) -> int:
    """The next: Triton's tiles are powers of two."""
    return 1 << (size - 1).bit_length()


def _check(what: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a tensor that isn't contiguous float32 of a shape; -1 stands for any size."""
    fits = tensor.ndim == len(shape) and all(want in (-1, has) for want, has in zip(shape, tensor.shape, strict=True))
    if not fits or tensor.dtype != torch.float32 or not tensor.is_contiguous():
        sizes = str(tuple(shape)).replace("-1", "any")
        order = "contiguous" if tensor.is_contiguous() else "non-contiguous"
        raise ValueError(
            f"{what}: expected contiguous torch.float32 of shape {sizes}, "
            f"got {order} {tensor.dtype} of shape {tuple(tensor.shape)}"
        )
