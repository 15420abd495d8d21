# What Triton compiles has no types in Python; what it compiles a kernel for is upper case by its custom.
# mypy: ignore-errors
# ruff: noqa: N803
"""Triton's kernels of what a layer does besides its products and attention: a program to a token or to its head."""

from __future__ import annotations

import triton
import triton.language as tl

from ternary_kernels.activations import FLOOR

LEAST = tl.constexpr(float(FLOOR))


@triton.jit
def put_quantized(x, values, scale, sums, columns, BLOCK: tl.constexpr):
    """Quantise one token, zeros beyond its columns, to the last bit as ``activations.quantize`` does."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    factor = tl.div_rn(tl.full((), 127.0, tl.float32), tl.maximum(tl.max(tl.abs(x), 0), LEAST))
    # Adding 1.5 * 2^23 leaves no bits for a fraction, so it rounds, half to even; 127 and a rounding error stay 127.
    rounded = ((x * factor) + 12582912.0) - 12582912.0
    tl.store(values + token * columns + column, rounded.to(tl.int8), column < columns)
    tl.store(scale + token, factor)
    tl.store(sums + token, tl.sum(rounded.to(tl.int32), 0))


@triton.jit
def put(x, into, scale, sums, columns, BLOCK: tl.constexpr, QUANTIZED: tl.constexpr):
    """Store one token, zeros beyond its columns: quantised, or as it is into float32 ``into``."""
    if QUANTIZED:
        put_quantized(x, into, scale, sums, columns, BLOCK)
    else:
        column = tl.arange(0, BLOCK)
        tl.store(into + tl.program_id(0).to(tl.int64) * columns + column, x, column < columns)


@triton.jit
def normed(x, weight, epsilon, columns, BLOCK: tl.constexpr):
    """Root-mean-square norm of one token, zeros beyond its columns."""
    column = tl.arange(0, BLOCK)
    mean_square = tl.sum(x * x, 0) / columns
    return x * tl.rsqrt(mean_square + epsilon) * tl.load(weight + column, column < columns, 0)


@triton.jit
def quantize_kernel(x, values, scale, sums, columns, BLOCK: tl.constexpr):
    """Quantise each token of x, float32 (m, columns)."""
    column = tl.arange(0, BLOCK)
    at = tl.program_id(0).to(tl.int64) * columns + column
    put_quantized(tl.load(x + at, column < columns, 0), values, scale, sums, columns, BLOCK)


@triton.jit
def norm_kernel(
    x,
    residual,
    weight,
    epsilon,
    into,
    scale,
    sums,
    columns,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
    QUANTIZED: tl.constexpr,
):
    """Norm each token of x, float32 (m, columns), to which ``residual`` is first added if ADD."""
    column = tl.arange(0, BLOCK)
    at = tl.program_id(0).to(tl.int64) * columns + column
    stream = tl.load(x + at, column < columns, 0)
    if ADD:
        stream += tl.load(residual + at, column < columns, 0)
        tl.store(x + at, stream, column < columns)
    put(normed(stream, weight, epsilon, columns, BLOCK), into, scale, sums, columns, BLOCK, QUANTIZED)


@triton.jit
def gate_kernel(
    gated,
    up,
    weight,
    epsilon,
    into,
    scale,
    sums,
    gated_stride,
    up_stride,
    columns,
    BLOCK: tl.constexpr,
    ACTIVATION: tl.constexpr,
    NORMED: tl.constexpr,
    QUANTIZED: tl.constexpr,
):
    """activation(gated) * up, both float32 (m, columns) with so many elements from token to token; normed if NORMED."""
    column = tl.arange(0, BLOCK)
    token = tl.program_id(0).to(tl.int64)
    gate = tl.load(gated + token * gated_stride + column, column < columns, 0)
    if ACTIVATION == "relu2":
        active = tl.maximum(gate, 0)
        active = active * active
    else:
        # Both are the gate times a logistic function. exp of more than 80 is near the end of float32.
        exponent = gate
        if ACTIVATION == "gelu":
            # Source: Hendrycks and Gimpel, Gaussian Error Linear Units, the tanh form; 1 + tanh(u) = 2 logistic(2 u).
            exponent = 1.5957691216 * (gate + 0.044715 * gate * gate * gate)
        active = gate / (1 + tl.exp(tl.minimum(-exponent, 80)))
    product = active * tl.load(up + token * up_stride + column, column < columns, 0)
    if NORMED:
        product = normed(product, weight, epsilon, columns, BLOCK)
    put(product, into, scale, sums, columns, BLOCK, QUANTIZED)


@triton.jit
def rotate_kernel(
    query,
    key,
    value,
    cos,
    sin,
    rotated,
    keys,
    values,
    query_stride,
    key_stride,
    value_stride,
    token_stride,
    head_stride,
    heads,
    kv_heads,
    half,
    BLOCK: tl.constexpr,
):
    """Rotate one head of a token's query, or beyond its heads of its key into the cache, or put one of its value there.

    Args:
        query: float32, shape (m, heads, 2 * half), ``query_stride`` elements from token to token.
        key: float32, shape (m, kv_heads, 2 * half).
        value: float32, of the same shape.
        cos: float32, shape (m, half).
        sin: float32, shape (m, half).
        rotated: float16, shape (m, heads, 2 * half).
        keys: float16: where the first token's first head goes.
        values: The same.
        query_stride: Elements from token to token.
        key_stride: The same of keys.
        value_stride: The same of values.
        token_stride: Elements from token to token in the caches.
        head_stride: Elements from head to head in the caches.
        heads: Query heads.
        kv_heads: Key heads.
        half: Pairs of a head.
        BLOCK: The same, up to a power of two.
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    pair = tl.arange(0, BLOCK)
    kept = pair < half
    first = query + token * query_stride + head * 2 * half
    target = rotated + (token * heads + head) * 2 * half
    if head >= heads:
        first = key + token * key_stride + (head - heads) * 2 * half
        target = keys + token * token_stride + (head - heads) * head_stride
    if head >= heads + kv_heads:
        first = value + token * value_stride + (head - heads - kv_heads) * 2 * half
        target = values + token * token_stride + (head - heads - kv_heads) * head_stride
    x = tl.load(first + pair, kept)
    y = tl.load(first + half + pair, kept)
    if head < heads + kv_heads:
        cosine = tl.load(cos + token * half + pair, kept)
        sine = tl.load(sin + token * half + pair, kept)
        turned = x * cosine - y * sine
        y = y * cosine + x * sine
        x = turned
    tl.store(target + pair, x.to(tl.float16), kept)
    tl.store(target + half + pair, y.to(tl.float16), kept)
