"""Functions of float32 vectors that LLVM would call once per lane: exp, and what reduces a vector to one number."""

from __future__ import annotations

from llvmlite import ir

from ternary_kernels.native.emit import F32, I32, Emitter, Value, fill, lanes, zeros

ROUNDER = 1.5 * 2.0**23
"""Added to a number below 2^22 in magnitude, it leaves the nearest integer, halves to even, in the lowest bits."""

_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 355 / 512, -2.1219444005469057e-4  # the first times any exponent is exact
_POLYNOMIAL = (0.00138145, 0.00836878, 0.04166839, 0.1666652, 0.49999993)
"""q of exp(r) = 1 + r + r^2 q(r), highest power first: Remez' exchange for the least relative error."""
_SMALLEST, _LARGEST = -88.02, 88.02


def exponential(emitter: Emitter, x: Value) -> Value:
    """Exp of each lane, within a relative 1.2e-7 of it; 0 where that is below 2^-126.5, and exp(88.02) above 88.02.

    Source: Cody and Waite, Software Manual for the Elementary Functions, chapter 6: exp(x) = 2^n exp(r), n the integer
    nearest to x / ln 2 and r = x - n ln 2, which is within ln 2 / 2 of 0.
    """
    builder, count = emitter.builder, x.type.count

    def number(value: float) -> Value:
        return fill(F32, count, value)

    x = smaller(emitter, larger(emitter, x, number(_SMALLEST)), number(_LARGEST))
    shifted = emitter.multiply_add(x, number(_LOG2_E), number(ROUNDER))
    exponent = builder.fsub(shifted, number(ROUNDER))
    rest = emitter.multiply_add(exponent, number(-_LN2_HIGH), x)
    rest = emitter.multiply_add(exponent, number(-_LN2_LOW), rest)
    quotient = number(_POLYNOMIAL[0])
    for coefficient in _POLYNOMIAL[1:]:
        quotient = emitter.multiply_add(quotient, rest, number(coefficient))
    power = emitter.multiply_add(builder.fmul(rest, rest), quotient, builder.fadd(rest, number(1.0)))
    # 2^n by its bits; n = -127 gives 0. The rounder's own bits fall off at the top.
    bits = builder.bitcast(shifted, ir.VectorType(I32, count))
    bits = builder.shl(builder.add(bits, fill(I32, count, 127)), fill(I32, count, 23))
    return builder.fmul(power, builder.bitcast(bits, x.type))


def larger(emitter: Emitter, left: Value, right: Value) -> Value:
    """The larger of two float32 scalars or of each pair of lanes; the right one if they don't compare."""
    return emitter.builder.select(emitter.builder.fcmp_ordered(">", left, right), left, right)


def smaller(emitter: Emitter, left: Value, right: Value) -> Value:
    """The smaller of two float32 scalars or of each pair of lanes; the right one if they don't compare."""
    return emitter.builder.select(emitter.builder.fcmp_ordered("<", left, right), left, right)


def largest_lane(emitter: Emitter, vector: Value) -> Value:
    """The largest lane of a float32 vector whose lanes are a power of two."""
    while vector.type.count > 1:
        half = vector.type.count // 2
        low, high = (_lanes_of(emitter, vector, vector, range(start, start + half)) for start in (0, half))
        vector = larger(emitter, low, high)
    return emitter.builder.extract_element(vector, ir.Constant(I32, 0))


def sums_of(emitter: Emitter, vectors: list[Value]) -> Value:
    """The sums of several vectors' lanes, float32 or integer, as one vector, in their order, pairwise.

    Args:
        emitter: Writes it.
        vectors: No more than a vector has lanes, whose number is a power of two.

    Returns:
        A vector with a lane per sum, and more where their number is no power of two.
    """
    add = emitter.builder.fadd if vectors[0].type.element == F32 else emitter.builder.add
    groups = 1 << (len(vectors) - 1).bit_length()
    while len(vectors) > 1:
        if len(vectors) % 2:
            vectors = [*vectors, zeros(vectors[0].type)]
        # Neighbouring lanes of a pair of vectors are added: the first vector's sums come out below the second's.
        vectors = [
            add(*(_lanes_of(emitter, *pair, range(first, 2 * pair[0].type.count, 2)) for first in (0, 1)))
            for pair in zip(vectors[::2], vectors[1::2], strict=True)
        ]
    (sums,) = vectors
    while (count := sums.type.count) > groups:
        sums = add(*(_lanes_of(emitter, sums, sums, range(first, count, 2)) for first in (0, 1)))
    return sums


def rescale(emitter: Emitter, sums: Value, scale: Value, weight_scale: Value) -> Value:
    """``oracle.rescale`` of a vector of int32 sums of one token, by float32 scalars."""
    builder, count = emitter.builder, sums.type.count
    quotient = builder.fdiv(builder.sitofp(sums, ir.VectorType(F32, count)), emitter.splat(scale, count))
    return builder.fmul(quotient, emitter.splat(weight_scale, count))


def transpose(emitter: Emitter, rows: list[Value]) -> list[Value]:
    """Columns of as many vectors as they have lanes, a power of two.

    Each pass deals the lanes of row i and row i + n / 2 out in turn to rows 2 i and 2 i + 1; log2(n) perfect shuffles
    of the row's index and the lane's exchange the two.
    """
    count = len(rows)
    half = count // 2
    order = [lane // 2 + lane % 2 * count for lane in range(2 * count)]
    for _ in range(count.bit_length() - 1):
        rows = [
            _lanes_of(emitter, rows[row], rows[row + half], order[start : start + count])
            for row in range(half)
            for start in (0, count)
        ]
    return rows


def _lanes_of(emitter: Emitter, left: Value, right: Value, order: range | list[int]) -> Value:
    return emitter.builder.shuffle_vector(left, right, lanes(list(order)))
