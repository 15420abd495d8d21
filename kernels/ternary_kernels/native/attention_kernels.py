"""The two kinds of compiled attention: one new token, bound by memory, and many, bound by arithmetic."""

from __future__ import annotations

from ternary_kernels.memory import LINE_BYTES
from ternary_kernels.native import elementary
from ternary_kernels.native.attention_units import KEYS, ROW_MULTIPLE, Units, part_of
from ternary_kernels.native.emit import (
    F16,
    F32,
    FAR_BYTES,
    I64,
    NEAR_BYTES,
    Build,
    Emitter,
    Index,
    Value,
    Variable,
    vector,
    zeros,
)

_VALUES_AT_ONCE = 16


def kernel(group: int, head_dim: int, *, decode: bool) -> tuple[str, Build]:
    """Name and builder of the kernel for a geometry.

    Args:
        group: Query heads per KV head.
        head_dim: Elements per head.
        decode: For one new token; else for any number.
    """
    kind = Decode if decode else Prefill

    def build(emitter: Emitter) -> None:
        kind(emitter, group, head_dim).build()

    return f"attention-{kind.__name__.lower()}-{group}-{head_dim}", build


class Decode(Units):
    """One new token: keys and values are used as they come from memory, by all rows of the group at once.

    A score is a dot product along the head's dimensions; a tile of rows by keys shares the loads, and the tile's sums
    are added up together.
    """

    def build(self) -> None:
        """Write it."""
        self.sums_at_once = 16 if self.isa.registers >= 32 else 8
        super().build()

    def score(self, start: Value, count: Value) -> None:
        """Dot products, a tile of rows and keys at a time."""
        e, builder = self.emitter, self.builder
        first = e.at(self.keys, e.mul(start, self.half_bytes))
        for row, end in self.row_tiles:
            at_once = min(1 << ((self.sums_at_once // (end - row)).bit_length() - 1), self.floats)
            whole = builder.and_(count, e.index(-at_once))
            with e.loop(0, whole, at_once) as key:
                self._score_tile(first, row, end, key, at_once)
            with e.loop(whole, count) as key:
                self._score_tile(first, row, end, key, 1)

    def _score_tile(self, first: Value, row: int, end: int, key: Value, keys: int) -> None:
        e = self.emitter
        source = e.at(first, e.mul(key, self.half_bytes))
        ahead = self._ahead(source, self.keys)
        rows = range(row, end)
        sums = [[Variable(e, zeros(vector(F32, self.floats))) for _ in range(keys)] for _ in rows]

        def add(start: Index, count: int) -> None:
            if row == 0:
                self._prefetch(e.at(source, e.mul(start, 2 * keys)), 2 * keys * count, ahead)
            columns = [self.load(F16, e.at(source, index * self.half_bytes), start, count) for index in range(keys)]
            for in_row, totals in zip(rows, sums, strict=True):
                query = e.load(columns[0].type, e.at(self.query, in_row * self.row_bytes), e.mul(start, 4))
                for column, total in zip(columns, totals, strict=True):
                    total.set(e.multiply_add(query, column, total.get()))

        whole = self.head_dim // self.floats * self.floats
        with e.loop(0, whole, self.floats) as start:
            add(start, self.floats)
        if whole < self.head_dim:
            add(whole, self.head_dim - whole)
        # As many rows together as their sums fill a vector.
        together = max(self.floats // keys, 1)
        for chunk in range(0, len(rows), together):
            totals = [total.get() for row_sums in sums[chunk : chunk + together] for total in row_sums]
            scores = elementary.sums_of(e, totals)
            for index, in_row in enumerate(rows[chunk : chunk + together]):
                found = part_of(e, scores, index * keys, keys)
                e.store(found, e.at(self.scores, e.mul(e.add(key, in_row * KEYS), 4)))

    def mix(self, start: Value, count: Value) -> None:
        """Weighted values, a few keys at a time."""
        e = self.emitter
        self.scale(e.index(self.group))
        # The tiles of a row pass over a few values at a time, so that these are read nearly in a stream.
        with e.loop(0, count, _VALUES_AT_ONCE) as passed:
            some = e.minimum(_VALUES_AT_ONCE, self.builder.sub(count, passed))
            first = e.at(self.values, e.mul(e.add(start, passed), self.half_bytes))
            ahead = self._ahead(first, self.values)
            for row, end in self.row_tiles:
                at_once = max(self.sums_at_once // (end - row), 1)
                for tile in range(0, len(self.chunks), at_once):
                    chunks = self.chunks[tile : tile + at_once]

                    def values(term: Value, chunks: list[tuple[int, int]] = chunks, row: int = row) -> list[Value]:
                        source = e.at(first, e.mul(term, self.half_bytes))
                        if row == 0:
                            size_bytes = 2 * sum(size for _, size in chunks)
                            done = e.add(e.mul(some, 2 * chunks[0][0]), e.mul(term, size_bytes))
                            self._prefetch(e.at(first, done), size_bytes, ahead)
                        return [self.load(F16, source, *chunk) for chunk in chunks]

                    self.mix_tile(e.index(row), end - row, chunks[0][0], len(chunks), values, passed, some)

    def _ahead(self, source: Value, head: Value) -> list[Value]:
        """How far ahead of a read to ask for lines: past the head's last token, where the next head begins.

        The slots between would only take the memory's time.
        """
        e, builder = self.emitter, self.builder
        end = builder.ptrtoint(e.at(head, e.mul(self.tokens, self.half_bytes)), I64)
        unused = e.mul(builder.sub(self.capacity, self.tokens), self.half_bytes)
        left = builder.sub(end, builder.ptrtoint(source, I64))
        return [
            builder.select(
                builder.icmp_signed("<", left, e.index(distance)), e.add(unused, distance), e.index(distance)
            )
            for distance in (NEAR_BYTES, FAR_BYTES)
        ]

    def _prefetch(self, source: Value, size_bytes: int, ahead: list[Value]) -> None:
        for offset in range(0, size_bytes, LINE_BYTES):
            for level, distance in enumerate(ahead, 1):
                self.emitter.prefetch(source, self.emitter.add(distance, offset), level)


class Prefill(Units):
    """Many rows: a block of keys and of values is widened once, and tiles of rows by keys or dimensions use it.

    Keys are turned so that those of one dimension lie side by side: a row's scores of a vector of keys then grow lane
    by lane, and nothing has to be added up across lanes.
    """

    def build(self) -> None:
        """Write it."""
        self.tile_rows = ROW_MULTIPLE if self.isa.registers >= 32 else ROW_MULTIPLE // 2
        self.tile_vectors = 2
        super().build()

    def score(self, start: Value, count: Value) -> None:
        """Widen and turn the keys, then the product of query and keys; tiles that see none of them are left out."""
        e, floats = self.emitter, self.floats
        self._turn_keys(e.at(self.keys, e.mul(start, self.half_bytes)), count)
        width = self.tile_vectors * floats
        kind = vector(F32, floats)
        with e.loop(0, count, width) as key:

            def keys(dimension: Value) -> list[Value]:
                source = e.at(self.keys_wide, e.mul(e.add(e.mul(dimension, KEYS), key), 4))
                return [e.load(kind, source, index * 4 * floats) for index in range(self.tile_vectors)]

            with (
                e.loop(0, self.rows, self.tile_rows) as row,
                e.when(key, "<", self._most_seen(row, start, count)),
            ):
                nothing = [[zeros(kind)] * self.tile_vectors for _ in range(self.tile_rows)]
                query = e.at(self.query, e.mul(row, self.row_bytes))
                scores = self.outer_product(
                    self.tile_rows, query, keys, nothing, e.index(self.head_dim), self.row_bytes
                )
                target = e.at(self.scores, e.mul(e.add(e.mul(row, KEYS), key), 4))
                for index, in_row in enumerate(scores):
                    for column, found in enumerate(in_row):
                        e.store(found, target, 4 * (index * KEYS + column * floats))

    def _turn_keys(self, first: Value, count: Value) -> None:
        """Widen a block's keys by dimension: (head_dim, keys). Past the last key, it is repeated."""
        e, floats = self.emitter, self.floats
        with e.loop(0, count, floats) as key:
            sources = []
            for index in range(floats):
                nearest = e.minimum(e.add(key, index), e.add(count, -1))
                sources.append(e.at(first, e.mul(nearest, self.half_bytes)))

            def turn(start: Index, dimensions: int) -> None:
                turned = elementary.transpose(e, [self.load(F16, source, start, dimensions) for source in sources])
                target = e.at(self.keys_wide, e.mul(e.add(e.mul(start, KEYS), key), 4))
                for index in range(dimensions):
                    e.store(turned[index], target, index * 4 * KEYS)

            whole = self.head_dim // floats * floats
            with e.loop(0, whole, floats) as start:
                turn(start, floats)
            if whole < self.head_dim:
                turn(whole, self.head_dim - whole)

    def _most_seen(self, row: Value, start: Value, count: Value) -> Value:
        """How many of the block's keys the last row of a tile sees."""
        e, builder = self.emitter, self.builder
        last = e.minimum(e.add(row, self.tile_rows - 1), e.add(self.rows, -1))
        token = builder.udiv(last, e.index(self.group))
        return e.minimum(count, builder.sub(e.add(self.before, token, 1), start))

    def mix(self, start: Value, count: Value) -> None:
        """Widen the values, then the product of weights and values, as far as each tile sees."""
        e = self.emitter
        first = e.at(self.values, e.mul(start, self.half_bytes))
        with e.loop(0, count) as key:
            source, target = (
                e.at(first, e.mul(key, self.half_bytes)),
                e.at(self.values_wide, e.mul(key, self.row_bytes)),
            )
            for place, size in self.chunks:
                e.store(self.load(F16, source, place, size), target, 4 * place)
        self.scale(self.room)
        kind = vector(F32, self.floats)
        with e.loop(0, self.rows, self.tile_rows) as row:
            terms = self._most_seen(row, start, count)
            for tile in range(0, len(self.chunks), self.tile_vectors):
                chunks = self.chunks[tile : tile + self.tile_vectors]

                def values(key: Value, chunks: list[tuple[int, int]] = chunks) -> list[Value]:
                    source = e.at(self.values_wide, e.mul(key, self.row_bytes))
                    return [e.load(kind, source, 4 * place) for place, _ in chunks]

                self.mix_tile(row, self.tile_rows, chunks[0][0], len(chunks), values, e.index(0), terms)
