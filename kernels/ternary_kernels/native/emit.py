"""Writes the instructions of one compiled kernel: loops, vectors, and the operations instruction sets differ in.

A kernel is written as Python that runs once, while the kernel is built: a Python ``for`` unrolls, ``Emitter.loop``
makes a loop of the machine's. Values are LLVM's; i64 is the type of every index and size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

from ternary_kernels.native.isa import Isa

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F16, F32 = ir.HalfType(), ir.FloatType()
POINTER = ir.PointerType()

NEAR_BYTES, FAR_BYTES = 2 << 10, 10 << 10
"""How far ahead of a stream of reads its lines are asked for, into the level-1 and the level-2 cache."""

Value = Any
"""An LLVM value (llvmlite has no types for mypy)."""
Index = Any
"""An i64 value or a Python int."""


class Variable:
    """A value that changes as a kernel runs; LLVM keeps it in a register."""

    def __init__(self, emitter: Emitter, start: Value) -> None:
        self._emitter = emitter
        self._type = start.type
        with emitter.builder.goto_entry_block():
            self._slot = emitter.builder.alloca(start.type)
        self.set(start)

    def get(self) -> Value:
        """Its value now."""
        return self._emitter.builder.load(self._slot, typ=self._type)

    def set(self, value: Value) -> None:
        """Give it another value."""
        self._emitter.builder.store(value, self._slot)


class Emitter:
    """Writes one function ``void name(i64 *arguments, i64 member, i64 members)``.

    Args:
        module: Takes the function.
        name: Its name.
        isa: What it is compiled for.

    Attributes:
        builder: llvmlite's own, for what has no method here.
        arguments: Pointer to the arguments.
        nothing: What a call for its effect returns.
        member: Index of the calling member of the team.
        members: How many there are.
    """

    nothing = ir.VoidType()

    def __init__(self, module: ir.Module, name: str, isa: Isa) -> None:
        self.module = module
        self.isa = isa
        function = ir.Function(module, ir.FunctionType(self.nothing, [POINTER, I64, I64]), name)
        function.attributes.add("nounwind")
        self.arguments, self.member, self.members = function.args
        entry, body = function.append_basic_block("entry"), function.append_basic_block("body")
        self.builder = ir.IRBuilder(entry)
        self.builder.branch(body)
        self.builder.position_at_end(body)

    def finish(self) -> None:
        """End the function."""
        self.builder.ret_void()

    # Scalars ---------------------------------------------------------------------------------------------------

    def argument(self, index: int, kind: ir.Type = I64) -> Value:
        """The function's argument of that index: an i64, or a pointer or float32 held in one."""
        word = self.load(I64, self.arguments, 8 * index)
        if kind == POINTER:
            return self.builder.inttoptr(word, POINTER)
        if kind == F32:
            return self.builder.bitcast(self.builder.trunc(word, I32), F32)
        return word

    def of_member(self, first: int) -> Value:
        """This member's pointer among those that begin with the argument of index ``first``, one for each member."""
        word = self.load(I64, self.arguments, self.mul(self.add(self.member, first), 8))
        return self.builder.inttoptr(word, POINTER)

    def index(self, value: Index) -> Value:
        """An i64 from a Python int; an i64 as it is."""
        return ir.Constant(I64, value) if isinstance(value, int) else value

    def add(self, *values: Index) -> Value:
        """Sum of indices."""
        total = self.index(values[0])
        for value in values[1:]:
            total = self.builder.add(total, self.index(value))
        return total

    def mul(self, left: Index, right: Index) -> Value:
        """Product of indices."""
        return self.builder.mul(self.index(left), self.index(right))

    def minimum(self, left: Index, right: Index) -> Value:
        """The smaller index."""
        left, right = self.index(left), self.index(right)
        return self.builder.select(self.builder.icmp_signed("<", left, right), left, right)

    def share(self, total: Index, multiple: int = 1) -> tuple[Value, Value]:
        """This member's part ``[first, last)`` of ``total``, cut at multiples; see ``team.share``."""
        builder = self.builder
        units = builder.udiv(self.add(total, multiple - 1), self.index(multiple))
        ends = (
            builder.udiv(builder.mul(units, member), self.members)
            for member in (self.member, builder.add(self.member, self.index(1)))
        )
        first, last = (self.minimum(self.mul(end, multiple), total) for end in ends)
        return first, last

    # Control flow ----------------------------------------------------------------------------------------------

    @contextmanager
    def loop(self, start: Index, stop: Index, step: Index = 1) -> Iterator[Value]:
        """Repeat what is written in the ``with`` block for an index from ``start`` by ``step`` while below ``stop``."""
        builder = self.builder
        index = Variable(self, self.index(start))
        stop, step = self.index(stop), self.index(step)
        test, body, after = (builder.append_basic_block(name) for name in ("test", "loop", "after"))
        builder.branch(test)
        builder.position_at_end(test)
        builder.cbranch(builder.icmp_signed("<", index.get(), stop), body, after)
        builder.position_at_end(body)
        current = index.get()
        yield current
        index.set(builder.add(current, step))
        builder.branch(test)
        builder.position_at_end(after)

    @contextmanager
    def loop_while(self, holds: Callable[[], Value]) -> Iterator[None]:
        """Repeat what is written in the ``with`` block while the condition that ``holds`` writes is true."""
        builder = self.builder
        test, body, after = (builder.append_basic_block(name) for name in ("test", "loop", "after"))
        builder.branch(test)
        builder.position_at_end(test)
        builder.cbranch(holds(), body, after)
        builder.position_at_end(body)
        yield
        builder.branch(test)
        builder.position_at_end(after)

    @contextmanager
    def when(self, left: Index, comparison: str, right: Index) -> Iterator[None]:
        """Do what is written in the ``with`` block only if a signed comparison of indices holds."""
        with self.builder.if_then(self.builder.icmp_signed(comparison, self.index(left), self.index(right))):
            yield

    def pause(self) -> None:
        """Tell the core that this is a waiting loop."""
        if self.module.triple.startswith("x86"):
            self.call("llvm.x86.sse2.pause", self.nothing)
        elif self.module.triple.startswith("aarch64"):
            self.call("llvm.aarch64.hint", self.nothing, *constants(I32, 1))

    # Memory ----------------------------------------------------------------------------------------------------

    def at(self, pointer: Value, offset_bytes: Index) -> Value:
        """Pointer that many bytes further."""
        if isinstance(offset_bytes, int) and offset_bytes == 0:
            return pointer
        return self.builder.gep(pointer, [self.index(offset_bytes)], source_etype=I8)

    def load(self, kind: ir.Type, pointer: Value, offset_bytes: Index = 0) -> Value:
        """Load a scalar or vector from any address."""
        return self.builder.load(self.at(pointer, offset_bytes), align=1, typ=kind)

    def store(self, value: Value, pointer: Value, offset_bytes: Index = 0) -> None:
        """Store a scalar or vector to any address."""
        self.builder.store(value, self.at(pointer, offset_bytes), align=1)

    def load_start(self, kind: ir.VectorType, pointer: Value, size_bytes: int) -> Value:
        """Load a vector of bytes of which only the first ``size_bytes`` may be touched, the rest 0."""
        whole = kind.count
        if size_bytes == whole:
            return self.load(kind, pointer)
        part = self.load(vector(I8, size_bytes), pointer)
        zero = zeros(part.type)
        return self.builder.shuffle_vector(part, zero, lanes([min(lane, size_bytes) for lane in range(whole)]))

    def store_start(self, value: Value, pointer: Value, count: Value) -> None:
        """Store a vector's first ``count`` lanes; all of them if there are fewer."""
        whole = value.type.count
        numbers = ir.Constant(vector(I64, whole), list(range(whole)))
        mask = self.builder.icmp_signed("<", numbers, self.splat(count, whole))
        name = f"llvm.masked.store.{mangled(value.type)}.p0"
        self.call(name, self.nothing, value, pointer, *constants(I32, 1), mask)

    def prefetch(self, pointer: Value, offset_bytes: Index, level: int = 1) -> None:
        """Ask for a cache line, into the cache of that level."""
        self.call("llvm.prefetch.p0", self.nothing, self.at(pointer, offset_bytes), *constants(I32, 0, 4 - level, 1))

    def read_ahead(self, pointer: Value, offset_bytes: Index) -> None:
        """Ask for the cache lines that a stream of reads, now at an offset, will come to.

        Measured on a Xeon with AVX-512, one thread: 9 to 13 GB/s without, 15 with either, 16 with both; distances of
        0.5 to 6 KiB and of 4 to 32 KiB make no difference.
        """
        self.prefetch(pointer, self.add(offset_bytes, NEAR_BYTES), level=1)
        self.prefetch(pointer, self.add(offset_bytes, FAR_BYTES), level=2)

    # Vectors ---------------------------------------------------------------------------------------------------

    def call(self, name: str, result: ir.Type, *arguments: Value) -> Value:
        """Call an LLVM intrinsic or a function of the C library."""
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        function = self.module.globals.get(name) or ir.Function(self.module, kind, name)
        return self.builder.call(function, arguments)

    def splat(self, scalar: Value, count: int) -> Value:
        """A vector whose lanes all hold a scalar."""
        kind = vector(scalar.type, count)
        single = self.builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(I32, 0))
        return self.builder.shuffle_vector(single, ir.Constant(kind, ir.Undefined), lanes([0] * count))

    def half_to_float(self, half: Value) -> Value:
        """F16, a scalar or vector, to float32. Without hardware for it: exact, for finite numbers."""
        scalar = not isinstance(half.type, ir.VectorType)
        if self.isa.half:
            return self.builder.fpext(half, F32 if scalar else vector(F32, half.type.count))
        if scalar:
            return self.builder.extract_element(self.half_to_float(self.splat(half, 4)), ir.Constant(I32, 0))
        # The bits, sign-extended and moved up by 13, are a float32 whose exponent is 112 too small.
        count = half.type.count
        bits = self.builder.sext(self.builder.bitcast(half, vector(I16, count)), vector(I32, count))
        bits = self.builder.and_(self.builder.shl(bits, fill(I32, count, 13)), fill(I32, count, 0x8FFFE000))
        return self.builder.fmul(self.builder.bitcast(bits, vector(F32, count)), fill(F32, count, 2.0**112))

    def float_to_half(self, wide: Value) -> Value:
        """A vector of float32 to F16, to nearest, halves to even. Without hardware for it: of finite numbers."""
        count = wide.type.count
        if self.isa.half:
            return self.builder.fptrunc(wide, vector(F16, count))
        builder, kind = self.builder, vector(I32, count)

        def bits(pattern: int) -> Value:
            return fill(I32, count, pattern)

        pattern = builder.bitcast(wide, kind)
        size = builder.and_(pattern, bits(0x7FFFFFFF))
        sign = builder.and_(builder.lshr(pattern, bits(16)), bits(0x8000))
        # The exponent is 112 too large; what falls off rounds, to the even one where it is just a half.
        odd = builder.and_(builder.lshr(size, bits(13)), bits(1))
        rounded = builder.add(builder.sub(size, bits(112 << 23)), builder.add(bits(0xFFF), odd))
        normal = builder.lshr(rounded, bits(13))
        normal = builder.select(builder.icmp_unsigned("<", normal, bits(0x7C00)), normal, bits(0x7C00))
        # Below the smallest normal number: added to 0.5, whose lowest bit is worth the smallest F16, it is rounded.
        shifted = builder.fadd(builder.bitcast(size, wide.type), fill(F32, count, 0.5))
        subnormal = builder.sub(builder.bitcast(shifted, kind), bits(0x3F000000))
        is_normal = builder.icmp_unsigned(">=", size, bits(113 << 23))
        half = builder.or_(builder.select(is_normal, normal, subnormal), sign)
        return builder.bitcast(builder.trunc(half, vector(I16, count)), vector(F16, count))

    def multiply_add(self, left: Value, right: Value, total: Value) -> Value:
        """Left * right + total, in one rounding where the machine can."""
        return self.call(f"llvm.fmuladd.{mangled(left.type)}", left.type, left, right, total)

    def dot(self, total: Value, unsigned: Value, signed: Value) -> Value:
        """Add the products of bytes, four by four, to 32-bit lanes.

        Args:
            total: i32 lanes, a vector of the instruction set's width.
            unsigned: Bytes of 0..2 without VNNI, which would saturate; else of 0..255 (0..127 on Arm).
            signed: Bytes of -128..127.
        """
        builder, floats, whole = self.builder, self.isa.floats, self.isa.vector_bytes
        match self.isa.dot:
            case "vpdpbusd.512" | "vpdpbusd.256":
                # LLVM before 22 takes the bytes four by four as 32-bit lanes; later ones take both.
                words = (builder.bitcast(operand, total.type) for operand in (unsigned, signed))
                return self.call(f"llvm.x86.avx512.{self.isa.dot}", total.type, total, *words)
            case "pmaddubsw":
                pairs = self.call("llvm.x86.avx2.pmadd.ub.sw", vector(I16, whole // 2), unsigned, signed)
                ones = fill(I16, whole // 2, 1)
                return builder.add(total, self.call("llvm.x86.avx2.pmadd.wd", total.type, pairs, ones))
            case "sdot":
                return self.call("llvm.aarch64.neon.sdot.v4i32.v16i8", total.type, total, unsigned, signed)
            case "multiply":
                wide = vector(I16, whole)
                products = builder.mul(builder.zext(unsigned, wide), builder.sext(signed, wide))
                even, odd = (self._every(products, 2, first) for first in (0, 1))
                pairs = [builder.sext(half, vector(I32, whole // 2)) for half in (even, odd)]
                sums = builder.add(*pairs)
                first, second = (self._every(sums, 2, first) for first in (0, 1))
                assert first.type.count == floats
                return builder.add(total, builder.add(first, second))

    def _every(self, source: Value, step: int, first: int) -> Value:
        """Every ``step``-th lane from ``first``."""
        return self.builder.shuffle_vector(source, source, lanes(list(range(first, source.type.count, step))))

    def sum_lanes(self, lanes_: Value) -> Value:
        """Sum of a vector's lanes: exact for integers, pairwise for float32."""
        builder = self.builder
        add = builder.fadd if lanes_.type.element == F32 else builder.add
        while lanes_.type.count > 1:
            half = lanes_.type.count // 2
            low, high = (
                builder.shuffle_vector(lanes_, lanes_, lanes(list(range(first, first + half)))) for first in (0, half)
            )
            lanes_ = add(low, high)
        return builder.extract_element(lanes_, ir.Constant(I32, 0))


def vector(element: ir.Type, count: int) -> ir.VectorType:
    """Type of a vector."""
    return ir.VectorType(element, count)


def fill(element: ir.Type, count: int, value: float) -> Value:
    """A constant vector whose lanes all hold a number."""
    return ir.Constant(vector(element, count), [ir.Constant(element, value)] * count)


def zeros(kind: ir.Type) -> Value:
    """Zero of any type."""
    return ir.Constant(kind, None)


def constants(kind: ir.Type, *values: float) -> Sequence[Value]:
    """Scalars."""
    return [ir.Constant(kind, value) for value in values]


def lanes(order: list[int]) -> Value:
    """A shuffle's order."""
    return ir.Constant(vector(I32, len(order)), order)


def mangled(kind: ir.Type) -> str:
    """How the names of LLVM's overloaded intrinsics spell a type."""
    if isinstance(kind, ir.VectorType):
        return f"v{kind.count}{mangled(kind.element)}"
    return {F16: "f16", F32: "f32"}[kind] if kind in (F16, F32) else f"i{kind.width}"


Build = Callable[[Emitter], None]
"""Writes the body of one kernel."""
