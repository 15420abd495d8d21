"""The small operations of a step as compiled kernels: each takes whole rows, and passes over one while it is cached.

What stands between two products is one kernel: a residual is added or a gate applied, the result normed and quantised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import IntEnum, auto
from itertools import product
from typing import Literal, get_args

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

Origin = Literal["x", "add", Activation]
"""Of what a row becomes: itself, its sum with a residual, which takes its place, or its gate's product with another."""

_COMMON = "step_ops"
_SUMS = 4  # that grow side by side

Source = Callable[[Index, int], Value]
"""Writes the load of so many elements from an index."""


class RowArgument(IntEnum):
    """Arguments of the kernels that handle rows as a whole."""

    ROWS = 0
    COLUMNS = auto()
    X = auto()
    OTHER = auto()  # the residual, or what the gate is multiplied with
    SPACE = auto()  # a row per member, for a product of the gate that isn't the result
    WEIGHT = auto()
    EPSILON = auto()
    OUT = auto()
    SCALE = auto()


class RotateArgument(IntEnum):
    """Arguments of the rotation."""

    ROWS = 0
    X = auto()
    COS = auto()
    SIN = auto()
    OUT = auto()
    HEADS = auto()
    HALF = auto()  # the size of a head


class AppendArgument(IntEnum):
    """Arguments of appending to the caches, the angles where the rotation has them; offset and strides in elements."""

    ROWS = 0
    KEY = auto()
    COS = auto()
    SIN = auto()
    VALUE = auto()
    KEYS = auto()
    VALUES = auto()
    HEADS = auto()
    HALF = auto()
    OFFSET = auto()
    ROW_STRIDE = auto()
    HEAD_STRIDE = auto()


def _row(emitter: Emitter, argument: int, row: Value, columns: Value, size_bytes: int = 4) -> Value:
    """Where a row's elements begin."""
    return emitter.at(emitter.argument(argument, POINTER), emitter.mul(emitter.mul(row, columns), size_bytes))


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


def _inverse_rms(emitter: Emitter, columns: Value, source: Source) -> Value:
    """1 / sqrt(mean square + epsilon)."""
    e, builder = emitter, emitter.builder
    *parts, rest = _reduce(e, columns, source, lambda total, x: e.multiply_add(x, x, total))
    while len(parts) > 1:
        parts = [builder.fadd(left, right) for left, right in zip(parts[::2], parts[1::2], strict=True)]
    total = builder.fadd(e.sum_lanes(parts[0]), rest)
    mean = builder.fdiv(total, builder.sitofp(columns, F32))
    root = e.call("llvm.sqrt.f32", F32, builder.fadd(mean, e.argument(RowArgument.EPSILON, F32)))
    return builder.fdiv(constants(F32, 1.0)[0], root)


def _normed(emitter: Emitter, source: Source, inverse: Value) -> Source:
    weight = _floats(emitter, emitter.argument(RowArgument.WEIGHT, POINTER))

    def normed(index: Index, count: int) -> Value:
        scaled = emitter.builder.fmul(source(index, count), emitter.splat(inverse, count))
        return emitter.builder.fmul(scaled, weight(index, count))

    return normed


def _storing(emitter: Emitter, source: Source, row: Value) -> Source:
    """A source that leaves what it loads in a row."""

    def stored(index: Index, count: int) -> Value:
        value = source(index, count)
        emitter.store(value, row, emitter.mul(index, 4))
        return value

    return stored


