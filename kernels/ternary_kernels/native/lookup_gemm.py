"""TL1 and TL2 times many tokens: codes are decoded once, in cache, and multiplied by all tokens.

32 rows are decoded to a byte a weight, weight + 1, four columns of a row in 32 bits as dot products take them. So each
lane of a vector sums up a row of its own, and nothing is to be added up across lanes. The activations are put into the
order in which decoding is cheapest.
"""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from ternary_kernels.native.emit import (
    I8,
    I16,
    I32,
    POINTER,
    Build,
    Emitter,
    Value,
    Variable,
    fill,
    lanes,
    vector,
    zeros,
)
from ternary_kernels.native.isa import Isa
from ternary_kernels.native.lookup_codes import (
    CHUNK,
    GROUP,
    PAIRS,
    STEP,
    STEP_BYTES,
    TRIPLES,
    Argument,
    Code,
    Codes,
    Layout,
    Place,
    RunReader,
    every_byte,
    look_up,
    read_runs,
)
from ternary_kernels.native.lookup_gemv import scaled

_QUAD_BYTES = 4 * GROUP
"""Decoded weights of 32 rows and four columns."""
_SUMS_BYTES = 4 * GROUP
_DECODED_BYTES = 12 << 10
"""Decoded weights that all tokens are multiplied by before more are decoded: they stay in the level-1 cache."""
_BLOCKS_AHEAD = 4
"""How many column tiles before their use codes are asked for. At 2560 x 2560, cold, 4 tokens on a Xeon: 237, 208, 189,
193, 198 microseconds with 1, 2, 4, 6, 8."""
_WORD_ORDER = [(lane, word) for first in (0, 4) for lane in (0, 1) for word in range(first, first + 4)]
"""Lanes of 16 bytes and 16-bit words within them, in the order in which AVX2's unpacking leaves them."""
_ROW_VECTORS = 2
"""Vectors of rows of a register tile."""
_SPLIT = {1: 4, 2: 2, 3: 2}
"""Parts into which sums are split, by tokens of a register tile: few dot products would wait for each other."""


def many_tokens(held: Layout, tile_tokens: int) -> Build:
    """Kernel with register tiles of that many tokens. Each member prepares all activations for itself."""
    return lambda emitter: _ManyTokens(emitter, held, tile_tokens).write()


