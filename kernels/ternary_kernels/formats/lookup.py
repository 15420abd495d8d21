"""TL1 and TL2: weights as indices into look-up tables of activation sums, tiled as bitnet.cpp's kernels read them.

Both were written for kernels that are generated for one shape each, and a file doesn't say how it is tiled: reader and
writer must choose the same tiles. ``tl1_tiles`` and ``tl2_tiles`` choose as the published kernels do for the shapes
these are for, and by a rule for all others.

Checked against the published converter (microsoft/BitNet 16da220, utils/convert-hf-to-gguf-bitnet.py,
preprocess_weights_tl1 and preprocess_weights_tl2), run on random weights for each of the ten published shapes with its
tiles, and for 2B-4T's with the rule's: every byte that it wrote is what ``pack`` writes. (It writes neither the padding
up to the tail nor the tail.)
"""

from __future__ import annotations

from itertools import product
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ternary_kernels.formats.base import Bytes, Format
from ternary_kernels.formats.tail import TAIL_BYTES, make_tail, read_scale

_GROUP = 32
_TL2_RESERVED_COLUMNS = 256
"""Columns that TL2's published size counts as pairs, however few are."""
_MAX_TILE_ROWS = 320
_PAIRS = np.pad(np.array(list(product((-1, 0, 1), repeat=2)), np.int8), ((0, 7), (0, 0)), constant_values=2)
"""Weights by 3 w0 + w1 + 4; 2 for the nibbles that mean nothing."""
_TRIPLES = np.pad(np.array(list(product((-1, 0, 1), repeat=3)), np.int8), ((2, 2), (0, 0)), constant_values=2)
"""Weights by 9 w0 + 3 w1 + w2 + 15; 2 for the nibbles that mean nothing."""


class Tiles(NamedTuple):
    """How a matrix is cut up.

    Attributes:
        rows: Rows of a tile (BM); n_out is a multiple.
        columns: Columns of a tile (BK).
        group: Rows of a tile that are interleaved (bm), a divisor of ``rows``.
    """

    rows: int
    columns: int
    group: int


# Found by search on the authors' machines, so no formula gives them: (n_out, k_in) and BM, BK, bm.
# Source: microsoft/BitNet 16da220, setup_env.py, gen_code. The files of preset_kernels/, which --use-pretuned takes
# instead, have other tiles of TL1 for Llama3-8B.
_PUBLISHED_TL1 = {
    (1536, 4096): Tiles(256, 128, 32),
    (1536, 1536): Tiles(128, 64, 64),
    (4096, 1536): Tiles(256, 128, 32),
    (3200, 8640): Tiles(160, 64, 32),
    (3200, 3200): Tiles(320, 128, 64),
    (8640, 3200): Tiles(320, 64, 32),
    (14336, 4096): Tiles(256, 128, 32),
    (4096, 14336): Tiles(128, 64, 64),
    (1024, 4096): Tiles(256, 128, 32),
    (4096, 4096): Tiles(128, 64, 64),
}
_PUBLISHED_TL2 = {
    (1536, 4096): Tiles(256, 96, 32),
    (1536, 1536): Tiles(128, 192, 32),
    (4096, 1536): Tiles(256, 96, 32),
    (3200, 8640): Tiles(160, 96, 32),
    (3200, 3200): Tiles(320, 96, 32),
    (8640, 3200): Tiles(320, 96, 32),
    (14336, 4096): Tiles(256, 96, 32),
    (4096, 14336): Tiles(128, 96, 32),
    (1024, 4096): Tiles(256, 96, 32),
    (4096, 4096): Tiles(128, 96, 32),
}


def tl1_tiles(n_out: int, k_in: int) -> Tiles:
    """The tiles of a TL1 matrix.

    The published ones for the shapes that have them. Else groups of 32 rows, the most of them (up to 320 rows) that
    divide n_out evenly as a tile's rows; and as its columns the largest of 128, 64 and 32 that divides k_in.

    Raises:
        ValueError: The rows or the columns are no multiple of 32.
    """
    rows = _tile_rows("TL1", n_out, k_in)
    columns = next(columns for columns in (128, 64, 32) if k_in % columns == 0)
    return _PUBLISHED_TL1.get((n_out, k_in), Tiles(rows, columns, _GROUP))


