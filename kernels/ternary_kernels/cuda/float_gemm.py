# What Triton compiles has no types in Python; what it compiles a kernel for is upper case by its custom.
# mypy: ignore-errors
# ruff: noqa: N803
"""Product of float16 weights and the activations of many tokens, on tensor cores, with float32 activations kept exact.

Tensor cores multiply halves. A float32 activation is therefore taken apart: x = upper + lower / 2048, both float16, the
second what the first rounds off. Two products, each summed in float32, then lose no more than a float32 product does.
Up to 64 tokens reading the weights takes longer than both.

Activations must stay below 65,520 in magnitude, as wherever a runtime multiplies halves.

Source: Markidis et al., NVIDIA Tensor Core Programmability, Performance and Precision (2018), precision refinement;
Ootomo and Yokota, Recovering single precision accuracy from Tensor Cores (2022), for the factor of 2048.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["m"])
def half_gemm(
    x,
    weights,
    out,
    n_out,
    m,
    k_in,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Compute out = x @ weights.T for ROWS rows and TOKENS tokens; the grid is tiles of tokens, tiles of rows.

    Args:
        x: float32 or float16, shape (m, k_in).
        weights: float16, shape (n_out, k_in).
        out: float32, shape (m, n_out).
        n_out: Rows.
        m: Tokens.
        k_in: Columns.
        ROWS: Rows of a tile.
        TOKENS: Tokens of a tile.
        COLUMNS: Columns that are multiplied at once.
        STAGES: Buffers through which tiles are loaded ahead.
    """
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    column = tl.arange(0, COLUMNS)
    # Beyond the last row and token, the last is multiplied again: loads then need no mask for them.
    weights_at = weights + tl.minimum(row, n_out - 1).to(tl.int64)[None, :] * k_in + column[:, None]
    values_at = x + tl.minimum(token, m - 1)[:, None] * k_in + column[None, :]
    total = tl.zeros((TOKENS, ROWS), tl.float32)
    rest = tl.zeros((TOKENS, ROWS), tl.float32)
    for start in tl.range(0, k_in, COLUMNS, num_stages=STAGES):
        values = tl.load(values_at + start, (column < k_in - start)[None, :], 0)
        weight = tl.load(weights_at + start, (column < k_in - start)[:, None], 0)
        upper = values.to(tl.float16)
        total = tl.dot(upper, weight, total)
        if x.dtype.element_ty == tl.float32:
            rest = tl.dot(((values - upper.to(tl.float32)) * 2048).to(tl.float16), weight, rest)
    at = token[:, None].to(tl.int64) * n_out + row[None, :]
    tl.store(out + at, total + rest / 2048, (token < m)[:, None] & (row < n_out)[None, :])
