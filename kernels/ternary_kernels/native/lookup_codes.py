"""What look-up and decoding of TL1 and TL2 share: where codes lie, and how they index tables of 16 bytes.

Whatever the machine's vectors, a step is 64 bytes: the codes of 32 rows for a set of columns (bytes 0-31), and those of
the same rows for the next set (bytes 32-63). A byte holds two codes, first the upper four bits. A code stands for three
columns (TL2's triples, whose signs lie elsewhere) or for two. LLVM splits such vectors into the machine's registers.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum, auto
from itertools import product
from typing import Literal, NamedTuple

from llvmlite import ir

from ternary_kernels.formats.lookup import tl1_tiles, tl2_tiles
from ternary_kernels.native.emit import I8, I64, POINTER, Emitter, Value, fill, lanes, vector, zeros

GROUP = 32
"""Rows of a step."""
STEP_BYTES = 64
STEP = vector(I8, STEP_BYTES)
TABLE_BYTES = 16
CHUNK = 4
"""Steps written out one after the other: all tiles have a multiple of them."""
_EIGHTS = vector(I64, STEP_BYTES // 8)
_PREFETCH_BYTES = 3072
"""How far ahead of their use codes are asked for. TL2 at 2560 x 6912, cold on a Xeon: 15.0, 15.3, 15.8, 15.3, 15.8 GB/s
with 1536, 2048, 3072, 4096, 6144 bytes."""


class Run(NamedTuple):
    """A run of codes in a matrix, as kernels are told when they run.

    Attributes:
        offset: Byte at which it begins.
        signs: Byte at which its signs begin; of no meaning for pairs.
        column: Its first column.
        blocks: Column tiles.
        steps: Steps of 32 rows of a column tile.
    """

    offset: int
    signs: int
    column: int
    blocks: int
    steps: int


class Codes(NamedTuple):
    """What the codes of a run mean and how they lie: kernels are compiled for it.

    Attributes:
        columns: Columns a code stands for: 3, with a sign beside it, or 2.
        order: Where a step's 64 bytes lie: ``together`` as they are; ``crossed`` with the second and third 16 bytes
            exchanged; ``apart`` in two halves, after each of which come as many bytes of 32 other rows.
    """

    columns: int
    order: Literal["together", "crossed", "apart"]

    @property
    def step_columns(self) -> int:
        """Columns of a step."""
        return 4 * self.columns

    @property
    def weights(self) -> list[tuple[int, ...]]:
        """The weights that each of 16 codes stands for; zeros where there is no such code."""
        known = list(product((-1, 0, 1), repeat=self.columns))
        if self.columns == 3:
            known = known[len(known) // 2 :]  # codes are magnitudes
        return known + [(0,) * self.columns] * (TABLE_BYTES - len(known))


TRIPLES = Codes(3, "together")
PAIRS = Codes(2, "together")


class Layout(NamedTuple):
    """Where the codes of a matrix lie.

    Attributes:
        name: Of what kernels are compiled for: ``codes`` and ``row_order``.
        codes: Of each run.
        runs: One or two.
        tile_rows: Rows of a tile.
        row_order: Of each eight bytes of 32, the row in the group that the first one is of.
    """

    name: str
    codes: tuple[Codes, ...]
    runs: tuple[Run, ...]
    tile_rows: int
    row_order: tuple[int, ...]

    def row_of_byte(self, byte: int) -> int:
        """Row of a group whose codes a byte of 32 holds."""
        return self.row_order[byte // 8] + byte % 8


def layout(format_name: str, n_out: int, k_in: int) -> Layout:
    """Where the codes of a TL1 or TL2 matrix lie; see ``formats.lookup``."""
    if format_name == "TL1":
        rows, columns, group = tl1_tiles(n_out, k_in)
        codes = Codes(2, "crossed" if group == GROUP else "apart")
        run = Run(0, 0, 0, k_in // columns, columns // codes.step_columns)
        return Layout(f"tl1_{group}", (codes,), (run,), rows, (0, 8, 16, 24))
    rows, columns, _ = tl2_tiles(n_out, k_in)
    paired = k_in % columns
    tripled = k_in - paired
    signs = n_out * tripled // 6
    runs = (
        Run(0, signs, 0, tripled // columns, columns // TRIPLES.step_columns),
        Run(signs + n_out * tripled // 24, 0, tripled, paired // GROUP, GROUP // PAIRS.step_columns),
    )
    return Layout("tl2", (TRIPLES, PAIRS), runs, rows, (0, 16, 8, 24))


class Argument(IntEnum):
    """Words of a kernel's arguments."""

    ACTIVATIONS = 0
    SCALES = auto()
    WEIGHTS = auto()
    WEIGHT_SCALE = auto()
    """At which byte of the weights it lies."""
    OUT = auto()
    N_OUT = auto()
    K_IN = auto()
    TOKENS = auto()
    TILE_ROWS = auto()
    RUNS = 9
    """Two, one after the other."""
    SCRATCH = RUNS + 2 * len(Run._fields)
    """Of member 0; the others' follow."""


