"""What a layer has beside its sites, the same on every device: norms, and the angles of rotary positions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autotune.engine.stages import Pass
from autotune.records import Model

FINAL_NORM = "head"
"""The norm that comes before the head."""

_SUB_NORMED = "bitnet"
"""How the names of architectures begin that have a norm before the o and before the down matrix as well.

Source: transformers, modeling_bitnet.py, attn_sub_norm and ffn_sub_norm; microsoft/BitNet's llama.cpp, LLM_ARCH_BITNET.
"""
_BASE = 10_000.0
"""What pairs of elements turn by falls from 1 to its inverse. Models differ in it, but not in what it costs."""


def norm_widths(model: Model) -> dict[str, int]:
    """The norms of a layer by what each comes before: ``attention``, ``feed_forward``, and maybe ``o`` and ``down``."""
    widths = {"attention": model.hidden_size, "feed_forward": model.hidden_size}
    if model.architecture.startswith(_SUB_NORMED):
        widths |= {"o": model.attention.heads * model.attention.head_dim, "down": model.intermediate_size}
    return widths


def angles(step: Pass, head_dim: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosine and sine of each row's position, float32, shape (rows, head_dim / 2).

    Source: Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding (2021), 3.2.2.
    """
    decode = step.rows == step.sequences
    positions = np.full(step.rows, step.context) if decode else step.context + np.arange(step.rows)
    turned = positions[:, None] * _BASE ** (-2 * np.arange(head_dim // 2) / head_dim)
    return np.cos(turned).astype(np.float32), np.sin(turned).astype(np.float32)
