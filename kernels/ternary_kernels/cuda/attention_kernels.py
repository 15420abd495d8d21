# What Triton compiles has no types in Python; what it compiles a kernel for is upper case by its custom.
# mypy: ignore-errors
# ruff: noqa: N803
"""Triton's kernels of decode attention: the tokens of a cache are shared among programs, whose shares are then joined.

Source: Dao et al., Flash-Decoding for long-context inference (2023); the running maximum is Milakov and Gimelshein's,
Online normalizer calculation for softmax (2018).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["tokens", "capacity"])
def attend_kernel(
    query,
    keys,
    values,
    mixed,
    largest,
    total,
    out,
    factor,
    tokens,
    capacity,
    share,
    head_dim,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    SHARED: tl.constexpr,
):
    """Attend to one share of the tokens of one KV head with all query heads that read it.

    Args:
        query: float32 or float16, shape (KV heads of all sequences, GROUP, head_dim); rounded to float16.
        keys: float16, shape (KV heads of all sequences, capacity, head_dim).
        values: float16, of the same shape.
        mixed: float32, shape (shares, query heads of all sequences, head_dim): values weighted, not yet divided.
        largest: float32, shape (shares, query heads of all sequences): the largest score, base 2.
        total: float32, of the same shape: the sum of 2 ** (score - largest).
        out: float32 or float16, shape (query heads of all sequences, head_dim): written instead if there is one share.
        factor: log2(e) / sqrt(head_dim).
        tokens: Tokens in each cache.
        capacity: Slots of each cache.
        share: Tokens of a share, a multiple of BLOCK; none is empty.
        head_dim: Elements per head.
        GROUP: Query heads per KV head.
        ROWS: The same, as large as a tensor core's tile.
        DIM: head_dim, up to a power of two.
        BLOCK: Tokens at a time.
        SHARED: Whether there is more than one share.
    """
    kv_head = tl.program_id(0).to(tl.int64)
    row = tl.arange(0, ROWS)
    dim = tl.arange(0, DIM)
    token = tl.arange(0, BLOCK)
    first = tl.program_id(1) * share
    last = tl.minimum(first + share, tokens)
    head = kv_head * GROUP + row
    at = head[:, None] * head_dim + dim[None, :]
    kept = (row < GROUP)[:, None] & (dim < head_dim)[None, :]
    asked = (tl.load(query + at, kept, 0).to(tl.float32) * factor).to(tl.float16)
    cache = kv_head * capacity * head_dim
    keys_at = keys + cache + token[None, :] * head_dim + dim[:, None]
    values_at = values + cache + token[:, None] * head_dim + dim[None, :]
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    weight = tl.zeros((ROWS,), tl.float32)
    sums = tl.zeros((ROWS, DIM), tl.float32)
    for start in tl.range(first, last, BLOCK):
        seen = token < last - start
        key = tl.load(keys_at + start * head_dim, seen[None, :] & (dim < head_dim)[:, None], 0)
        score = tl.where(seen[None, :], tl.dot(asked, key), float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        part = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(top - higher)
        value = tl.load(values_at + start * head_dim, seen[:, None] & (dim < head_dim)[None, :], 0)
        sums = tl.dot(part.to(tl.float16), value, sums * shrink[:, None])
        weight = weight * shrink + tl.sum(part, 1)
        top = higher
    if SHARED:
        heads = tl.num_programs(0).to(tl.int64) * GROUP
        tl.store(mixed + tl.program_id(1) * heads * head_dim + at, sums, kept)
        tl.store(largest + tl.program_id(1) * heads + head, top, row < GROUP)
        tl.store(total + tl.program_id(1) * heads + head, weight, row < GROUP)
    else:
        tl.store(out + at, sums / weight[:, None], kept)


@triton.jit(do_not_specialize=["shares"])
def join_kernel(mixed, largest, total, out, shares, head_dim, SHARES: tl.constexpr, DIM: tl.constexpr):
    """Join the shares of one query head; see ``attend_kernel``. SHARES is their number up to a power of two."""
    head = tl.program_id(0).to(tl.int64)
    heads = tl.num_programs(0)
    share = tl.arange(0, SHARES)
    dim = tl.arange(0, DIM)
    at = share.to(tl.int64) * heads + head
    top = tl.load(largest + at, share < shares, float("-inf"))
    weight = tl.exp2(top - tl.max(top, 0))
    kept = (share < shares)[:, None] & (dim < head_dim)[None, :]
    parts = tl.load(mixed + at[:, None] * head_dim + dim[None, :], kept, 0)
    whole = tl.sum(weight * tl.load(total + at, share < shares, 0), 0)
    tl.store(out + head * head_dim + dim, tl.sum(parts * weight[:, None], 0) / whole, dim < head_dim)
