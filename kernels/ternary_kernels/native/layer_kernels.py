"""What a layer does besides its products and attention, as compiled kernels: each takes whole tokens, row by row."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import get_args

from llvmlite import ir

from ternary_kernels.activations import FLOOR
from ternary_kernels.geometry import Activation
from ternary_kernels.native import elementary
from ternary_kernels.native.emit import (
    F32,
    I8,
    I32,
    POINTER,
    Build,
    Emitter,
    Index,
    Value,
    Variable,
    constants,
    fill,
    vector,
    zeros,
)

_SUMS = 4  # that grow side by side

Source = Callable[[Index, int], Value]
"""Writes the load of so many elements from an index."""


def _tokens(emitter: Emitter, build: Callable[[Value], None]) -> None:
    """Do for every token of the member's share."""
    with emitter.loop(*emitter.share(emitter.argument(0))) as token:
        build(token)


def _row(emitter: Emitter, argument: int, token: Value, columns: Value, size_bytes: int = 4) -> Value:
    """Where a token's elements begin."""
    return emitter.at(emitter.argument(argument, POINTER), emitter.mul(emitter.mul(token, columns), size_bytes))


def _floats(emitter: Emitter, row: Value) -> Source:
    return lambda index, count: emitter.load(vector(F32, count), row, emitter.mul(index, 4))


