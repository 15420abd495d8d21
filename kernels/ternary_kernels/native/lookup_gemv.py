"""TL1 and TL2 times few tokens: the sums that codes stand for are looked up in tables made of the activations.

A table's entries are sums of up to three activations, -384 to 384. Each is kept as two digits, 25 high + low, of which
eight of a kind add up within a byte: high ones are at most 15 in magnitude, low ones 12. So 64 codes are looked up and
added as bytes, and only every eighth time widened to 16 bits.
"""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from ternary_kernels.native.elementary import rescale
from ternary_kernels.native.emit import (
    F32,
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
from ternary_kernels.native.lookup_codes import (
    CHUNK,
    GROUP,
    STEP,
    STEP_BYTES,
    TABLE_BYTES,
    Argument,
    Layout,
    Place,
    RunReader,
    look_up,
    read_runs,
)

_BASE = 25
_INVERSE, _INVERSE_BITS = 41, 10
"""41 / 1024 is 1 / 25, nearly: times 384 it fits 16 bits, and rounding by it leaves no low digit above 12."""
_STEP_TABLES_BYTES = 4 * STEP_BYTES
"""Of a step: the low and the high digits of its first codes, and of its second codes."""
_HALF = GROUP // 2
_ENTRIES = vector(I16, TABLE_BYTES)
_WORDS = vector(I16, GROUP)
_SUMS = vector(I32, _HALF)
_SUMS_BYTES = 4 * _HALF


def few_tokens(held: Layout) -> Build:
    """Kernel that looks sums up token by token. Each member makes all tables: that takes less time than to agree."""
    return lambda emitter: _FewTokens(emitter, held).write()


def few_tokens_bytes(held: Layout, k_in: int, m: int) -> int:
    """Scratch memory of a member: sums of a tile's rows, and tables for each token."""
    return 4 * held.tile_rows + m * _token_bytes(k_in)


def _token_bytes(k_in: int) -> int:
    """Tables of one token, if all its columns were pairs."""
    return k_in // 8 * _STEP_TABLES_BYTES


class _FewTokens:
    def __init__(self, emitter: Emitter, held: Layout) -> None:
        self._emitter, self._layout = emitter, held
        self._tile_rows = emitter.argument(Argument.TILE_ROWS)
        self._tile_groups = emitter.builder.udiv(self._tile_rows, emitter.index(GROUP))
        self._tokens = emitter.argument(Argument.TOKENS)
        self._k_in = emitter.argument(Argument.K_IN)
        self._sums = emitter.of_member(Argument.SCRATCH)
        self._runs = read_runs(emitter, held)

    def write(self) -> None:
        emitter, builder = self._emitter, self._emitter.builder
        first, last = emitter.share(emitter.argument(Argument.N_OUT), GROUP)
        with emitter.when(first, "<", last):
            with emitter.loop(0, self._tokens) as token:
                self._make_tables(token)
            end = builder.udiv(emitter.add(last, self._tile_rows, -1), self._tile_rows)
            with emitter.loop(builder.udiv(first, self._tile_rows), end) as tile:
                start = emitter.mul(tile, self._tile_rows)
                # Rows of the tile that are this member's, counted within the tile.
                behind = builder.sub(first, start)
                begin = builder.select(builder.icmp_signed(">", behind, emitter.index(0)), behind, emitter.index(0))
                end = emitter.minimum(builder.sub(last, start), self._tile_rows)
                with emitter.loop(0, self._tokens) as token:
                    self._multiply(tile, begin, end, token)
                    self._store(start, begin, end, token)

    # Tables ------------------------------------------------------------------------------------------------------

    def _tables(self, token: Value) -> Value:
        emitter = self._emitter
        offset = emitter.mul(token, emitter.mul(self._k_in, _token_bytes(8) // 8))
        return emitter.at(self._sums, emitter.add(emitter.mul(self._tile_rows, 4), offset))

    def _make_tables(self, token: Value) -> None:
        emitter = self._emitter
        activations = emitter.at(emitter.argument(Argument.ACTIVATIONS, POINTER), emitter.mul(token, self._k_in))
        tables = self._tables(token)
        for run in self._runs:
            codes = run.codes
            factors = [ir.Constant(_ENTRIES, list(column)) for column in zip(*codes.weights, strict=True)]
            steps = emitter.mul(run.blocks, run.steps)
            with emitter.loop(0, steps) as step:
                columns = emitter.at(activations, emitter.add(run.column, emitter.mul(step, codes.step_columns)))
                step_tables = emitter.at(tables, emitter.mul(step, _STEP_TABLES_BYTES))
                # A byte's upper code, its lower code, and the same of the next set of columns.
                for index, (columns_set, which) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
                    for digit, entries in enumerate(self._digits(columns, index * codes.columns, factors)):
                        offset = (2 * which + digit) * STEP_BYTES + 2 * columns_set * TABLE_BYTES
                        other = emitter.builder.sub(zeros(entries.type), entries) if run.signed else entries
                        emitter.store(entries, step_tables, offset)
                        emitter.store(other, step_tables, offset + TABLE_BYTES)
            tables = emitter.at(tables, emitter.mul(steps, _STEP_TABLES_BYTES))

    def _digits(self, activations: Value, first: int, factors: Sequence[Value]) -> list[Value]:
        """Low and high digits of what each of 16 codes stands for, of the columns from ``first`` on."""
        emitter, builder = self._emitter, self._emitter.builder
        total = zeros(_ENTRIES)
        for column, factor in enumerate(factors, first):
            value = builder.sext(emitter.load(I8, activations, column), I16)
            total = builder.add(total, builder.mul(emitter.splat(value, TABLE_BYTES), factor))
        inverse, half, bits, base = (
            fill(I16, TABLE_BYTES, number) for number in (_INVERSE, 1 << _INVERSE_BITS - 1, _INVERSE_BITS, _BASE)
        )
        high = builder.ashr(builder.add(builder.mul(total, inverse), half), bits)
        low = builder.sub(total, builder.mul(high, base))
        return [builder.trunc(digit, vector(I8, TABLE_BYTES)) for digit in (low, high)]

    # Product -----------------------------------------------------------------------------------------------------

    def _multiply(self, tile: Value, begin: Value, end: Value, token: Value) -> None:
        """Sum up the products of a tile's rows ``[begin, end)`` and a token.

        Weights are read in the order in which they lie; a column tile's tables stay in the level-1 cache.
        """
        emitter = self._emitter
        with emitter.loop(begin, end, _HALF) as row:
            emitter.store(zeros(_SUMS), self._sums, emitter.mul(row, 4))
        tables = self._tables(token)
        for run in self._runs:
            block_bytes = emitter.mul(run.steps, _STEP_TABLES_BYTES)
            with emitter.loop(0, run.blocks) as block:
                block_tables = emitter.at(tables, emitter.mul(block, block_bytes))
                with emitter.loop(begin, end, GROUP) as row:
                    group = emitter.builder.udiv(row, emitter.index(GROUP))
                    place = run.place(tile, block, self._tile_groups, group)
                    self._add_products(run, place, block_tables, emitter.at(self._sums, emitter.mul(row, 4)))
            tables = emitter.at(tables, emitter.mul(run.blocks, block_bytes))

    def _add_products(self, run: RunReader, place: Place, tables: Value, sums: Value) -> None:
        """Add 32 rows' products with a column tile to their sums: 16 of the even bytes' rows, then 16 of the odd."""
        emitter, builder = self._emitter, self._emitter.builder
        even, odd = ([Variable(emitter, zeros(_WORDS)) for _ in ("low", "high")] for _ in ("even", "odd"))
        eight = fill(I16, GROUP, 8)
        with emitter.loop(0, run.steps, CHUNK) as first:
            chunk_tables = emitter.at(tables, emitter.mul(first, _STEP_TABLES_BYTES))
            totals = [zeros(STEP), zeros(STEP)]
            for step, codes in enumerate(run.chunk(place, first)):
                for which, code in enumerate(codes):
                    for digit in (0, 1):
                        offset = step * _STEP_TABLES_BYTES + (2 * which + digit) * STEP_BYTES
                        found = look_up(emitter, emitter.at(chunk_tables, offset), code)
                        totals[digit] = builder.add(totals[digit], found)
            for digit, total in enumerate(totals):
                words = builder.bitcast(total, _WORDS)
                even_bytes = builder.ashr(builder.shl(words, eight), eight)
                even[digit].set(builder.add(even[digit].get(), even_bytes))
                odd[digit].set(builder.add(odd[digit].get(), builder.ashr(words, eight)))
        # At most 16 steps of two codes: their sums and those of both sets of columns fit 16 bits.
        for index, (low, high) in enumerate((even, odd)):
            words = builder.add(low.get(), builder.mul(high.get(), fill(I16, GROUP, _BASE)))
            sets = (builder.shuffle_vector(words, words, lanes(list(range(at, at + _HALF)))) for at in (0, _HALF))
            wide = builder.sext(builder.add(*sets), _SUMS)
            emitter.store(builder.add(emitter.load(_SUMS, sums, index * _SUMS_BYTES), wide), sums, index * _SUMS_BYTES)

    def _store(self, start: Value, begin: Value, end: Value, token: Value) -> None:
        """Scale a tile's sums and store them in the rows' order."""
        emitter, builder = self._emitter, self._emitter.builder
        first = emitter.add(emitter.mul(token, emitter.argument(Argument.N_OUT)), start)
        out = emitter.at(emitter.argument(Argument.OUT, POINTER), emitter.mul(first, 4))
        bytes_ = sorted(range(GROUP), key=self._layout.row_of_byte)
        order = lanes([byte % 2 * _HALF + byte // 2 for byte in bytes_])
        with emitter.loop(begin, end, GROUP) as row:
            at = emitter.mul(row, 4)
            sums = emitter.load(vector(I32, GROUP), self._sums, at)
            emitter.store(scaled(emitter, builder.shuffle_vector(sums, sums, order), token), out, at)


def scaled(emitter: Emitter, sums: Value, token: Value) -> Value:
    """Sums of 32 rows as float32 / activation scale * weight scale."""
    scale = emitter.load(F32, emitter.argument(Argument.SCALES, POINTER), emitter.mul(token, 4))
    weights = emitter.argument(Argument.WEIGHTS, POINTER)
    weight_scale = emitter.load(F32, weights, emitter.argument(Argument.WEIGHT_SCALE))
    return rescale(emitter, sums, scale, weight_scale)
