"""Products with many tokens on Intel AMX: tiles of 16 rows by 64 bytes, 16,384 multiply-adds an instruction.

Weights are decoded to bytes, a block of rows and columns at a time; activations are laid out once so that a tile holds
four successive columns of 16 tokens in each of its rows, which is how the instruction wants its second operand.
"""

from __future__ import annotations

import ctypes
import math
import platform
import sys
from enum import IntEnum, auto
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ternary_kernels.activations import Quantized
from ternary_kernels.formats import Bytes
from ternary_kernels.matmul import Matmul
from ternary_kernels.memory import address, aligned
from ternary_kernels.native import activations, compiler
from ternary_kernels.native.codecs import TwoBit
from ternary_kernels.native.elementary import rescale, transpose
from ternary_kernels.native.emit import (
    F32,
    I8,
    I32,
    POINTER,
    Build,
    Emitter,
    Value,
    constants,
    vector,
)
from ternary_kernels.native.isa import AMX, Isa, this_machine
from ternary_kernels.native.products import MOST_COLUMNS
from ternary_kernels.native.words import Words
from ternary_kernels.reference.ceilings import PEAK_SIZE
from ternary_kernels.team import Team

_SIDE = 16
"""Rows of a tile, and 32-bit lanes of one."""
_TILE_BYTES = 1024
_GROUP = 2 * _SIDE
"""Rows that are multiplied by all tokens before the next ones are read."""
_BLOCK_STEPS = 2
_BLOCK_BYTES = _BLOCK_STEPS * 4 * 64
"""Columns of a group that are decoded and multiplied by all tokens before the next ones: 16 KiB of weights, which stay
in the level-1 cache beside the activations that stream through it. Measured at 6912 x 2560, one thread of a Xeon, twice
as many columns, or whole rows decoded to the level-2 cache: 1.4x to 1.6x the time at m = 16, 1.2x to 1.3x at m = 64;
whole rows of 6,912 columns are faster from m = 256 on, by a tenth."""
_LEFT, _RIGHT, _SUMS = (0, 1), (2, 3), ((4, 5), (6, 7))
"""Tile registers: two of weights, two of activations, and their four products."""


class _Argument(IntEnum):
    """Words of the product's arguments."""

    ROWS = 0
    N_OUT = auto()
    ACTIVATIONS = auto()
    SUMS = auto()
    SCALES = auto()
    OUT = auto()
    M = auto()
    CONFIGURATION = auto()
    SCRATCH = auto()
    """Of member 0; the others' follow."""


