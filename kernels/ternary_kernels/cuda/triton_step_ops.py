"""The small operations of a step, fused in Triton.

What stands between two products is one kernel: a residual or a gate is applied, the result normed, quantised and its
sum taken in one pass, a program to a token. Starting a kernel takes longer than such a pass over a token does.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ternary_kernels.cuda.activations import Quantized
from ternary_kernels.cuda.layer_kernels import gate_kernel, norm_kernel, quantize_kernel, rotate_kernel
from ternary_kernels.cuda.step_ops import Activations, StepOps
from ternary_kernels.geometry import Activation
from ternary_kernels.reference.step_ops import EPSILON


class TritonStepOps(StepOps):
    """The small operations as ``StepOps`` has them, each of them one kernel."""

    def _norm(self, x: Tensor, weight: Tensor, residual: Tensor | None, quantized: bool) -> Activations:
        result = _room(x, quantized)
        added = x if residual is None else residual
        constants = {"ADD": residual is not None, "QUANTIZED": quantized}
        _by_token(norm_kernel, x, added, weight, EPSILON, *_targets(result), **constants)
        return result

    def _quantize(self, x: Tensor) -> Quantized:
        result = _quantized_room(x)
        _by_token(quantize_kernel, x, *result)
        return result

    def _rotate(
        self, query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        m, heads, head_dim = query.shape
        kv_heads, half = key.shape[1], head_dim // 2
        rotated = torch.empty(query.shape, dtype=torch.float16, device=query.device)
        strides = query.stride(0), key.stride(0), value.stride(0), *keys.stride()[:2]
        with _on_device_of(query):
            rotate_kernel[m, heads + 2 * kv_heads](
                query,
                key,
                value,
                cos,
                sin,
                rotated,
                keys,
                values,
                *strides,
                heads,
                kv_heads,
                half,
                BLOCK=_power_of_two(half),
                num_warps=1,
                enable_fp_fusion=False,
            )
        return rotated

    def _gate(
        self, gated: Tensor, up: Tensor, activation: Activation, weight: Tensor | None, quantized: bool
    ) -> Activations:
        result = _room(gated, quantized)
        strides = gated.stride(0), up.stride(0)
        constants = {"ACTIVATION": activation, "NORMED": weight is not None, "QUANTIZED": quantized}
        factors = gated if weight is None else weight
        _by_token(gate_kernel, gated, up, factors, EPSILON, *_targets(result), *strides, **constants)
        return result


def _room(x: Tensor, quantized: bool) -> Activations:
    """Uninitialised memory for what an operation makes of x, (m, n)."""
    return _quantized_room(x) if quantized else torch.empty(x.shape, device=x.device)


def _quantized_room(x: Tensor) -> Quantized:
    m = len(x)
    return Quantized(
        torch.empty(x.shape, dtype=torch.int8, device=x.device),
        torch.empty(m, dtype=torch.float32, device=x.device),
        torch.empty(m, dtype=torch.int32, device=x.device),
    )


def _targets(result: Activations) -> tuple[Tensor, Tensor, Tensor]:
    """A result as kernels take it: values, scales and sums, of which unquantised ones have but values."""
    return result if isinstance(result, Quantized) else (result, result, result)


def _by_token(kernel: Any, x: Tensor, *arguments: Tensor | float, **constants: object) -> None:
    """Start a program per token, which holds all of its columns: 16 to a thread, up to 16,384 columns."""
    m, columns = x.shape
    block = _power_of_two(columns)
    warps = min(max(block // 512, 4), 32)
    with _on_device_of(x):
        # Fused, a product and a sum would round once, and differ from what they are compared with.
        kernel[m,](x, *arguments, columns, BLOCK=block, **constants, num_warps=warps, enable_fp_fusion=False)


def _on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Triton starts kernels on the current GPU."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _power_of_two(size: int) -> int:
    """The next: Triton's tiles are powers of two."""
    return 1 << (size - 1).bit_length()
