"""What a layer does besides its products and attention, in compiled code: norm, rotation, gate, and quantisation.

What stands between two products is one pass over a token: a residual is added, the sum normed and quantised while it
is in the level-1 cache. One token runs on the calling thread, several are shared among the team.
"""

from __future__ import annotations

from functools import cache
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ternary_kernels.activations import Quantized, check_activations
from ternary_kernels.geometry import Activation, LayerGeometry
from ternary_kernels.native import compiler
from ternary_kernels.native import isa as paths
from ternary_kernels.native.crew import callable_at
from ternary_kernels.native.isa import Isa
from ternary_kernels.native.layer_kernels import KERNELS
from ternary_kernels.native.words import Words
from ternary_kernels.reference.layer_ops import EPSILON, Floats, Inputs, SmallOps, Workspace, room
from ternary_kernels.team import Team

Operand = NDArray[Any] | int | float


class Operation:
    """One compiled operation on m tokens with its operands, to be run any number of times.

    Args:
        name: Of the kernel.
        operands: Arrays, sizes and float32 numbers, in the kernel's order after the number of tokens; arrays are kept.
        m: Tokens.
        team: Shares the tokens if there are several; None: the calling thread does all.
        isa: Instruction set; None: the best of this machine.
    """

    def __init__(
        self,
        name: str,
        operands: tuple[Operand, ...],
        m: int,
        team: Team | None = None,
        isa: Isa | None = None,
    ) -> None:
        self._kernel = _kernels(isa or paths.best())[name]
        self._words = Words(len(operands) + 1)
        self._words[0] = m
        for index, operand in enumerate(operands, 1):
            if isinstance(operand, np.ndarray):
                self._words.point(index, operand)
            else:
                self._words[index] = int(np.float32(operand).view(np.int32)) if isinstance(operand, float) else operand
        self._team = team if m > 1 else None
        self._alone = callable_at(self._kernel)

    def __call__(self) -> None:
        """Run it."""
        if self._team is None:
            self._alone(self._words.address, 0, 1)
        else:
            self._team.run_compiled(self._kernel, self._words.address)


class Quantizer:
    """Quantises each token of an array to int8, to the last bit as ``activations.quantize`` does.

    Args:
        x: float32, shape (m, k_in), contiguous; read at every call, when it must be finite.
        team: Shares the tokens; None: the calling thread does all.
        isa: Instruction set; None: the best of this machine.

    Raises:
        ValueError: Another dtype, rank or memory order.
    """

    def __init__(self, x: Floats, team: Team | None = None, isa: Isa | None = None) -> None:
        check_activations(x)
        if not x.flags.c_contiguous:
            raise ValueError(f"activations: expected a contiguous array, got a non-contiguous one of shape {x.shape}")
        self._quantized = room(*x.shape)
        self._run = Operation("quantize", (x, *self._quantized, x.shape[1]), len(x), team, isa)

    def __call__(self) -> Quantized:
        """Quantise what the array holds now; the result is overwritten by the next call."""
        self._run()
        return self._quantized


def quantize(x: Floats, team: Team | None = None, isa: Isa | None = None) -> Quantized:
    """Quantise each token once; see ``Quantizer``, but in any memory order.

    Raises:
        ValueError: Another dtype or rank.
    """
    check_activations(x)
    return Quantizer(np.ascontiguousarray(x), team, isa)()


def rms_norm(
    x: Floats, weight: Floats, epsilon: float = EPSILON, team: Team | None = None, isa: Isa | None = None
) -> Floats:
    """Root-mean-square norm of each token: x (m, n), weight (n,), to (m, n).

    Raises:
        ValueError: A shape or dtype differs.
    """
    x, weight = _checked("norm", "x", x, (-1, -1)), _checked("norm", "weight", weight, (x.shape[-1],))
    out = np.empty_like(x)
    Operation("rms_norm", (x, weight, float(epsilon), out, x.shape[1]), len(x), team, isa)()
    return out


def norm_quantize(
    x: Floats,
    weight: Floats,
    epsilon: float = EPSILON,
    residual: Floats | None = None,
    team: Team | None = None,
    isa: Isa | None = None,
) -> Quantized:
    """Quantised ``rms_norm``; with a residual, that is first added to x, in place.

    Args:
        x: float32, shape (m, n); C-contiguous if there is a residual.
        weight: float32, shape (n,).
        epsilon: Added to the mean square.
        residual: float32, shape (m, n).
        team: Shares the tokens; None: the calling thread does all.
        isa: Instruction set; None: the best of this machine.

    Raises:
        ValueError: A shape or dtype differs, or x can't be changed in place.
    """
    weight = _checked("norm", "weight", weight, (x.shape[-1],))
    quantized = room(*x.shape)
    rest = (weight, float(epsilon), *quantized, x.shape[1])
    if residual is None:
        Operation("norm_quantize", (_checked("norm", "x", x, (-1, -1)), *rest), len(x), team, isa)()
    else:
        if not (x.flags.c_contiguous and x.flags.writeable):
            got = "a read-only one" if x.flags.c_contiguous else f"strides {x.strides}"
            raise ValueError(f"norm, x: expected a contiguous array to add to, got {got}")
        added = _checked("norm", "residual", residual, x.shape)
        Operation("add_norm_quantize", (_checked("norm", "x", x, (-1, -1)), added, *rest), len(x), team, isa)()
    return quantized