class AmxTwoBit(Matmul):
    """I2_S (both layouts) times int8 activations.

    Args:
        format_name: As for ``Matmul``.
        n_out: As for ``Matmul``.
        k_in: As for ``Matmul``.
        m: As for ``Matmul``.
        team: As for ``Matmul``.
        isa: What to compile for: AMX, the only path.

    Raises:
        ValueError: As for ``NativeRows``; or the CPU has no AMX, or the system doesn't let this process use it.
    """

    kernel = "amx"
    formats = ("I2_S", "I2_S_ARM")

    def __init__(self, format_name: str, n_out: int, k_in: int, m: int, team: Team, isa: Isa | None = None) -> None:
        super().__init__(format_name, n_out, k_in, m, team)
        if refusal := unusable():
            raise ValueError(f"kernel 'amx': {refusal}")
        if k_in > MOST_COLUMNS:
            raise ValueError(f"{format_name} product: expected at most {MOST_COLUMNS} columns, got {k_in}")
        self.isa = isa or AMX
        codec = TwoBit(self.isa, k_in, self.format.block // 4)
        row_bytes = activations.row_bytes(codec)
        token_tiles = -(-m // _SIDE)
        kernels = {"prepare": _prepare(codec, k_in), "product": _product(codec, row_bytes, pairs=token_tiles > 1)}
        module = f"amx_{codec.name}_{k_in}_{'pairs' if token_tiles > 1 else 'single'}"
        self._kernels = compiler.load(module, kernels, self.isa)
        # One tile more than there are, as the last of an odd number is multiplied together with what follows.
        self._sizes = (token_tiles + 1) * _SIDE * row_bytes, token_tiles * _SIDE * 4, team.threads * _SIDE * row_bytes
        self._scratch_shape = ((_GROUP * _BLOCK_BYTES + 2 * (token_tiles + 1) * _TILE_BYTES) // 4,)
        self._words, self._prepare_words = Words(_Argument.SCRATCH + team.threads), Words(6)
        self._words[_Argument.N_OUT], self._words[_Argument.M] = n_out, m
        self._words.point(_Argument.CONFIGURATION, _configuration())
        self._prepare_words[1], self._prepare_words[5] = k_in, m

    def _multiply(self, x: Quantized, weights: Bytes, out: NDArray[np.float32]) -> None:
        tiles_bytes, sums_bytes, rows_bytes = self._sizes
        tiles = address(self.team.scratch(None, ((tiles_bytes + sums_bytes + rows_bytes) // 4,)))
        prepare, words = self._prepare_words, self._words
        prepare.point(0, x.values)
        prepare[2], prepare[3], prepare[4] = tiles, tiles + tiles_bytes, tiles + tiles_bytes + sums_bytes
        self.team.run_compiled(self._kernels["prepare"], prepare.address)
        words[_Argument.ROWS] = address(weights)
        words[_Argument.ACTIVATIONS], words[_Argument.SUMS] = tiles, tiles + tiles_bytes
        words.point(_Argument.SCALES, x.scale)
        words.point(_Argument.OUT, out)
        for member in range(self.team.threads):
            words.point(_Argument.SCRATCH + member, self.team.scratch(member, self._scratch_shape))
        self.team.run_compiled(self._kernels["product"], words.address)


class Peak:
    """Multiply-adds of bytes as fast as the tiles can do them, on every member of a team.

    Args:
        team: The threads.
        size: m, n_out and k_in of the product that has as many of them; rounded up to whole turns of the loop.

    Attributes:
        operations: Of one call, all members together; a multiplication and an addition are two.
        sums: int32, shape (members, 4, 16, 16): each member's tiles of sums, of products of ones: how many it did.

    Raises:
        ValueError: AMX can't be used; or a size below 1.
    """

    def __init__(self, team: Team, size: tuple[int, int, int] = PEAK_SIZE) -> None:
        if refusal := unusable():
            raise ValueError(f"kernel 'amx': {refusal}")
        if min(size) < 1:
            raise ValueError(f"peak: expected a positive m, n_out and k_in, got {size}")
        multiply_adds = math.prod(size)
        self.operations = 2 * multiply_adds * team.threads
        self._team = team
        self._kernel = compiler.load("amx_peak", {"peak": _build_peak}, AMX)["peak"]
        self._words = Words(4)
        self._words[0] = -(-multiply_adds // (4 * _SIDE * _SIDE * 64))
        self._words.point(1, _configuration())
        ones, sums = aligned(_TILE_BYTES), aligned(4 * team.threads * _TILE_BYTES)
        ones[:] = 1
        self._words.point(2, ones)
        self._words.point(3, sums)
        self.sums = sums.view(np.int32).reshape(team.threads, 4, _SIDE, _SIDE)

    def __call__(self) -> None:
        """Run once."""
        self._team.run_compiled(self._kernel, self._words.address)


def _build_peak(emitter: Emitter) -> None:
    """Multiply tiles that stay where they are; argument 0 is the number of turns of four products."""
    emitter.call("llvm.x86.ldtilecfg", emitter.nothing, emitter.argument(1, POINTER))
    for tile in (*_LEFT, *_RIGHT):
        _load_tile(emitter, tile, emitter.argument(2, POINTER), 64)
    sums = [tile for row in _SUMS for tile in row]
    for tile in sums:
        emitter.call("llvm.x86.tilezero", emitter.nothing, *constants(I8, tile))
    with emitter.loop(0, emitter.argument(0)):
        _multiply_all(emitter, 2)
    kept = emitter.at(emitter.argument(3, POINTER), emitter.mul(emitter.member, 4 * _TILE_BYTES))
    for index, tile in enumerate(sums):
        _store_tile(emitter, tile, emitter.at(kept, index * _TILE_BYTES))
    emitter.call("llvm.x86.tilerelease", emitter.nothing)


@cache
def unusable() -> str | None:
    """Why this process can't use AMX; None if it can. Asks the system for it, which must allow so large a state.

    Source: Linux, Documentation/arch/x86/xstate.rst, ARCH_REQ_XCOMP_PERM.
    """
    if missing := AMX.missing(*this_machine()):
        return missing
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return "expected Linux on x86_64, which hands out AMX"
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    system = ctypes.CDLL(None, use_errno=True)
    if system.syscall(arch_prctl, request_permission, tile_data):
        return f"the system refuses it (arch_prctl: error {ctypes.get_errno()})"
    return None


@cache
def _configuration() -> NDArray[np.uint8]:
    """What ldtilecfg takes: palette 1, eight tiles of 16 rows by 64 bytes. Source: Intel SDM, volume 2, LDTILECFG."""
    held = aligned(64)
    held[:] = 0
    held[0] = 1
    held[16:32].view(np.uint16)[:] = 64
    held[48:56] = _SIDE
    return held


def _prepare(codec: TwoBit, k_in: int) -> Build:
    """Kernel that lays the activations out in tiles; its arguments are those of ``activations.prepare``.

    The fifth is memory for 16 prepared tokens of each member.
    """

    def build(emitter: Emitter) -> None:
        values, tiles, sums, rows = (emitter.argument(index, POINTER) for index in (0, 2, 3, 4))
        m = emitter.argument(5)
        row_bytes = activations.row_bytes(codec)
        own = emitter.at(rows, emitter.mul(emitter.member, _SIDE * row_bytes))
        first, last = emitter.share(m, _SIDE)
        with emitter.loop(first, last, _SIDE) as token:
            stop = emitter.minimum(emitter.add(token, _SIDE), last)
            with emitter.loop(token, stop) as index:
                place = emitter.builder.sub(index, token)
                source = emitter.at(values, emitter.mul(index, k_in))
                target = emitter.at(own, emitter.mul(place, row_bytes))
                emitter.store(
                    activations.prepare_token(emitter, codec, source, target, own), sums, emitter.mul(index, 4)
                )
            tile = emitter.at(tiles, emitter.mul(token, row_bytes))
            with emitter.loop(0, row_bytes, 64) as at:
                # Tokens beyond the last are what is left there of others: their products aren't stored.
                vectors = [
                    emitter.load(vector(I32, _SIDE), own, emitter.add(at, row_bytes * row)) for row in range(_SIDE)
                ]
                target = emitter.at(tile, emitter.mul(at, _SIDE))
                for row, transposed in enumerate(transpose(emitter, vectors)):
                    emitter.store(transposed, target, 64 * row)

    return build


def _product(codec: TwoBit, row_bytes: int, *, pairs: bool) -> Build:
    """Kernel that multiplies all rows by all tokens, two tiles of each at a time if there are so many tokens."""

    def build(emitter: Emitter) -> None:
        rows = emitter.argument(_Argument.ROWS, POINTER)
        n_out, m = emitter.argument(_Argument.N_OUT), emitter.argument(_Argument.M)
        tiles = emitter.argument(_Argument.ACTIVATIONS, POINTER)
        decoded = emitter.of_member(_Argument.SCRATCH)
        sums = emitter.at(decoded, _GROUP * _BLOCK_BYTES)
        outputs = _Outputs(emitter, codec)
        width = (2 if pairs else 1) * _SIDE
        emitter.call("llvm.x86.ldtilecfg", emitter.nothing, emitter.argument(_Argument.CONFIGURATION, POINTER))
        first, last = emitter.share(n_out, _SIDE)
        with emitter.loop(first, last, _GROUP) as start:
            stop = emitter.minimum(emitter.add(start, _GROUP), last)
            with emitter.loop(0, row_bytes, _BLOCK_BYTES) as column:
                size = emitter.minimum(_BLOCK_BYTES, emitter.builder.sub(emitter.index(row_bytes), column))
                with emitter.loop(start, stop) as row:
                    target = emitter.at(decoded, emitter.mul(emitter.builder.sub(row, start), _BLOCK_BYTES))
                    source = emitter.at(rows, emitter.mul(row, codec.row_bytes))
                    _decode_block(emitter, codec, source, target, column, size)
                with emitter.loop(0, m, width) as token:
                    right = emitter.at(tiles, emitter.add(emitter.mul(token, row_bytes), emitter.mul(column, _SIDE)))
                    # Beside an odd last tile of tokens lies one that holds anything: nothing is stored of it.
                    sides = [emitter.at(right, side * _SIDE * row_bytes) for side in range(width // _SIDE)]
                    held = emitter.at(sums, emitter.mul(token, 2 * _TILE_BYTES // _SIDE))
                    _multiply_block(emitter, decoded, sides, held, column, size)
            # The sums of a pair of token tiles lie together: the upper rows' with either, then the lower rows'.
            with emitter.loop(0, m, _SIDE) as token:
                pair = emitter.builder.and_(token, emitter.index(-width))
                side = emitter.builder.sub(token, pair)
                held = emitter.at(sums, emitter.mul(emitter.add(pair, pair, side), _TILE_BYTES // _SIDE))
                for row_side in range(2):
                    tile = emitter.at(held, row_side * width // _SIDE * _TILE_BYTES)
                    outputs.store(tile, emitter.add(start, _SIDE * row_side), stop, token)
        emitter.call("llvm.x86.tilerelease", emitter.nothing)

    return build


def _decode_block(emitter: Emitter, codec: TwoBit, row: Value, target: Value, column: Value, size: Value) -> None:
    """Decode some columns of a row to bytes, and ask for the same columns of the row that is a group further."""
    step_bytes = 4 * codec.isa.vector_bytes
    first = emitter.builder.udiv(column, emitter.index(step_bytes))
    end = emitter.add(first, emitter.builder.udiv(size, emitter.index(step_bytes)))
    with emitter.loop(first, emitter.minimum(end, codec.steps)) as step:
        emitter.prefetch(row, emitter.add(emitter.mul(step, codec.step_bytes), _GROUP * codec.row_bytes), level=2)
        place = emitter.mul(emitter.builder.sub(step, first), step_bytes)
        for part, weights in enumerate(codec.decode(emitter, row, step).parts):
            emitter.store(weights, target, emitter.add(place, part * codec.isa.vector_bytes))
    if codec.tail:
        with emitter.when(end, ">", codec.steps):
            place = emitter.mul(emitter.builder.sub(emitter.index(codec.steps), first), step_bytes)
            for part, weights in enumerate(codec.decode_tail(emitter, row)):
                emitter.store(weights, target, emitter.add(place, part * codec.isa.vector_bytes))


def _multiply_block(
    emitter: Emitter, decoded: Value, right: list[Value], sums: Value, column: Value, size: Value
) -> None:
    """Add the products of a group's decoded columns with one or two tiles of tokens to the sums kept in memory."""
    used = [tile for row in _SUMS for tile in row[: len(right)]]
    with emitter.when(column, "==", 0):
        for tile in used:
            emitter.call("llvm.x86.tilezero", emitter.nothing, *constants(I8, tile))
    with emitter.when(column, ">", 0):
        for index, tile in enumerate(used):
            _load_tile(emitter, tile, emitter.at(sums, index * _TILE_BYTES), 64)
    with emitter.loop(0, size, 64) as at:
        for side, tile in enumerate(_LEFT):
            source = emitter.at(decoded, emitter.add(at, side * _SIDE * _BLOCK_BYTES))
            _load_tile(emitter, tile, source, _BLOCK_BYTES)
        for tile, tokens in zip(_RIGHT, right, strict=False):
            _load_tile(emitter, tile, emitter.at(tokens, emitter.mul(at, _SIDE)), 64)
        _multiply_all(emitter, len(right))
    for index, tile in enumerate(used):
        _store_tile(emitter, tile, emitter.at(sums, index * _TILE_BYTES))


def _load_tile(emitter: Emitter, tile: int, pointer: Value, stride_bytes: int) -> None:
    operands = (*constants(I8, tile), pointer, emitter.index(stride_bytes))
    emitter.call("llvm.x86.tileloadd64", emitter.nothing, *operands)


def _store_tile(emitter: Emitter, tile: int, pointer: Value) -> None:
    emitter.call("llvm.x86.tilestored64", emitter.nothing, *constants(I8, tile), pointer, emitter.index(64))


def _multiply_all(emitter: Emitter, token_tiles: int) -> None:
    """Add the products of the tiles of weights and of activations to the tiles of sums."""
    for row_side, weights in enumerate(_LEFT):
        for token_side in range(token_tiles):
            operands = constants(I8, _SUMS[row_side][token_side], weights, _RIGHT[token_side])
            emitter.call("llvm.x86.tdpbusd", emitter.nothing, *operands)


class _Outputs:
    """Turns tiles of sums into outputs."""

    def __init__(self, emitter: Emitter, codec: TwoBit) -> None:
        self._emitter = emitter
        self._sums, self._scales, self._out = (
            emitter.argument(index, POINTER) for index in (_Argument.SUMS, _Argument.SCALES, _Argument.OUT)
        )
        self._n_out, self._m = emitter.argument(_Argument.N_OUT), emitter.argument(_Argument.M)
        end = emitter.mul(self._n_out, codec.row_bytes)
        self._weight_scale = emitter.load(F32, emitter.argument(_Argument.ROWS, POINTER), end)

    def store(self, tile: Value, row: Value, stop: Value, token: Value) -> None:
        """Store 16 rows' products with 16 tokens, but for rows from ``stop`` on and tokens that aren't there."""
        emitter = self._emitter
        by_row = [emitter.load(vector(I32, _SIDE), tile, 64 * index) for index in range(_SIDE)]
        for index, sums in enumerate(transpose(emitter, by_row)):
            this = emitter.add(token, index)
            with emitter.when(this, "<", self._m):
                self._store_token(this, row, stop, sums)

    def _store_token(self, token: Value, row: Value, stop: Value, sums: Value) -> None:
        emitter, builder = self._emitter, self._emitter.builder
        excess = emitter.load(I32, self._sums, emitter.mul(token, 4))
        scale = emitter.load(F32, self._scales, emitter.mul(token, 4))
        total = rescale(emitter, builder.sub(sums, emitter.splat(excess, _SIDE)), scale, self._weight_scale)
        place = emitter.at(self._out, emitter.mul(emitter.add(emitter.mul(token, self._n_out), row), 4))
        emitter.store_start(total, place, builder.sub(stop, row))
