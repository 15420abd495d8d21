"""Numerics first, on a GPU: a kernel that disagrees with the oracle is not timed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from autotune.bench.numerics import BaseChecker, Example
from autotune.bench.rig import Send
from autotune.records import Point
from autotune.records.measurement import FailureKind
from ternary_kernels.activations import Quantized
from ternary_kernels.cuda.activations import with_sums
from ternary_kernels.cuda.product import get_product

_HALF_EPSILON = 2.0**-10
"""Spacing of float16 numbers around 1."""


class GpuChecker(BaseChecker):
    """Checks kernels that torch launches.

    Args:
        device: Where they run.
        failure_of: Turns an error that a kernel raised into a failure's kind and message.
        send: Takes the events.
    """

    max_tokens = 131
    rows = 131, 192
    """More than any kernel's tile, of tokens as well: those for many are other kernels than those for few."""

    def __init__(
        self, device: torch.device, failure_of: Callable[[Exception], tuple[FailureKind, str]], send: Send
    ) -> None:
        super().__init__(send)
        self._device = device
        self._told = failure_of

    def _build(self, point: Point, example: Example, m: int) -> Callable[[], NDArray[np.float32]]:
        kernel = get_product(point.kernel, point.format)
        product = kernel(point.format, example.rows, point.k_in, m, self._device)
        weights = product.load([example.data], [example.rows])
        tokens = example.tokens(m)
        x = (
            with_sums(self._put(tokens.values), self._put(tokens.scale))
            if isinstance(tokens, Quantized)
            else self._put(tokens)
        )

        def multiply() -> NDArray[np.float32]:
            out = torch.full((m, example.rows), torch.nan, device=self._device)
            result: NDArray[np.float32] = product(x, weights, out).cpu().numpy()
            return result

        multiply()  # compiles
        return multiply

    def _put(self, array: NDArray[np.int8] | NDArray[np.float32]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def _rounding(self, k_in: int) -> float:
        # Beside what float32 loses, activations, and with some kernels results and partial sums, are rounded to
        # float16; 8 is more than these add up to, relative to the largest result, several times the usual one.
        return super()._rounding(k_in) + 8 * _HALF_EPSILON

    def _on(self, point: Point) -> str:
        return point.device

    def _failure_of(self, error: Exception) -> tuple[FailureKind, str]:
        return self._told(error)
