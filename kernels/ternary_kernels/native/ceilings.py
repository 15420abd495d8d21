"""What the machine itself can do: read memory in a stream, and multiply numbers that are already in registers."""

from __future__ import annotations

from functools import cache, partial
from itertools import product
from typing import Literal

import numpy as np
from llvmlite import ir
from numpy.typing import NDArray

from ternary_kernels.memory import LINE_BYTES, aligned
from ternary_kernels.native import compiler
from ternary_kernels.native import isa as paths
from ternary_kernels.native.emit import F32, I8, I32, I64, POINTER, Build, Emitter, Variable, vector, zeros
from ternary_kernels.native.isa import Isa
from ternary_kernels.native.words import Words
from ternary_kernels.reference.ceilings import PEAK_SIZE
from ternary_kernels.team import Team

Kind = Literal["int8", "float32"]

arithmetic: Literal["int8"] = "int8"
"""What ``Peak`` multiplies unless told otherwise: what the products of ternary weights are made of."""

_READ_BYTES = 256  # of a turn of the loop
_SINK_WORDS = 8  # per member: one cache line
_STEPS = 32  # of the peak's operands, which stay in the level-1 cache


def read(team: Team, data: NDArray[np.uint8], isa: Isa | None = None) -> int:
    """Stream over all bytes once, shared among the team, and return the or of them all.

    Args:
        team: The threads.
        data: uint8, one-dimensional and contiguous.
        isa: Instruction set; None: the best of this machine.

    Raises:
        ValueError: Another dtype, rank or order.
    """
    if data.dtype != np.uint8 or data.ndim != 1 or not data.flags.c_contiguous:
        order = "" if data.flags.c_contiguous else "non-contiguous "
        raise ValueError(f"read: expected contiguous uint8 of rank 1, got {order}{data.dtype} of rank {data.ndim}")
    isa = isa or paths.best()
    words = Words(3)
    words.point(0, data)
    words[1] = data.size
    found = np.zeros(team.threads * _SINK_WORDS, np.int64)
    words.point(2, found)
    team.run_compiled(_kernel("read", isa), words.address)
    return int(np.bitwise_or.reduce(found.view(np.uint8)))


