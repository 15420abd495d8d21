"""What compiled attention is made of: units of work, the softmax that they carry along, and tiles kept in registers."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import IntEnum, auto
from itertools import pairwise

from llvmlite import ir

from ternary_kernels.memory import LINE_BYTES
from ternary_kernels.native import elementary
from ternary_kernels.native.emit import (
    F16,
    F32,
    I32,
    I64,
    POINTER,
    Emitter,
    Index,
    Value,
    Variable,
    constants,
    fill,
    lanes,
    vector,
    zeros,
)
from ternary_kernels.native.isa import Isa

KEYS = 64
"""Of a block: with their values they fill a level-1 cache at most."""
ROW_MULTIPLE = 8
"""Rows for which there is memory are a multiple of it, so that no tile is cut."""

_PART_MULTIPLE = 16  # keys
_TILE_ROWS = 4  # of a group that are handled together
_LOWEST = -3.0e38
"""Below any score; finite, so that its difference to itself is 0."""


class Argument(IntEnum):
    """The kernel's arguments: a counter of units, addresses, sizes.

    ``ROOM`` is of how many rows a unit has memory, ``CAPACITY`` of how many tokens a KV head has in the cache.
    """

    NEXT = 0
    QUERY = auto()
    KEYS = auto()
    VALUES = auto()
    OUT = auto()
    SCRATCH = auto()
    STATES = auto()
    DONE = auto()
    KV_HEADS = auto()
    NEW = auto()
    BLOCK = auto()
    ROOM = auto()
    SCRATCH_BYTES = auto()
    CAPACITY = auto()
    TOKENS = auto()
    PARTS = auto()


class Layout:
    """Where a unit's numbers lie: float32, rows padded to whole vectors.

    Args:
        head_dim: Elements per head.
        isa: Gives the vectors' width.
    """

    def __init__(self, head_dim: int, isa: Isa) -> None:
        self.head_dim = head_dim
        self.stride = -(-head_dim // isa.floats) * isa.floats

    def scratch_bytes(self, rows: int) -> int:
        """Of a member: query, scores and a factor per row; keys by dimension, values."""
        return 4 * (rows * (self.stride + KEYS + 1) + 2 * KEYS * self.stride) // LINE_BYTES * LINE_BYTES + LINE_BYTES

    def state_bytes(self, rows: int) -> int:
        """Of a unit: weighted values, largest score and sum of weights per row."""
        return 4 * rows * (self.stride + 2)


class Units:
    """Writes the kernel, but for how a block of keys is scored and how its values are mixed.

    Args:
        emitter: Writes it.
        group: Query heads per KV head.
        head_dim: Elements per head.
    """

    def __init__(self, emitter: Emitter, group: int, head_dim: int) -> None:
        self.emitter, self.builder, self.isa = emitter, emitter.builder, emitter.isa
        self.group, self.head_dim = group, head_dim
        self.floats = self.isa.floats
        self.layout = Layout(head_dim, self.isa)
        self.stride = self.layout.stride
        self.row_bytes, self.half_bytes = 4 * self.stride, 2 * head_dim
        tiles = -(-group // _TILE_ROWS)
        self.row_tiles = list(pairwise(group * tile // tiles for tile in range(tiles + 1)))
        self.chunks = [(start, min(self.floats, head_dim - start)) for start in range(0, head_dim, self.floats)]

    # The parts of the work -------------------------------------------------------------------------------------

    def build(self) -> None:
        """Write it: take units while there are any."""
        e, builder = self.emitter, self.builder
        self.kv_heads, self.m, self.block, self.room, scratch_bytes, self.capacity, self.tokens, self.parts = (
            e.argument(index) for index in range(Argument.KV_HEADS, Argument.PARTS + 1)
        )
        query_at, keys_at, values_at, out_at, scratch, states, done = (
            e.argument(index, POINTER) for index in range(Argument.QUERY, Argument.DONE + 1)
        )
        self.query = e.at(scratch, e.mul(e.member, scratch_bytes))
        self.scores = e.at(self.query, e.mul(self.room, self.row_bytes))
        self.keys_wide = e.at(self.scores, e.mul(self.room, 4 * KEYS))
        self.values_wide = e.at(self.keys_wide, 4 * KEYS * self.stride)
        self.factors = e.at(self.values_wide, 4 * KEYS * self.stride)
        state_bytes = e.mul(self.room, self.layout.state_bytes(1))
        blocks = builder.udiv(e.add(self.m, self.block, -1), self.block)
        groups = e.mul(blocks, self.kv_heads)
        units = e.mul(groups, self.parts)

        unit = Variable(e, self._take(e.arguments))
        with e.loop_while(lambda: builder.icmp_signed("<", unit.get(), units)):
            index = unit.get()
            in_group, part = builder.udiv(index, self.parts), builder.urem(index, self.parts)
            head = builder.urem(in_group, self.kv_heads)
            # The last tokens see the most keys.
            self.first = e.mul(
                builder.sub(builder.sub(blocks, e.index(1)), builder.udiv(in_group, self.kv_heads)), self.block
            )
            self.new = e.minimum(self.block, builder.sub(self.m, self.first))
            self.rows = e.mul(self.new, self.group)
            self.before = e.add(builder.sub(self.tokens, self.m), self.first)
            per_head = e.mul(e.mul(head, self.capacity), self.half_bytes)
            self.keys, self.values = e.at(keys_at, per_head), e.at(values_at, per_head)
            self._point_at_state(states, index, state_bytes)
            self._start(self._of_group(query_at, head))
            seen = e.add(self.before, self.new)
            first_key, end = (self._cut(seen, e.add(part, further)) for further in (0, 1))
            with e.loop(first_key, end, KEYS) as start:
                count = e.minimum(KEYS, builder.sub(end, start))
                self.score(start, count)
                self._weigh(start, count)
                self.mix(start, count)
            mark = e.at(done, e.mul(in_group, 8))
            with e.when(self._take(mark), "==", e.add(self.parts, -1)):
                e.store(e.index(0), mark)
                self._merge(states, e.mul(in_group, self.parts), state_bytes, self._of_group(out_at, head))
            unit.set(self._take(e.arguments))

    def _take(self, counter: Value) -> Value:
        """The counter as it was; one more afterwards."""
        return self.builder.atomic_rmw("add", counter, self.emitter.index(1), "seq_cst")

    def _cut(self, seen: Value, part: Value) -> Value:
        """Where a part of the keys begins."""
        e, builder = self.emitter, self.builder
        pieces = builder.udiv(e.add(seen, _PART_MULTIPLE - 1), e.index(_PART_MULTIPLE))
        return e.minimum(e.mul(builder.udiv(e.mul(pieces, part), self.parts), _PART_MULTIPLE), seen)

    def _of_group(self, array: Value, head: Value) -> Value:
        """Where the block's first token has the first query head of the group, in query or out."""
        e = self.emitter
        return e.at(array, e.mul(e.add(e.mul(self.first, self.kv_heads), head), 4 * self.head_dim * self.group))

    def _of_token(self, array: Value, token: Value) -> Value:
        """Where another token of the block has it."""
        e = self.emitter
        return e.at(array, e.mul(e.mul(token, self.kv_heads), 4 * self.head_dim * self.group))

    def _point_at_state(self, states: Value, unit: Value, state_bytes: Value) -> None:
        e = self.emitter
        self.mixed = e.at(states, e.mul(unit, state_bytes))
        self.largest = e.at(self.mixed, e.mul(self.room, self.row_bytes))
        self.sums = e.at(self.largest, e.mul(self.room, 4))

    def _start(self, query: Value) -> None:
        """Copy the unit's rows of the query, scaled; nothing was seen yet."""
        e = self.emitter
        scale = 1 / math.sqrt(self.head_dim)
        with e.loop(0, self.new) as token, e.loop(0, self.group) as member:
            source = e.at(self._of_token(query, token), e.mul(member, 4 * self.head_dim))
            row = e.add(e.mul(token, self.group), member)
            target = e.mul(row, self.row_bytes)
            for start, count in self.chunks:
                scaled = self.builder.fmul(self.load(F32, source, start, count), fill(F32, self.floats, scale))
                e.store(scaled, e.at(self.query, e.add(target, 4 * start)))
        with e.loop(0, e.mul(self.room, self.row_bytes), 4 * self.floats) as offset:
            e.store(zeros(vector(F32, self.floats)), self.mixed, offset)
        with e.loop(0, e.mul(self.room, 4), 4) as offset:
            e.store(constants(F32, _LOWEST)[0], self.largest, offset)
            e.store(constants(F32, 0.0)[0], self.sums, offset)

    def score(self, start: Value, count: Value) -> None:
        """Scores of ``count`` keys from ``start``, for all rows."""
        raise NotImplementedError

    def _weigh(self, start: Value, count: Value) -> None:
        """Scores to weights, 0 for keys that a row doesn't see; brings each row's largest score and sum up to date."""
        e, builder = self.emitter, self.builder
        with e.loop(0, self.new) as token:
            seen = e.minimum(count, builder.sub(e.add(self.before, token, 1), start))
            for first, end in self.row_tiles:
                self._weigh_rows(e.add(e.mul(token, self.group), first), end - first, count, seen)

    def _weigh_rows(self, first: Value, rows: int, count: Value, seen: Value) -> None:
        """The same for some rows that see as many keys: what one waits for leaves time for the others."""
        e, builder, floats = self.emitter, self.builder, self.floats
        kind = vector(F32, floats)
        lowest, nothing = fill(F32, floats, _LOWEST), zeros(kind)
        places = ir.Constant(kind, [ir.Constant(F32, lane) for lane in range(floats)])
        wide_seen = e.splat(builder.sitofp(seen, F32), floats)
        scores = e.at(self.scores, e.mul(first, 4 * KEYS))
        largest, sums, factors = (e.at(array, e.mul(first, 4)) for array in (self.largest, self.sums, self.factors))
        before = [e.load(F32, largest, 4 * row) for row in range(rows)]

        def visible(key: Value) -> Value:
            at = builder.fadd(e.splat(builder.sitofp(key, F32), floats), places)
            return builder.fcmp_ordered("<", at, wide_seen)

        most = [Variable(e, e.splat(scalar, floats)) for scalar in before]
        with e.loop(0, count, floats) as key:
            sees, at = visible(key), e.at(scores, e.mul(key, 4))
            for row, variable in enumerate(most):
                found = builder.select(sees, e.load(kind, at, 4 * KEYS * row), lowest)
                variable.set(elementary.larger(e, found, variable.get()))
        after = [elementary.largest_lane(e, variable.get()) for variable in most]
        wide_after = [e.splat(scalar, floats) for scalar in after]
        totals = [Variable(e, nothing) for _ in range(rows)]
        with e.loop(0, count, floats) as key:
            sees, at = visible(key), e.at(scores, e.mul(key, 4))
            for row, variable in enumerate(totals):
                weight = elementary.exponential(e, builder.fsub(e.load(kind, at, 4 * KEYS * row), wide_after[row]))
                weight = builder.select(sees, weight, nothing)
                variable.set(builder.fadd(variable.get(), weight))
                e.store(weight, at, 4 * KEYS * row)
        for row, variable in enumerate(totals):
            factor = self._exponential(builder.fsub(before[row], after[row]))
            total = e.multiply_add(e.load(F32, sums, 4 * row), factor, e.sum_lanes(variable.get()))
            for value, target in ((factor, factors), (after[row], largest), (total, sums)):
                e.store(value, target, 4 * row)

    def mix(self, start: Value, count: Value) -> None:
        """Add the block's values, weighted, to what each row has mixed."""
        raise NotImplementedError

    def _merge(self, states: Value, first_unit: Value, state_bytes: Value, out: Value) -> None:
        """Bring the parts of a block to a common largest score and write what they say together."""
        e, builder = self.emitter, self.builder
        largest, sums = (builder.ptrtoint(part, I64) for part in (self.largest, self.sums))
        mixed = builder.ptrtoint(self.mixed, I64)
        to_largest, to_sums = builder.sub(largest, mixed), builder.sub(sums, mixed)
        begin = e.at(states, e.mul(first_unit, state_bytes))
        end = e.mul(self.parts, state_bytes)
        with e.loop(0, self.new) as token, e.loop(0, self.group) as member:
            row = e.add(e.mul(token, self.group), member)
            in_row = e.mul(row, 4)
            most = Variable(e, constants(F32, _LOWEST)[0])
            with e.loop(0, end, state_bytes) as part:
                most.set(elementary.larger(e, e.load(F32, e.at(begin, part), e.add(to_largest, in_row)), most.get()))
            total = Variable(e, constants(F32, 0.0)[0])
            with e.loop(0, end, state_bytes) as part:
                at = e.at(e.at(begin, part), in_row)
                weight = self._exponential(builder.fsub(e.load(F32, at, to_largest), most.get()))
                e.store(weight, at, to_largest)
                total.set(e.multiply_add(e.load(F32, at, to_sums), weight, total.get()))
            target = e.at(self._of_token(out, token), e.mul(member, 4 * self.head_dim))
            for start, count in self.chunks:
                merged = Variable(e, zeros(vector(F32, self.floats)))
                with e.loop(0, end, state_bytes) as part:
                    at = e.at(begin, part)
                    weight = builder.fdiv(e.load(F32, at, e.add(to_largest, in_row)), total.get())
                    values = e.load(merged.get().type, at, e.add(e.mul(row, self.row_bytes), 4 * start))
                    merged.set(e.multiply_add(values, e.splat(weight, self.floats), merged.get()))
                e.store(self._first(merged.get(), count), target, 4 * start)

    # What both kinds need --------------------------------------------------------------------------------------

    def _exponential(self, scalar: Value) -> Value:
        wide = elementary.exponential(self.emitter, self.emitter.splat(scalar, 4))
        return self.builder.extract_element(wide, constants(I32, 0)[0])

    def load(self, kind: object, source: Value, start: Index, count: int) -> Value:
        """``count`` elements from ``start`` as a whole vector of float32, the rest 0."""
        e = self.emitter
        loaded = e.load(vector(kind, count), source, e.mul(start, 2 if kind == F16 else 4))
        if kind == F16:
            loaded = e.half_to_float(loaded)
        return _filled_up(e, loaded, self.floats)

    def _first(self, source: Value, count: int) -> Value:
        return part_of(self.emitter, source, 0, count)

    def outer_product(
        self,
        rows: int,
        left: Value,
        right: Callable[[Value], list[Value]],
        totals: list[list[Value]],
        terms: Value,
        left_stride: int,
    ) -> list[list[Value]]:
        """totals[r][c] + sum over t of left[r][t] right(t)[c], all of it in registers.

        Args:
            rows: Rows of the tile.
            left: float32, rows of ``left_stride`` bytes.
            right: Vectors of the t-th term.
            totals: By row and vector.
            terms: How many.
            left_stride: Bytes.
        """
        e = self.emitter
        sums = [[Variable(e, total) for total in row] for row in totals]
        with e.loop(0, terms) as term:
            vectors = right(term)
            column = e.at(left, e.mul(term, 4))
            for row in range(rows):
                weight = e.splat(e.load(F32, column, row * left_stride), self.floats)
                for total, values in zip(sums[row], vectors, strict=True):
                    total.set(e.multiply_add(weight, values, total.get()))
        return [[total.get() for total in row] for row in sums]

    def scale(self, rows: Value) -> None:
        """Bring what each row has mixed to its new largest score."""
        e, floats = self.emitter, self.floats
        with e.loop(0, rows) as row:
            target = e.at(self.mixed, e.mul(row, self.row_bytes))
            factor = e.splat(e.load(F32, self.factors, e.mul(row, 4)), floats)
            with e.loop(0, self.row_bytes, 4 * floats) as place:
                e.store(self.builder.fmul(e.load(factor.type, target, place), factor), target, place)

    def mix_tile(
        self,
        row: Value,
        rows: int,
        start: int,
        vectors: int,
        values: Callable[[Value], list[Value]],
        first: Value,
        count: Value,
    ) -> None:
        """Add weighted values to what a tile has mixed.

        Args:
            row: First row of the tile.
            rows: Rows of the tile.
            start: First column of the tile.
            vectors: Width of the tile.
            values: Vectors of the i-th key.
            first: Key of the block that is the 0-th.
            count: How many.
        """
        e = self.emitter
        kind = vector(F32, self.floats)
        target = e.at(self.mixed, e.add(e.mul(row, self.row_bytes), 4 * start))
        places = [
            [4 * (index * self.stride + column * self.floats) for column in range(vectors)] for index in range(rows)
        ]
        totals = [[e.load(kind, target, place) for place in in_row] for in_row in places]
        weights = e.at(self.scores, e.mul(e.add(e.mul(row, KEYS), first), 4))
        totals = self.outer_product(rows, weights, values, totals, count, 4 * KEYS)
        for in_row, sums in zip(places, totals, strict=True):
            for place, total in zip(in_row, sums, strict=True):
                e.store(total, target, place)


def part_of(emitter: Emitter, source: Value, start: int, count: int) -> Value:
    """Some lanes of a vector."""
    if count == source.type.count:
        return source
    return emitter.builder.shuffle_vector(source, source, lanes(list(range(start, start + count))))


def _filled_up(emitter: Emitter, source: Value, count: int) -> Value:
    """A vector with lanes of 0 after its own."""
    own = source.type.count
    if own == count:
        return source
    order = [min(lane, own) for lane in range(count)]
    return emitter.builder.shuffle_vector(source, zeros(source.type), lanes(order))
