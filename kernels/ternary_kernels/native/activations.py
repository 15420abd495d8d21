"""Brings int8 activations into the order in which a codec's parts hold their columns, and sums them."""

from __future__ import annotations

from ternary_kernels.native.codecs import TwoBit
from ternary_kernels.native.emit import F32, I8, I32, POINTER, Build, Emitter, Value, Variable, fill, vector, zeros

BLOCK_COLUMNS = 256
"""Columns whose activations are summed together for a format with a scale per block."""


def row_bytes(codec: TwoBit) -> int:
    """Bytes of one token's activations, filled up to whole steps."""
    units = codec.steps * codec.step_columns // (4 * codec.isa.vector_bytes) + bool(codec.tail)
    return units * 4 * codec.isa.vector_bytes


def block_sums_bytes(codec: TwoBit) -> int:
    """Bytes of one token's sums per block, filled up to whole vectors; 0 for a format without scales."""
    return -(-codec.steps // codec.isa.floats) * codec.isa.vector_bytes if codec.scaled else 0


def prepare(codec: TwoBit) -> Build:
    """Kernel that prepares the tokens.

    Its arguments: activations (m, k_in) int8; k_in; prepared activations; their sums (m,) int32; sums per block
    (m, blocks) float32, or 0; m. The last two are written, the latter only for a format with scales.
    """

    def build(emitter: Emitter) -> None:
        values, prepared, sums, block_sums = (emitter.argument(index, POINTER) for index in (0, 2, 3, 4))
        k_in, m = emitter.argument(1), emitter.argument(5)
        first, last = emitter.share(m)
        with emitter.loop(first, last) as token:
            source = emitter.at(values, emitter.mul(token, k_in))
            target = emitter.at(prepared, emitter.mul(token, row_bytes(codec)))
            blocks = emitter.at(block_sums, emitter.mul(token, block_sums_bytes(codec)))
            total = prepare_token(emitter, codec, source, target, blocks)
            emitter.store(total, sums, emitter.mul(token, 4))

    return build


def prepare_token(emitter: Emitter, codec: TwoBit, source: Value, target: Value, blocks: Value) -> Value:
    """Prepare one token's activations, and their sums per block where the format has scales; returns their sum."""
    builder, width, quarter = emitter.builder, codec.isa.vector_bytes, codec.quarter
    group = 4 * max(width, quarter)
    total = Variable(emitter, zeros(vector(I32, codec.isa.floats)))

    def copy(source: Value, target: Value, size: int) -> Value:
        """Copy one group of columns, of which the first ``size`` are there, and add its activations up."""
        piece = min(width, quarter)
        kind = vector(I8, piece)
        for at in range(0, group, piece):
            unit, place = divmod(at, 4 * width)
            part, byte = divmod(place, width)
            # Byte b of the packed group holds, in plane p, column p * quarter + b % quarter of block b // quarter.
            block, offset = divmod(unit * width + byte, quarter)
            column = 4 * quarter * block + part * quarter + offset
            emitter.store(emitter.load(kind, source, column) if column < size else zeros(kind), target, at)
        sums = zeros(vector(I32, codec.isa.floats))
        for at in range(0, group, width):
            sums = emitter.dot(sums, fill(I8, width, 1), emitter.load(vector(I8, width), target, at))
        return sums

    per_block = BLOCK_COLUMNS // group if codec.scaled else 1
    groups = codec.steps * codec.step_columns // group
    with emitter.loop(0, groups // per_block) as block:
        block_total = None
        for index in range(per_block):
            at = emitter.mul(emitter.add(emitter.mul(block, per_block), index), group)
            sums = copy(emitter.at(source, at), emitter.at(target, at), group)
            block_total = sums if block_total is None else builder.add(block_total, sums)
        total.set(builder.add(total.get(), block_total))
        if codec.scaled:
            whole = builder.sitofp(emitter.sum_lanes(block_total), F32)
            emitter.store(whole, blocks, emitter.mul(block, 4))
    if codec.scaled:
        with emitter.loop(codec.steps, block_sums_bytes(codec) // 4) as padding:
            emitter.store(F32(0.0), blocks, emitter.mul(padding, 4))
    if codec.tail:
        end = groups * group
        rest = copy(emitter.at(source, end), emitter.at(target, end), 4 * codec.tail)
        total.set(builder.add(total.get(), rest))
    return emitter.sum_lanes(total.get())
