"""What a kernel is: one site's product with its scratch memory, and the registry of those there are."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ternary_kernels.activations import Quantized
from ternary_kernels.formats import Bytes, get_format
from ternary_kernels.team import Team

KERNELS: dict[tuple[str, str], type[Matmul]] = {}
MODULES = {
    "native": ("ternary_kernels.native.products", "ternary_kernels.native.lookup"),
    "amx": ("ternary_kernels.native.amx",),
    "numpy": ("ternary_kernels.reference.products",),
}
"""Modules of each kernel, those that are expected to be faster first."""


class Matmul(ABC):
    """y = x @ w.T for one shape, number of tokens and team, whose scratch memory it uses.

    Subclasses register themselves under the name ``kernel`` for each of their ``formats``.

    Args:
        format_name: Weight format, one of the class' ``formats``.
        n_out: Rows of the weight matrix.
        k_in: Columns of the weight matrix.
        m: Tokens multiplied at once.
        team: The threads that share the rows.

    Raises:
        ValueError: The format isn't one of the kernel's or can't hold that shape, or m is below 1.
    """

    kernel: ClassVar[str]
    formats: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in cls.formats:
            KERNELS[cls.kernel, name] = cls

    def __init__(self, format_name: str, n_out: int, k_in: int, m: int, team: Team) -> None:
        if format_name not in self.formats:
            known = ", ".join(self.formats)
            raise ValueError(f"kernel {self.kernel!r}: expected a format of {known}, got {format_name!r}")
        if m < 1:
            raise ValueError(f"{format_name} product: expected at least 1 token, got m = {m}")
        self.format = get_format(format_name)
        self.size_bytes = self.format.size_bytes(n_out, k_in)
        self.n_out, self.k_in, self.m = n_out, k_in, m
        self.team = team

    def __call__(
        self, x: Quantized | NDArray[np.float32], weights: Bytes, out: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Multiply.

        Args:
            x: For a ternary format int8 activations (m, k_in) with a scale per token, else float32 (m, k_in).
            weights: Packed bytes, shape (size_bytes,), as the format lays them out.
            out: float32, shape (m, n_out), overwritten.

        Returns:
            ``out``.

        Raises:
            ValueError: A wrong shape, dtype or memory order, or a read-only output; names what was expected and what
                came.
        """
        self._check_operands(x, weights, out)
        self._multiply(x, weights, out)
        return out

    def bind(
        self, x: Quantized | NDArray[np.float32], weights: Bytes, out: NDArray[np.float32]
    ) -> Callable[[], object]:
        """Check operands once; returns what multiplies whatever they hold when it is called, as a runtime does.

        In a decode step, looking at arrays that stay where they are takes longer than many a small operation.

        Args:
            x: As for a call.
            weights: As for a call.
            out: As for a call.

        Raises:
            ValueError: As for a call.
        """
        self._check_operands(x, weights, out)
        return partial(self._multiply, x, weights, out)

    def _check_operands(self, x: Quantized | NDArray[np.float32], weights: Bytes, out: NDArray[np.float32]) -> None:
        if isinstance(x, Quantized) != self.format.ternary:
            expected = "int8 values with a scale per token" if self.format.ternary else "a float32 array"
            raise ValueError(f"{self._site}, activations: expected {expected}, got {type(x).__name__}")
        values = x.values if isinstance(x, Quantized) else x
        wanted = np.dtype(np.int8 if self.format.ternary else np.float32)
        self._check("activations", values, (self.m, self.k_in), wanted)
        self._check("weights", weights, (self.size_bytes,), np.dtype(np.uint8))
        self._check("out", out, (self.m, self.n_out), np.dtype(np.float32))
        if not out.flags.writeable:  # compiled code would write all the same
            raise ValueError(f"{self._site}, out: expected a writable array, got a read-only one")
        if isinstance(x, Quantized):
            self._check("activation scale", x.scale, (self.m,), np.dtype(np.float32))

    def _check(self, what: str, array: NDArray[Any], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
            order = "contiguous" if array.flags.c_contiguous else "non-contiguous"
            raise ValueError(
                f"{self._site}, {what}: expected contiguous {dtype} of shape {shape}, "
                f"got {order} {array.dtype} of shape {array.shape}"
            )

    @property
    def _site(self) -> str:
        return f"{self.format.name} {self.n_out} x {self.k_in}"

    @abstractmethod
    def _multiply(self, x: Any, weights: Bytes, out: NDArray[np.float32]) -> None: ...


def get_kernel(kernel: str, format_name: str) -> type[Matmul]:
    """The kernel of that name for a format.

    Raises:
        ValueError: There is none, or what it needs isn't installed.
    """
    # Kernels register when their module is imported, and those modules import this one.
    try:
        for module in MODULES.get(kernel, ()):
            importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"kernel {kernel!r}: {error}: it needs llvmlite") from error
    try:
        return KERNELS[kernel, format_name]
    except KeyError:
        known = ", ".join(f"{name} ({held})" for name, held in KERNELS)
        raise ValueError(f"no kernel {kernel!r} for format {format_name!r}: expected one of {known}") from None
