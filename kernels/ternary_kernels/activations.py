"""Activation quantisation: one int8 scale per token, as W1.58A8 models use it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FLOOR = np.float32(1e-5)
"""Least magnitude that counts as a token's largest: noise is not blown up."""


class Quantized(NamedTuple):
    """Activations of m tokens as int8 with one scale per token: x is about ``values / scale[:, None]``.

    Attributes:
        values: int8, shape (m, k_in).
        scale: float32, shape (m,).
    """

    values: NDArray[np.int8]
    scale: NDArray[np.float32]


def quantize(x: NDArray[np.float32]) -> Quantized:
    """Quantise each token to int8 by its own largest magnitude.

    s = 127 / max(1e-5, absmax), q = clamp(round(x s), -128, 127), rounding half to even. As s is symmetric, -128
    never comes out; a runtime's own activations may hold it, so kernels take it.

    Args:
        x: float32, shape (m, k_in), finite.

    Raises:
        ValueError: Another dtype or rank.

    Source: transformers, integrations/bitnet.py, BitLinear.activation_quant.
    """
    check_activations(x)
    # Two reductions read x twice but allocate nothing; np.abs(x).max() would write a copy of x.
    absmax = np.maximum(x.max(axis=1), -x.min(axis=1))
    scale = np.float32(127.0) / np.maximum(absmax, FLOOR)
    scaled = x * scale[:, None]
    np.rint(scaled, out=scaled)
    np.clip(scaled, -128, 127, out=scaled)
    return Quantized(scaled.astype(np.int8), scale)


def check_activations(x: NDArray[np.float32]) -> None:
    """Refuse what can't be quantised.

    Raises:
        ValueError: Another dtype or rank, or no columns.
    """
    if x.dtype != np.float32 or x.ndim != 2:
        raise ValueError(f"activations: expected float32 of shape (m, k_in), got {x.dtype} of shape {x.shape}")
    if not x.shape[1]:
        raise ValueError(f"activations: expected at least one column, got shape {x.shape}")
