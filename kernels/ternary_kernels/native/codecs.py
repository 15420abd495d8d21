"""How the stored rows of each format become vectors that can be multiplied.

A codec reads one *step* of a row: as many columns as are decoded together. Its *parts* are the vectors that come out,
each to be multiplied by the activations at the same place: bytes for a ternary format, float32 for the others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from ternary_kernels.native.emit import (
    F16,
    F32,
    I8,
    I16,
    I32,
    Emitter,
    Index,
    Value,
    fill,
    lanes,
    vector,
    zeros,
)
from ternary_kernels.native.isa import Isa


class Step(NamedTuple):
    """One step of one row, decoded.

    Attributes:
        parts: Vectors of the instruction set's width: bytes 0..2 (code = weight + 1), or float32 weights.
        scale: float32 factor of a ternary format's step; None: there is none.
    """

    parts: list[Value]
    scale: Value | None


class Codec(ABC):
    """Decodes one format for one instruction set.

    Args:
        isa: The instruction set.
        k_in: Columns of a row.

    Attributes:
        name: Of what it decodes to, for a module's name.
        integer: Whether parts are bytes, to be multiplied by int8 activations.
        step_bytes: Stored bytes of a step.
        step_columns: Columns of a step.
        row_bytes: Stored bytes of a row.
        steps: Whole steps in a row.
        tail: What a row has beyond them: bytes if ``integer``, else columns.
        scaled: Whether steps have scales, which is so for ternary formats only: float weights are scaled at once.
    """

    integer: ClassVar[bool]
    scaled: ClassVar[bool] = False
    most_few: ClassVar[int]
    """Most tokens for which decoding a row anew for every few of them is faster than decoding it to memory once.

    Measured with AVX-512 on one thread of a Xeon at 4096 x 2560 (I2_S: 6912 x 2560), time with decoding to memory over
    time without: I2_S 1.9 at 6 tokens, 1.4 at 16, 1.2 at 24; F16 1.4 at 16, 1.1 at 32, 0.6 at 256; Q8_0 1.2 at 32,
    0.9 at 64; Q6_K 1.1 at 8, 0.9 at 16.
    """

    def __init__(self, isa: Isa, k_in: int) -> None:
        self.isa = isa
        self.step_columns, self.step_bytes = self._step()
        self.steps, tail_columns = divmod(k_in, self.step_columns)
        self.tail = tail_columns * self.step_bytes // self.step_columns if self.integer else tail_columns
        self.row_bytes = self.steps * self.step_bytes + tail_columns * self.step_bytes // self.step_columns

    @property
    def part_columns(self) -> int:
        """Columns of a part."""
        return self.isa.vector_bytes if self.integer else self.isa.floats

    @property
    def name(self) -> str:
        """Which code it writes, beside the instruction set."""
        return "_".join(str(part) for part in (type(self).__name__.lower(), *self._variant()))

    def _variant(self) -> tuple[int, ...]:
        """What the code depends on beside the class."""
        return (self.tail,)

    @abstractmethod
    def _step(self) -> tuple[int, int]:
        """Columns and bytes of a step."""

    def decode(self, emitter: Emitter, row: Value, step: Index) -> Step:
        """Load and decode a step of a row."""
        return self._decode(emitter, row, emitter.mul(step, self.step_bytes))

    @abstractmethod
    def _decode(self, emitter: Emitter, row: Value, offset: Value) -> Step:
        """Decode the step at an offset in bytes."""


class TwoBit(Codec):
    """Four codes a byte, each in its own plane of two bits; a block's planes hold successive columns.

    Args:
        isa: The instruction set.
        k_in: Columns of a row.
        quarter: Columns that lie in one plane of a block: a quarter of the block.
    """

    integer = True
    most_few = 24
    shifts: ClassVar[tuple[int, ...]] = (6, 4, 2, 0)

    def __init__(self, isa: Isa, k_in: int, quarter: int) -> None:
        super().__init__(isa, k_in)
        self.quarter = quarter

    def _variant(self) -> tuple[int, ...]:
        return *super()._variant(), self.quarter

    def _step(self) -> tuple[int, int]:
        return 4 * self.isa.vector_bytes, self.isa.vector_bytes

    def _decode(self, emitter: Emitter, row: Value, offset: Value) -> Step:
        return Step(self._planes(emitter, emitter.load(vector(I8, self.isa.vector_bytes), row, offset)), None)

    def decode_tail(self, emitter: Emitter, row: Value) -> list[Value]:
        """Load and decode what a row has beyond whole steps, filled up with anything: activations are 0 there."""
        return self._planes(emitter, self.load_tail(emitter, row))

    def load_tail(self, emitter: Emitter, row: Value) -> Value:
        """Load the same as it is stored."""
        end = emitter.at(row, self.steps * self.step_bytes)
        return emitter.load_start(vector(I8, self.isa.vector_bytes), end, self.tail)

    def masked(self, emitter: Emitter, packed: Value) -> list[Value]:
        """The planes where they lie: part p holds codes shifted left by ``shifts[p]``."""
        return [emitter.builder.and_(packed, fill(I8, packed.type.count, 3 << shift)) for shift in self.shifts]

    def _planes(self, emitter: Emitter, packed: Value) -> list[Value]:
        builder, count = emitter.builder, packed.type.count
        words = builder.bitcast(packed, vector(I16, count // 2))  # there are no shifts of bytes
        return [
            builder.and_(
                builder.bitcast(builder.lshr(words, fill(I16, count // 2, shift)), packed.type) if shift else packed,
                fill(I8, count, 3),
            )
            for shift in self.shifts
        ]


class TQ2(TwoBit):
    """TQ2_0: 256 columns in 64 bytes, the first plane in the lowest bits, then their F16 scale."""

    scaled = True
    shifts = (0, 2, 4, 6)

    def __init__(self, isa: Isa, k_in: int) -> None:
        super().__init__(isa, k_in, 32)

    def _step(self) -> tuple[int, int]:
        return 256, 66

    def _decode(self, emitter: Emitter, row: Value, offset: Value) -> Step:
        width = self.isa.vector_bytes
        parts: list[Value] = []
        for first in range(0, 64, width):
            packed = emitter.load(vector(I8, width), row, emitter.add(offset, first))
            parts += self._planes(emitter, packed)
        return Step(parts, emitter.half_to_float(emitter.load(F16, row, emitter.add(offset, 64))))


class Half(Codec):
    """F16."""

    integer = False
    most_few = 32
    stored: ClassVar[Value] = F16
    _bytes: ClassVar[int] = 2

    def _step(self) -> tuple[int, int]:
        columns = 4 * self.isa.floats
        return columns, columns * self._bytes

    def _decode(self, emitter: Emitter, row: Value, offset: Value) -> Step:
        count = self.isa.floats
        return Step(
            [
                self._widen(
                    emitter,
                    emitter.load(vector(self.stored, count), row, emitter.add(offset, part * count * self._bytes)),
                )
                for part in range(4)
            ],
            None,
        )

    def decode_column(self, emitter: Emitter, row: Value, column: Index) -> Value:
        """One weight as float32."""
        return self._widen(emitter, emitter.load(self.stored, row, emitter.mul(column, self._bytes)))

    def _widen(self, emitter: Emitter, stored: Value) -> Value:
        return emitter.half_to_float(stored)


class Single(Half):
    """F32."""

    stored = F32
    _bytes = 4

    def _widen(self, emitter: Emitter, stored: Value) -> Value:  # noqa: ARG002 - nothing to do
        return stored


class Q8(Codec):
    """Q8_0: an F16 scale, then 32 signed bytes. Blocks are taken four at a time where a row has a multiple of four."""

    integer = False
    most_few = 32

    def __init__(self, isa: Isa, k_in: int) -> None:
        self._blocks = 4 if k_in % 128 == 0 else 1
        super().__init__(isa, k_in)

    def _variant(self) -> tuple[int, ...]:
        return (self._blocks,)

    def _step(self) -> tuple[int, int]:
        return 32 * self._blocks, 34 * self._blocks

    def _decode(self, emitter: Emitter, row: Value, offset: Value) -> Step:
        count = self.isa.floats
        parts = []
        for block in range(self._blocks):
            start = emitter.at(row, emitter.add(offset, 34 * block))
            scale = emitter.half_to_float(emitter.splat(emitter.load(F16, start), count))
            for first in range(0, 32, count):
                weights = _signed_to_float(emitter, emitter.load(vector(I8, count), start, 2 + first))
                parts.append(emitter.builder.fmul(weights, scale))
        return Step(parts, None)


class Q6(Codec):
    """Q6_K: 256 columns as 128 bytes of low halves, 64 of high pairs of bits, 16 signed scales, an F16 scale.

    Source: ggml, ggml-quants.c, dequantize_row_q6_K.
    """

    integer = False
    most_few = 8

    def _step(self) -> tuple[int, int]:
        return 256, 210

    def _decode(self, emitter: Emitter, row: Value, offset: Value) -> Step:
        builder, count = emitter.builder, self.isa.floats
        half = vector(I8, 32)
        start = emitter.at(row, offset)
        scale = emitter.half_to_float(emitter.splat(emitter.load(F16, start, 208), 16))
        scales = builder.fmul(_signed_to_float(emitter, emitter.load(vector(I8, 16), start, 192)), scale)
        parts: list[Value] = []
        for side in (0, 1):
            low = [emitter.load(half, start, 64 * side + first) for first in (0, 32)]
            high = emitter.load(half, start, 128 + 32 * side)
            for quarter in range(4):
                nibbles = low[quarter % 2]
                if quarter >= 2:
                    nibbles = builder.lshr(nibbles, fill(I8, 32, 4))
                else:
                    nibbles = builder.and_(nibbles, fill(I8, 32, 15))
                pair = builder.and_(builder.lshr(high, fill(I8, 32, 2 * quarter)), fill(I8, 32, 3))
                codes = builder.or_(nibbles, builder.shl(pair, fill(I8, 32, 4)))
                weights = builder.sub(codes, fill(I8, 32, 32))
                for first in range(0, 32, count):
                    piece = builder.shuffle_vector(weights, weights, lanes(list(range(first, first + count))))
                    group = 8 * side + 2 * quarter + first // 16
                    of_group = builder.shuffle_vector(scales, scales, lanes([group] * count))
                    parts.append(builder.fmul(_signed_to_float(emitter, piece), of_group))
        return Step(parts, None)


def _signed_to_float(emitter: Emitter, stored: Value) -> Value:
    count = stored.type.count
    return emitter.builder.sitofp(emitter.builder.sext(stored, vector(I32, count)), vector(F32, count))


def zero_sums(codec: Codec) -> Value:
    """Where sums of products start: lanes of the instruction set's width."""
    return zeros(vector(I32 if codec.integer and not codec.scaled else F32, codec.isa.floats))