def _each(emitter: Emitter, columns: Value, write: Callable[[Value, int, int], None]) -> None:
    """Write for all columns: some vectors at a time, then a vector, then one column at a time.

    Args:
        emitter: Writes it.
        columns: How many.
        write: Takes the first column, how many, and which of the sums that grow side by side takes them.
    """
    floats = emitter.isa.floats
    start: Index = 0
    for step, count in ((_SUMS * floats, floats), (floats, floats), (1, 1)):
        stop = emitter.mul(emitter.builder.udiv(columns, emitter.index(step)), step)
        with emitter.loop(start, stop, step) as index:
            for part in range(step // count):
                write(emitter.add(index, part * count), count, part)
        start = stop


def _reduce(emitter: Emitter, columns: Value, source: Source, combine: Callable[[Value, Value], Value]) -> list[Value]:
    """Combine all columns into a few vectors and a single number, which is the last."""
    kind = vector(F32, emitter.isa.floats)
    held = [Variable(emitter, zeros(kind)) for _ in range(_SUMS)]
    rest = Variable(emitter, zeros(vector(F32, 1)))

    def write(index: Value, count: int, part: int) -> None:
        variable = rest if count == 1 else held[part]
        variable.set(combine(variable.get(), source(index, count)))

    _each(emitter, columns, write)
    return [*(variable.get() for variable in held), emitter.builder.extract_element(rest.get(), ir.Constant(I32, 0))]


def _inverse_rms(emitter: Emitter, columns: Value, source: Source, epsilon: int) -> Value:
    """1 / sqrt(mean square + epsilon), ``epsilon`` being an argument."""
    e, builder = emitter, emitter.builder
    *parts, rest = _reduce(e, columns, source, lambda total, x: e.multiply_add(x, x, total))
    while len(parts) > 1:
        parts = [builder.fadd(left, right) for left, right in zip(parts[::2], parts[1::2], strict=True)]
    total = builder.fadd(e.sum_lanes(parts[0]), rest)
    mean = builder.fdiv(total, builder.sitofp(columns, F32))
    root = e.call("llvm.sqrt.f32", F32, builder.fadd(mean, e.argument(epsilon, F32)))
    return builder.fdiv(constants(F32, 1.0)[0], root)


def _normed(emitter: Emitter, source: Source, inverse: Value, weight: Value) -> Source:
    e = emitter

    def normed(index: Index, count: int) -> Value:
        scaled = e.builder.fmul(source(index, count), e.splat(inverse, count))
        return e.builder.fmul(scaled, _floats(e, weight)(index, count))

    return normed


def _quantized(emitter: Emitter, token: Value, columns: Value, source: Source, values: int) -> None:
    """Quantise a token, into the arguments ``values`` and the one after."""
    e, builder = emitter, emitter.builder

    def magnitude(most: Value, x: Value) -> Value:
        kind = f"v{x.type.count}f32"
        return elementary.larger(e, e.call(f"llvm.fabs.{kind}", x.type, x), most)

    *parts, rest = _reduce(e, columns, source, magnitude)
    for part in parts:
        rest = elementary.larger(e, elementary.largest_lane(e, part), rest)
    floor = constants(F32, float(FLOOR))[0]
    scale = builder.fdiv(constants(F32, 127.0)[0], elementary.larger(e, rest, floor))
    e.store(scale, e.argument(values + 1, POINTER), e.mul(token, 4))
    row = _row(e, values, token, columns, 1)

    def write(index: Value, count: int, part: int) -> None:  # noqa: ARG001 - nothing grows
        scaled = builder.fmul(source(index, count), e.splat(scale, count))
        bits = builder.bitcast(builder.fadd(scaled, fill(F32, count, elementary.ROUNDER)), vector(I32, count))
        e.store(builder.trunc(bits, vector(I8, count)), row, index)

    _each(e, columns, write)


def _build_quantize(emitter: Emitter) -> None:
    """Arguments: m, x, values, scale, columns."""
    columns = emitter.argument(4)
    _tokens(
        emitter,
        lambda token: _quantized(emitter, token, columns, _floats(emitter, _row(emitter, 1, token, columns)), 2),
    )


def _build_rms_norm(emitter: Emitter) -> None:
    """Arguments: m, x, weight, epsilon, out, columns."""
    e, columns = emitter, emitter.argument(5)

    def token_(token: Value) -> None:
        x, out = (_row(e, argument, token, columns) for argument in (1, 4))
        inverse = _inverse_rms(e, columns, _floats(e, x), 3)
        normed = _normed(e, _floats(e, x), inverse, e.argument(2, POINTER))
        _each(e, columns, lambda index, count, _: e.store(normed(index, count), out, e.mul(index, 4)))

    _tokens(e, token_)


def _norm_and_quantize(emitter: Emitter, token: Value, columns: Value, sum_of: Source, row: Value, weight: int) -> None:
    """Norm ``sum_of``, which is read once and leaves itself in ``row``; arguments: weight, epsilon, values, scale."""
    inverse = _inverse_rms(emitter, columns, sum_of, weight + 1)
    normed = _normed(emitter, _floats(emitter, row), inverse, emitter.argument(weight, POINTER))
    _quantized(emitter, token, columns, normed, weight + 2)


def _storing(emitter: Emitter, source: Source, row: Value) -> Source:
    """A source that leaves what it loads in a row."""

    def stored(index: Index, count: int) -> Value:
        value = source(index, count)
        emitter.store(value, row, emitter.mul(index, 4))
        return value

    return stored


def _build_norm_quantize(emitter: Emitter) -> None:
    """Arguments: m, x, weight, epsilon, values, scale, columns."""
    e, columns = emitter, emitter.argument(6)

    def token_(token: Value) -> None:
        x = _row(e, 1, token, columns)
        _norm_and_quantize(e, token, columns, _floats(e, x), x, 2)

    _tokens(e, token_)


def _build_add_norm_quantize(emitter: Emitter) -> None:
    """Arguments: m, x, residual, weight, epsilon, values, scale, columns."""
    e, columns = emitter, emitter.argument(7)

    def token_(token: Value) -> None:
        x, residual = (_row(e, argument, token, columns) for argument in (1, 2))
        left, right = _floats(e, x), _floats(e, residual)
        total = _storing(e, lambda index, count: e.builder.fadd(left(index, count), right(index, count)), x)
        _norm_and_quantize(e, token, columns, total, x, 3)

    _tokens(e, token_)


def _gated(emitter: Emitter, activation: Activation, token: Value, columns: Value) -> Source:
    """activation(gated) * up; arguments 1 and 2."""
    e, builder = emitter, emitter.builder
    gated_row, up_row = (_floats(e, _row(e, argument, token, columns)) for argument in (1, 2))

    def gated(index: Index, count: int) -> Value:
        x = gated_row(index, count)
        if activation == "relu2":
            active = elementary.larger(e, x, zeros(x.type))
            return builder.fmul(builder.fmul(active, active), up_row(index, count))
        exponent = x
        if activation == "gelu":
            # Source: Hendrycks and Gimpel, Gaussian Error Linear Units: (1 + tanh u) / 2 = 1 / (1 + exp(-2 u)).
            cubed = builder.fmul(builder.fmul(x, x), x)
            exponent = e.multiply_add(cubed, fill(F32, count, 0.044715), x)
            exponent = builder.fmul(exponent, fill(F32, count, 2 * 0.7978845608))
        power = elementary.exponential(e, builder.fsub(zeros(x.type), exponent))
        active = builder.fdiv(x, builder.fadd(power, fill(F32, count, 1.0)))
        return builder.fmul(active, up_row(index, count))

    return gated


def _build_gate(activation: Activation, emitter: Emitter) -> None:
    """Arguments: m, gated, up, out, columns."""
    e, columns = emitter, emitter.argument(4)

    def token_(token: Value) -> None:
        gated, out = _gated(e, activation, token, columns), _row(e, 3, token, columns)
        _each(e, columns, lambda index, count, _: e.store(gated(index, count), out, e.mul(index, 4)))

    _tokens(e, token_)


def _build_gate_norm_quantize(activation: Activation, emitter: Emitter) -> None:
    """Arguments: m, gated, up, a row of memory per member, weight, epsilon, values, scale, columns."""
    e, columns = emitter, emitter.argument(8)

    def token_(token: Value) -> None:
        room = _row(e, 3, e.member, columns)
        gated = _storing(e, _gated(e, activation, token, columns), room)
        _norm_and_quantize(e, token, columns, gated, room, 4)

    _tokens(e, token_)


def _build_rotate(emitter: Emitter) -> None:
    """Arguments: m, x, cos, sin, out, heads, half the size of a head."""
    e, builder = emitter, emitter.builder
    heads, half = e.argument(5), e.argument(6)
    half_bytes = e.mul(half, 4)

    def token_(token: Value) -> None:
        cos_row, sin_row = (_floats(e, _row(e, argument, token, half)) for argument in (2, 3))
        with e.loop(0, heads) as head:
            at = e.mul(e.add(e.mul(token, heads), head), 2)
            x, out = (_row(e, argument, at, half) for argument in (1, 4))
            halves = _floats(e, x), _floats(e, e.at(x, half_bytes))

            def write(index: Value, count: int, part: int) -> None:  # noqa: ARG001 - nothing grows
                cos, sin = cos_row(index, count), sin_row(index, count)
                first, second = (source(index, count) for source in halves)
                turned = builder.fsub(builder.fmul(first, cos), builder.fmul(second, sin))
                e.store(turned, out, e.mul(index, 4))
                turned = e.multiply_add(first, sin, builder.fmul(second, cos))
                e.store(turned, e.at(out, half_bytes), e.mul(index, 4))

            _each(e, half, write)

    _tokens(e, token_)


KERNELS: dict[str, Build] = {
    "quantize": _build_quantize,
    "rms_norm": _build_rms_norm,
    "norm_quantize": _build_norm_quantize,
    "add_norm_quantize": _build_add_norm_quantize,
    "rotate": _build_rotate,
    **{f"gate_{activation}": partial(_build_gate, activation) for activation in get_args(Activation)},
    **{
        f"gate_{activation}_norm_quantize": partial(_build_gate_norm_quantize, activation)
        for activation in get_args(Activation)
    },
}
"""What writes each kernel."""
