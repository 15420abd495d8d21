"""The slow twin of every ternary kernel: int32 arithmetic, one way of rounding, nothing clever."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ternary_kernels.activations import Quantized


def accumulate(x: NDArray[np.int8], weights: NDArray[np.int8]) -> NDArray[np.int32]:
    """Integer sums that every ternary kernel must reach exactly.

    Args:
        x: int8 activations, shape (m, k_in).
        weights: int8 in {-1, 0, +1}, shape (n_out, k_in).

    Returns:
        int32, shape (m, n_out); it can't overflow below 2^24 columns.

    Raises:
        ValueError: Another dtype, or shapes that don't match.
    """
    if x.dtype != np.int8 or weights.dtype != np.int8:
        raise ValueError(f"oracle: expected int8 activations and weights, got {x.dtype} and {weights.dtype}")
    if x.ndim != 2 or weights.ndim != 2 or x.shape[1] != weights.shape[1]:
        raise ValueError(f"oracle: expected (m, k_in) and (n_out, k_in), got {x.shape} and {weights.shape}")
    return x.astype(np.int32) @ weights.astype(np.int32).T


def matmul(x: Quantized, weights: NDArray[np.int8], weight_scale: float) -> NDArray[np.float32]:
    """Multiply: sums / activation scale * weight scale, in float32 and in this order.

    Args:
        x: Activations of m tokens.
        weights: int8 in {-1, 0, +1}, shape (n_out, k_in).
        weight_scale: The matrix' scale.

    Returns:
        float32, shape (m, n_out). Kernels must equal it to the last bit.

    Raises:
        ValueError: As for ``accumulate``.
    """
    return rescale(accumulate(x.values, weights).astype(np.float32), x.scale, weight_scale)


def rescale(sums: NDArray[np.float32], scale: NDArray[np.float32], weight_scale: float) -> NDArray[np.float32]:
    """Turn integer sums (m, n_out), held in float32, into outputs; in place."""
    sums /= scale[:, None]
    sums *= np.float32(weight_scale)
    return sums
