"""Matrix products by compiled kernels: I2_S, TQ2_0, F16, F32, Q8_0, Q6_K."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary_kernels.activations import Quantized
from ternary_kernels.formats import Bytes
from ternary_kernels.matmul import Matmul
from ternary_kernels.memory import address, aligned
from ternary_kernels.native import activations, compiler, rowwise
from ternary_kernels.native.codecs import Q6, Q8, TQ2, Codec, Half, Single, TwoBit
from ternary_kernels.native.isa import Isa, best
from ternary_kernels.native.rowwise import Argument
from ternary_kernels.native.words import Words
from ternary_kernels.team import Team

_FEW_TOKENS = 4
"""Up to so many tokens rows are multiplied as they are read, whatever they are."""
_FEW_BYTES = 64 << 10
"""Up to so many bytes of int8 activations the same for more tokens: they take little of the level-2 cache."""
_CHUNK_BYTES = 192 << 10
"""Decoded rows that a member multiplies by all tokens before it decodes more: they stay in the level-2 cache."""
MOST_COLUMNS = 1 << 18
"""Sums of codes where they lie in the byte fit 32 bits up to here."""


class NativeRows(Matmul):
    """Formats whose rows lie one after the other, times activations.

    Args:
        format_name: As for ``Matmul``.
        n_out: As for ``Matmul``.
        k_in: As for ``Matmul``.
        m: As for ``Matmul``.
        team: As for ``Matmul``.
        isa: Path to take; None: the best of this machine.

    Raises:
        ValueError: As for ``Matmul``; or rows are longer than the kernels' sums allow.
    """

    kernel = "native"
    formats = ("I2_S", "I2_S_ARM", "TQ2_0", "F16", "F32", "Q8_0", "Q6_K")

    def __init__(self, format_name: str, n_out: int, k_in: int, m: int, team: Team, isa: Isa | None = None) -> None:
        super().__init__(format_name, n_out, k_in, m, team)
        if k_in > MOST_COLUMNS:
            raise ValueError(f"{format_name} product: expected at most {MOST_COLUMNS} columns, got {k_in}")
        self.isa = isa or best()
        self._codec = _codec(format_name, self.isa, k_in)
        codec = self._codec
        words = Words(Argument.SCRATCH + team.threads)
        words[Argument.ROW_BYTES], words[Argument.N_OUT] = codec.row_bytes, n_out
        self._few = _takes_few(codec, k_in, m)
        self._prepare: _Prepare | None = None
        if self._few:
            name, build = f"few_{m}", rowwise.few_tokens(codec, k_in, m)
            own_bytes = rowwise.own_bytes(codec, m)
            self._own = [aligned(own_bytes) for _ in range(team.threads)]
            for member, memory in enumerate(self._own):
                words[Argument.SCRATCH + member] = address(memory)
        else:
            tiles = rowwise.even_tiles(m, rowwise.most_tokens(codec))
            large, small = tiles[0], tiles[-1]
            words[Argument.LARGE_TILES] = tiles.count(large)
            words[Argument.SMALL_TILES] = tiles.count(small) if small < large else 0
            decoded_bytes = rowwise.decoded_bytes(codec, k_in)
            chunk = max(_CHUNK_BYTES // decoded_bytes // rowwise.ROWS, 1) * rowwise.ROWS
            words[Argument.CHUNK_ROWS] = chunk
            self._scratch_shape = (chunk * decoded_bytes // 4,)
            name, build = f"many_{large}_{small}", rowwise.many_tokens(codec, k_in, large, small)
            if isinstance(codec, TwoBit):
                self._prepare = _Prepare(codec, k_in, m, team)
        module = f"{codec.name}_{k_in}_{name}"
        self._kernel = compiler.load(module, {"product": build}, self.isa)["product"]
        self._words = words

    def _multiply(self, x: Quantized | NDArray[np.float32], weights: Bytes, out: NDArray[np.float32]) -> None:
        words = self._words
        words[Argument.ROWS] = address(weights)
        words.point(Argument.OUT, out)
        if isinstance(x, Quantized):
            words.point(Argument.SCALES, x.scale)
        values = x.values if isinstance(x, Quantized) else x
        if self._prepare:
            self._prepare(values, words)
        else:
            words.point(Argument.ACTIVATIONS, values)
        if not self._few:
            for member in range(self.team.threads):
                words.point(Argument.SCRATCH + member, self.team.scratch(member, self._scratch_shape))
        self.team.run_compiled(self._kernel, words.address)


class _Prepare:
    """Prepares int8 activations in memory that the team's products share."""

    def __init__(self, codec: TwoBit, k_in: int, m: int, team: Team) -> None:
        self._team = team
        module = f"prepare_{codec.name}_{k_in}"
        self._kernel = compiler.load(module, {"prepare": activations.prepare(codec)}, codec.isa)["prepare"]
        self._sizes = m * activations.row_bytes(codec), m * activations.block_sums_bytes(codec), 4 * m
        self._words = Words(6)
        self._words[1], self._words[5] = k_in, m

    def __call__(self, values: NDArray[Any], product: Words) -> None:
        prepared_bytes, block_sums_bytes, _ = self._sizes
        prepared = address(self._team.scratch(None, (sum(self._sizes) // 4,)))
        block_sums = prepared + prepared_bytes
        sums = block_sums + block_sums_bytes
        self._words.point(0, values)
        self._words[2], self._words[3], self._words[4] = prepared, sums, block_sums
        self._team.run_compiled(self._kernel, self._words.address)
        product[Argument.ACTIVATIONS], product[Argument.SUMS], product[Argument.BLOCK_SUMS] = prepared, sums, block_sums


def _takes_few(codec: Codec, k_in: int, m: int) -> bool:
    """Whether rows are multiplied as they are read, and not decoded to memory first; odd ends of rows need that."""
    if not codec.integer and codec.tail:
        return False
    if m <= _FEW_TOKENS:
        return True
    fits = not codec.integer or m * rowwise.token_bytes(codec, k_in) <= _FEW_BYTES
    return m <= codec.most_few and fits and rowwise.holds_many_sums(codec)


def _codec(format_name: str, isa: Isa, k_in: int) -> Codec:
    match format_name:
        case "I2_S":
            return TwoBit(isa, k_in, 32)
        case "I2_S_ARM":
            return TwoBit(isa, k_in, 16)
        case "TQ2_0":
            return TQ2(isa, k_in)
        case "F16":
            return Half(isa, k_in)
        case "F32":
            return Single(isa, k_in)
        case "Q8_0":
            return Q8(isa, k_in)
    return Q6(isa, k_in)