def _quantize(emitter: Emitter, row: Value, columns: Value, first: Source, again: Source) -> None:
    """Quantise a row, which is read by ``first`` for its largest magnitude and then by ``again``."""
    e, builder = emitter, emitter.builder

    def magnitude(most: Value, x: Value) -> Value:
        kind = f"v{x.type.count}f32"
        return elementary.larger(e, e.call(f"llvm.fabs.{kind}", x.type, x), most)

    *parts, rest = _reduce(e, columns, first, magnitude)
    for part in parts:
        rest = elementary.larger(e, elementary.largest_lane(e, part), rest)
    floor = constants(F32, float(FLOOR))[0]
    scale = builder.fdiv(constants(F32, 127.0)[0], elementary.larger(e, rest, floor))
    e.store(scale, e.argument(RowArgument.SCALE, POINTER), e.mul(row, 4))
    values = _row(e, RowArgument.OUT, row, columns, 1)

    def write(index: Value, count: int, part: int) -> None:  # noqa: ARG001 - nothing grows
        scaled = builder.fmul(again(index, count), e.splat(scale, count))
        bits = builder.bitcast(builder.fadd(scaled, fill(F32, count, elementary.ROUNDER)), vector(I32, count))
        e.store(builder.trunc(bits, vector(I8, count)), values, index)

    _each(e, columns, write)


def _active(emitter: Emitter, activation: Activation, x: Value) -> Value:
    e, builder, count = emitter, emitter.builder, x.type.count
    if activation == "relu2":
        positive = elementary.larger(e, x, zeros(x.type))
        return builder.fmul(positive, positive)
    exponent = x
    if activation == "gelu":
        # Source: Hendrycks and Gimpel, Gaussian Error Linear Units: (1 + tanh u) / 2 = 1 / (1 + exp(-2 u)).
        cubed = builder.fmul(builder.fmul(x, x), x)
        exponent = e.multiply_add(cubed, fill(F32, count, 0.044715), x)
        exponent = builder.fmul(exponent, fill(F32, count, 2 * 0.7978845608))
    power = elementary.exponential(e, builder.fsub(zeros(x.type), exponent))
    return builder.fdiv(x, builder.fadd(power, fill(F32, count, 1.0)))


def _origin(emitter: Emitter, origin: Origin, row: Value, columns: Value) -> Source:
    """What a row becomes before it is normed."""
    x = _floats(emitter, _row(emitter, RowArgument.X, row, columns))
    if origin == "x":
        return x
    other = _floats(emitter, _row(emitter, RowArgument.OTHER, row, columns))
    if origin == "add":
        return lambda index, count: emitter.builder.fadd(x(index, count), other(index, count))
    return lambda index, count: emitter.builder.fmul(_active(emitter, origin, x(index, count)), other(index, count))


def _build_rows(origin: Origin, *, normed: bool, quantized: bool) -> Build:
    """Kernel of what the rows become, normed or not, quantised or not; see ``RowArgument``."""

    def build(emitter: Emitter) -> None:
        e, columns = emitter, emitter.argument(RowArgument.COLUMNS)
        with e.loop(*e.share(e.argument(RowArgument.ROWS))) as row:
            first = again = _origin(e, origin, row, columns)
            if origin != "x" and (normed or quantized):
                # It is read again, so it is kept: a sum in x's place, a product in the result's, if that is float32.
                if origin == "add":
                    kept = _row(e, RowArgument.X, row, columns)
                elif quantized:
                    kept = _row(e, RowArgument.SPACE, e.member, columns)
                else:
                    kept = _row(e, RowArgument.OUT, row, columns)
                first, again = _storing(e, first, kept), _floats(e, kept)
            if normed:
                first = again = _normed(e, again, _inverse_rms(e, columns, first))
            if quantized:
                _quantize(e, row, columns, first, again)
            else:
                result = _storing(e, first, _row(e, RowArgument.OUT, row, columns))
                _each(e, columns, lambda index, count, _: result(index, count))

    return build


