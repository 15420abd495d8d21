"""What does the rest of a step beside its products, by kernel: attention, small operations, the host's ceilings."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ternary_kernels.reference import ceilings as numpy_ceilings
from ternary_kernels.reference.layer_ops import Attention
from ternary_kernels.reference.step_ops import StepOps
from ternary_kernels.team import Team

BACKENDS = ("numpy", "native", "amx")


class Peak(Protocol):
    """Arithmetic at full speed on every member of a team.

    Attributes:
        operations: Of one call, all members together; a multiplication and an addition are two.
    """

    operations: int

    def __call__(self) -> None:
        """Run once."""


class MakePeak(Protocol):
    """Builds a peak."""

    def __call__(self, team: Team, size: tuple[int, int, int] = ...) -> Peak:
        """For a team, each member of which does the multiply-adds of a product of that size: m, n_out, k_in."""


class Backend(NamedTuple):
    """One way to do it.

    Attributes:
        name: The kernel it goes with.
        attention: Builds attention for a geometry.
        step_ops: Builds what binds the small operations to a runtime's buffers, for a team.
        read: Streams over bytes once, shared among a team.
        peak: Builds the arithmetic at full speed.
        arithmetic: What the peak multiplies.
    """

    name: str
    attention: type[Attention]
    step_ops: type[StepOps]
    read: Callable[[Team, NDArray[np.uint8]], object]
    peak: MakePeak
    arithmetic: Literal["int8", "float32"]


@cache
def get_backend(name: str) -> Backend:
    """The backend of that name.

    Raises:
        ValueError: There is none, or it can't be used here; says why.
    """
    if name == "numpy":
        return Backend(
            name,
            Attention,
            StepOps,
            numpy_ceilings.read,
            numpy_ceilings.Peak,
            numpy_ceilings.arithmetic,
        )
    if name == "amx":
        return _amx()
    if name != "native":
        raise ValueError(f"no backend {name!r}: expected one of {', '.join(BACKENDS)}")
    try:
        # They need llvmlite, which there isn't for every machine.
        from ternary_kernels.native import attention, ceilings, step_ops
    except ImportError as error:
        raise ValueError(f"backend 'native' can't be used here: {error}") from error
    return Backend(
        name,
        attention.NativeAttention,
        step_ops.NativeStepOps,
        ceilings.read,
        ceilings.Peak,
        ceilings.arithmetic,
    )


def _amx() -> Backend:
    """Tiles only multiply matrices: all else is as in the native backend.

    Raises:
        ValueError: They can't be used here; says why.
    """
    native = get_backend("native")
    from ternary_kernels.native import amx

    if refusal := amx.unusable():
        raise ValueError(f"backend 'amx' can't be used here: {refusal}")
    return native._replace(name="amx", peak=amx.Peak)
