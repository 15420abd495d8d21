"""Products of some rows with some tokens, held in registers: the inner loops of every row-wise kernel.

Prepared activations (see ``prepare``): token t starts at ``t * stride``; there, part p of step s is one vector. For a
ternary format they are bytes in the order in which the codec's parts hold their columns.
"""

from __future__ import annotations

from typing import NamedTuple

from ternary_kernels.native.codecs import Codec, TwoBit, zero_sums
from ternary_kernels.native.emit import F32, I8, I32, Emitter, Index, Value, Variable, fill, vector, zeros


class Tokens(NamedTuple):
    """Prepared activations of one tile.

    Attributes:
        pointers: Start of each token's.
        block_sums: Start of each token's sums of activations per step, float32; for a scaled ternary format.
    """

    pointers: list[Value]
    block_sums: list[Value]


def multiply(emitter: Emitter, codec: Codec, rows: list[Value], tokens: Tokens) -> list[list[Value]]:
    """Rows, decoded as they are read, times each token: by row and token, vectors whose lanes sum to the products.

    Scaled ternary formats have their activations' sums subtracted block by block; others don't.
    """
    if isinstance(codec, TwoBit) and not codec.scaled and len(tokens.pointers) == 1 and _takes_any_byte(emitter):
        return [[_multiply_in_place(emitter, codec, row, tokens.pointers[0])] for row in rows]
    builder = emitter.builder
    sums = [[Variable(emitter, zero_sums(codec)) for _ in tokens.pointers] for _ in rows]
    corrections = [[Variable(emitter, F32(0.0)) for _ in tokens.block_sums] for _ in rows]
    part_bytes = codec.isa.vector_bytes
    parts = codec.step_columns // codec.part_columns

    def add_parts(locals_: list[list[Value]], decoded: list[list[Value]], at: Value) -> None:
        for part in range(parts):
            offset = emitter.add(at, part * part_bytes)
            for token_index, token in enumerate(tokens.pointers):
                activations = load_part(emitter, codec, token, offset)
                for row_locals, row_parts in zip(locals_, decoded, strict=True):
                    row_locals[token_index] = multiply_part(
                        emitter, codec, row_locals[token_index], row_parts[part], activations
                    )

    with emitter.loop(0, codec.steps) as step:
        offset = emitter.mul(step, codec.step_bytes)
        decoded = [codec.decode(emitter, row, step) for row in rows]
        for row in rows:
            prefetch_step(emitter, codec, row, offset)
        locals_ = [[None if codec.scaled else total.get() for total in row] for row in sums]
        add_parts(locals_, [row.parts for row in decoded], emitter.mul(step, parts * part_bytes))
        for row_index, row in enumerate(decoded):
            scale = emitter.splat(row.scale, codec.isa.floats) if row.scale else None
            for token_index, total in enumerate(sums[row_index]):
                local = locals_[row_index][token_index]
                if scale is not None:
                    local = builder.sitofp(local, vector(F32, codec.isa.floats))
                    local = emitter.multiply_add(scale, local, total.get())
                total.set(local)
            for correction, blocks in zip(corrections[row_index], tokens.block_sums, strict=True):
                block = emitter.load(F32, blocks, emitter.mul(step, 4))
                correction.set(emitter.multiply_add(row.scale, block, correction.get()))
    if isinstance(codec, TwoBit) and codec.tail:
        locals_ = [[total.get() for total in row] for row in sums]
        tails = [codec.decode_tail(emitter, row) for row in rows]
        add_parts(locals_, tails, emitter.index(codec.steps * parts * part_bytes))
        for row_sums, row_locals in zip(sums, locals_, strict=True):
            for total, local in zip(row_sums, row_locals, strict=True):
                total.set(local)
    for row_sums, row_corrections in zip(sums, corrections, strict=True):
        for total, correction in zip(row_sums, row_corrections, strict=False):
            first = builder.fsub(builder.extract_element(total.get(), I32(0)), correction.get())
            total.set(builder.insert_element(total.get(), first, I32(0)))
    return [[total.get() for total in row] for row in sums]


def prefetch_step(emitter: Emitter, codec: Codec, row: Value, offset: Value) -> None:
    """Ask for what the step at an offset will be followed by."""
    for line in range(0, codec.step_bytes, 64):
        emitter.read_ahead(row, emitter.add(offset, line))


def load_part(emitter: Emitter, codec: Codec, start: Value, offset: Index) -> Value:
    """Load one part, of a token's prepared activations or of a decoded row."""
    kind = vector(I8, codec.isa.vector_bytes) if codec.integer else vector(F32, codec.isa.floats)
    return emitter.load(kind, start, offset)


def multiply_part(emitter: Emitter, codec: Codec, total: Value | None, weights: Value, activations: Value) -> Value:
    """Add one part's products to a vector of sums; None: start one, as for a block of a ternary format."""
    if codec.integer:
        return emitter.dot(zeros(vector(I32, codec.isa.floats)) if total is None else total, weights, activations)
    return emitter.multiply_add(weights, activations, total)


def _multiply_in_place(emitter: Emitter, codec: TwoBit, row: Value, token: Value) -> Value:
    """As ``multiply``, for one token: codes are multiplied where they lie in the byte, and their sums shifted.

    That saves three shifts for every four products. A sum is below 2^31 as long as a row has fewer than 2^18 columns.
    """
    builder, width = emitter.builder, codec.isa.vector_bytes
    sums = [Variable(emitter, zeros(vector(I32, codec.isa.floats))) for _ in codec.shifts]

    def add(packed: Value, at: Value) -> None:
        for part, (codes, total) in enumerate(zip(codec.masked(emitter, packed), sums, strict=True)):
            activations = emitter.load(packed.type, token, emitter.add(at, part * width))
            total.set(emitter.dot(total.get(), codes, activations))

    with emitter.loop(0, codec.steps) as step:
        offset = emitter.mul(step, width)
        prefetch_step(emitter, codec, row, offset)
        add(emitter.load(vector(I8, width), row, offset), emitter.mul(step, 4 * width))
    if codec.tail:
        add(codec.load_tail(emitter, row), emitter.index(codec.steps * 4 * width))
    shifted = [
        builder.ashr(total.get(), fill(I32, codec.isa.floats, shift))
        for total, shift in zip(sums, codec.shifts, strict=True)
    ]
    total = shifted[0]
    for other in shifted[1:]:
        total = builder.add(total, other)
    return total


def _takes_any_byte(emitter: Emitter) -> bool:
    """Whether ``dot`` takes unsigned bytes up to 192 without saturating."""
    return emitter.isa.dot.startswith("vpdpbusd")
