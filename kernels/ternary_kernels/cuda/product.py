"""What a product on a GPU is: one site's shape and scratch memory, its weights, and the registry of those there are."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ternary_kernels.cuda.activations import Quantized
from ternary_kernels.formats import Bytes, get_format
from ternary_kernels.formats.blocks import BlockFormat
from ternary_kernels.formats.tail import TAIL_BYTES

PRODUCTS: dict[tuple[str, str], type[Product]] = {}
MODULES = {"triton": "ternary_kernels.cuda.triton_products", "torch": "ternary_kernels.cuda.torch_products"}
"""Module of each kernel, the one that is expected to be faster first."""


class Weights(NamedTuple):
    """One matrix, or several of the same columns one below the other, on a device.

    Attributes:
        codes: uint8, shape (code_bytes,): packed weights as the format lays them out, without a tail.
        scales: float32, shape (n_out,): a scale per row, so that matrices put together keep their own; None for a
            floating-point format.
    """

    codes: Tensor
    scales: Tensor | None


class Product(ABC):
    """y = x @ w.T for one shape and number of tokens, on one device.

    Subclasses register themselves under the name ``kernel`` for each of their ``formats``.

    Args:
        format_name: Weight format, one of the class' ``formats``.
        n_out: Rows of the weight matrix, or of all that are put one below the other.
        k_in: Columns of the weight matrix.
        m: Tokens multiplied at once.
        device: Where weights and activations lie.

    Attributes:
        format: The weights' format.
        device: Where weights and activations lie, with its index.
        code_bytes: Size of the packed weights without a tail.

    Raises:
        ValueError: The format isn't one of the kernel's or can't hold that shape, or m is below 1.
    """

    kernel: ClassVar[str]
    formats: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in cls.formats:
            PRODUCTS[cls.kernel, name] = cls

    def __init__(self, format_name: str, n_out: int, k_in: int, m: int, device: torch.device | str) -> None:
        if format_name not in self.formats:
            known = ", ".join(self.formats)
            raise ValueError(f"kernel {self.kernel!r}: expected a format of {known}, got {format_name!r}")
        if m < 1:
            raise ValueError(f"{format_name} product: expected at least 1 token, got m = {m}")
        self.format = get_format(format_name)
        self._has_tail = self.format.ternary and not isinstance(self.format, BlockFormat)
        self.code_bytes = self.format.size_bytes(n_out, k_in) - (TAIL_BYTES if self._has_tail else 0)
        self.n_out, self.k_in, self.m = n_out, k_in, m
        # A tensor's device has an index, which a name may lack.
        self._unit_scales = torch.ones(n_out if self.format.ternary else 0, device=device)
        self.device = self._unit_scales.device

    def load(self, matrices: Sequence[Bytes], rows: Sequence[int]) -> Weights:
        """Put one matrix, or several of the same columns one below the other, on the device.

        Args:
            matrices: uint8, shape (size_bytes(rows[i], k_in),): packed bytes as a model file holds them.
            rows: Rows of each matrix; they add up to ``n_out``.

        Raises:
            ValueError: Another number of rows, matrices that a format which interleaves rows can't put together, bytes
                of another size, or blocks whose scales differ.
        """
        if len(matrices) != len(rows) or sum(rows) != self.n_out:
            raise ValueError(
                f"{self._site}: expected matrices that have {self.n_out} rows together, "
                f"got {len(matrices)} with rows {tuple(rows)}"
            )
        if len(rows) > 1 and self.format.row_multiple(self.n_out, self.k_in) > 1:
            raise ValueError(
                f"{self._site}: expected one matrix, as {self.format.name} interleaves rows, got {len(rows)}"
            )
        codes, scales = [], []
        for data, count in zip(matrices, rows, strict=True):
            stored, scale = self.format.split(data, count, self.k_in)
            if self.format.ternary and not self._has_tail:  # the blocks hold the scale; only ``unpack`` says which
                _, scale = self.format.unpack(data, count, self.k_in)
            codes.append(stored.view(np.uint8).reshape(-1))
            scales.append(np.full(count, scale, np.float32))
        # torch takes no array that is read-only, as a mapped file's is; what can be is put there without another copy.
        joined = codes[0] if len(codes) == 1 and codes[0].flags.writeable else np.concatenate(codes)
        held = torch.from_numpy(joined).to(self.device, copy=True)
        return Weights(held, torch.from_numpy(np.concatenate(scales)).to(self.device) if self.format.ternary else None)

    def window(self, codes: Tensor) -> Weights:
        """Take bytes that already lie on the device as weights, those of a ternary format with a scale of 1.

        Args:
            codes: uint8, shape (code_bytes,), contiguous, aligned to two bytes; any bit pattern.

        Raises:
            ValueError: Another shape, dtype, device or alignment.
        """
        self._check("weights", codes, (self.code_bytes,), torch.uint8)
        if codes.data_ptr() % 2:
            raise ValueError(f"{self._site}, weights: expected bytes aligned to 2, got an odd address")
        return Weights(codes, self._unit_scales if self.format.ternary else None)

    def compile(self) -> None:  # noqa: B027 - most kernels come compiled
        """Compile what a call runs, where that isn't there yet. Several threads may do so, each for another product."""

    def __call__(self, x: Quantized | Tensor, weights: Weights, out: Tensor) -> Tensor:
        """Multiply, without waiting for the device, so that a CUDA graph can hold it.

        Args:
            x: For a ternary format int8 activations (m, k_in) with a scale and a sum per token, else float32 or
                float16 (m, k_in).
            weights: What ``load`` or ``window`` returned.
            out: float32, shape (m, n_out), overwritten.

        Returns:
            ``out``; for a ternary format equal to ``ternary_kernels.oracle.matmul`` to the last bit.

        Raises:
            ValueError: A wrong shape, dtype, device or memory order; names what was expected and what came.
        """
        if isinstance(x, Quantized) != self.format.ternary:
            expected = "int8 values with a scale per token" if self.format.ternary else "a floating-point tensor"
            raise ValueError(f"{self._site}, activations: expected {expected}, got {type(x).__name__}")
        if isinstance(x, Quantized):
            self._check("activations", x.values, (self.m, self.k_in), torch.int8)
            self._check("activation scale", x.scale, (self.m,), torch.float32)
            self._check("activation sums", x.sums, (self.m,), torch.int32)
        else:
            self._check("activations", x, (self.m, self.k_in), torch.float32, torch.float16)
        self._check("weights", weights.codes, (self.code_bytes,), torch.uint8)
        if weights.scales is not None:
            self._check("weight scales", weights.scales, (self.n_out,), torch.float32)
        self._check("out", out, (self.m, self.n_out), torch.float32)
        self._multiply(x, weights, out)
        return out

    def _check(self, what: str, tensor: Tensor, shape: tuple[int, ...], *dtypes: torch.dtype) -> None:
        matches = tensor.shape == shape and tensor.dtype in dtypes and tensor.device == self.device
        if not matches or not tensor.is_contiguous():
            wanted = " or ".join(str(dtype) for dtype in dtypes)
            order = "contiguous" if tensor.is_contiguous() else "non-contiguous"
            raise ValueError(
                f"{self._site}, {what}: expected contiguous {wanted} of shape {shape} on {self.device}, "
                f"got {order} {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}"
            )

    @property
    def _site(self) -> str:
        return f"{self.format.name} {self.n_out} x {self.k_in}"

    @abstractmethod
    def _multiply(self, x: Any, weights: Weights, out: Tensor) -> None: ...


def get_product(kernel: str, format_name: str) -> type[Product]:
    """The kernel of that name for a format.

    Raises:
        ValueError: There is none, or what it needs isn't installed.
    """
    # Kernels register when their module is imported, and those modules import this one.
    try:
        if kernel in MODULES:
            importlib.import_module(MODULES[kernel])
    except ImportError as error:
        raise ValueError(f"kernel {kernel!r}: {error}: it needs triton") from error
    try:
        return PRODUCTS[kernel, format_name]
    except KeyError:
        known = ", ".join(f"{name} ({held})" for name, held in PRODUCTS)
        raise ValueError(f"no kernel {kernel!r} for format {format_name!r}: expected one of {known}") from None
