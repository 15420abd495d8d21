"""Kernels of every format whose rows lie one after the other: decoded as they are read, or first to scratch memory.

With few tokens a row is decoded in registers and multiplied at once: what bounds it is memory. With many, some rows
are decoded to the level-2 cache and multiplied by all tokens in register tiles: what bounds it is arithmetic.
"""

from __future__ import annotations

from enum import IntEnum, auto
from itertools import groupby

from ternary_kernels.native import activations
from ternary_kernels.native.codecs import Codec, Half, TwoBit, zero_sums
from ternary_kernels.native.elementary import rescale, sums_of
from ternary_kernels.native.emit import F32, I32, POINTER, Build, Emitter, Index, Value, Variable, vector
from ternary_kernels.native.tiles import Tokens, load_part, multiply, multiply_part, prefetch_step


class Argument(IntEnum):
    """Words of a kernel's arguments."""

    ROWS = 0
    ROW_BYTES = auto()
    N_OUT = auto()
    ACTIVATIONS = auto()
    """As given, where a member prepares them for itself; else prepared."""
    SUMS = auto()
    BLOCK_SUMS = auto()
    SCALES = auto()
    OUT = auto()
    LARGE_TILES = auto()
    SMALL_TILES = auto()
    CHUNK_ROWS = auto()
    SCRATCH = auto()
    """Of member 0; the others' follow."""


ROWS = 4
"""Rows of a tile: their sums are added up, scaled and stored together."""


ONE_ROW_TOKENS = 4
"""Up to so many tokens rows are read one by one."""


