# What Triton compiles has no types in Python; what it compiles a kernel for is upper case by its custom.
# mypy: ignore-errors
# ruff: noqa: N803
"""Product of packed two-bit weights and the activations of many tokens, on integer tensor cores.

Weights go from memory to shared memory packed, are unpacked in registers four at a time, and multiplied from there:
they are the first operand, which a Hopper GPU's matrix instructions take from registers, so that unpacked weights need
no memory at all. A tile of packed bytes is used for four products, one for each pair of bits.

Sums are integers: any order of addition gives the same, so the columns of a matrix of few rows can be shared among
programs, which keeps more of the GPU busy.

Source: PTX ISA, mma and wgmma; for the layout ``ternary_kernels.formats.i2s``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ternary_kernels.cuda.gemv import INTERPRETED


@triton.jit
def unpack(packed, SHIFT: tl.constexpr):
    """The codes at bits ``SHIFT`` and above of each byte, int8."""
    if INTERPRETED:
        return (packed >> SHIFT) & 3
    else:  # noqa: RET505 - as in ``gemv``; four bytes at once, of which the compiler would make four
        return tl.inline_asm_elementwise(
            f"{{ .reg .b32 t; shr.u32 t, $1, {SHIFT}; and.b32 $0, t, 0x03030303; }}",
            "=r,r",
            [packed],
            dtype=tl.int8,
            is_pure=True,
            pack=4,
        )


@triton.jit(do_not_specialize=["m"])
def two_bit_gemm(
    values,
    scale,
    sums,
    codes,
    row_scales,
    out,
    shared_sums,
    arrivals,
    n_out,
    m,
    row_bytes,
    share_bytes,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    BYTES: tl.constexpr,
    SHARED: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Compute out = (codes @ values.T - sums) / scale * row_scales, in this order, for ROWS rows and TOKENS tokens.

    The grid is tiles of tokens, tiles of rows, shares of the columns. If there is more than one share, each adds its
    sums to ``shared_sums``, and the last to arrive at a tile takes the total and leaves zeros.

    Args:
        values: int8, shape (m, 4 * row_bytes).
        scale: float32, shape (m,).
        sums: int32, shape (m,): of each token's values.
        codes: Packed weights, uint8, shape (n_out, row_bytes), 16-byte aligned.
        row_scales: float32, shape (n_out,).
        out: float32, shape (m, n_out).
        shared_sums: int32, shape (m, n_out), zeros; unused if there is one share.
        arrivals: int32, one per tile, zeros; unused if there is one share.
        n_out: Rows.
        m: Tokens.
        row_bytes: Packed bytes of a row, a multiple of GROUP.
        share_bytes: Packed bytes of a row in a share, a multiple of BYTES.
        GROUP: Bytes in which the format interleaves columns: 32 for I2_S, 16 for I2_S_ARM.
        ROWS: Rows of a tile.
        TOKENS: Tokens of a tile.
        BYTES: Packed bytes of a row that are multiplied at once.
        SHARED: Whether there is more than one share.
        STAGES: Buffers through which tiles are loaded ahead.
    """
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    byte = tl.arange(0, BYTES)
    codes = codes.to(tl.pointer_type(tl.int8))
    first = tl.program_id(2) * share_bytes
    last = tl.minimum(first + share_bytes, row_bytes)
    # Beyond the last row and token, the last is multiplied again: loads then need no mask for them.
    packed_at = codes + tl.minimum(row, n_out - 1).to(tl.int64)[:, None] * row_bytes + byte[None, :]
    column = byte // GROUP * (4 * GROUP) + byte % GROUP
    values_at = values + tl.minimum(token, m - 1)[None, :] * row_bytes * 4 + column[:, None]
    total = tl.zeros((ROWS, TOKENS), tl.int32)
    for start in tl.range(first, last, BYTES, num_stages=STAGES):
        packed = tl.load(packed_at + start, (byte < last - start)[None, :], 0)
        for part in tl.static_range(4):
            x = tl.load(values_at + start * 4 + part * GROUP, (byte < last - start)[:, None], 0)
            total = tl.dot(unpack(packed, 6 - 2 * part), x, total, out_dtype=tl.int32)
    kept = (row < n_out)[:, None] & (token < m)[None, :]
    at = token[None, :] * n_out + row[:, None]
    finishes = True
    if SHARED:
        tl.atomic_add(shared_sums + at, total, kept, sem="relaxed")
        tl.debug_barrier()  # all of the tile has been added before its arrival is counted
        tile = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        finishes = tl.atomic_add(arrivals + tile, 1) == tl.num_programs(2) - 1
        if finishes:
            tl.store(arrivals + tile, 0)
            total = tl.atomic_xchg(shared_sums + at, tl.zeros((ROWS, TOKENS), tl.int32), kept, sem="relaxed")
    if finishes:
        y = (total - tl.load(sums + token, token < m)[None, :]).to(tl.float32)
        y = tl.div_rn(y, tl.load(scale + token, token < m, 1)[None, :])
        tl.store(out + at, y * tl.load(row_scales + row, row < n_out)[:, None], kept)
