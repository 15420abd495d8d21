"""The tail of BitNet's own formats: one float32 scale per matrix in 32 bytes, the other 28 of which mean nothing."""

from __future__ import annotations

import numpy as np

from ternary_kernels.formats.base import Bytes

TAIL_BYTES = 32


def make_tail(scale: float) -> Bytes:
    """The tail's bytes."""
    tail = np.zeros(TAIL_BYTES, np.uint8)
    tail[:4] = np.array([scale], np.float32).view(np.uint8)
    return tail


def read_scale(data: Bytes) -> float:
    """The scale of packed bytes that end with a tail."""
    return float(np.frombuffer(data[-TAIL_BYTES:], np.float32, 1)[0])
