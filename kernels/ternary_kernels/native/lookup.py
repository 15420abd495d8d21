"""Matrix products in TL1 and TL2 by compiled kernels."""

from __future__ import annotations

from itertools import chain

import numpy as np
from numpy.typing import NDArray

from ternary_kernels.activations import Quantized
from ternary_kernels.formats import Bytes
from ternary_kernels.formats.tail import TAIL_BYTES
from ternary_kernels.matmul import Matmul
from ternary_kernels.memory import address
from ternary_kernels.native import compiler
from ternary_kernels.native.isa import Isa, best
from ternary_kernels.native.lookup_codes import Argument, layout
from ternary_kernels.native.lookup_gemm import many_tokens, many_tokens_bytes, tile_tokens
from ternary_kernels.native.lookup_gemv import few_tokens, few_tokens_bytes
from ternary_kernels.native.words import Words
from ternary_kernels.team import Team

_FEW_TOKENS = 1
_FEW_TOKENS_AVX2 = 4
"""Up to so many tokens sums are looked up. Measured for TL2 at 2560 x 2560, cold, one thread of a Xeon, microseconds
for looking up and for decoding: 2 tokens 156 and 165 with AVX-512 VBMI, 175 and 169 with AVX-512 VNNI, 203 and 238 with
AVX-VNNI; 3 tokens 211 and 170, 235 and 177, 283 and 245; with AVX2, whose dot products are slower, 4 tokens 372 and
409, 6 tokens 533 and 528."""


class NativeLookup(Matmul):
    """TL1 and TL2 times int8 activations: sums are looked up for few tokens, weights decoded for many.

    Args:
        format_name: As for ``Matmul``.
        n_out: As for ``Matmul``.
        k_in: As for ``Matmul``.
        m: As for ``Matmul``.
        team: As for ``Matmul``.
        isa: Path to take; None: the best of this machine.

    Attributes:
        isa: The path taken.

    Raises:
        ValueError: As for ``Matmul``.
    """

    kernel = "native"
    formats = ("TL1", "TL2")

    def __init__(self, format_name: str, n_out: int, k_in: int, m: int, team: Team, isa: Isa | None = None) -> None:
        super().__init__(format_name, n_out, k_in, m, team)
        self.isa = isa or best()
        held = layout(format_name, n_out, k_in)
        if m <= (_FEW_TOKENS_AVX2 if self.isa.dot == "pmaddubsw" else _FEW_TOKENS):
            name, build = "few", few_tokens(held)
            scratch_bytes = few_tokens_bytes(held, k_in, m)
        else:
            tile = tile_tokens(self.isa, m)
            name, build = f"many_{tile}", many_tokens(held, tile)
            scratch_bytes = many_tokens_bytes(k_in, m, tile)
        self._kernel = compiler.load(f"lookup_{held.name}_{name}", {"product": build}, self.isa)["product"]
        words = Words(Argument.SCRATCH + team.threads)
        words[Argument.WEIGHT_SCALE] = self.size_bytes - TAIL_BYTES
        words[Argument.N_OUT], words[Argument.K_IN], words[Argument.TOKENS] = n_out, k_in, m
        words[Argument.TILE_ROWS] = held.tile_rows
        for index, value in enumerate(chain.from_iterable(held.runs)):
            words[Argument.RUNS + index] = value
        for member in range(team.threads):
            # Nothing is kept there from call to call, so it is no matter who else uses it between them.
            words.point(Argument.SCRATCH + member, team.scratch(member, (-(-scratch_bytes // 4),)))
        self._words = words

    def _multiply(self, x: Quantized, weights: Bytes, out: NDArray[np.float32]) -> None:
        words = self._words
        words.point(Argument.ACTIVATIONS, x.values)
        words.point(Argument.SCALES, x.scale)
        words[Argument.WEIGHTS] = address(weights)
        words.point(Argument.OUT, out)
        self.team.run_compiled(self._kernel, words.address)
