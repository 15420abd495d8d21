"""What does the rest of a step on a GPU beside its products, by kernel: attention, small operations, quantisation."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

from torch import Tensor

from ternary_kernels.cuda.activations import Quantized, quantize
from ternary_kernels.cuda.layer_ops import Attention, SmallOps

BACKENDS = ("triton", "torch")


class Backend(NamedTuple):
    """One way to do it.

    Attributes:
        name: The kernel it goes with.
        attention: Builds attention for a geometry.
        small_ops: Builds a layer's small operations for a geometry.
        quantizer: Builds what quantises the activations (m, k_in) that a tensor holds then; what that returns is valid
            until it is called again.
    """

    name: str
    attention: type[Attention]
    small_ops: type[SmallOps]
    quantizer: Callable[[Tensor], Callable[[], Quantized]]


@cache
def get_backend(name: str) -> Backend:
    """The backend of that name.

    Attention of several new tokens is torch's in both: it brings the flash kernels.

    Raises:
        ValueError: There is none, or what it needs isn't installed; says why.
    """
    plain = Backend("torch", Attention, SmallOps, lambda x: partial(quantize, x))
    if name == "torch":
        return plain
    if name != "triton":
        raise ValueError(f"no backend {name!r} for a GPU: expected one of {', '.join(BACKENDS)}")
    try:
        from ternary_kernels.cuda.triton_attention import TritonAttention
        from ternary_kernels.cuda.triton_layer import TritonQuantizer, TritonSmallOps
    except ImportError as error:
        raise ValueError(f"backend 'triton' can't be used here: {error}") from error
    return Backend(name, TritonAttention, TritonSmallOps, TritonQuantizer)
