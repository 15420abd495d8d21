"""The ``torch`` kernel: weights are unpacked a block of rows at a time and multiplied by the library's own product.

It needs no more than torch, runs on any of its devices, and is what Triton's kernels are compared with.

Exactness: codes are 0..2 and activations at most 128 in magnitude, so a sum over fewer than 2^24 / 256 columns is an
integer below 2^24, which float32 holds exactly whatever the order of addition. TF32 may be on or off: it rounds
operands to 11 significant bits, of which these have 8, and adds in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ternary_kernels.cuda.activations import Quantized
from ternary_kernels.cuda.product import Product, Weights
from ternary_kernels.cuda.support import KERNEL_FORMATS
from ternary_kernels.cuda.unpack import unpack_rows
from ternary_kernels.formats import get_format

EXACT_COLUMNS = (1 << 24) // 256 - 1
"""Most columns over which a sum of codes times int8 stays below 2^24."""

BLOCK_WEIGHTS = 1 << 22
"""Weights that are unpacked at once: 16 MiB as float32, which a large GPU's level-2 cache holds."""


class TorchTernary(Product):
    """Any ternary format times int8 activations.

    y = (sum of code * q - sum of q) / s * scale. Unpacked weights lie in memory that torch's allocator hands out again
    for the next block, also where a CUDA graph is captured, so that a product holds none between calls.

    Raises:
        ValueError: As for ``Product``; or ``k_in`` is above ``EXACT_COLUMNS``.
    """

    kernel = "torch"
    formats = tuple(name for name in KERNEL_FORMATS["torch"] if get_format(name).ternary)

    def __init__(self, format_name: str, n_out: int, k_in: int, m: int, device: torch.device | str) -> None:
        super().__init__(format_name, n_out, k_in, m, device)
        if k_in > EXACT_COLUMNS:
            raise ValueError(f"{self._site}: expected at most {EXACT_COLUMNS} columns, whose float32 sums are exact")
        multiple = self.format.row_multiple(n_out, k_in)
        self._rows = max(BLOCK_WEIGHTS // k_in // multiple, 1) * multiple

    def _multiply(self, x: Quantized, weights: Weights, out: Tensor) -> None:
        values = x.values.to(torch.float32)
        for first in range(0, self.n_out, self._rows):
            last = min(first + self._rows, self.n_out)
            codes = unpack_rows(self.format, weights.codes, (self.n_out, self.k_in), first, last)
            torch.mm(values, codes.to(torch.float32).T, out=out[:, first:last])
        assert weights.scales is not None
        out.sub_(x.sums[:, None]).div_(x.scale[:, None]).mul_(weights.scales)


class TorchHalf(Product):
    """F16 weights times float activations, summed in float32.

    On a GPU the tensor cores multiply halves, so activations are rounded to float16 and must stay below 65,520 in
    magnitude. torch's CPU product gives no float32 from halves: there both are widened, a block of rows at a time.
    """

    kernel = "torch"
    formats = ("F16",)

    def _multiply(self, x: Tensor, weights: Weights, out: Tensor) -> None:
        halves = weights.codes.view(torch.float16).view(self.n_out, self.k_in)
        if self.device.type == "cuda":
            torch.mm(x.to(torch.float16), halves.T, out_dtype=torch.float32, out=out)
            return
        wide = x.to(torch.float32)
        rows = max(BLOCK_WEIGHTS // self.k_in, 1)
        for first in range(0, self.n_out, rows):
            last = min(first + rows, self.n_out)
            torch.mm(wide, halves[first:last].to(torch.float32).T, out=out[:, first:last])
