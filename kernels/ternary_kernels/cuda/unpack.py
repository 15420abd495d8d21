"""Packed ternary weights to codes w + 1, in torch's operations, on any device.

Each function is the twin of its format's ``unpack_rows``: rows ``[first, last)``, multiples of ``row_multiple``, of a
matrix of shape (n_out, k_in). Codes are 0..2 in uint8; bits that mean nothing give codes that mean nothing. No value
comes from the host, so a CUDA graph can hold them.

Source: the layouts are those of ``ternary_kernels.formats``, whose docstrings give them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ternary_kernels.formats import Format, tl1_tiles, tl2_tiles
from ternary_kernels.formats.blocks import BlockFormat

Unpack = Callable[[Format, Tensor, tuple[int, int], int, int], Tensor]


def unpack_rows(held: Format, packed: Tensor, shape: tuple[int, int], first: int, last: int) -> Tensor:
    """Read rows ``[first, last)``.

    Args:
        held: The format, ternary.
        packed: uint8, shape (code_bytes,): the whole matrix without a tail.
        shape: (n_out, k_in) of the whole matrix.
        first: A multiple of the format's ``row_multiple``.
        last: A multiple of the format's ``row_multiple``.

    Returns:
        uint8, shape (last - first, k_in): w + 1.
    """
    return _UNPACK[held.name](held, packed, shape, first, last)


def _i2s(held: Format, packed: Tensor, shape: tuple[int, int], first: int, last: int) -> Tensor:
    k_in = shape[1]
    blocks = packed[first * k_in // 4 : last * k_in // 4].view(-1, 1, held.block // 4)
    return (blocks >> _counting(6, -2, packed) & 3).view(last - first, k_in)


def _tl1(held: Format, packed: Tensor, shape: tuple[int, int], first: int, last: int) -> Tensor:  # noqa: ARG001
    k_in = shape[1]
    rows, columns, group = tl1_tiles(*shape)
    run = 256 // group
    tiled = packed[first * k_in // 4 : last * k_in // 4].view(
        -1, k_in // columns, rows // group, columns // run, group // 16, run // 4, 16
    )
    return _pairs(_nibbles(tiled.permute(0, 2, 4, 6, 1, 3, 5))).view(last - first, k_in)


def _tl2(held: Format, packed: Tensor, shape: tuple[int, int], first: int, last: int) -> Tensor:  # noqa: ARG001
    n_out, k_in = shape
    rows, columns, _ = tl2_tiles(n_out, k_in)
    in_pairs = k_in % columns
    in_triples = k_in - in_pairs
    count = last - first
    begin, runs = 0, []
    for row_bits in (in_triples // 3 * 4, in_triples // 3, in_pairs // 2 * 4):
        runs.append(packed[begin + first * row_bits // 8 : begin + last * row_bits // 8])
        begin += n_out * row_bits // 8
    nibbles, signs, pairs = runs
    magnitudes = _deinterleave(nibbles, count, in_triples // 3, rows, columns // 3).to(torch.int8)
    negative = _sign_bits(signs, count, in_triples // 3, rows, columns // 3)
    # 9 w0 + 3 w1 + w2 + 13, which is 9 (w0 + 1) + 3 (w1 + 1) + (w2 + 1).
    triples = (torch.where(negative, -magnitudes, magnitudes) + 13).view(torch.uint8)
    codes = torch.stack([triples // 9, triples // 3 % 3, triples % 3], dim=-1).view(count, in_triples)
    rest = _pairs(_deinterleave(pairs, count, in_pairs // 2, rows, 16)).view(count, in_pairs)
    return torch.cat([codes, rest], dim=1)


def _deinterleave(data: Tensor, count: int, width: int, tile_rows: int, tile_codes: int) -> Tensor:
    """TL2's vectors of 32 rows by two nibbles to nibbles (count, width)."""
    # A vector's rows 0-7, 16-23, 8-15, 24-31: two bits of the row's number, exchanged.
    shape = count // tile_rows, width // tile_codes, tile_rows // 32, tile_codes // 2, 2, 2, 8
    return _nibbles(data.view(shape).permute(0, 2, 5, 4, 6, 1, 3)).view(count, width)


def _sign_bits(data: Tensor, count: int, width: int, tile_rows: int, tile_codes: int) -> Tensor:
    """TL2's words of 8 signs of two rows to bool (count, width)."""
    words = data.view(count // tile_rows, width // tile_codes, tile_rows // 32, tile_codes // 8, 16, 2).flip(-1)
    bits = words[..., None] >> torch.arange(7, -1, -1, dtype=torch.uint8, device=data.device) & 1
    signs = bits.view(*words.shape[:-1], 8, 2).permute(0, 2, 6, 4, 1, 3, 5)
    return signs.reshape(count, width).to(torch.bool)


def _tq2_0(held: Format, packed: Tensor, shape: tuple[int, int], first: int, last: int) -> Tensor:
    blocks = _blocks(held, packed, shape, first, last)
    codes = blocks[:, :64].reshape(-1, 2, 1, 32) >> _counting(0, 2, packed) & 3
    return _without_unscaled(codes.view(-1, held.block), blocks).view(last - first, shape[1])


def _tq1_0(held: Format, packed: Tensor, shape: tuple[int, int], first: int, last: int) -> Tensor:
    blocks = _blocks(held, packed, shape, first, last)
    codes, begin = [], 0
    for width, digits in ((32, 5), (16, 5), (4, 4)):
        run = blocks[:, begin : begin + width]
        # uint8 wraps around: what is left of the fraction when the digits before have been taken.
        fractions = torch.stack([run * 3**digit for digit in range(digits)], dim=1)
        codes.append((fractions.to(torch.int16) * 3 >> 8).to(torch.uint8).view(len(blocks), -1))
        begin += width
    return _without_unscaled(torch.cat(codes, dim=1), blocks).view(last - first, shape[1])


def _blocks(held: Format, packed: Tensor, shape: tuple[int, int], first: int, last: int) -> Tensor:
    """Blocks of the rows, their scales included: uint8 (count, block_bytes)."""
    assert isinstance(held, BlockFormat)
    row_bytes = shape[1] // held.block * held.block_bytes
    return packed[first * row_bytes : last * row_bytes].view(-1, held.block_bytes)


def _without_unscaled(codes: Tensor, blocks: Tensor) -> Tensor:
    """Codes (count, 256), those of blocks whose float16 scale is 0 or -0 made those of 0."""
    zero = (blocks[:, -2:-1] == 0) & (blocks[:, -1:] & 0x7F == 0)
    return codes.masked_fill_(zero, 1)


def _counting(start: int, step: int, like: Tensor) -> Tensor:
    """Four shifts as a column, made on the device."""
    return torch.arange(start, start + 4 * step, step, dtype=torch.uint8, device=like.device).view(4, 1)


def _nibbles(packed: Tensor) -> Tensor:
    """Bytes to their two nibbles, the high one first, along a new last dimension."""
    return torch.stack([packed >> 4, packed & 15], dim=-1)


def _pairs(indices: Tensor) -> Tensor:
    """3 w0 + w1 + 4 to the codes of both, along a new last dimension."""
    return torch.stack([indices // 3, indices % 3], dim=-1)


_UNPACK: dict[str, Unpack] = {
    "I2_S": _i2s,
    "I2_S_ARM": _i2s,
    "TL1": _tl1,
    "TL2": _tl2,
    "TQ1_0": _tq1_0,
    "TQ2_0": _tq2_0,
}
