"""Numerics first: a kernel that disagrees with the oracle is not timed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from autotune.bench.messages import Event, Failed, Started
from autotune.bench.plan import Task
from autotune.records.measurement import FailureKind
from ternary_kernels import oracle
from ternary_kernels.activations import quantize
from ternary_kernels.formats import get_format
from ternary_kernels.matmul import get_kernel
from ternary_kernels.team import Team

_ROWS = 29  # of the matrix that is checked: odd, and more than any kernel handles at once
_MAX_TOKENS = 33


def check(
    tasks: Sequence[Task], skip: Collection[int], teams: Mapping[int, Team], send: Callable[[Event], None]
) -> set[int]:
    """Check every product's kernel on a small matrix, and report those that fail.

    All products of a kernel and format are at stake: one that doesn't even survive this is worth no further worker.

    Args:
        tasks: What is to be timed.
        skip: Indices of tasks that are out already.
        teams: A team per thread count.
        send: Takes the events.

    Returns:
        Indices of the tasks that failed.
    """
    products = [(index, task) for index, task in enumerate(tasks) if task.point.op == "matmul" and index not in skip]
    at_stake: dict[tuple[str, str], list[int]] = {}
    for index, task in products:
        at_stake.setdefault((task.point.kernel, task.point.format), []).append(index)
    faults: dict[tuple[object, ...], tuple[FailureKind, str] | None] = {}
    failed = set()
    for index, task in products:
        point = task.point
        # Products that differ in nothing else run the same check.
        key = point.kernel, point.format, point.k_in, min(point.m, _MAX_TOKENS), point.threads
        if key not in faults:
            send(Started(tuple(at_stake[point.kernel, point.format]), None))
            try:
                message = disagreement(task, teams[point.threads])
                faults[key] = ("wrong_result", message) if message else None
            except Exception as error:
                faults[key] = failure_of(error)
        fault = faults[key]
        if fault:
            failed.add(index)
            send(Failed(index, *fault))
    return failed


def disagreement(task: Task, team: Team) -> str | None:
    """How a task's kernel disagrees with the oracle on a small matrix of its own row length; None if it doesn't.

    Ternary kernels must equal the oracle to the last bit; floating-point ones may round.

    Raises:
        ValueError: There is no such kernel, or the format can't hold the shape.
    """
    point = task.point
    rng = np.random.default_rng(2)
    held = get_format(point.format)
    m = min(point.m, _MAX_TOKENS)
    product = get_kernel(point.kernel, point.format)(point.format, _ROWS, point.k_in, m, team)
    out = np.full((m, _ROWS), np.nan, np.float32)
    x = rng.standard_normal((m, point.k_in), np.float32)
    if held.ternary:
        weights = rng.integers(-1, 2, (_ROWS, point.k_in), np.int8)
        quantized = quantize(x)
        product(quantized, held.pack(weights, 0.5), out)
        agrees = np.array_equal(out, oracle.matmul(quantized, weights, 0.5))
    else:
        data = held.pack(rng.standard_normal((_ROWS, point.k_in), np.float32))
        product(x, data, out)
        exact = x.astype(np.float64) @ held.unpack(data, _ROWS, point.k_in)[0].astype(np.float64).T
        # Rounding errors of a sum of k products grow like the root of k; 16 is far beyond any order of addition.
        tolerance = 16 * np.sqrt(point.k_in) * np.finfo(np.float32).eps * np.abs(exact).max()
        agrees = bool(np.all(np.abs(out - exact) <= tolerance))
    if agrees:
        return None
    return f"{point.kernel} {point.format} k_in={point.k_in} m={m}, {point.threads} threads: differs from the oracle"


def failure_of(error: Exception) -> tuple[FailureKind, str]:
    """An error that a kernel raised, as the kind and message of a failure."""
    if isinstance(error, MemoryError):
        return "out_of_memory", f"not enough memory: {error}"
    return "unsupported" if isinstance(error, ValueError) else "crashed", f"{type(error).__name__}: {error}"