class Code(NamedTuple):
    """64 codes, ready to be looked up.

    Attributes:
        index: Bytes of 0..15; if ``signed``, bytes whose lower six bits index 64.
        negative: Bytes whose top bit says whether to negate what is found; None: no code has a sign, or all have
            theirs in the index.
        signed: Whether the index includes the sign, and which of the two sets of columns the byte is of.
    """

    index: Value
    negative: Value | None
    signed: bool


class Place(NamedTuple):
    """Where the codes of 32 rows and a column tile begin, and where their signs do."""

    codes: Value
    signs: Value


class RunReader:
    """Reads a run's codes within a kernel.

    Args:
        emitter: Writes the kernel.
        codes: What lies there.
        first_argument: Index of the arguments that hold its ``Run``.

    Attributes:
        codes: What lies there.
        signed: Whether its codes are looked up together with their signs.
        column: As of ``Run``; so are ``blocks`` and ``steps``.
        ahead: How many bytes before their use codes are asked for.
    """

    def __init__(self, emitter: Emitter, codes: Codes, first_argument: int) -> None:
        self._emitter = emitter
        self.codes = codes
        self.signed = codes.columns == 3 and "avx512vbmi" in emitter.isa.features
        self._weights = emitter.argument(Argument.WEIGHTS, POINTER)
        self._offset, self._signs, self.column, self.blocks, self.steps = (
            emitter.argument(first_argument + index) for index in range(len(Run._fields))
        )
        self.ahead = emitter.index(_PREFETCH_BYTES)

    def place(self, tile: Value, block: Value, tile_groups: Value, group: Value) -> Place:
        """Where a group of 32 rows, counted within its row tile, begins in a column tile."""
        emitter, builder = self._emitter, self._emitter.builder
        index = emitter.add(emitter.mul(emitter.add(emitter.mul(tile, self.blocks), block), tile_groups), group)
        steps = emitter.mul(index, self.steps)
        offset = emitter.mul(steps, STEP_BYTES)
        if self.codes.order == "apart":
            odd = builder.and_(index, emitter.index(1))
            back = builder.sub(emitter.mul(self.steps, STEP_BYTES), emitter.index(GROUP))
            offset = builder.sub(offset, emitter.mul(odd, back))
        return Place(
            emitter.at(self._weights, emitter.add(self._offset, offset)),
            emitter.at(self._weights, emitter.add(self._signs, emitter.mul(steps, STEP_BYTES // 4))),
        )

    def chunk(self, place: Place, first: Value) -> list[tuple[Code, Code]]:
        """Read ``CHUNK`` steps from step ``first``: of each its first and its second codes."""
        emitter, builder = self._emitter, self._emitter.builder
        signs = emitter.at(place.signs, emitter.mul(first, STEP_BYTES // 4))
        if self.codes.columns == 3:
            emitter.prefetch(signs, builder.udiv(self.ahead, emitter.index(4)))
        found = []
        for step in range(CHUNK):
            packed = self._load(place.codes, emitter.add(first, step))
            upper, lower = builder.lshr(packed, every_byte(4)), builder.and_(packed, every_byte(15))
            if self.codes.columns == 2:
                found.append((Code(upper, None, False), Code(lower, None, False)))
            elif self.signed:
                bits = [builder.and_(bits, every_byte(0xF0)) for bits in self._rotated_signs(signs, step)]
                first_index, second_index = builder.or_(upper, bits[0]), builder.or_(lower, bits[1])
                found.append((Code(first_index, None, True), Code(second_index, None, True)))
            else:
                of_first, of_second = self._shifted_signs(signs, step)
                found.append((Code(upper, of_first, False), Code(lower, of_second, False)))
        return found

    def _load(self, start: Value, step: Value) -> Value:
        emitter, builder = self._emitter, self._emitter.builder
        if self.codes.order == "apart":
            offset = emitter.mul(step, 2 * STEP_BYTES)
            offsets = [offset, emitter.add(offset, STEP_BYTES)]
            for each in offsets:
                emitter.prefetch(start, emitter.add(each, self.ahead))
            halves = [emitter.load(vector(I8, GROUP), start, each) for each in offsets]
            return builder.shuffle_vector(*halves, lanes(list(range(STEP_BYTES))))
        offset = emitter.mul(step, STEP_BYTES)
        emitter.prefetch(start, emitter.add(offset, self.ahead))
        packed = emitter.load(STEP, start, offset)
        if self.codes.order == "crossed":
            order = [first + lane for first in (0, 32, 16, 48) for lane in range(16)]
            packed = builder.shuffle_vector(packed, packed, lanes(order))
        return packed

    def _spread_signs(self, signs: Value, step: int) -> Value:
        """The bytes that hold the signs of a step's codes, as a vector of eight times eight.

        32 bytes of signs serve two steps, which are four triples i a row each. Word j of 16 bits holds those of row j
        in bits 15 - 2 i, and those of row 16 + j in bits 14 - 2 i. Of each 16 bytes of codes the first eight are of
        rows below 16, the others of the rows 16 further: they need the same bytes, moved by one bit more.
        """
        builder = self._emitter.builder
        words = self._emitter.load(vector(I8, GROUP), signs, step // 2 * GROUP)
        upper = 1 - step % 2
        order = [lane % GROUP // 16 * 16 + lane % 8 * 2 + upper for lane in range(STEP_BYTES)]
        return builder.shuffle_vector(words, words, lanes(order))

    def _shifted_signs(self, signs: Value, step: int) -> list[Value]:
        """The signs of a step's first and second codes as the top bits of bytes."""
        builder = self._emitter.builder
        spread = builder.bitcast(self._spread_signs(signs, step), _EIGHTS)
        moves = [[first, first + 1] * 2 + [first + 4, first + 5] * 2 for first in (0, 2)]
        return [builder.bitcast(builder.shl(spread, ir.Constant(_EIGHTS, move)), STEP) for move in moves]

    def _rotated_signs(self, signs: Value, step: int) -> list[Value]:
        """The same as bit 4 of bytes whose bit 5 says which set of columns they are of.

        What becomes bit 5 is the sign of a code that lies in another byte, so it can be overwritten before.
        """
        emitter, builder = self._emitter, self._emitter.builder
        keep, put = (
            ir.Constant(STEP, [byte for pair in (bytes_[:2] * 2, bytes_[2:] * 2) for byte in pair for _ in range(8)])
            for bytes_ in ([0xA0, 0x50, 0x0A, 0x05], [0x00, 0x00, 0x14, 0x0A])
        )
        spread = builder.bitcast(builder.or_(builder.and_(self._spread_signs(signs, step), keep), put), _EIGHTS)
        moves = ([61, 62, 61, 62, 1, 2, 1, 2], [63, 0, 63, 0, 3, 4, 3, 4])
        rotated = (
            emitter.call("llvm.fshl.v8i64", _EIGHTS, spread, spread, ir.Constant(_EIGHTS, move)) for move in moves
        )
        return [builder.bitcast(each, STEP) for each in rotated]


def read_runs(emitter: Emitter, held: Layout) -> list[RunReader]:
    """Readers of a matrix' runs."""
    return [
        RunReader(emitter, codes, Argument.RUNS + index * len(Run._fields)) for index, codes in enumerate(held.codes)
    ]


def look_up(emitter: Emitter, table: Value, code: Code) -> Value:
    """What tables hold for 64 codes.

    Args:
        emitter: Writes the kernel.
        table: Pointer to four tables of 16 bytes, each for 16 codes. For signed codes two times two, each pair for 32
            codes: as they are, and negated.
        code: The codes.
    """
    if code.signed:
        return emitter.call("llvm.x86.avx512.permvar.qi.512", STEP, emitter.load(STEP, table), code.index)
    found = _look_up_unsigned(emitter, table, code.index)
    return found if code.negative is None else _negate_where(emitter, found, code.negative)


def _look_up_unsigned(emitter: Emitter, table: Value, index: Value) -> Value:
    match emitter.isa.vector_bytes, emitter.isa.dot:
        case 64, _:
            name = "llvm.x86.avx512.pshuf.b.512"
        case 32, _:
            name = "llvm.x86.avx2.pshuf.b"
        case _, "sdot":
            name = "llvm.aarch64.neon.tbl1.v16i8"
        case _:
            return _look_up_singly(emitter, table, index)

    def shuffle(first: int, part: Value) -> Value:
        return emitter.call(name, part.type, emitter.load(part.type, table, first), part)

    return _each_register(emitter, shuffle, index)


def _look_up_singly(emitter: Emitter, table: Value, index: Value) -> Value:
    """The same byte by byte, through memory."""
    builder = emitter.builder
    with builder.goto_entry_block():
        slot = builder.alloca(STEP)
    # Only so does llvmlite forget what the pointer points to.
    bytes_ = builder.inttoptr(builder.ptrtoint(slot, I64), POINTER)
    emitter.store(index, bytes_)
    with emitter.loop(0, STEP_BYTES) as lane:
        code = builder.zext(emitter.load(I8, bytes_, lane), I64)
        own_table = builder.and_(lane, emitter.index(-TABLE_BYTES))
        emitter.store(emitter.load(I8, table, emitter.add(own_table, code)), bytes_, lane)
    return emitter.load(STEP, bytes_)


def _negate_where(emitter: Emitter, values: Value, negative: Value) -> Value:
    """Negate bytes where others have their top bit set."""
    builder = emitter.builder
    if emitter.isa.vector_bytes == 32:

        def negate(_: int, part: Value, signs: Value) -> Value:
            return emitter.call("llvm.x86.avx2.psign.b", part.type, part, signs)

        return _each_register(emitter, negate, values, builder.or_(negative, every_byte(1)))
    return builder.select(builder.icmp_signed("<", negative, zeros(STEP)), builder.sub(zeros(STEP), values), values)


def _each_register(emitter: Emitter, operate: Callable[..., Value], *operands: Value) -> Value:
    """Call ``operate(first byte, parts...)`` for parts of 64-byte operands that fit registers, and join the results."""
    builder, width = emitter.builder, emitter.isa.vector_bytes
    done = []
    for first in range(0, STEP_BYTES, width):
        part = lanes(list(range(first, first + width)))
        done.append(operate(first, *(builder.shuffle_vector(operand, operand, part) for operand in operands)))
    while len(done) > 1:
        joined = lanes(list(range(2 * done[0].type.count)))
        done = [builder.shuffle_vector(*done[pair : pair + 2], joined) for pair in range(0, len(done), 2)]
    return done[0]


def every_byte(value: int) -> Value:
    """A step's vector whose bytes all hold a number."""
    return fill(I8, STEP_BYTES, value)
