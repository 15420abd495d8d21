"""The format registry: how a site's weights lie in memory, exact to the byte.

A format implements ``_size``, ``_pack``, ``_split`` and ``_unpack_rows``; the base class owns shapes and checks.
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
        raise ValueError(f"unknown weight format {name!r}: expected one of {', '.join(sorted(FORMATS))}") from None


class Format(ABC):
    """One way of storing an (n_out, k_in) matrix. Subclasses register themselves under their ``name``.

    Attributes:
        name: The format's name, as GGUF files and users write it.
        gguf_type: GGUF tensor type id.
        ternary: Whether the weights are {-1, 0, +1} times one scale, multiplied by int8 activations.
        bits_per_weight: Bits per weight of a large matrix, without the tail.
        block: Columns that are stored together; k_in must be a multiple of it.
        lossy: Whether packing changes ternary weights: what is unpacked isn't what was packed.
    """

    name: ClassVar[str]
    gguf_type: ClassVar[int]
    ternary: ClassVar[bool]
    bits_per_weight: ClassVar[float]
    block: ClassVar[int] = 1
    lossy: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in vars(cls):  # a class without one of its own is a base of formats
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
            scale: Factor of all weights; only ternary formats store one, TQ1_0 and TQ2_0 as float16.

        Returns:
            uint8, shape (size_bytes(n_out, k_in),). Where the weights already lie as the format stores them
            (float16 for F16), these are their own bytes, not a copy.

        Raises:
            ValueError: Wrong rank, shape, dtype or values, or a scale that the format doesn't store.
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
        elif scale != 1.0:
            raise ValueError(f"{self.name} stores no scale: expected 1.0, got {scale}")
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
                or holds codes that mean nothing or, for a ternary format, blocks whose scales differ.
        """
        stored, scale = self.split(data, n_out, k_in)
        weights, scale = self._unpack_rows(stored, scale, (n_out, k_in), 0, n_out)
        if self.ternary and weights.dtype != np.int8:
            sizes = np.abs(weights[weights != 0])
            got = f"{sizes.min():g} to {sizes.max():g}"
            raise ValueError(f"{self.name}: expected one scale in all blocks of a ternary matrix, got {got}")
        if self.ternary and weights.max() > 1:
            raise ValueError(f"{self.name}: expected codes of -1, 0 and +1, got one that means nothing")
        return weights, scale

    def split(self, data: Bytes, n_out: int, k_in: int) -> tuple[NDArray[Any], float]:
        """View packed bytes as kernels read them, without a copy, and the scale.

        Args:
            data: uint8, shape (size_bytes(n_out, k_in),), C-contiguous.
            n_out: Rows.
            k_in: Columns.

        Returns:
            A view of the weights without the tail: floating point (n_out, k_in) for F16 and F32, flat uint8 for TL1
            and TL2, which interleave rows, else uint8 (n_out, bytes per row). And the scale that multiplies the
            weights: 1 for formats whose blocks carry scales of their own.

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

    def row_multiple(self, n_out: int, k_in: int) -> int:  # noqa: ARG002 - what formats that interleave rows need
        """Rows of an (n_out, k_in) matrix that are stored together: 1, or a tile's."""
        return 1

    def unpack_rows(
        self, stored: NDArray[Any], scale: float, shape: tuple[int, int], first: int, last: int
    ) -> tuple[NDArray[Any], float]:
        """Read rows ``[first, last)`` back; the work of ``unpack``, piece by piece and without its checks.

        Args:
            stored: What ``split`` returned.
            scale: The scale that ``split`` returned.
            shape: (n_out, k_in) of the whole matrix.
            first: A multiple of ``row_multiple``.
            last: A multiple of ``row_multiple``.

        Returns:
            As for ``unpack``, for these rows alone. A code that means nothing gives a weight that means nothing, 2 or
            more. Ternary rows whose blocks' scales differ come as float32, multiplied by them, with a scale of 1.
        """
        return self._unpack_rows(stored, scale, shape, first, last)

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
    def _unpack_rows(
        self, stored: NDArray[Any], scale: float, shape: tuple[int, int], first: int, last: int
    ) -> tuple[NDArray[Any], float]: ...
