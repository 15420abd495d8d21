"""Numerics first: a kernel that disagrees with the oracle is not timed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autotune.bench.messages import Event, Failed, Started
from autotune.bench.plan import Task
from autotune.model.sites import holds
from autotune.records import Point
from autotune.records.measurement import FailureKind
from ternary_kernels import oracle
from ternary_kernels.activations import Quantized, quantize
from ternary_kernels.arena import Arena
from ternary_kernels.formats import Bytes, Format, get_format
from ternary_kernels.matmul import get_kernel
from ternary_kernels.team import Team

_SCALE = 0.5


class Example(NamedTuple):
    """A small matrix in a format, activations of the most tokens, and what their product is."""

    held: Format
    rows: int
    data: Bytes
    x: Quantized | NDArray[np.float32]
    expected: NDArray[np.float32] | NDArray[np.float64]

    def tokens(self, m: int) -> Quantized | NDArray[np.float32]:
        """The activations of the first ``m`` tokens."""
        return Quantized(self.x.values[:m], self.x.scale[:m]) if isinstance(self.x, Quantized) else self.x[:m]

    def agrees(self, out: NDArray[np.float32], rounding: float) -> bool:
        """Whether a result for the first tokens is right.

        Ternary kernels must equal the oracle to the last bit; the others may round.

        Args:
            out: float32, shape (m, rows).
            rounding: What a floating-point result may be off by, relative to the largest.
        """
        expected = self.expected[: len(out)]
        if self.held.ternary:
            return np.array_equal(out, expected)
        return bool(np.all(np.abs(out - expected) <= rounding * np.abs(expected).max()))


class BaseChecker(ABC):
    """Checks a device's kernels on small matrices; what they share is worked out once.

    Args:
        send: Takes the events.
    """

    max_tokens = 33
    rows = 67, 96
    """Of the matrix that is checked: odd, and more than any kernel handles at once; the second for formats that
    interleave rows."""

    def __init__(self, send: Callable[[Event], None]) -> None:
        self._send = send
        self._examples: dict[tuple[str, int], Example] = {}
        self._faults: dict[tuple[object, ...], tuple[FailureKind, str] | None] = {}
        self._ternary: dict[tuple[int, int], tuple[NDArray[np.int8], Quantized, NDArray[np.float32]]] = {}

    def check(self, tasks: Sequence[Task], skip: Collection[int]) -> set[int]:
        """Check every product's kernel, and report those that fail.

        All products of a kernel and format are at stake: one that doesn't even survive this is worth no further worker.

        Args:
            tasks: What is to be timed.
            skip: Indices of tasks that are out already.

        Returns:
            Indices of the tasks that failed.
        """
        products = [
            (index, task) for index, task in enumerate(tasks) if task.point.op == "matmul" and index not in skip
        ]
        at_stake: dict[tuple[str, str], list[int]] = {}
        for index, task in products:
            at_stake.setdefault((task.point.kernel, task.point.format), []).append(index)
        failed = set()
        for index, task in products:
            point = task.point
            key = point.kernel, point.format, point.threads, *self._same_check(task)
            if key not in self._faults:
                self._faults[key] = self._fault(task, tuple(at_stake[point.kernel, point.format]))
            fault = self._faults[key]
            if fault:
                failed.add(index)
                self._send(Failed(index, *fault))
        return failed

    def _fault(self, task: Task, at_stake: tuple[int, ...]) -> tuple[FailureKind, str] | None:
        """What is wrong with a task's kernel; None if nothing is."""
        point = task.point
        m = min(point.m, self.max_tokens)
        try:
            example = self._example(get_format(point.format), point.k_in)
            self._send(Started(at_stake, None, compiles=True))
            is_right = self._build(task, example, m)
            self._send(Started(at_stake, None))
            if is_right():
                return None
        except Exception as error:
            return self._failure_of(error)
        where = f"{point.kernel} {point.format} k_in={point.k_in} m={m}, {self._on(point)}"
        return "wrong_result", f"{where}: differs from the oracle"

    def _same_check(self, task: Task) -> tuple[int, ...]:
        """Sizes by which checks differ: products of one kernel and format that agree in them run the same one."""
        return task.point.k_in, min(task.point.m, self.max_tokens)

    @abstractmethod
    def _build(self, task: Task, example: Example, m: int) -> Callable[[], bool]:
        """What multiplies the example's matrix with its first m tokens and tells whether the result is right.

        What it didn't write is NaN, and so wrong. Code is compiled now, not when it is called.
        """

    def _rounding(self, k_in: int) -> float:
        """What a floating-point product of that many columns may be off by, relative to the largest."""
        # Rounding errors of a sum of k products grow like the root of k; 16 is far beyond any order of addition.
        return 16 * float(np.sqrt(k_in) * np.finfo(np.float32).eps)

    @abstractmethod
    def _on(self, point: Point) -> str:
        """Where a point runs, in words."""

    @abstractmethod
    def _failure_of(self, error: Exception) -> tuple[FailureKind, str]: ...

    def _example(self, held: Format, k_in: int) -> Example:
        """A matrix of a task's own row length.

        Raises:
            ValueError: The format can't hold it.
        """
        key = held.name, k_in
        if key not in self._examples:
            rows = next((rows for rows in self.rows if holds(held.name, rows, k_in)), self.rows[-1])
            make = self._ternary_example if held.ternary else self._float_example
            self._examples[key] = make(held, rows, k_in)
        return self._examples[key]

    def _ternary_example(self, held: Format, rows: int, k_in: int) -> Example:
        """All ternary formats hold the same weights, so the slow oracle runs once."""
        if (rows, k_in) not in self._ternary:
            rng = np.random.default_rng(2)
            weights = rng.integers(-1, 2, (rows, k_in), np.int8)
            x = quantize(rng.standard_normal((self.max_tokens, k_in), np.float32))
            self._ternary[rows, k_in] = weights, x, oracle.matmul(x, weights, _SCALE)
        weights, x, expected = self._ternary[rows, k_in]
        return Example(held, rows, held.pack(weights, _SCALE), x, expected)

    def _float_example(self, held: Format, rows: int, k_in: int) -> Example:
        # Not packed: bytes that are weights in every format spare the time that block formats take to find scales.
        data = Arena(held.size_bytes(rows, k_in)).take(held.size_bytes(rows, k_in))
        x = np.random.default_rng(2).standard_normal((self.max_tokens, k_in), np.float32)
        weights, scale = held.unpack(data, rows, k_in)
        return Example(held, rows, data, x, x.astype(np.float64) @ weights.astype(np.float64).T * scale)


class Checker(BaseChecker):
    """Checks the CPU's kernels.

    Args:
        teams: A team per thread count.
        send: Takes the events.
    """

    def __init__(self, teams: Mapping[int, Team], send: Callable[[Event], None]) -> None:
        super().__init__(send)
        self._teams = teams

    def _build(self, task: Task, example: Example, m: int) -> Callable[[], bool]:
        point = task.point
        kernel = get_kernel(point.kernel, point.format)
        product = kernel(point.format, example.rows, point.k_in, m, self._teams[point.threads])

        def is_right() -> bool:
            out = np.full((m, example.rows), np.nan, np.float32)
            return example.agrees(product(example.tokens(m), example.data, out), self._rounding(point.k_in))

        return is_right

    def _on(self, point: Point) -> str:
        return f"{point.threads} threads"

    def _failure_of(self, error: Exception) -> tuple[FailureKind, str]:
        return failure_of(error)


def failure_of(error: Exception) -> tuple[FailureKind, str]:
    """An error that a kernel raised, as the kind and message of a failure."""
    if isinstance(error, MemoryError):
        return "out_of_memory", f"not enough memory: {error}"
    return "unsupported" if isinstance(error, ValueError) else "crashed", f"{type(error).__name__}: {error}"
