"""Attention in Triton where torch's has least to do and costs most: one new token per sequence."""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from torch import Tensor

from ternary_kernels.cuda.attention_kernels import attend_kernel, join_kernel
from ternary_kernels.cuda.layer_ops import Attention
from ternary_kernels.cuda.triton_products import multiprocessors_of

PROGRAMS_PER_MULTIPROCESSOR = 2
"""While one waits for memory the other multiplies."""

TILE = 8192
"""Elements of keys that are loaded at once, up to 128 tokens: with 128 elements to a head 16 KiB, values as many."""


class TritonAttention(Attention):
    """Grouped-query attention as ``Attention`` has it; with one new token per sequence, by one kernel or two.

    The tokens of a cache are shared among programs where sequences and KV heads alone don't fill the GPU, each share at
    least two tiles. Calls of one object must follow one another: shares are kept in memory of its own.

    Args:
        heads: Query heads, a multiple of ``kv_heads``.
        kv_heads: Key and value heads.
        head_dim: Elements per head.
        sequences: Sequences decoded together; 1 in prefill.
        m: New tokens of each: 1 in decode, a chunk in prefill.
        context: Tokens in each cache before them.
        device: Where all of it lies.
        capacity: Slots of each cache, of which the first are in use; None: no more than those.

    Raises:
        ValueError: As for ``Attention``.
    """

    def __init__(
        self,
        heads: int,
        kv_heads: int,
        head_dim: int,
        sequences: int,
        m: int,
        context: int,
        device: torch.device | str,
        capacity: int | None = None,
    ) -> None:
        super().__init__(heads, kv_heads, head_dim, sequences, m, context, device, capacity)
        self._factor = math.log2(math.e) / math.sqrt(head_dim)
        self._dim = max(1 << (head_dim - 1).bit_length(), 16)
        self._block = max(min(TILE // self._dim, 128), 16)
        self._programs = sequences * kv_heads
        self._group = heads // kv_heads
        tiles = -(-self._tokens // self._block)
        wanted = PROGRAMS_PER_MULTIPROCESSOR * multiprocessors_of(self.device) // self._programs
        each = -(-tiles // max(min(wanted, tiles // 2), 1))
        self._share = each * self._block
        self._shares = -(-tiles // each)
        rows = self._shares * sequences * heads if self._shares > 1 and m == 1 else 1
        self._mixed = torch.empty(rows, head_dim, device=device)
        self._largest, self._total = torch.empty(rows, device=device), torch.empty(rows, device=device)
        self._on_device = torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, out: Tensor) -> None:
        sequences, m, heads, head_dim = self.shape
        if m > 1:
            super()._attend(query, keys, values, out)
            return
        shared = self._shares > 1
        kept = self._mixed, self._largest, self._total, out
        with self._on_device:
            attend_kernel[self._programs, self._shares](
                query,
                keys,
                values,
                *kept,
                self._factor,
                self._tokens,
                self.cache_shape[2],
                self._share,
                head_dim,
                GROUP=self._group,
                ROWS=max(1 << (self._group - 1).bit_length(), 16),
                DIM=self._dim,
                BLOCK=self._block,
                SHARED=shared,
                num_warps=4,
                enable_fp_fusion=True,
            )
            if shared:
                join_kernel[sequences * heads,](
                    *kept,
                    self._shares,
                    head_dim,
                    SHARES=1 << (self._shares - 1).bit_length(),
                    DIM=self._dim,
                    num_warps=4,
                    enable_fp_fusion=True,
                )
