"""Activation quantisation on the device: the twin of ``ternary_kernels.activations``, equal to it to the last bit."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ternary_kernels import activations


class Quantized(NamedTuple):
    """Activations of m tokens as int8 with one scale per token: x is about ``values / scale[:, None]``.

    Attributes:
        values: int8, shape (m, k_in).
        scale: float32, shape (m,).
        sums: int32, shape (m,): the sum of each token's values, which products over unsigned codes take off.
    """

    values: Tensor
    scale: Tensor
    sums: Tensor


def quantize(x: Tensor) -> Quantized:
    """Quantise each token to int8 by its own largest magnitude.

    Args:
        x: float32, shape (m, k_in), finite, on any device.

    Raises:
        ValueError: Another dtype or rank, or no columns.

    Source: as for ``ternary_kernels.activations.quantize``.
    """
    if x.dtype != torch.float32 or x.ndim != 2:
        raise ValueError(f"activations: expected float32 of shape (m, k_in), got {x.dtype} of shape {tuple(x.shape)}")
    if not x.shape[1]:
        raise ValueError(f"activations: expected at least one column, got shape {tuple(x.shape)}")
    largest = x.abs().amax(dim=1).clamp_(min=float(activations.FLOOR))
    # A number divided by a tensor would be a reciprocal and a product, which round twice.
    scale = torch.full_like(largest, 127.0) / largest
    values = (x * scale[:, None]).round_().clamp_(-128, 127).to(torch.int8)
    return with_sums(values, scale)


def with_sums(values: Tensor, scale: Tensor) -> Quantized:
    """Quantised activations from their values and scales alone.

    Args:
        values: int8, shape (m, k_in).
        scale: float32, shape (m,).
    """
    return Quantized(values, scale, values.sum(dim=1, dtype=torch.int32))
