"""What a GPU itself can do: copy memory in a stream, and multiply on its tensor cores."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ternary_kernels.cuda.support import INT8_CAPABILITY, PEAK_SIZE

Arithmetic = Literal["int8", "float16"]


def copy(source: Tensor, target: Tensor) -> None:
    """Copy bytes within a device's memory, which reads each once and writes it once.

    Args:
        source: uint8, one-dimensional and contiguous.
        target: As many, on the same device, overwritten.

    Raises:
        ValueError: Another dtype, rank, order, or another size or device than the source's.
    """
    for name, tensor in (("source", source), ("target", target)):
        if tensor.dtype != torch.uint8 or tensor.ndim != 1 or not tensor.is_contiguous():
            order = "" if tensor.is_contiguous() else "non-contiguous "
            raise ValueError(
                f"copy {name}: expected contiguous uint8 of rank 1, got {order}{tensor.dtype} of rank {tensor.ndim}"
            )
    if source.shape != target.shape or source.device != target.device:
        raise ValueError(
            f"copy: expected as many bytes on one device, got {len(source)} on {source.device} "
            f"and {len(target)} on {target.device}"
        )
    target.copy_(source)


class Peak:
    """The library's product of large matrices, in the fastest arithmetic that ternary weights can be multiplied in.

    Args:
        device: Where it runs.
        size: m, n_out and k_in of the product; for int8 on a GPU m above 16 and the others multiples of 8.
        arithmetic: What it multiplies; None: int8 where the device has tensor cores for it, else float16.

    Attributes:
        arithmetic: What it multiplies: int8, summed in int32, or float16.
        operations: Of one call; a multiplication and an addition are two.
        left: The random operand (m, k_in): all of int8's range, or standard normal. Constant operands would flip fewer
            bits, draw less power and let the clock rise.
        right: The other, (n_out, k_in): 0..2 as codes are, or standard normal.
        product: left @ right.T as the last call computed it, shape (m, n_out).

    Raises:
        ValueError: A size below 1, or another arithmetic.
    """

    def __init__(
        self,
        device: torch.device | str,
        size: tuple[int, int, int] = PEAK_SIZE,
        arithmetic: Arithmetic | None = None,
    ) -> None:
        if min(size) < 1:
            raise ValueError(f"peak: expected a positive m, n_out and k_in, got {size}")
        chosen = arithmetic or _fastest(torch.device(device))
        if chosen not in ("int8", "float16"):
            raise ValueError(f"peak: expected int8 or float16, got {chosen!r}")
        self.arithmetic: Arithmetic = chosen
        m, n_out, k_in = size
        self.operations = 2 * m * n_out * k_in
        if chosen == "int8":
            self.left = torch.randint(-128, 128, (m, k_in), dtype=torch.int8, device=device)
            self.right = torch.randint(0, 3, (n_out, k_in), dtype=torch.int8, device=device)
        else:
            self.left = torch.randn((m, k_in), dtype=torch.float16, device=device)
            self.right = torch.randn((n_out, k_in), dtype=torch.float16, device=device)
        summed = torch.int32 if chosen == "int8" else torch.float16
        self.product = torch.zeros((m, n_out), dtype=summed, device=device)

    def __call__(self) -> None:
        """Multiply once."""
        multiply = torch._int_mm if self.arithmetic == "int8" else torch.mm
        multiply(self.left, self.right.T, out=self.product)


def _fastest(device: torch.device) -> Arithmetic:
    """What a device multiplies fastest, of what ternary products can be made of; torch's CPU takes int8 as well."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < INT8_CAPABILITY:
        return "float16"
    return "int8"
