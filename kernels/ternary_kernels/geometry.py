"""The widths of a layer: all that the work beside its products depends on but the number of tokens."""

from __future__ import annotations

from typing import Literal, NamedTuple

Activation = Literal["silu", "relu2", "gelu"]


class LayerGeometry(NamedTuple):
    """What the small operations of a layer are done on.

    Attributes:
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the gate.
        heads: Query heads.
        kv_heads: Key heads.
        head_dim: Elements per head, even.
        activation: The gate's function.
    """

    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    activation: Activation
