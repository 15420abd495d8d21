# What Triton compiles has no types in Python; what it compiles a kernel for is upper case by its custom.
# mypy: ignore-errors
# ruff: noqa: N803
"""Product of float16 weights and the activations of a few tokens, multiplied and summed in float32: a model's head.

As in ``gemv``, each thread loads 16 bytes of a row at once, and several before it multiplies any.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def eight_each(x, at, k_in, WIDTH: tl.constexpr):
    """Activations from ``at`` on, float32 (WIDTH,), eight neighbours to a thread as in 16 bytes of halves."""
    if x.dtype.element_ty == tl.float16:
        column = at + tl.arange(0, WIDTH)
        return tl.load(x + column, column < k_in, 0).to(tl.float32)
    else:  # noqa: RET505 - as in ``gemv``; 16 bytes hold four: two loads, put together within a thread
        column = at + tl.arange(0, WIDTH // 8)[:, None] * 8 + tl.arange(0, 4)[None, :]
        halves = tl.join(tl.load(x + column, column < k_in, 0), tl.load(x + column + 4, column + 4 < k_in, 0))
        return tl.reshape(tl.permute(halves, (0, 2, 1)), (WIDTH,))


@triton.jit
def half_gemv(
    x,
    weights,
    out,
    n_out,
    k_in,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    LOADS: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Compute out = x @ weights.T for ROWS rows and all columns.

    Args:
        x: float32 or float16, shape (TOKENS, k_in).
        weights: float16, shape (n_out, k_in).
        out: float32, shape (TOKENS, n_out).
        n_out: Rows.
        k_in: Columns.
        TOKENS: Tokens.
        ROWS: Rows that each thread goes through.
        WIDTH: Columns side by side: eight per thread.
        LOADS: Tiles of each row that are in flight at once.
        STEPS: Times that LOADS tiles cover a row: WIDTH * LOADS * STEPS >= k_in.
    """
    row = tl.program_id(0) * ROWS
    total = ()
    for _ in tl.static_range(TOKENS * ROWS):
        total += (tl.zeros((WIDTH,), tl.float32),)
    for step in tl.range(0, STEPS):
        halves = ()
        for load in tl.static_range(LOADS):
            column = (step * LOADS + load) * WIDTH + tl.arange(0, WIDTH)
            for index in tl.static_range(ROWS):
                start = weights + tl.minimum(row + index, n_out - 1).to(tl.int64) * k_in
                halves += (tl.load(start + column, column < k_in, 0, eviction_policy="evict_first"),)
        # As in ``gemv``: a barrier keeps loads from being moved to where they are used.
        tl.debug_barrier()
        for load in tl.static_range(LOADS):
            more = ()
            for token in tl.static_range(TOKENS):
                values = eight_each(x + token * k_in, (step * LOADS + load) * WIDTH, k_in, WIDTH)
                for index in tl.static_range(ROWS):
                    weight = halves[load * ROWS + index].to(tl.float32)
                    more += (tl.fma(weight, values, total[token * ROWS + index]),)
            total = more
    for token in tl.static_range(TOKENS):
        for index in tl.static_range(ROWS):
            tl.store(out + token * n_out + row + index, tl.sum(total[token * ROWS + index], 0), row + index < n_out)
