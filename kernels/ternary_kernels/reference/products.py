"""CPU kernels from numpy alone: the weights are unpacked a block at a time, in cache, and multiplied by BLAS.

Exactness: codes are 0..2 and activations at most 128 in magnitude, so a sum over fewer than 2^24 / 256
columns is an integer below 2^24, which float32 holds exactly whatever the order of addition. Longer rows are
summed in segments.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ternary_kernels.activations import Quantized
from ternary_kernels.formats import Bytes
from ternary_kernels.matmul import Matmul
from ternary_kernels.oracle import rescale
from ternary_kernels.team import Team, share

# Unpacked bytes per block and thread. A product with few tokens is bound by unpacking: the block must stay
# in the level-2 cache until it is multiplied. With many tokens BLAS copies the block into its own order
# anyway, and longer blocks spare it work. (Measured at 6912 x 2560 and 2560 x 6912 with 0.16, 0.32, 0.64, 1.3
# and 2.6 MB.)
_BLOCK_BYTES_FEW_TOKENS = 1 << 20
_BLOCK_BYTES_MANY_TOKENS = 4 << 20
_MANY_TOKENS = 32
_ROW_MULTIPLE = 8
_EXACT_COLUMNS = (1 << 24) // 256
_EXACT_TERNARY_COLUMNS = (1 << 24) // 128


def _block_rows(k_in: int, m: int, n_out: int) -> int:
    block_bytes = _BLOCK_BYTES_MANY_TOKENS if m >= _MANY_TOKENS else _BLOCK_BYTES_FEW_TOKENS
    rows = block_bytes // (4 * k_in) // _ROW_MULTIPLE * _ROW_MULTIPLE
    return min(max(rows, _ROW_MULTIPLE), n_out)


class NumpyI2S(Matmul):
    """I2_S (both layouts) times int8 activations.

    A byte holds four weights of one block, one per plane of two bits. Masking a plane leaves code * 4^p; the
    activations of that plane are divided by 4^p instead of shifting the codes, which is exact. One numpy call
    masks and converts, because every call returns through the interpreter lock, which the threads share.
    y = (sum of code * q - sum of q) / s * scale: the codes stay unsigned and the sum of q is subtracted once.
    """

    kernel = "numpy"
    formats = ("I2_S", "I2_S_ARM")

    _masks = np.array([0xC0, 0x30, 0x0C, 0x03], np.uint8).reshape(4, 1)
    _plane_scales = np.array([1 / 64, 1 / 16, 1 / 4, 1], np.float32).reshape(4, 1)

    def __init__(self, format_name: str, n_out: int, k_in: int, m: int, team: Team) -> None:
        super().__init__(format_name, n_out, k_in, m, team)
        block = self.format.block
        columns = min(k_in, (_EXACT_COLUMNS - 1) // block * block)
        self._segments = [(first, min(first + columns, k_in)) for first in range(0, k_in, columns)]
        self._rows = _block_rows(columns, m, n_out)

    def _multiply(self, x: Quantized, weights: Bytes, out: NDArray[np.float32]) -> None:
        rows, scale = self.format.split(weights, self.n_out, self.k_in)
        planes = [self._by_plane(x.values[:, first:last]) for first, last in self._segments]
        row_sums = x.values.sum(axis=1, dtype=np.int32)
        all_sums = self.team.scratch(None, (self.n_out, self.m))

        def work(member: int) -> None:
            first, last = share(self.n_out, self.team.threads, member, _ROW_MULTIPLE)
            if first == last:
                return
            sums = all_sums[first:last]
            self._sum_codes(planes[0], rows[first:last], 0, member, sums)
            if len(planes) > 1:
                exact = sums.astype(np.int32)
                for segment in range(1, len(planes)):
                    self._sum_codes(planes[segment], rows[first:last], segment, member, sums)
                    exact += sums.astype(np.int32)
                # Beyond 2^24 only the difference may be rounded, as the oracle rounds it: once.
                np.copyto(sums, exact - row_sums, casting="same_kind")
            else:
                sums -= row_sums
            out[:, first:last] = rescale(sums.T, x.scale, scale)

        self.team.run(work)

    def _by_plane(self, values: NDArray[np.int8]) -> NDArray[np.float32]:
        """Activations (m, k) in the order the bytes hold their weights: (k, m), plane by plane, scaled."""
        quarter = self.format.block // 4
        planes = values.reshape(self.m, -1, 4, quarter).swapaxes(1, 2).reshape(self.m, 4, -1)
        return np.ascontiguousarray((planes * self._plane_scales).reshape(self.m, -1).T)

    def _sum_codes(
        self,
        x: NDArray[np.float32],
        rows: NDArray[np.uint8],
        segment: int,
        member: int,
        sums: NDArray[np.float32],
    ) -> None:
        """Sum of code * q over one segment's columns: packed rows (r, k_in / 4) to ``sums`` (r, m)."""
        start, stop = self._segments[segment]
        packed = rows[:, None, start // 4 : stop // 4]
        block = self.team.scratch(member, (self._rows, 4, (stop - start) // 4))
        for row in range(0, len(packed), self._rows):
            codes = block[: len(packed) - row]
            np.bitwise_and(packed[row : row + self._rows], self._masks, out=codes, casting="unsafe")
            np.matmul(codes.reshape(len(codes), -1), x, out=sums[row : row + self._rows])


class NumpyUnpacked(Matmul):
    """Any format that has no kernel of its own here: its own ``unpack_rows``, a block of rows at a time, then BLAS.

    Sums of int8 activations times {-1, 0, +1} are exact in float32 over up to 2^17 columns; longer rows are summed in
    segments. Where the scales of TQ1_0's or TQ2_0's blocks differ, sums are rounded as those of floats are.
    """

    kernel = "numpy"
    formats = ("TL1", "TL2", "TQ1_0", "TQ2_0", "Q8_0", "Q6_K", "IQ2_S")

    def __init__(self, format_name: str, n_out: int, k_in: int, m: int, team: Team) -> None:
        super().__init__(format_name, n_out, k_in, m, team)
        self._multiple = self.format.row_multiple(n_out, k_in)
        self._rows = max(self._multiple, _block_rows(k_in, m, n_out) // self._multiple * self._multiple)

    def _multiply(self, x: Quantized | NDArray[np.float32], weights: Bytes, out: NDArray[np.float32]) -> None:
        stored, scale = self.format.split(weights, self.n_out, self.k_in)
        shape = (self.n_out, self.k_in)
        values = x.values if isinstance(x, Quantized) else x
        columns = np.ascontiguousarray(values.T, np.float32)

        def work(member: int) -> None:
            first, last = share(self.n_out, self.team.threads, member, self._multiple)
            for row in range(first, last, self._rows):
                end = min(row + self._rows, last)
                unpacked, block_scale = self.format.unpack_rows(stored, scale, shape, row, end)
                weights = self.team.scratch(member, unpacked.shape)
                np.copyto(weights, unpacked)
                sums = self._exact_sums(weights, columns) if unpacked.dtype == np.int8 else weights @ columns
                if isinstance(x, Quantized):
                    rescale(sums.T, x.scale, block_scale)
                out[:, row:end] = sums.T

        self.team.run(work)

    def _exact_sums(self, weights: NDArray[np.float32], columns: NDArray[np.float32]) -> NDArray[np.float32]:
        """Integer sums (r, m) of rows (r, k_in) and columns (k_in, m), rounded once if they exceed 2^24."""
        if self.k_in <= _EXACT_TERNARY_COLUMNS:
            return weights @ columns
        exact = np.zeros((len(weights), self.m), np.int32)
        for start in range(0, self.k_in, _EXACT_TERNARY_COLUMNS):
            part = slice(start, start + _EXACT_TERNARY_COLUMNS)
            exact += (weights[:, part] @ columns[part]).astype(np.int32)
        return exact.astype(np.float32)


class NumpyFloat(Matmul):
    """F16 and F32 weights times float32 activations: embeddings used as heads, and unquantised models.

    F16 weights must be finite, and activations below 2^72 in magnitude: see ``widen``.
    """

    kernel = "numpy"
    formats = ("F16", "F32")

    def __init__(self, format_name: str, n_out: int, k_in: int, m: int, team: Team) -> None:
        super().__init__(format_name, n_out, k_in, m, team)
        self._rows = _block_rows(k_in, m, n_out)

    def _multiply(self, x: NDArray[np.float32], weights: Bytes, out: NDArray[np.float32]) -> None:
        rows, _ = self.format.split(weights, self.n_out, self.k_in)
        half = self.format.name == "F16"
        # The bias is put half into the activations and half into the sums, so that neither overflows.
        columns = np.ascontiguousarray(x.T * HALF_BIAS if half else x.T)
        sums = self.team.scratch(None, (self.n_out, self.m))

        def work(member: int) -> None:
            first, last = share(self.n_out, self.team.threads, member, _ROW_MULTIPLE)
            for row in range(first, last, self._rows):
                end = min(row + self._rows, last)
                block = rows[row:end]
                if half:
                    block = widen(block, self.team.scratch(member, block.shape))
                np.matmul(block, columns, out=sums[row:end])
            if half:
                sums[first:last] *= HALF_BIAS
            out[:, first:last] = sums[first:last].T

        self.team.run(work)


HALF_BIAS = np.float32(2.0**56)
"""Square root of the factor 2^112 that ``widen`` leaves out."""

_F16_BITS = np.int32(0x8FFFE000 - (1 << 32))


def widen(half: NDArray[np.float16], out: NDArray[np.float32]) -> NDArray[np.float32]:
    """Convert F16 to float32, times 2^-112.

    An F16's bits, sign-extended and moved up by 13, are a float32 whose exponent is 112 too small; subnormals
    come out right as well, infinities and NaN don't. (numpy's own conversion takes three times as long.)

    Args:
        half: float16, any shape.
        out: float32 of the same shape, overwritten.

    Returns:
        ``out``; multiply products with it by ``HALF_BIAS`` twice.
    """
    bits = out.view(np.int32)
    np.left_shift(half.view(np.int16), 13, out=bits, dtype=np.int32)
    np.bitwise_and(bits, _F16_BITS, out=bits)
    return out
