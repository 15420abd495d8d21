# What Triton compiles has no types in Python; what it compiles a kernel for is upper case by its custom.
# mypy: ignore-errors
# ruff: noqa: N803
"""Product of packed two-bit weights and the activations of a few tokens, in one pass and without tensor cores.

A word of four packed bytes holds a code of four neighbouring columns at each of four shifts, so a mask makes an operand
of ``dp4a``, the dot product of four bytes: nine instructions for the 16 weights of a word and one token, four for each
further token. That many a GPU issues while the word arrives from memory, which unpacking weight by weight would not do.

Each thread loads 16 bytes of a row at once, and all that it needs of a step before it multiplies any: what is in flight
then hides the memory's latency, without a detour through shared memory.

Source: PTX ISA, dp4a; for the layout ``ternary_kernels.formats.i2s``.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""Whether Triton's interpreter runs the kernels; it knows no assembly."""


DP4A = tl.constexpr(
    "dp4a.u32.s32 $0, $4, $8, $12; dp4a.u32.s32 $0, $5, $9, $0; dp4a.u32.s32 $0, $6, $10, $0; "
    "dp4a.u32.s32 $0, $7, $11, $0; mov.b32 $1, $13; mov.b32 $2, $14; mov.b32 $3, $15;"
)
"""Dot product of a thread's four words, added to the first of its four sums: the other three stay zeros, which the
assembler finds out, so that they need no registers."""


@triton.jit
def dot_of_bytes(codes, values, sums):
    """Add to sums the dot products of unsigned bytes of ``codes`` and signed ones of ``values``; all int32.

    It is the total over a tile that counts: where in it a word's product goes is left open.
    """
    if INTERPRETED:
        for shift in tl.static_range(0, 32, 8):
            sums += ((codes >> shift) & 0xFF) * ((values << (24 - shift)) >> 24)
        return sums
    else:  # noqa: RET505 - Triton compiles what follows an if even where a constant decides
        return tl.inline_asm_elementwise(
            DP4A, "=&r,=&r,=&r,=&r" + ",r" * 12, [codes, values, sums], dtype=tl.int32, is_pure=True, pack=4
        )


@triton.jit
def activations(values, at, words, GROUP: tl.constexpr, TOKENS: tl.constexpr):
    """What the codes in the words ``at`` are multiplied by: four tiles a token, for those at bits 6, 4, 2 and 0."""
    columns = values + at // GROUP * (4 * GROUP) + at % GROUP
    parts = ()
    for token in tl.static_range(TOKENS):
        for part in tl.static_range(4):
            parts += (tl.load(columns + token * words * 4 + part * GROUP, at < words),)
    return parts


@triton.jit
def two_bit_gemv(
    values,
    scale,
    sums,
    codes,
    row_scales,
    out,
    n_out,
    words,
    GROUP: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    LOADS: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Compute out = (codes @ values.T - sums) / scale * row_scales, in this order, for ROWS * LANES rows.

    A tile is (LANES, WIDTH) words, four neighbouring words to a thread. Each thread goes through ROWS tiles with the
    same columns, so that an activation is loaded once for all of them.

    Args:
        values: int8, shape (TOKENS, 16 * words).
        scale: float32, shape (TOKENS,).
        sums: int32, shape (TOKENS,): of each token's values.
        codes: Packed weights, shape (n_out, 4 * words) bytes, 16-byte aligned.
        row_scales: float32, shape (n_out,).
        out: float32, shape (TOKENS, n_out).
        n_out: Rows.
        words: Four-byte words in a row.
        GROUP: Words in which the format interleaves columns: 8 for I2_S, 4 for I2_S_ARM.
        TOKENS: Tokens.
        ROWS: Rows that each thread goes through.
        LANES: Rows side by side: 4 * threads / WIDTH.
        WIDTH: Words of a row side by side, a multiple of GROUP.
        LOADS: Tiles of each row that are in flight at once.
        STEPS: Times that LOADS tiles cover a row: WIDTH * LOADS * STEPS >= words.
    """
    codes = codes.to(tl.pointer_type(tl.int32))
    values = values.to(tl.pointer_type(tl.int32))
    row = tl.program_id(0) * ROWS * LANES + tl.arange(0, LANES)
    # The same words for each lane, but in the lanes' own threads: what is loaded needs no exchange between threads.
    word = tl.arange(0, WIDTH)[None, :] + tl.zeros((LANES, WIDTH), tl.int32)
    # Sums of codes taken at bits 0 and 2 of a pair; the latter are four times themselves, which spares a shift.
    single = ()
    fourfold = ()
    for _ in tl.static_range(TOKENS * ROWS):
        single += (tl.zeros((LANES, WIDTH), tl.int32),)
        fourfold += (tl.zeros((LANES, WIDTH), tl.int32),)
    for step in tl.range(0, STEPS):
        packed = ()
        ahead = ()
        for load in tl.static_range(LOADS):
            at = (step * LOADS + load) * WIDTH + word
            for index in tl.static_range(ROWS):
                start = tl.minimum(row + index * LANES, n_out - 1).to(tl.int64) * words
                # Used once: they needn't push activations out of the cache. Zeros make up for activations beyond a row.
                packed += (tl.load(codes + start[:, None] + at, at < words, 0, eviction_policy="evict_first"),)
            if TOKENS <= 2:  # more don't fit into registers, and find more to do while they wait for the cache
                ahead += (activations(values, at, words, GROUP, TOKENS),)
        # The assembler would rather move loads to where they are used, to save registers, and the thread would wait for
        # each. A load can't cross a barrier, and with one behind it in every sum, nothing is multiplied before.
        tl.debug_barrier()
        more_single = ()
        more_fourfold = ()
        for token in tl.static_range(TOKENS):
            taken = tl.where((word == 0) & (step == 0), tl.load(sums + token), 0)
            for index in tl.static_range(ROWS):
                more_single += (single[token * ROWS + index] - 2 * taken,)
                more_fourfold += (fourfold[token * ROWS + index] + 4 * taken,)
        single = more_single
        fourfold = more_fourfold
        for load in tl.static_range(LOADS):
            if TOKENS <= 2:
                parts = ahead[load]
            else:
                parts = activations(values, (step * LOADS + load) * WIDTH + word, words, GROUP, TOKENS)
            for part in tl.static_range(0, 4, 2):
                more_single = ()
                more_fourfold = ()
                for token in tl.static_range(TOKENS):
                    for index in tl.static_range(ROWS):
                        pair = packed[load * ROWS + index] >> (4 - 2 * part)
                        first = dot_of_bytes(pair & 0x0C0C0C0C, parts[token * 4 + part], fourfold[token * ROWS + index])
                        second = dot_of_bytes(
                            pair & 0x03030303, parts[token * 4 + part + 1], single[token * ROWS + index]
                        )
                        more_fourfold += (first,)
                        more_single += (second,)
                single = more_single
                fourfold = more_fourfold
    for index in tl.static_range(ROWS):
        rows = row + index * LANES
        row_scale = tl.load(row_scales + rows, rows < n_out)
        for token in tl.static_range(TOKENS):
            total = tl.sum(single[token * ROWS + index] + (fourfold[token * ROWS + index] >> 2), 1)
            y = tl.div_rn(total.to(tl.float32), tl.load(scale + token)) * row_scale
            tl.store(out + token * n_out + rows, y, rows < n_out)