def tile_tokens(isa: Isa, m: int) -> int:
    """Tokens of a register tile: the fewest with which there are no more tiles than with the most that fit."""
    most = 12 if isa.registers >= 32 else 4
    return -(-m // -(-m // most))


def many_tokens_bytes(k_in: int, m: int, tile: int) -> int:
    """Scratch memory of a member: decoded weights; sums, prepared activations and their sum for each token."""
    return _DECODED_BYTES + -(-m // tile) * tile * (_SUMS_BYTES + k_in + 4)


def _plane_columns(codes: Codes) -> list[list[int]]:
    """Columns of the four bytes of each plane, counted from the first column that is decoded with them.

    ``_interleave`` puts four bytes of a row into 32 bits. Of triples they are those of a step, in their order. Of pairs
    each byte is of four columns: of two steps' first sets, and then of their second. A plane is two bits of each byte.
    """
    if codes.columns == 3:
        return [[3 * code + column for code in range(4)] for column in range(3)]
    return [[4 * byte + column for byte in (0, 2, 1, 3)] for column in range(4)]


class _ManyTokens:
    def __init__(self, emitter: Emitter, held: Layout, tile: int) -> None:
        self._emitter, self._layout, self._tile = emitter, held, tile
        self._tokens = emitter.argument(Argument.TOKENS)
        self._k_in = emitter.argument(Argument.K_IN)
        self._tiles = emitter.builder.udiv(emitter.add(self._tokens, tile - 1), emitter.index(tile))
        self._padded = emitter.mul(self._tiles, tile)
        self._tile_bytes = emitter.mul(self._k_in, tile)
        self._decoded = emitter.of_member(Argument.SCRATCH)
        self._sums = emitter.at(self._decoded, _DECODED_BYTES)
        self._prepared = emitter.at(self._sums, emitter.mul(self._padded, _SUMS_BYTES))
        self._corrections = emitter.at(self._prepared, emitter.mul(self._padded, self._k_in))
        self._runs = read_runs(emitter, held)

    def write(self) -> None:
        emitter, builder = self._emitter, self._emitter.builder
        first, last = emitter.share(emitter.argument(Argument.N_OUT), GROUP)
        tile_rows = emitter.argument(Argument.TILE_ROWS)
        groups = builder.udiv(tile_rows, emitter.index(GROUP))
        for run in self._runs:
            # The next column tile of the same rows lies behind the other rows of this one.
            run.ahead = emitter.mul(emitter.mul(run.steps, groups), _BLOCKS_AHEAD * STEP_BYTES)
        with emitter.when(first, "<", last):
            with emitter.loop(0, self._padded) as token:
                self._prepare(token)
            with emitter.loop(first, last, GROUP) as row:
                tile = builder.udiv(row, tile_rows)
                group = builder.udiv(builder.urem(row, tile_rows), emitter.index(GROUP))
                with emitter.loop(0, emitter.mul(self._padded, _SUMS_BYTES), STEP_BYTES) as at:
                    emitter.store(zeros(STEP), self._sums, at)
                prepared = self._prepared
                for run in self._runs:
                    prepared = self._multiply_run(run, tile, groups, group, prepared)
                with emitter.loop(0, self._tokens) as token:
                    self._store(row, token)

    def _multiply_run(self, run: RunReader, tile: Value, groups: Value, group: Value, prepared: Value) -> Value:
        """Add the products of a group of rows and a run's columns, and return where other runs' activations begin."""
        emitter, builder = self._emitter, self._emitter.builder
        block_quads = emitter.mul(run.steps, run.codes.step_columns // 4)
        chunk = builder.udiv(emitter.index(_DECODED_BYTES // _QUAD_BYTES), block_quads)
        with emitter.loop(0, run.blocks, chunk) as start:
            blocks = emitter.minimum(chunk, builder.sub(run.blocks, start))
            with emitter.loop(0, blocks) as block:
                place = run.place(tile, emitter.add(start, block), groups, group)
                decoded = emitter.mul(emitter.mul(block, block_quads), _QUAD_BYTES)
                self._decode(run, place, emitter.at(self._decoded, decoded))
            activations = emitter.at(prepared, emitter.mul(emitter.mul(start, block_quads), 4 * self._tile))
            quads = emitter.mul(blocks, block_quads)
            with emitter.loop(0, self._tiles) as token_tile:
                tile_activations = emitter.at(activations, emitter.mul(token_tile, self._tile_bytes))
                sums = emitter.at(self._sums, emitter.mul(token_tile, self._tile * _SUMS_BYTES))
                for part in range(0, _SUMS_BYTES, _ROW_VECTORS * emitter.isa.vector_bytes):
                    self._multiply(quads, part, tile_activations, sums)
        return emitter.at(prepared, emitter.mul(emitter.mul(run.blocks, block_quads), 4 * self._tile))

    # Activations -------------------------------------------------------------------------------------------------

    def _prepare(self, index: Value) -> None:
        """Put a token's activations where its register tile reads them, and add them up.

        The last tile may be larger than there are tokens: the last token fills it.
        """
        emitter, builder = self._emitter, self._emitter.builder
        token = emitter.minimum(index, emitter.add(self._tokens, -1))
        activations = emitter.at(emitter.argument(Argument.ACTIVATIONS, POINTER), emitter.mul(token, self._k_in))
        tile = builder.udiv(index, emitter.index(self._tile))
        place = emitter.mul(builder.urem(index, emitter.index(self._tile)), 4)
        prepared = emitter.at(self._prepared, emitter.add(emitter.mul(tile, self._tile_bytes), place))
        total = Variable(emitter, zeros(vector(I32, 16)))
        for run in self._runs:
            planes = _plane_columns(run.codes)
            columns = 4 * len(planes)
            zero = columns  # the first of the second vector that is shuffled
            order = [column for plane in planes for column in plane] + [zero] * (16 - columns)
            all_columns = emitter.mul(emitter.mul(run.blocks, run.steps), run.codes.step_columns)
            with emitter.loop(0, all_columns, columns) as column:
                part = emitter.load(vector(I8, columns), activations, emitter.add(run.column, column))
                ordered = builder.shuffle_vector(part, zeros(part.type), lanes(order))
                total.set(builder.add(total.get(), builder.sext(ordered, vector(I32, 16))))
                quads = builder.bitcast(ordered, vector(I32, 4))
                at = emitter.mul(column, self._tile)
                for plane in range(len(planes)):
                    quad = builder.extract_element(quads, I32(plane))
                    emitter.store(quad, prepared, emitter.add(at, plane * 4 * self._tile))
            prepared = emitter.at(prepared, emitter.mul(all_columns, self._tile))
        emitter.store(emitter.sum_lanes(total.get()), self._corrections, emitter.mul(index, 4))

    # Weights -----------------------------------------------------------------------------------------------------

    def _decode(self, run: RunReader, place: Place, decoded: Value) -> None:
        """Decode 32 rows of a column tile."""
        emitter = self._emitter
        decode = self._decode_triples if run.codes.columns == 3 else self._decode_pairs
        with emitter.loop(0, run.steps, CHUNK) as first:
            at = emitter.at(decoded, emitter.mul(first, run.codes.step_columns * GROUP))
            for offset, weights in enumerate(decode(run.chunk(place, first))):
                emitter.store(weights, at, offset * STEP_BYTES)

    def _decode_triples(self, steps: Sequence[tuple[Code, Code]]) -> list[Value]:
        emitter, builder = self._emitter, self._emitter.builder
        # Digits in base 4: 21 makes each of them weight + 1.
        digits = [sum(w << 2 * place for place, w in enumerate(weights)) for weights in TRIPLES.weights]
        signed = steps[0][0].signed
        table = self._constant_table([21 + w for w in digits] + [21 - w for w in digits] if signed else 2 * digits)
        found: list[Value] = []
        for codes in steps:
            packed = [look_up(emitter, table, code) for code in codes]
            if not signed:
                packed = [builder.add(part, every_byte(21)) for part in packed]
            found += self._planes(self._interleave(*packed), TRIPLES.columns)
        return found

    def _decode_pairs(self, steps: Sequence[tuple[Code, Code]]) -> list[Value]:
        builder = self._emitter.builder
        codes = [w[0] + 1 | w[1] + 1 << 2 for w in PAIRS.weights]
        tables = [self._constant_table([code << shift for code in codes] * 2) for shift in (0, 4)]
        packed = [
            builder.or_(*(look_up(self._emitter, table, code) for table, code in zip(tables, step, strict=True)))
            for step in steps
        ]
        found: list[Value] = []
        for first in range(0, CHUNK, 2):
            found += self._planes(self._interleave(*packed[first : first + 2]), 2 * PAIRS.columns)
        return found

    def _constant_table(self, values: Sequence[int]) -> Value:
        """Twice the same two tables of 16 bytes, in memory that doesn't change."""
        module = self._emitter.module
        table = ir.GlobalVariable(module, STEP, module.get_unique_name("table"))
        table.linkage, table.global_constant = "internal", True
        table.initializer = ir.Constant(STEP, [value & 255 for value in values] * 2)
        return table

    def _interleave(self, first: Value, second: Value) -> list[Value]:
        """Four bytes a row from two times 64: 32 bits of 32 rows; ``_byte_at`` says in which order."""
        builder = self._emitter.builder
        kind = vector(I16, GROUP)
        left, right = builder.bitcast(first, kind), builder.bitcast(second, kind)
        eight, low, high = (fill(I16, GROUP, value) for value in (8, 0x00FF, -0x100))
        # As shuffles LLVM would merge these with the next ones into many more instructions.
        even = builder.or_(builder.and_(left, low), builder.shl(right, eight))
        odd = builder.or_(builder.lshr(left, eight), builder.and_(right, high))
        order = lanes([8 * (lane + 2 * half) + word for lane, word in _WORD_ORDER for half in (0, 1)])
        return [builder.bitcast(builder.shuffle_vector(words, words, order), STEP) for words in (even, odd)]

    def _planes(self, packed: Sequence[Value], count: int) -> list[Value]:
        """The weights held in each two bits of packed bytes."""
        builder = self._emitter.builder
        return [
            builder.and_(builder.lshr(part, every_byte(2 * plane)), every_byte(3))
            for plane in range(count)
            for part in packed
        ]

    # Product -----------------------------------------------------------------------------------------------------

    def _multiply(self, quads: Value, part: int, activations: Value, sums: Value) -> None:
        """Add the products of a register tile, whose rows begin at byte ``part`` of each four columns' weights."""
        emitter, builder, isa = self._emitter, self._emitter.builder, self._emitter.isa
        sums_kind, bytes_kind = vector(I32, isa.floats), vector(I8, isa.vector_bytes)
        row_places = range(part, part + _ROW_VECTORS * isa.vector_bytes, isa.vector_bytes)
        places = [[token * _SUMS_BYTES + place for place in row_places] for token in range(self._tile)]
        split = _SPLIT.get(self._tile, 1)
        totals = [[[Variable(emitter, zeros(sums_kind)) for _ in rows] for rows in places] for _ in range(split)]
        with emitter.loop(0, quads, split) as first:
            for index, of_tokens in enumerate(totals):
                quad = emitter.add(first, index)
                rows = emitter.at(self._decoded, emitter.mul(quad, _QUAD_BYTES))
                weights = [emitter.load(bytes_kind, rows, place) for place in row_places]
                tokens = emitter.at(activations, emitter.mul(quad, 4 * self._tile))
                for token, of_rows in enumerate(of_tokens):
                    four = emitter.splat(emitter.load(I32, tokens, 4 * token), isa.floats)
                    for total, codes in zip(of_rows, weights, strict=True):
                        total.set(emitter.dot(total.get(), codes, builder.bitcast(four, bytes_kind)))
        for token, of_places in enumerate(places):
            for row, place in enumerate(of_places):
                whole = emitter.load(sums_kind, sums, place)
                for of_tokens in totals:
                    whole = builder.add(whole, of_tokens[token][row].get())
                emitter.store(whole, sums, place)

    def _store(self, row: Value, token: Value) -> None:
        """Scale a token's sums with 32 rows, and store them in the rows' order."""
        emitter, builder = self._emitter, self._emitter.builder
        sums = emitter.load(vector(I32, GROUP), self._sums, emitter.mul(token, _SUMS_BYTES))
        correction = emitter.load(I32, self._corrections, emitter.mul(token, 4))
        sums = builder.sub(sums, emitter.splat(correction, GROUP))
        order = lanes(sorted(range(GROUP), key=lambda place: self._layout.row_of_byte(_byte_at(place))))
        first = emitter.add(emitter.mul(token, emitter.argument(Argument.N_OUT)), row)
        ordered = builder.shuffle_vector(sums, sums, order)
        out = emitter.argument(Argument.OUT, POINTER)
        emitter.store(scaled(emitter, ordered, token), out, emitter.mul(first, 4))


def _byte_at(place: int) -> int:
    """Of the 32 bytes that are codes of 32 rows, the one that ``_interleave`` puts at a place."""
    lane, word = _WORD_ORDER[place % 16]
    return 16 * lane + 2 * word + place // 16