def tl2_tiles(n_out: int, k_in: int) -> Tiles:
    """The tiles of a TL2 matrix.

    The published ones for the shapes that have them. Else rows as for ``tl1_tiles`` and 96 columns, the fewest that are
    whole vectors of signs (24 columns each) and always leave a multiple of 32 over for the pairs.

    Raises:
        ValueError: The rows or the columns are no multiple of 32, or there are fewer than 256 columns.
    """
    rows = _tile_rows("TL2", n_out, k_in)
    if k_in < _TL2_RESERVED_COLUMNS:
        raise ValueError(f"TL2 needs at least {_TL2_RESERVED_COLUMNS} columns, got {k_in}")
    return _PUBLISHED_TL2.get((n_out, k_in), Tiles(rows, 96, _GROUP))


def _tile_rows(name: str, n_out: int, k_in: int) -> int:
    if n_out % _GROUP or k_in % _GROUP:
        raise ValueError(f"{name} needs rows and columns to be multiples of {_GROUP}, got {n_out} x {k_in}")
    return next(rows for rows in range(_MAX_TILE_ROWS, 0, -_GROUP) if n_out % rows == 0)


class TL1(Format):
    """A pair of weights as a nibble, for Arm: code = 3 w0 + w1 + 4, one float32 scale in a 32-byte tail.

    A byte holds four successive columns of one row: code(w0, w1) << 4 | code(w2, w3). With the tiles (BM rows, BK
    columns, groups of bm rows) of ``tl1_tiles`` and by = 256 / bm columns, bytes lie in this order, slowest first:

    1. row tiles of BM rows;
    2. column tiles of BK columns;
    3. groups of bm rows within the tile;
    4. by columns within the tile;
    5. 16 rows within the group;
    6. 4 columns within the by;
    7. the 16 bytes of these rows, one each.

    So each tile of BM rows is one run of bytes, and 16 bytes make one register of indices. The scale follows at byte
    n_out k_in / 4.

    Source: microsoft/BitNet 16da220, utils/convert-hf-to-gguf-bitnet.py, preprocess_weights_tl1; utils/codegen_tl1.py.
    """

    name = "TL1"
    gguf_type = 38
    ternary = True
    bits_per_weight = 2.0
    block = _GROUP

    def _check_shape(self, n_out: int, k_in: int) -> None:
        super()._check_shape(n_out, k_in)
        tl1_tiles(n_out, k_in)

    def row_multiple(self, n_out: int, k_in: int) -> int:
        """A tile's rows."""
        return tl1_tiles(n_out, k_in).rows

    def _size(self, n_out: int, k_in: int) -> int:
        return n_out * k_in // 4 + TAIL_BYTES

    def _pack(self, weights: NDArray[Any], scale: float) -> Bytes:
        n_out, k_in = weights.shape
        rows, columns, group = tl1_tiles(n_out, k_in)
        run = 256 // group
        codes = _pair_codes(weights).reshape(
            n_out // rows, rows // group, group // 16, 16, k_in // columns, columns // run, run // 4, 2
        )
        packed = codes[..., 0] << 4 | codes[..., 1]
        return np.concatenate([packed.transpose(0, 4, 1, 5, 2, 6, 3).reshape(-1), make_tail(scale)])

    def _split(self, data: Bytes, n_out: int, k_in: int) -> tuple[NDArray[Any], float]:
        size = n_out * k_in // 4
        return data[:size], read_scale(data)

    def _unpack_rows(
        self, stored: NDArray[Any], scale: float, shape: tuple[int, int], first: int, last: int
    ) -> tuple[NDArray[Any], float]:
        k_in = shape[1]
        rows, columns, group = tl1_tiles(*shape)
        run = 256 // group
        packed = stored[first * k_in // 4 : last * k_in // 4].reshape(
            -1, k_in // columns, rows // group, columns // run, group // 16, run // 4, 16
        )
        codes = _nibbles(packed.transpose(0, 2, 4, 6, 1, 3, 5))
        return _PAIRS[codes].reshape(last - first, k_in), scale