def rotate(x: Floats, cos: Floats, sin: Floats, team: Team | None = None, isa: Isa | None = None) -> Floats:
    """Rotary position embedding, halves of a head as pairs: x (m, heads, d), cos and sin (m, d / 2).

    Raises:
        ValueError: A shape or dtype differs, or d is odd.
    """
    x = _checked("rotation", "x", x, (-1, -1, -1))
    m, heads, head_dim = x.shape
    if head_dim % 2:
        raise ValueError(f"rotation: expected heads of an even size, got {head_dim}")
    cos, sin = (_checked("rotation", name, angle, (m, head_dim // 2)) for name, angle in (("cos", cos), ("sin", sin)))
    out = np.empty_like(x)
    Operation("rotate", (x, cos, sin, out, heads, head_dim // 2), m, team, isa)()
    return out


def gate(gated: Floats, up: Floats, activation: Activation, team: Team | None = None, isa: Isa | None = None) -> Floats:
    """activation(gated) * up, both (m, n).

    Raises:
        ValueError: A shape or dtype differs, or there is no such activation.
    """
    gated = _checked("gate", "gated", gated, (-1, -1))
    up = _checked("gate", "up", up, gated.shape)
    out = np.empty_like(gated)
    Operation(_gate(activation), (gated, up, out, gated.shape[1]), len(gated), team, isa)()
    return out


def gate_norm_quantize(
    gated: Floats,
    up: Floats,
    activation: Activation,
    weight: Floats,
    epsilon: float = EPSILON,
    team: Team | None = None,
    isa: Isa | None = None,
) -> Quantized:
    """Quantised norm of ``gate``.

    Raises:
        ValueError: A shape or dtype differs, or there is no such activation.
    """
    gated = _checked("gate", "gated", gated, (-1, -1))
    up = _checked("gate", "up", up, gated.shape)
    weight = _checked("gate", "weight", weight, gated.shape[1:])
    quantized = room(*gated.shape)
    operands = gated, up, _gate_memory(gated.shape[1], team), weight, float(epsilon), *quantized, gated.shape[1]
    Operation(f"{_gate(activation)}_norm_quantize", operands, len(gated), team, isa)()
    return quantized


class NativeSmallOps(SmallOps):
    """All of a layer but its products and attention, on m tokens: the calls that a runtime makes between its products.

    As in ``SmallOps``, but each residual is added in the pass that norms and quantises the sum.

    Args:
        geometry: The layer's widths.
        m: Tokens.
        team: Shares the tokens if there are several; None: the calling thread does all.
        workspace: Memory to share with others of the same geometry; None: its own.
        isa: Instruction set; None: the best of this machine.
    """

    def __init__(
        self,
        geometry: LayerGeometry,
        m: int,
        team: Team | None = None,
        workspace: Workspace | None = None,
        isa: Isa | None = None,
    ) -> None:
        super().__init__(geometry, m, team, workspace)
        _, intermediate_size, heads, kv_heads, head_dim, activation = geometry
        memory, inputs = self._memory, self._memory.inputs
        stream_norm, attention_norm, gate_norm = memory.norms

        def into(quantized: Quantized, norm: Floats) -> tuple[Operand, ...]:
            return norm, EPSILON, *quantized, len(norm)

        angles = memory.cos, memory.sin
        named: tuple[tuple[str, tuple[Operand, ...]], ...] = (
            ("add_norm_quantize", (memory.stream, memory.residual, *into(inputs.attention, stream_norm))),
            ("rotate", (memory.query, *angles, memory.rotated_query, heads, head_dim // 2)),
            ("rotate", (memory.key, *angles, memory.rotated_key, kv_heads, head_dim // 2)),
            ("norm_quantize", (memory.rotated_query, *into(inputs.output, attention_norm))),
            ("add_norm_quantize", (memory.stream, memory.residual, *into(inputs.gate, stream_norm))),
            (
                f"{_gate(activation)}_norm_quantize",
                (memory.gated, memory.gated, _gate_memory(intermediate_size, team), *into(inputs.down, gate_norm)),
            ),
        )
        self._operations = tuple(Operation(name, operands, m, team, isa) for name, operands in named)

    def __call__(self) -> Inputs:
        """Run them; returns what the layer's products would take, which the next call overwrites."""
        for operation in self._operations:
            operation()
        return self._memory.inputs


def _checked(operation: str, name: str, array: Floats, shape: tuple[int, ...]) -> Floats:
    """The array, contiguous; -1 stands for any size."""
    fits = array.ndim == len(shape) and all(want in (-1, size) for want, size in zip(shape, array.shape, strict=True))
    if not fits or array.dtype != np.float32:
        sizes = str(shape).replace("-1", "any")
        raise ValueError(
            f"{operation}, {name}: expected float32 of shape {sizes}, got {array.dtype} of shape {array.shape}"
        )
    return np.ascontiguousarray(array)


def _gate_memory(columns: int, team: Team | None) -> Floats:
    """A row per member: it stays in the member's cache."""
    return np.empty((team.threads if team else 1, columns), np.float32)


def _gate(activation: Activation) -> str:
    if activation not in get_args(Activation):
        raise ValueError(f"gate: expected {', '.join(get_args(Activation))}, got {activation!r}")
    return f"gate_{activation}"


@cache
def _kernels(isa: Isa) -> dict[str, int]:
    return compiler.load("layer_ops", KERNELS, isa)