class Peak:
    """Multiply-adds as fast as the vector units can do them, on every member of a team.

    Each member does those of a product of m tokens with an n_out x k_in matrix, its operands in registers and in the
    level-1 cache. (The peak of AMX tiles would be another ``kind``.)

    Args:
        team: The threads.
        size: m, n_out and k_in; their product is rounded up to whole turns of the loop.
        kind: int8: products of bytes, added to 32-bit sums as matrix products do; float32: fused multiply-add.
        isa: Instruction set; None: the best of this machine.

    Attributes:
        operations: Of one call, all members together; a multiplication and an addition are two.
        sums: Shape (threads,), uint32 or float32: what each member's products added up to in the last call. All
            operands are 1, so that is how many they were, modulo 2^32 or as far as float32 counts.
    """

    def __init__(
        self, team: Team, size: tuple[int, int, int] = PEAK_SIZE, kind: Kind = arithmetic, isa: Isa | None = None
    ) -> None:
        if kind not in ("int8", "float32"):
            raise ValueError(f"peak: expected int8 or float32, got {kind!r}")
        if min(size) < 1:
            raise ValueError(f"peak: expected a positive m, n_out and k_in, got {size}")
        isa = isa or paths.best()
        multiply_adds = int(np.prod(size))
        self.operations = 2 * multiply_adds * team.threads
        self._team = team
        self._kernel = _kernel(kind, isa)
        per_vector = isa.vector_bytes if kind == "int8" else isa.floats
        fixed, changing = _tile(isa)
        turns = -(-multiply_adds // (per_vector * fixed * changing * _STEPS))
        # 0..2, as ternary weights are: instruction sets without a dot product of bytes saturate above.
        size_bytes = (fixed + changing * _STEPS) * isa.vector_bytes
        operands = aligned(size_bytes)
        operands.view(np.int8 if kind == "int8" else np.float32)[:] = 1
        self._words = Words(3)
        self._words.point(0, operands)
        self._words[1] = turns
        found = np.zeros((team.threads, _SINK_WORDS), np.int64)
        self._words.point(2, found)
        self.sums = found.view(np.uint32 if kind == "int8" else np.float32)[:, 0]

    def __call__(self) -> None:
        """Run once."""
        self._team.run_compiled(self._kernel, self._words.address)


@cache
def _kernel(name: str, isa: Isa) -> int:
    return compiler.load("ceilings", KERNELS, isa)[name]


def _tile(isa: Isa) -> tuple[int, int]:
    """Operands that stay and operands that change: their products are sums enough to hide an addition's latency."""
    return (4, 5) if isa.registers >= 32 else (2, 5)


def _build_read(emitter: Emitter) -> None:
    """Or all bytes of the member's share together."""
    e, builder = emitter, emitter.builder
    whole = e.isa.vector_bytes
    kind = vector(I64, whole // 8)
    data = e.argument(0, POINTER)
    first, last = e.share(e.argument(1), LINE_BYTES)
    held = [Variable(e, zeros(kind)) for _ in range(_READ_BYTES // whole)]
    bulk = e.add(first, builder.and_(builder.sub(last, first), e.index(-_READ_BYTES)))
    with e.loop(first, bulk, _READ_BYTES) as offset:
        for start in range(0, _READ_BYTES, LINE_BYTES):
            e.read_ahead(data, e.add(offset, start))
        for index, variable in enumerate(held):
            variable.set(builder.or_(variable.get(), e.load(kind, data, e.add(offset, index * whole))))
    rest = Variable(e, e.index(0))
    with e.loop(bulk, last) as offset:
        rest.set(builder.or_(rest.get(), builder.zext(e.load(I8, data, offset), I64)))
    found = held[0].get()
    for variable in held[1:]:
        found = builder.or_(found, variable.get())
    for lane in range(kind.count):
        rest.set(builder.or_(rest.get(), builder.extract_element(found, ir.Constant(I32, lane))))
    e.store(rest.get(), e.argument(2, POINTER), e.mul(e.member, 8 * _SINK_WORDS))


def _build_peak(kind: Kind, emitter: Emitter) -> None:
    """Multiply what stays in registers with what is loaded anew in every step, so that no step can be left out."""
    e, isa = emitter, emitter.isa
    whole = isa.vector_bytes
    fixed, changing = _tile(isa)
    operand = vector(I8, whole) if kind == "int8" else vector(F32, isa.floats)
    total = vector(I32, isa.floats) if kind == "int8" else operand
    operands = e.argument(0, POINTER)
    held = [e.load(operand, operands, index * whole) for index in range(fixed)]
    sums = [Variable(e, zeros(total)) for _ in range(fixed * changing)]
    step_bytes = changing * whole
    with e.loop(0, e.argument(1)), e.loop(fixed * whole, fixed * whole + _STEPS * step_bytes, step_bytes) as offset:
        loaded = [e.load(operand, operands, e.add(offset, index * whole)) for index in range(changing)]
        for variable, (left, right) in zip(sums, product(held, loaded), strict=True):
            variable.set(
                e.dot(variable.get(), left, right) if kind == "int8" else e.multiply_add(left, right, variable.get())
            )
    found = sums[0].get()
    for variable in sums[1:]:
        found = (e.builder.add if kind == "int8" else e.builder.fadd)(found, variable.get())
    result = e.builder.bitcast(e.sum_lanes(found), I32)
    e.store(result, e.argument(2, POINTER), e.mul(e.member, 8 * _SINK_WORDS))


KERNELS: dict[str, Build] = {
    "read": _build_read,
    "int8": partial(_build_peak, "int8"),
    "float32": partial(_build_peak, "float32"),
}
"""What writes each kernel."""
