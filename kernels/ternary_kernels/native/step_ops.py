"""The small operations of a step in compiled code, bound to buffers: a call costs little more than the operation.

What stands between two products is one pass over a row: a residual is added, the sum normed and quantised while it is
in the level-1 cache. One row runs on the calling thread, several are shared among the team.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ternary_kernels.activations import Quantized
from ternary_kernels.geometry import Activation
from ternary_kernels.native import compiler
from ternary_kernels.native import isa as paths
from ternary_kernels.native.crew import callable_at
from ternary_kernels.native.isa import Isa
from ternary_kernels.native.layer_kernels import MODULES, Origin, kernel_name, module_of
from ternary_kernels.native.words import Words
from ternary_kernels.reference.step_ops import EPSILON, Floats, Halves, Run, StepOps
from ternary_kernels.team import Team

Operand = NDArray[Any] | int | float | None


class Operation:
    """One compiled operation on m rows with its operands, to be run any number of times.

    Args:
        module: Of the kernel.
        kernel: Its name.
        operands: Arrays, which are kept, sizes and float32 numbers, in the kernel's order after the number of rows;
            None for what it doesn't look at.
        m: Rows.
        team: Shares the rows if there are several; None: the calling thread does all.
        isa: Instruction set.
    """

    def __init__(
        self, module: str, kernel: str, operands: Sequence[Operand], m: int, team: Team | None, isa: Isa
    ) -> None:
        address = _kernels(module, isa)[kernel]
        self._words = Words(len(operands) + 1)
        self._words[0] = m
        for index, operand in enumerate(operands, 1):
            if isinstance(operand, np.ndarray):
                self._words.point(index, operand)
            elif isinstance(operand, float):
                self._words[index] = int(np.float32(operand).view(np.int32))
            else:
                self._words[index] = operand or 0
        at = self._words.address
        if team is None or m == 1:
            self._run = partial(callable_at(address), at, 0, 1)
        else:
            self._run = partial(team.run_compiled, address, at)

    def __call__(self) -> None:
        """Run it."""
        self._run()


class NativeStepOps(StepOps):
    """Binds the compiled small operations to the buffers they work on.

    Args:
        team: Shares the rows; None: the calling thread does all.
        isa: Instruction set; None: the best of this machine.

    Raises:
        ValueError: As for ``StepOps``.
    """

    def __init__(self, team: Team | None = None, isa: Isa | None = None) -> None:
        super().__init__(team)
        self._isa = isa or paths.best()

    def _norm(self, x: Floats, weight: Floats, out: Quantized | Floats, residual: Floats | None) -> Run:
        return self._rows("x" if residual is None else "add", x, residual, out, weight)

    def _add(self, x: Floats, residual: Floats) -> Run:
        return self._rows("add", x, residual, x, None)

    def _quantize(self, x: Floats, out: Quantized) -> Run:
        return self._rows("x", x, None, out, None)

    def _gate(
        self, gated: Floats, up: Floats, activation: Activation, out: Quantized | Floats, weight: Floats | None
    ) -> Run:
        return self._rows(activation, gated, up, out, weight)

    def _rotate(self, x: Floats, cos: Floats, sin: Floats, out: Floats) -> Run:
        m, heads, head_dim = x.shape
        return Operation("step_ops", "rotate", (x, cos, sin, out, heads, head_dim // 2), m, self._team, self._isa)

    def _append(
        self,
        key: Floats,
        cos: Floats,
        sin: Floats,
        value: Floats,
        keys: Halves,
        values: Halves,
        row_stride: int,
        offset: int,
    ) -> Run:
        m, heads, head_dim = key.shape
        head_stride = keys.shape[-2] * head_dim
        sizes = heads, head_dim // 2, offset, row_stride, head_stride
        return Operation("step_ops", "append", (key, cos, sin, value, keys, values, *sizes), m, self._team, self._isa)

    def _rows(
        self, origin: Origin, x: Floats, other: Floats | None, out: Quantized | Floats, weight: Floats | None
    ) -> Run:
        """What a row becomes, normed if there is a weight, and quantised if the result is."""
        (m, columns), quantized = x.shape, isinstance(out, Quantized)
        kernel = kernel_name(origin, normed=weight is not None, quantized=quantized)
        space = None
        if quantized and origin in get_args(Activation):
            # A row per member, which stays in the member's cache.
            space = np.empty((self._team.threads if self._team else 1, columns), np.float32)
        results = out if isinstance(out, Quantized) else (out, None)
        operands = columns, x, other, space, weight, EPSILON, *results
        return Operation(module_of(origin), kernel, operands, m, self._team, self._isa)


@cache
def _kernels(module: str, isa: Isa) -> dict[str, int]:
    return compiler.load(module, MODULES[module], isa)