def _rotated(emitter: Emitter, row: Value, half: Value, x: Value, write: Callable[[Index, Index, Value], None]) -> None:
    """Rotate a head.

    Args:
        emitter: Writes it.
        row: The row that it belongs to.
        half: Half its size.
        x: Where it lies.
        write: Takes the first of some elements of a half, that half's first element, and what they become.
    """
    e, builder = emitter, emitter.builder
    cos_row, sin_row = (_floats(e, _row(e, angle, row, half)) for angle in (RotateArgument.COS, RotateArgument.SIN))
    first_half, second_half = _floats(e, x), _floats(e, e.at(x, e.mul(half, 4)))

    def turn(index: Index, count: int, part: int) -> None:  # noqa: ARG001 - nothing grows
        cos, sin = cos_row(index, count), sin_row(index, count)
        first, second = first_half(index, count), second_half(index, count)
        write(index, 0, builder.fsub(builder.fmul(first, cos), builder.fmul(second, sin)))
        write(index, half, e.multiply_add(first, sin, builder.fmul(second, cos)))

    _each(e, half, turn)


def _build_rotate(emitter: Emitter) -> None:
    """See ``RotateArgument``."""
    e = emitter
    heads, half = e.argument(RotateArgument.HEADS), e.argument(RotateArgument.HALF)
    with e.loop(*e.share(e.argument(RotateArgument.ROWS))) as row, e.loop(0, heads) as head:
        place = e.mul(e.add(e.mul(row, heads), head), 2)
        x, out = (_row(e, argument, place, half) for argument in (RotateArgument.X, RotateArgument.OUT))
        _rotated(e, row, half, x, lambda index, start, turned: e.store(turned, out, e.mul(e.add(index, start), 4)))


def _build_append(emitter: Emitter) -> None:
    """See ``AppendArgument``."""
    e = emitter
    heads, half = e.argument(AppendArgument.HEADS), e.argument(AppendArgument.HALF)
    offset, row_stride, head_stride = (
        e.argument(index) for index in range(AppendArgument.OFFSET, AppendArgument.HEAD_STRIDE + 1)
    )
    with e.loop(*e.share(e.argument(AppendArgument.ROWS))) as row, e.loop(0, heads) as head:
        place = e.mul(e.add(e.mul(row, heads), head), 2)
        key, value = (_row(e, argument, place, half) for argument in (AppendArgument.KEY, AppendArgument.VALUE))
        slot = e.mul(e.add(offset, e.mul(row, row_stride), e.mul(head, head_stride)), 2)
        keys, values = (
            e.at(e.argument(argument, POINTER), slot) for argument in (AppendArgument.KEYS, AppendArgument.VALUES)
        )

        def write(index: Index, start: Index, turned: Value) -> None:
            e.store(e.float_to_half(turned), keys, e.mul(e.add(index, start), 2))

        _rotated(e, row, half, key, write)
        given = _floats(e, value)

        def copy(index: Index, count: int, part: int) -> None:  # noqa: ARG001 - nothing grows
            e.store(e.float_to_half(given(index, count)), values, e.mul(index, 2))

        _each(e, e.mul(half, 2), copy)


def module_of(origin: Origin) -> str:
    """Module of the kernels of what the rows become: a gate's has one of its own, as a model needs one gate."""
    return _COMMON if origin in ("x", "add") else f"gate_{origin}"


def kernel_name(origin: Origin, *, normed: bool, quantized: bool) -> str:
    """Name of the kernel of what the rows become, normed or not, quantised or not."""
    return origin + "_norm" * normed + "_quantize" * quantized


def _of_rows(origin: Origin, kinds: Iterable[tuple[bool, bool]]) -> dict[str, Build]:
    return {
        kernel_name(origin, normed=normed, quantized=quantized): _build_rows(origin, normed=normed, quantized=quantized)
        for normed, quantized in kinds
    }


_EITHER = False, True

MODULES: dict[str, dict[str, Build]] = {
    _COMMON: {
        **_of_rows("x", [(False, True), (True, False), (True, True)]),
        **_of_rows("add", [(False, False), (True, False), (True, True)]),
        "rotate": _build_rotate,
        "append": _build_append,
    },
    **{module_of(activation): _of_rows(activation, product(_EITHER, _EITHER)) for activation in get_args(Activation)},
}
"""What writes each kernel, by module and name."""