def even_tiles(tokens: int, most: int) -> list[int]:
    """Cut tokens into as few tiles as possible, as even as possible, larger ones first: their sizes."""
    tiles = -(-tokens // most)
    small, larger = divmod(tokens, tiles)
    return [small + 1] * larger + [small] * (tiles - larger)


def runs(tiles: list[int]) -> list[tuple[int, int, int]]:
    """Tiles one after the other as runs of the same size: (first token, token after the last, size)."""
    found, token = [], 0
    for size, alike in groupby(tiles):
        end = token + size * len(list(alike))
        found.append((token, end, size))
        token = end
    return found


def few_tile(codec: Codec, tokens: int) -> tuple[int, int]:
    """Rows that are decoded together, and tokens they are multiplied by at once.

    Memory is read faster row by row. Where arithmetic counts, rows share a load of activations; float32 ones are four
    times as long, and so come from the level-2 cache: four rows share them.
    """
    if tokens <= ONE_ROW_TOKENS:
        return 1, tokens
    if not holds_many_sums(codec):
        return 2, ONE_ROW_TOKENS
    return (2, 12) if codec.integer else (4, 6)


def holds_many_sums(codec: Codec) -> bool:
    """Whether the registers hold the sums of more than a few tokens, and not a second set of them for each block."""
    return codec.isa.registers >= 32 and not codec.scaled


def most_tokens(codec: Codec) -> int:
    """Tokens of the largest register tile of decoded rows."""
    if codec.isa.registers < 32:
        return 1 if codec.scaled else 2
    # Of a scaled ternary format each row and token has a sum of its block and one of all blocks.
    return 3 if codec.scaled else 6


def token_bytes(codec: Codec, k_in: int) -> int:
    """Bytes from one token's prepared activations to the next one's."""
    return activations.row_bytes(codec) if isinstance(codec, TwoBit) else 4 * k_in


def few_tokens(codec: Codec, k_in: int, tokens: int) -> Build:
    """Kernel that multiplies each row, as it is read, by a few tokens.

    Of a ternary format each member prepares the activations for itself: that takes less time than to agree.
    """

    def build(emitter: Emitter) -> None:
        rows = emitter.argument(Argument.ROWS, POINTER)
        row_bytes = emitter.argument(Argument.ROW_BYTES)
        operands = _Operands(emitter, codec, k_in)
        if isinstance(codec, TwoBit):
            operands.prepare_own(tokens)
        together, at_once = few_tile(codec, tokens)
        first, last = emitter.share(emitter.argument(Argument.N_OUT), ROWS)
        with emitter.loop(first, last, ROWS) as start:
            pointers = []
            for index in range(ROWS):
                row = emitter.minimum(emitter.add(start, index), emitter.add(last, -1))
                pointers.append(emitter.at(rows, emitter.mul(row, row_bytes)))
            for begin, end, size in runs(even_tiles(tokens, at_once)):
                with emitter.loop(begin, end, size) as first_token:
                    tile = operands.tokens(first_token, size)
                    sums: list[list[Value]] = []
                    for index in range(0, ROWS, together):
                        sums += multiply(emitter, codec, pointers[index : index + together], tile)
                    for index, of_token in enumerate(zip(*sums, strict=True)):
                        operands.store(start, last, emitter.add(first_token, index), list(of_token))

    return build


def many_tokens(codec: Codec, k_in: int, large_tile: int, small_tile: int) -> Build:
    """Kernel that decodes some rows at a time and multiplies them by all tokens, in tiles of two sizes."""

    def build(emitter: Emitter) -> None:
        rows = emitter.argument(Argument.ROWS, POINTER)
        row_bytes, chunk_rows = emitter.argument(Argument.ROW_BYTES), emitter.argument(Argument.CHUNK_ROWS)
        operands = _Operands(emitter, codec, k_in)
        stride = decoded_bytes(codec, k_in)
        first, last = emitter.share(emitter.argument(Argument.N_OUT), ROWS)
        with emitter.loop(first, last, chunk_rows) as start:
            stop = emitter.minimum(emitter.add(start, chunk_rows), last)

            def decoded(row: Value, start: Value = start) -> Value:
                return emitter.at(operands.scratch, emitter.mul(emitter.builder.sub(row, start), stride))

            with emitter.loop(start, stop) as row:
                decode_row(emitter, codec, emitter.at(rows, emitter.mul(row, row_bytes)), decoded(row))
            token = emitter.index(0)
            sizes = ((large_tile, Argument.LARGE_TILES), (small_tile, Argument.SMALL_TILES))
            for size, count in sizes if small_tile < large_tile else sizes[:1]:
                end = emitter.add(token, emitter.mul(emitter.argument(count), size))
                with emitter.loop(token, end, size) as first_token:
                    tile = operands.tokens(first_token, size)
                    with emitter.loop(start, stop, ROWS) as row:
                        pointers = [emitter.at(decoded(row), stride * index) for index in range(ROWS)]
                        sums = _multiply_decoded(emitter, codec, k_in, pointers, tile)
                        for index in range(size):
                            four = [row_sums[index] for row_sums in sums]
                            operands.store(row, stop, emitter.add(first_token, index), four)
                token = end

    return build


def decoded_bytes(codec: Codec, k_in: int) -> int:
    """Bytes of one decoded row: its parts, and behind them the scales of a scaled ternary format."""
    if isinstance(codec, TwoBit):
        return activations.row_bytes(codec) + activations.block_sums_bytes(codec)
    return 4 * k_in + codec.isa.vector_bytes  # a little more than a power of two, so that rows don't share cache sets


def own_bytes(codec: Codec, tokens: int) -> int:
    """Bytes of the memory in which a member prepares a few tokens for itself."""
    if not isinstance(codec, TwoBit):
        return 0
    return tokens * (activations.row_bytes(codec) + activations.block_sums_bytes(codec) + 4)


class _Operands:
    """Where a kernel finds its activations and puts its outputs.

    Attributes:
        scratch: The member's own memory.
    """

    def __init__(self, emitter: Emitter, codec: Codec, k_in: int) -> None:
        self._emitter, self._codec, self._k_in = emitter, codec, k_in
        self._activations, self._sums, self._block_sums, self._scales, self._out = (
            emitter.argument(index, POINTER)
            for index in (
                Argument.ACTIVATIONS,
                Argument.SUMS,
                Argument.BLOCK_SUMS,
                Argument.SCALES,
                Argument.OUT,
            )
        )
        self._n_out = emitter.argument(Argument.N_OUT)
        self.scratch = emitter.of_member(Argument.SCRATCH)
        if isinstance(codec, TwoBit) and not codec.scaled:
            end = emitter.mul(self._n_out, emitter.argument(Argument.ROW_BYTES))
            self._weight_scale = emitter.load(F32, emitter.argument(Argument.ROWS, POINTER), end)

    def prepare_own(self, tokens: int) -> None:
        """Prepare a few tokens in the member's own memory."""
        emitter, codec = self._emitter, self._codec
        assert isinstance(codec, TwoBit)
        size, blocks_size = activations.row_bytes(codec), activations.block_sums_bytes(codec)
        given, self._activations = self._activations, self.scratch
        self._block_sums = emitter.at(self.scratch, tokens * size)
        self._sums = emitter.at(self._block_sums, tokens * blocks_size)
        with emitter.loop(0, tokens) as token:
            source = emitter.at(given, emitter.mul(token, self._k_in))
            target = emitter.at(self._activations, emitter.mul(token, size))
            blocks = emitter.at(self._block_sums, emitter.mul(token, blocks_size))
            total = activations.prepare_token(emitter, codec, source, target, blocks)
            emitter.store(total, self._sums, emitter.mul(token, 4))

    def tokens(self, first: Index, count: int) -> Tokens:
        """Prepared activations of some tokens."""
        emitter, codec = self._emitter, self._codec
        indices = [emitter.add(first, index) for index in range(count)]
        stride = token_bytes(codec, self._k_in)
        pointers = [emitter.at(self._activations, emitter.mul(token, stride)) for token in indices]
        if not isinstance(codec, TwoBit) or not codec.scaled:
            return Tokens(pointers, [])
        stride = activations.block_sums_bytes(codec)
        return Tokens(pointers, [emitter.at(self._block_sums, emitter.mul(token, stride)) for token in indices])

    def store(self, row: Value, stop: Value, token: Value, sums: list[Value]) -> None:
        """Turn the sums of four rows and a token into outputs, as the oracle does, and store those before ``stop``."""
        emitter, builder = self._emitter, self._emitter.builder
        total = sums_of(emitter, sums)
        if self._codec.integer:
            scale = emitter.load(F32, self._scales, emitter.mul(token, 4))
            if self._codec.scaled:
                total = builder.fdiv(total, emitter.splat(scale, ROWS))
            else:
                excess = emitter.load(I32, self._sums, emitter.mul(token, 4))
                total = rescale(emitter, builder.sub(total, emitter.splat(excess, ROWS)), scale, self._weight_scale)
        place = emitter.mul(emitter.add(emitter.mul(token, self._n_out), row), 4)
        with emitter.when(emitter.add(row, ROWS), "<=", stop):
            emitter.store(total, self._out, place)
        with emitter.when(emitter.add(row, ROWS), ">", stop):
            for index in range(ROWS - 1):
                with emitter.when(emitter.add(row, index), "<", stop):
                    emitter.store(builder.extract_element(total, I32(index)), self._out, emitter.add(place, 4 * index))


def decode_row(emitter: Emitter, codec: Codec, row: Value, target: Value) -> None:
    """Decode a row: bytes in the order of the parts, or float32 in the order of the columns, scales multiplied in."""
    width = codec.isa.vector_bytes
    parts = codec.step_columns // codec.part_columns
    with emitter.loop(0, codec.steps) as step:
        decoded = codec.decode(emitter, row, step)
        prefetch_step(emitter, codec, row, emitter.mul(step, codec.step_bytes))
        at = emitter.mul(step, parts * width)
        for part, weights in enumerate(decoded.parts):
            emitter.store(weights, target, emitter.add(at, part * width))
        if isinstance(codec, TwoBit) and codec.scaled:
            emitter.store(decoded.scale, target, emitter.add(emitter.mul(step, 4), activations.row_bytes(codec)))
    if isinstance(codec, TwoBit):
        if codec.scaled:
            with emitter.loop(codec.steps, activations.block_sums_bytes(codec) // 4) as padding:
                emitter.store(F32(0.0), target, emitter.add(emitter.mul(padding, 4), activations.row_bytes(codec)))
        if codec.tail:
            for part, weights in enumerate(codec.decode_tail(emitter, row)):
                emitter.store(weights, target, codec.steps * parts * width + part * width)
    elif codec.tail:
        assert isinstance(codec, Half)
        whole = codec.steps * codec.step_columns
        with emitter.loop(whole, whole + codec.tail) as column:
            emitter.store(codec.decode_column(emitter, row, column), target, emitter.mul(column, 4))


def _multiply_decoded(
    emitter: Emitter, codec: Codec, k_in: int, rows: list[Value], tokens: Tokens
) -> list[list[Value]]:
    """Decoded rows times tokens: vectors whose lanes sum to the products, by row and token."""
    if codec.scaled:
        return _multiply_blocks(emitter, codec, rows, tokens)
    builder, width = emitter.builder, codec.isa.vector_bytes
    sums = [[Variable(emitter, zero_sums(codec)) for _ in tokens.pointers] for _ in rows]
    bytes_ = token_bytes(codec, k_in) // width * width
    with emitter.loop(0, bytes_, width) as at:
        weights = [load_part(emitter, codec, row, at) for row in rows]
        for token_index, token in enumerate(tokens.pointers):
            given = load_part(emitter, codec, token, at)
            for row_sums, row_weights in zip(sums, weights, strict=True):
                total = row_sums[token_index]
                total.set(multiply_part(emitter, codec, total.get(), row_weights, given))
    if not codec.integer and codec.tail % codec.isa.floats:
        # What is left of a row of floats is less than a vector: its products go to the first lane.
        with emitter.loop(bytes_, token_bytes(codec, k_in), 4) as at:
            for row_index, row in enumerate(rows):
                for token_index, token in enumerate(tokens.pointers):
                    total = sums[row_index][token_index]
                    product = builder.fmul(emitter.load(F32, row, at), emitter.load(F32, token, at))
                    first = builder.fadd(builder.extract_element(total.get(), I32(0)), product)
                    total.set(builder.insert_element(total.get(), first, I32(0)))
    return [[total.get() for total in row] for row in sums]


def _multiply_blocks(emitter: Emitter, codec: Codec, rows: list[Value], tokens: Tokens) -> list[list[Value]]:
    """As above for a ternary format with a scale per block: each block's sums are scaled before they are added."""
    assert isinstance(codec, TwoBit)
    builder, width, floats = emitter.builder, codec.isa.vector_bytes, codec.isa.floats
    parts = codec.step_columns // width
    scales_at = activations.row_bytes(codec)
    sums = [[Variable(emitter, zero_sums(codec)) for _ in tokens.pointers] for _ in rows]
    with emitter.loop(0, codec.steps) as step:
        at = emitter.mul(step, parts * width)
        scale_at = emitter.add(emitter.mul(step, 4), scales_at)
        scales = [emitter.splat(emitter.load(F32, row, scale_at), floats) for row in rows]
        local: list[list[Value | None]] = [[None] * len(tokens.pointers) for _ in rows]
        for part in range(parts):
            offset = emitter.add(at, part * width)
            weights = [load_part(emitter, codec, row, offset) for row in rows]
            for token_index, token in enumerate(tokens.pointers):
                given = load_part(emitter, codec, token, offset)
                for row_local, row_weights in zip(local, weights, strict=True):
                    row_local[token_index] = multiply_part(emitter, codec, row_local[token_index], row_weights, given)
        for row_index, scale in enumerate(scales):
            for token_index, total in enumerate(sums[row_index]):
                block = builder.sitofp(local[row_index][token_index], vector(F32, floats))
                total.set(emitter.multiply_add(scale, block, total.get()))
    # What codes of weight + 1 add too much: the sum of scale times sum of activations, over the blocks.
    with emitter.loop(0, activations.block_sums_bytes(codec), width) as at:
        for token_index, blocks in enumerate(tokens.block_sums):
            block_sums = builder.fneg(emitter.load(vector(F32, floats), blocks, at))
            for row_index, row in enumerate(rows):
                scales_ = emitter.load(vector(F32, floats), row, emitter.add(at, scales_at))
                total = sums[row_index][token_index]
                total.set(emitter.multiply_add(scales_, block_sums, total.get()))
    return [[total.get() for total in row] for row in sums]
