"""The format registry: how a site's weights lie in memory, exact to the byte.

A format implements ``_size``, ``_pack`` and ``_unpack``; the base class owns shapes, dtypes and checks.
Weights are (n_out, k_in): n_out output rows of k_in input columns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
FORMATS: dict[str, Format] = {}


def get_format(name: str) -> Format:
    """Look a format up by its name.

    Raises:
        ValueError: No format has that name.
    """
    try:
        return FORMATS[name]
    except KeyError:
        raise ValueError(f"unknown weight format {name!r}: expected one of {', '.join(FORMATS)}") from None


class Format(ABC):
    """One way of storing an (n_out, k_in) matrix. Subclasses register themselves under their ``name``.

    Attributes:
        name: The format's name, as GGUF files and users write it.
        gguf_type: GGUF tensor type id.
        ternary: Whether the weights are {-1, 0, +1} times one scale, multiplied by int8 activations.
        bits_per_weight: Bits per weight of a large matrix, without the tail.
        block: Columns that are stored together; k_in must be a multiple of it.
    """

    name: ClassVar[str]
    gguf_type: ClassVar[int]
    ternary: ClassVar[bool]
    bits_per_weight: ClassVar[float]
    block: ClassVar[int] = 1

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        FORMATS[cls.name] = cls()

    def size_bytes(self, n_out: int, k_in: int) -> int:
        """Exact size of a packed (n_out, k_in) matrix, tail included.

        Raises:
            ValueError: The format can't hold that shape.
        """
        self._check_shape(n_out, k_in)
        return self._size(n_out, k_in)

    def pack(self, weights: NDArray[Any], scale: float = 1.0) -> Bytes:
        """Pack a matrix into the bytes a model file holds.

        Args:
            weights: (n_out, k_in); int8 in {-1, 0, +1} for a ternary format, else floating point.
            scale: Factor of all weights; only ternary formats store one.

        Returns:
            uint8, shape (size_bytes(n_out, k_in),). Where the weights already lie as the format stores them
            (float16 for F16), these are their own bytes, not a copy.

        Raises:
            ValueError: Wrong rank, shape, dtype or values.
        """
        if weights.ndim != 2:
            raise ValueError(f"{self.name} packs a matrix: expected 2 dimensions, got shape {weights.shape}")
        self._check_shape(*weights.shape)
        if self.ternary:
            if weights.dtype != np.int8:
                raise ValueError(f"{self.name} packs int8 weights, got {weights.dtype}")
            if weights.min(initial=0) < -1 or weights.max(initial=0) > 1:
                got = f"values {weights.min()} to {weights.max()}"
                raise ValueError(f"{self.name} packs weights in {{-1, 0, +1}}, got {got}")
        elif not np.issubdtype(weights.dtype, np.floating):
            raise ValueError(f"{self.name} packs floating-point weights, got {weights.dtype}")
        return self._pack(weights, scale)

    def unpack(self, data: Bytes, n_out: int, k_in: int) -> tuple[NDArray[Any], float]:
        """Read packed bytes back.

        Args:
            data: uint8, shape (size_bytes(n_out, k_in),), C-contiguous.
            n_out: Rows.
            k_in: Columns.

        Returns:
            The weights (n_out, k_in), int8 for a ternary format, else in the format's own floating-point
            type, and the scale that multiplies them.

        Raises:
            ValueError: ``data`` has another dtype or size, isn't contiguous or aligned to the stored type,
                or holds codes that mean nothing.
        """
        return self._unpack(*self.split(data, n_out, k_in))

    def split(self, data: Bytes, n_out: int, k_in: int) -> tuple[NDArray[Any], float]:
        """View packed bytes as kernels read them: rows of stored units, without a copy, and the scale.

        Args:
            data: uint8, shape (size_bytes(n_out, k_in),), C-contiguous.
            n_out: Rows.
            k_in: Columns.

        Returns:
            A view of the rows, uint8 (n_out, k_in / 4) for I2_S, else floating point (n_out, k_in); and the
            scale that multiplies the weights.

        Raises:
            ValueError: As for ``unpack``, but codes are not looked at.
        """
        expected = self.size_bytes(n_out, k_in)
        if data.dtype != np.uint8 or data.shape != (expected,) or not data.flags.c_contiguous:
            raise ValueError(
                f"{self.name} {n_out} x {k_in}: expected {expected} contiguous uint8 bytes, "
                f"got {data.dtype} of shape {data.shape}"
            )
        return self._split(data, n_out, k_in)

    def _check_shape(self, n_out: int, k_in: int) -> None:
        if n_out < 1 or k_in < 1:
            raise ValueError(f"{self.name} needs at least 1 row and 1 column, got {n_out} x {k_in}")
        if k_in % self.block:
            raise ValueError(f"{self.name} needs k_in to be a multiple of {self.block}, got {k_in}")

    @abstractmethod
    def _size(self, n_out: int, k_in: int) -> int: ...

    @abstractmethod
    def _pack(self, weights: NDArray[Any], scale: float) -> Bytes: ...

    @abstractmethod
    def _split(self, data: Bytes, n_out: int, k_in: int) -> tuple[NDArray[Any], float]: ...

    @abstractmethod
    def _unpack(self, rows: NDArray[Any], scale: float) -> tuple[NDArray[Any], float]: ...


class I2S(Format):
    """Two bits a weight, code = w + 1, four weights a byte, one float32 scale in a 32-byte tail; x86 layout.

    128 weights lie in 32 bytes: weight j in byte j % 32, shifted left by 6 - 2 (j // 32). This is the layout of
    the default build (ACT_PARALLEL); one built without it puts four rows into a byte instead.
    Source: microsoft/BitNet 16da220, src/ggml-bitnet-mad.cpp, quantize_i2_s.
    """

    name = "I2_S"
    gguf_type = 36
    ternary = True
    bits_per_weight = 2.0
    block = 128
    _tail_bytes: ClassVar[int] = 32

    def _size(self, n_out: int, k_in: int) -> int:
        return n_out * k_in // 4 + self._tail_bytes

    def _pack(self, weights: NDArray[Any], scale: float) -> Bytes:
        n_out, k_in = weights.shape
        planes = (weights + 1).astype(np.uint8).reshape(n_out, k_in // self.block, 4, self.block // 4)
        packed = planes[:, :, 0] << 6 | planes[:, :, 1] << 4 | planes[:, :, 2] << 2 | planes[:, :, 3]
        tail = np.zeros(self._tail_bytes, np.uint8)
        tail[:4] = np.array([scale], np.float32).view(np.uint8)
        return np.concatenate([packed.reshape(-1), tail])

    def _split(self, data: Bytes, n_out: int, k_in: int) -> tuple[NDArray[Any], float]:
        codes = data[: -self._tail_bytes].reshape(n_out, k_in // 4)
        return codes, float(np.frombuffer(data, np.float32, 1, offset=n_out * k_in // 4)[0])

    def _unpack(self, rows: NDArray[Any], scale: float) -> tuple[NDArray[Any], float]:
        n_out, row_bytes = rows.shape
        packed = rows.reshape(n_out, -1, 1, self.block // 4)
        codes = packed >> np.array([6, 4, 2, 0], np.uint8).reshape(4, 1) & 3
        if codes.max(initial=0) > 2:
            raise ValueError(f"{self.name}: expected codes 0, 1 and 2, got a 3")
        return codes.astype(np.int8).reshape(n_out, row_bytes * 4) - 1, scale


class I2SArm(I2S):
    """I2_S as Arm builds lay it out.

    64 weights lie in 16 bytes: weight j in byte j % 16, shifted left by 6 - 2 (j // 16). A file written for one
    architecture is not a file for the other. Source: as for ``I2S``.
    """

    name = "I2_S_ARM"
    block = 64


class F16(Format):
    """IEEE half precision, row after row."""

    name = "F16"
    gguf_type = 1
    ternary = False
    bits_per_weight = 16.0
    dtype: ClassVar[type[np.floating[Any]]] = np.float16

    def _size(self, n_out: int, k_in: int) -> int:
        return n_out * k_in * np.dtype(self.dtype).itemsize

    def _pack(self, weights: NDArray[Any], scale: float) -> Bytes:
        if scale != 1.0:
            raise ValueError(f"{self.name} stores no scale: expected 1.0, got {scale}")
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(weights, self.dtype)
        if not np.isfinite(stored).all():
            limit = np.finfo(self.dtype).max
            raise ValueError(f"{self.name} packs finite weights of magnitude up to {limit:g}, got others")
        return stored.view(np.uint8).reshape(-1)

    def _split(self, data: Bytes, n_out: int, k_in: int) -> tuple[NDArray[Any], float]:
        itemsize = np.dtype(self.dtype).itemsize
        if misaligned := data.ctypes.data % itemsize:
            raise ValueError(
                f"{self.name}: expected bytes aligned to {itemsize}, got an address {misaligned} past a multiple"
            )
        return data.view(self.dtype).reshape(n_out, k_in), 1.0

    def _unpack(self, rows: NDArray[Any], scale: float) -> tuple[NDArray[Any], float]:
        return rows.copy(), scale


class F32(F16):
    """IEEE single precision, row after row."""

    name = "F32"
    gguf_type = 0
    bits_per_weight = 32.0
    dtype = np.float32
