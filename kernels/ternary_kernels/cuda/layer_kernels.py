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
def norm_quantize_kernel(
    x, residual, weight, epsilon, values, scale, sums, columns, BLOCK: tl.constexpr, ADD: tl.constexpr
):
    """Quantise the norm of each token of x, float32 (m, columns), to which ``residual`` is first added if ADD."""
    column = tl.arange(0, BLOCK)
    at = tl.program_id(0).to(tl.int64) * columns + column
    stream = tl.load(x + at, column < columns, 0)
    if ADD:
        stream += tl.load(residual + at, column < columns, 0)
        tl.store(x + at, stream, column < columns)
    put_quantized(normed(stream, weight, epsilon, columns, BLOCK), values, scale, sums, columns, BLOCK)


@triton.jit
def gate_norm_quantize_kernel(
    gated, up, weight, epsilon, values, scale, sums, columns, BLOCK: tl.constexpr, ACTIVATION: tl.constexpr
):
    """Quantise the norm of activation(gated) * up, both float32 (m, columns)."""
    column = tl.arange(0, BLOCK)
    at = tl.program_id(0).to(tl.int64) * columns + column
    gate = tl.load(gated + at, column < columns, 0)
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
    product = active * tl.load(up + at, column < columns, 0)
    put_quantized(normed(product, weight, epsilon, columns, BLOCK), values, scale, sums, columns, BLOCK)


@triton.jit
def rotate_kernel(query, key, cos, sin, rotated_query, rotated_key, heads, kv_heads, half, BLOCK: tl.constexpr):
    """Rotate a head of a token of query (m, heads, 2 * half) or, beyond its heads, of key (m, kv_heads, 2 * half)."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    pair = tl.arange(0, BLOCK)
    kept = pair < half
    source = query
    target = rotated_query
    first = (token * heads + head) * 2 * half
    if head >= heads:
        source = key
        target = rotated_key
        first = (token * kv_heads + head - heads) * 2 * half
    x = tl.load(source + first + pair, kept)
    y = tl.load(source + first + half + pair, kept)
    cosine = tl.load(cos + token * half + pair, kept)
    sine = tl.load(sin + token * half + pair, kept)
    tl.store(target + first + pair, x * cosine - y * sine, kept)
    tl.store(target + first + half + pair, y * cosine + x * sine, kept)
