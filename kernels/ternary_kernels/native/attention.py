"""Attention over an F16 KV cache in compiled code: near the memory's speed in decode, in registers in prefill.

The work is cut into units: a KV head, a block of new tokens (with all query heads of the group they are rows of one
matrix) and a part of the keys they see. Members take the next unit when they are done with one, longest first, so
neither a number of heads that the threads don't divide nor the causal mask leaves a thread idle. A unit goes through
its keys 64 at a time and keeps each row's largest score, its sum of weights and its weighted values; whoever finishes
the last part of a block merges the parts.

Source: Milakov and Gimelshein, Online normalizer calculation for softmax (2018); Dao et al., FlashAttention (2022),
for the blocks; Dao, Haziza, Massa and Sizov, Flash-Decoding (2023), for the parts of a context.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ternary_kernels.memory import aligned
from ternary_kernels.native import compiler
from ternary_kernels.native import isa as paths
from ternary_kernels.native.attention_kernels import kernel
from ternary_kernels.native.attention_units import KEYS, ROW_MULTIPLE, Argument, Layout
from ternary_kernels.native.isa import Isa
from ternary_kernels.native.words import Words
from ternary_kernels.reference.layer_ops import Attention, Floats, Halves
from ternary_kernels.team import Team

_ROWS = 256  # of a unit in prefill: what unpacking a block of keys costs is shared by so many
_LEAST_ROWS = 32
_UNITS_PER_MEMBER = 4


class NativeAttention(Attention):
    """Grouped-query attention of m new tokens of one sequence over an F16 KV cache.

    Args:
        heads: Query heads, a multiple of ``kv_heads``.
        kv_heads: Key and value heads.
        head_dim: Elements per head.
        m: New tokens: 1 in decode, a chunk in prefill.
        capacity: Tokens that the cache has room for, the new ones included.
        team: The threads.
        isa: Instruction set; None: the best of this machine.

    Raises:
        ValueError: ``heads`` is no multiple of ``kv_heads``, or a size is out of range.
    """

    def __init__(
        self, heads: int, kv_heads: int, head_dim: int, m: int, capacity: int, team: Team, isa: Isa | None = None
    ) -> None:
        super().__init__(heads, kv_heads, head_dim, m, capacity, team)
        isa = isa or paths.best()
        group = heads // kv_heads
        self._split = Split(kv_heads, group, m, team.threads)
        name, build = kernel(group, head_dim, decode=m == 1)
        self._kernel = compiler.load(name, {"attend": build}, isa)["attend"]

        block, blocks = self._split.block, self._split.blocks
        room = -(-block * group // ROW_MULTIPLE) * ROW_MULTIPLE
        layout = Layout(head_dim, isa)
        scratch_bytes = layout.scratch_bytes(room)
        scratch = aligned(team.threads * scratch_bytes)
        scratch.fill(0)  # rows that only fill up a tile are computed as well, and must not be slow numbers
        self._words = Words(len(Argument))
        self._words.point(Argument.SCRATCH, scratch)
        most_units = blocks * self._split.parts(capacity)
        self._words.point(Argument.STATES, aligned(most_units * layout.state_bytes(room)))
        self._words.point(Argument.DONE, np.zeros(blocks, np.int64))
        sizes = kv_heads, m, block, room, scratch_bytes, capacity
        for index, size in enumerate(sizes, Argument.KV_HEADS):
            self._words[index] = size
        self._context: int | None = None

    def _attend(self, query: Floats, keys: Halves, values: Halves, out: Floats, context: int) -> None:
        words = self._words
        if context != self._context:
            self._context, tokens = context, context + self.shape[0]
            words[Argument.TOKENS], words[Argument.PARTS] = tokens, self._split.parts(tokens)
        words[Argument.NEXT] = 0
        operands: tuple[NDArray[Any], ...] = query, keys, values, out
        for index, array in enumerate(operands, Argument.QUERY):
            words.point(index, array)
        self.team.run_compiled(self._kernel, words.address)


class Split:
    """Cuts attention into units so that all threads have as much to do.

    Args:
        kv_heads: Key and value heads.
        group: Query heads of each.
        m: New tokens.
        threads: Members of the team.

    Attributes:
        block: New tokens per unit.
        blocks: Blocks of new tokens, of all KV heads.
    """

    def __init__(self, kv_heads: int, group: int, m: int, threads: int) -> None:
        enough = _UNITS_PER_MEMBER * threads if threads > 1 else 1
        self.block = min(max(_ROWS // group, 1), m)
        while kv_heads * -(-m // self.block) < enough and self.block > 1 and self.block * group > _LEAST_ROWS:
            self.block = -(-self.block // 2)
        self.blocks = kv_heads * -(-m // self.block)
        self._most_parts = 1 if self.blocks >= enough else threads // math.gcd(self.blocks, threads)

    def parts(self, tokens: int) -> int:
        """Parts that the keys of so many tokens are cut into; of more tokens never fewer."""
        return min(self._most_parts, max(tokens // KEYS, 1))
