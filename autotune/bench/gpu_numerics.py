"""Numerics first, on a GPU: a kernel that disagrees with the oracle is not timed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autotune.bench.messages import Started
from autotune.bench.numerics import BaseChecker, Example
from autotune.bench.plan import Task
from autotune.bench.rig import Send
from autotune.bench.rivals import GPU_REFERENCE
from autotune.records import Point
from autotune.records.measurement import FailureKind
from ternary_kernels.cuda.activations import Quantized, with_sums
from ternary_kernels.cuda.product import Product, Weights, get_product

_HALF_EPSILON = 2.0**-10
"""Spacing of float16 numbers around 1."""

_MOST_ROWS = 1 << 16
"""Enough for any GPU's multiprocessors: with more rows the kernel stays the same, and memory may be scarce."""


class GpuChecker(BaseChecker):
    """Checks kernels that torch launches.

    On a GPU the kernel, and what it is compiled for, follow from the whole shape. So each product is checked in the
    shape that is timed (of very many rows in fewer): with the rows and the tokens of a small example, over and over.

    Args:
        device: Where they run.
        threads: How many kernels are compiled at a time.
        failure_of: Turns an error that a kernel raised into a failure's kind and message.
        send: Takes the events.
    """

    max_tokens = 131
    rows = 131, 192
    """As tokens, a number that no tile divides: what a wrong tile holds then is wrong."""

    def __init__(
        self,
        device: torch.device,
        threads: int,
        failure_of: Callable[[Exception], tuple[FailureKind, str]],
        send: Send,
    ) -> None:
        super().__init__(send)
        self._device = device
        self._threads = threads
        self._told = failure_of

    def check(self, tasks: Sequence[Task], skip: Collection[int]) -> set[int]:
        """Compile the kernels of all products, check them, and report those that fail."""
        self._compile([index for index, task in enumerate(tasks) if _compiles(task) and index not in skip], tasks)
        return super().check(tasks, skip)

    def _compile(self, indices: Sequence[int], tasks: Sequence[Task]) -> None:
        """Compile several kernels at a time: one after the other they would take most of the time that there is."""
        # The reference is torch's own: if a compiler doesn't survive a kernel, that is still there.
        if not indices:
            return
        announced = Started(tuple(indices), None, compiles=True)
        self._send(announced)
        alike = {
            (task.point.kernel, task.point.format, *self._same_check(task)): task
            for task in map(tasks.__getitem__, indices)
        }
        with ThreadPoolExecutor(self._threads) as pool:
            for _ in as_completed([pool.submit(self._compile_one, task) for task in alike.values()]):
                self._send(announced)  # so far all is well, and there is as long for the next one

    def _compile_one(self, task: Task) -> None:
        """Compile a product's kernel; what this raises, its check will raise again."""
        self._product(task).compile()

    def _same_check(self, task: Task) -> tuple[int, ...]:
        return min(task.rows or task.point.n_out, _MOST_ROWS), task.point.k_in, task.point.m

    def _product(self, task: Task) -> Product:
        point = task.point
        rows, k_in, m = self._same_check(task)
        return get_product(point.kernel, point.format)(point.format, rows, k_in, m, self._device)

    def _build(self, task: Task, example: Example, m: int) -> Callable[[], bool]:
        point = task.point
        product = self._product(task)
        rows = torch.arange(product.n_out, device=self._device) % example.rows
        tokens = torch.arange(product.m, device=self._device) % m
        small = get_product(point.kernel, point.format)(point.format, example.rows, point.k_in, m, self._device)
        held = small.load([example.data], [example.rows])
        weights = Weights(
            held.codes.view(example.rows, -1)[rows].view(-1), None if held.scales is None else held.scales[rows]
        )
        given = example.tokens(m)
        x: Tensor | Quantized
        if isinstance(given, np.ndarray):
            x = self._put(given)[tokens]
        else:
            x = with_sums(self._put(given.values)[tokens], self._put(given.scale)[tokens])
        expected = self._put(example.expected[:m].astype(np.float32))
        tolerance = 0.0 if product.format.ternary else self._rounding(point.k_in) * float(expected.abs().max())

        def multiply() -> Tensor:
            return product(x, weights, torch.full((product.m, product.n_out), torch.nan, device=self._device))

        def is_right() -> bool:
            out = multiply()
            # So many tokens at a time, as memory may be scarce.
            parts = (out[first : first + m] for first in range(0, product.m, m))
            return all(bool(((part - expected[: len(part), rows]).abs_() <= tolerance).all()) for part in parts)

        multiply()  # what wasn't compiled before is now
        return is_right

    def _put(self, array: NDArray[np.int8] | NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def _rounding(self, k_in: int) -> float:
        # Beside what float32 loses, activations, and with some kernels results and partial sums, are rounded to
        # float16; 8 is more than these add up to, relative to the largest result, several times the usual one.
        return super()._rounding(k_in) + 8 * _HALF_EPSILON

    def _on(self, point: Point) -> str:
        return point.device

    def _failure_of(self, error: Exception) -> tuple[FailureKind, str]:
        return self._told(error)


def _compiles(task: Task) -> bool:
    """Whether a task's kernel has to be compiled here."""
    return task.point.op == "matmul" and task.point.kernel != GPU_REFERENCE
