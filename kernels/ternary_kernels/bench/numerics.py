"""Numerics first: what disagrees with the oracle is not timed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ternary_kernels import oracle
from ternary_kernels.activations import quantize
from ternary_kernels.arena import Arena
from ternary_kernels.bench.ggml import Ggml, Pool, Product
from ternary_kernels.formats import Format, get_format
from ternary_kernels.matmul import get_kernel
from ternary_kernels.team import Team

MAX_TOKENS = 33
_ROWS = (29, 32, 64, 128, 256)  # odd, if the format's blocks allow it
_TOLERANCE = 0.02
"""Relative error, root mean square, of what rounds in ways of its own: activations to int8 cost 0.005 to 0.008."""


def check_kernel(kernel: str, format_name: str, k_in: int, m: int, team: Team) -> str | None:
    """How a kernel disagrees with the oracle on a small matrix; None if it doesn't.

    Kernels for ternary formats must equal it to the last bit.

    Raises:
        ValueError: There is no such kernel, or the format can't hold rows of that length.
    """
    held = get_format(format_name)
    rng = np.random.default_rng(2)
    n_out = _rows(held, k_in)
    x = rng.standard_normal((min(m, MAX_TOKENS), k_in), np.float32)
    product = get_kernel(kernel, format_name)(format_name, n_out, k_in, len(x), team)
    out = np.full((len(x), n_out), np.nan, np.float32)
    if not held.ternary:
        data = Arena(product.size_bytes).take(product.size_bytes)
        product(x, data, out)
        return _distance(out, x, held, data)
    quantized, weights = quantize(x), rng.integers(-1, 2, (n_out, k_in), np.int8)
    data = held.pack(weights, 0.5)
    product(quantized, data, out)
    return None if np.array_equal(out, oracle.matmul(quantized, weights, 0.5)) else "it differs from the oracle"


def check_peer(ggml: Ggml, pool: Pool, format_name: str, k_in: int, m: int) -> str | None:
    """How ggml's product disagrees with the weights as we read them; None if it doesn't.

    Raises:
        ValueError: The format can't hold rows of that length.
    """
    x = np.random.default_rng(2).standard_normal((min(m, MAX_TOKENS), k_in), np.float32)
    out = np.full((len(x), _ROWS[0]), np.nan, np.float32)
    held = get_format(format_name)
    weights = np.random.default_rng(3).integers(-1, 2, (_ROWS[0], k_in), np.int8)
    size_bytes = held.size_bytes(_ROWS[0], k_in)
    data = held.pack(weights, 0.5) if held.ternary else Arena(size_bytes).take(size_bytes)
    product = Product(ggml, pool, format_name, _ROWS[0], x, out)
    try:
        product(data)
    finally:
        product.close()
    return _distance(out, x, held, data)


def _rows(held: Format, k_in: int) -> int:
    """Few rows that the format can hold.

    Raises:
        ValueError: It can't hold rows of that length.
    """
    refusal = None
    for rows in _ROWS:
        try:
            held.size_bytes(rows, k_in)
        except ValueError as error:
            refusal = error
        else:
            return rows
    assert refusal is not None
    raise refusal


def _distance(out: NDArray[np.float32], x: NDArray[np.float32], held: Format, data: NDArray[np.uint8]) -> str | None:
    weights, scale = held.unpack(data, out.shape[1], x.shape[1])
    exact = x.astype(np.float64) @ weights.astype(np.float64).T * scale
    error = float(np.linalg.norm(out - exact) / np.linalg.norm(exact))
    return None if error <= _TOLERANCE else f"it is {error:.1%} away from the exact product"
