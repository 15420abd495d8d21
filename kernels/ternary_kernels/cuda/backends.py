"""What does the rest of a step on a GPU beside its products, by kernel: attention and the small operations."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

from ternary_kernels.cuda.layer_ops import Attention, SmallOps
from ternary_kernels.cuda.step_ops import StepOps
from ternary_kernels.geometry import LayerGeometry

BACKENDS = ("triton", "torch")


class Backend(NamedTuple):
    """One way to do it.

    Attributes:
        name: The kernel it goes with.
        attention: Builds attention for a geometry.
        step_ops: The small operations.
    """

    name: str
    attention: type[Attention]
    step_ops: StepOps

    def small_ops(self, geometry: LayerGeometry, m: int, device: torch.device | str) -> SmallOps:
        """A layer's small operations, to be timed."""
        return SmallOps(geometry, m, device, self.step_ops)


@cache
def get_backend(name: str) -> Backend:
    """The backend of that name.

    Attention of several new tokens is torch's in both: it brings the flash kernels.

    Raises:
        ValueError: There is none, or what it needs isn't installed; says why.
    """
    plain = Backend("torch", Attention, StepOps())
    if name == "torch":
        return plain
    if name != "triton":
        raise ValueError(f"no backend {name!r} for a GPU: expected one of {', '.join(BACKENDS)}")
    try:
        from ternary_kernels.cuda.triton_attention import TritonAttention
        from ternary_kernels.cuda.triton_step_ops import TritonStepOps
    except ImportError as error:
        raise ValueError(f"backend 'triton' can't be used here: {error}") from error
    return Backend(name, TritonAttention, TritonStepOps())