class TL2(Format):
    """Three weights as a nibble and a sign bit, for x86; one float32 scale in a 32-byte tail.

    With M = n_out, K = k_in and the tiles (BM rows, BK columns) of ``tl2_tiles``, the first K3 = K - K % BK columns
    are stored as triples, the K2 = K % BK others as pairs. For a triple v = 9 w0 + 3 w1 + w2: nibble |v|, 0..13, and
    a sign bit that is set for v < 0. For a pair the code of TL1, 3 w0 + w1 + 4.

    The data are three runs, then zeros up to byte P, then the scale and 28 bytes that mean nothing:

    ========  ==============  =============================
    run       begins at byte  has bytes
    ========  ==============  =============================
    nibbles   0               M K3 / 6
    signs     M K3 / 6        M K3 / 24
    pairs     M K3 5 / 24     M K2 / 4
    scale     P               4 of 32
    ========  ==============  =============================

    P = floor(floor((K - 256) M / 3) 5 / 8) + 64 M, rounded up to a multiple of 32: as if 256 columns were pairs, though
    K2 is below BK.

    Each run is made of vectors of 32 bytes for 32 rows. Slowest first, they are ordered by row tile (BM rows), column
    tile, group of 32 rows within the tile, and columns within the tile:

    * Nibbles: BK columns a tile, 6 a vector. Byte = nibble of the even triple << 4 | nibble of the odd one, one byte a
      row, in the order rows 0-7, 16-23, 8-15, 24-31 of the group (what unpacking to 16 bits within AVX2's lanes needs).
    * Signs: BK columns a tile, 24 a vector, which so serves four successive vectors of nibbles. The vector is 16
      little-endian words of 16 bits. Word j is of rows j and 16 + j of the group: bit 15 - 2 i is the sign of triple i
      of row j, bit 14 - 2 i that of row 16 + j, i = 0..7.
    * Pairs: 32 columns a tile, 4 a vector: byte = code of the even pair << 4 | code of the odd one; rows as above.

    That is, with row tile T, column tile t, group g and vector c within the tile, a vector begins, from its run's
    begin, at byte 32 (((T K3/BK + t) BM/32 + g) BK/6 + c) for nibbles, the same with BK/24 for signs, and at byte
    32 (((T K2/32 + t) BM/32 + g) 8 + c) for pairs.

    Source: microsoft/BitNet 16da220, utils/convert-hf-to-gguf-bitnet.py, preprocess_weights_tl2, whose padding differs
    from ggml_nbytes in its llama.cpp (the size here) in not being rounded up to 32; utils/codegen_tl2.py.
    """

    name = "TL2"
    gguf_type = 39
    ternary = True
    bits_per_weight = 5 / 3
    block = _GROUP

    _row_order: ClassVar[list[int]] = [0, 2, 1, 3]
    """Eight rows each; its own inverse."""

    def _check_shape(self, n_out: int, k_in: int) -> None:
        super()._check_shape(n_out, k_in)
        tl2_tiles(n_out, k_in)

    def row_multiple(self, n_out: int, k_in: int) -> int:
        """A tile's rows."""
        return tl2_tiles(n_out, k_in).rows

    def _size(self, n_out: int, k_in: int) -> int:
        return self._scale_offset(n_out, k_in) + TAIL_BYTES

    def _scale_offset(self, n_out: int, k_in: int) -> int:
        size = (k_in - _TL2_RESERVED_COLUMNS) * n_out // 3 * 5 // 8 + _TL2_RESERVED_COLUMNS * n_out // 4
        return -(-size // 32) * 32

    def _pack(self, weights: NDArray[Any], scale: float) -> Bytes:
        n_out, k_in = weights.shape
        rows, columns, _ = tl2_tiles(n_out, k_in)
        in_triples = k_in - k_in % columns
        triples = weights[:, :in_triples].reshape(n_out, -1, 3) @ np.array([9, 3, 1], np.int8)
        runs = [
            self._interleave(np.abs(triples).astype(np.uint8), rows, columns // 3),
            self._pack_signs(triples < 0, rows, columns // 3),
            self._interleave(_pair_codes(weights[:, in_triples:]), rows, _GROUP // 2),
        ]
        padding = self._scale_offset(n_out, k_in) - sum(map(len, runs))
        return np.concatenate([*runs, np.zeros(padding, np.uint8), make_tail(scale)])

    def _split(self, data: Bytes, n_out: int, k_in: int) -> tuple[NDArray[Any], float]:
        size = self._scale_offset(n_out, k_in)
        return data[:size], read_scale(data)

    def _unpack_rows(
        self, stored: NDArray[Any], scale: float, shape: tuple[int, int], first: int, last: int
    ) -> tuple[NDArray[Any], float]:
        n_out, k_in = shape
        rows, columns, _ = tl2_tiles(n_out, k_in)
        in_pairs = k_in % columns
        in_triples = k_in - in_pairs
        count = last - first
        begin, runs = 0, []
        for row_bits in (in_triples // 3 * 4, in_triples // 3, in_pairs // 2 * 4):
            runs.append(stored[begin + first * row_bits // 8 : begin + last * row_bits // 8])
            begin += n_out * row_bits // 8
        nibbles, signs, pairs = runs
        magnitudes = self._deinterleave(nibbles, count, in_triples // 3, rows, columns // 3)
        triples = magnitudes.astype(np.int8)
        np.negative(triples, out=triples, where=self._unpack_signs(signs, count, in_triples // 3, rows, columns // 3))
        codes = self._deinterleave(pairs, count, in_pairs // 2, rows, _GROUP // 2)
        weights = np.empty((count, k_in), np.int8)
        weights[:, :in_triples] = _TRIPLES[triples + 15].reshape(count, in_triples)
        weights[:, in_triples:] = _PAIRS[codes].reshape(count, in_pairs)
        return weights, scale

    def _interleave(self, codes: NDArray[np.uint8], tile_rows: int, tile_codes: int) -> Bytes:
        """Nibbles (n_out, codes per row) to vectors of 32 rows by 2 codes, tile after tile."""
        n_out, count = codes.shape
        tiled = codes.reshape(n_out // tile_rows, tile_rows // 32, 4, 8, count // tile_codes, tile_codes // 2, 2)
        packed = tiled[..., 0] << np.uint8(4) | tiled[..., 1]
        return packed[:, :, self._row_order].transpose(0, 4, 1, 5, 2, 3).reshape(-1)

    def _deinterleave(self, data: Bytes, n_out: int, count: int, tile_rows: int, tile_codes: int) -> NDArray[np.uint8]:
        tiles = count // tile_codes
        packed = data.reshape(n_out // tile_rows, tiles, tile_rows // 32, tile_codes // 2, 4, 8)
        return _nibbles(packed[:, :, :, :, self._row_order].transpose(0, 2, 4, 5, 1, 3)).reshape(n_out, count)

    def _pack_signs(self, negative: NDArray[np.bool_], tile_rows: int, tile_codes: int) -> Bytes:
        n_out, count = negative.shape
        tiled = negative.reshape(n_out // tile_rows, tile_rows // 32, 2, 16, count // tile_codes, tile_codes // 8, 8)
        words = np.packbits(tiled.transpose(0, 4, 1, 5, 3, 6, 2).reshape(-1, 16), axis=1)
        return words[:, ::-1].reshape(-1)

    def _unpack_signs(self, data: Bytes, n_out: int, count: int, tile_rows: int, tile_codes: int) -> NDArray[np.bool_]:
        words = data.reshape(-1, 2)[:, ::-1]
        bits = np.unpackbits(words, axis=1).view(np.bool_)
        tiled = bits.reshape(n_out // tile_rows, count // tile_codes, tile_rows // 32, tile_codes // 8, 16, 8, 2)
        return tiled.transpose(0, 2, 6, 4, 1, 3, 5).reshape(n_out, count)


def _pair_codes(weights: NDArray[np.int8]) -> NDArray[np.uint8]:
    return (3 * weights[:, 0::2] + weights[:, 1::2] + 4).astype(np.uint8)


def _nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.stack([packed >> 4, packed & 15], axis=-1)
