"""What a layer does besides its matrix products: attention over the KV cache, norm, rotation, gate."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ternary_kernels.activations import Quantized
from ternary_kernels.geometry import LayerGeometry
from ternary_kernels.reference.products import HALF_BIAS, widen
from ternary_kernels.reference.step_ops import EPSILON, Floats, Halves, StepOps, gate, rms_norm, rotate
from ternary_kernels.team import Team, share

__all__ = [
    "EPSILON",
    "Attention",
    "Floats",
    "Halves",
    "Inputs",
    "SmallOps",
    "Workspace",
    "gate",
    "rms_norm",
    "room",
    "rotate",
]

_CONTEXT_BLOCK = 1024
"""Keys widened at once: with 128 elements each they fill half a megabyte."""


class Attention:
    """Grouped-query attention of m new tokens of one sequence over an F16 KV cache.

    The members of the team share the KV heads.

    Args:
        heads: Query heads, a multiple of ``kv_heads``.
        kv_heads: Key and value heads.
        head_dim: Elements per head.
        m: New tokens: 1 in decode, a chunk in prefill.
        capacity: Tokens that the cache has room for, the new ones included.
        team: The threads.

    Attributes:
        shape: Of queries and outputs, (m, heads, head_dim).
        cache_shape: Of keys and values, (kv_heads, capacity, head_dim).

    Raises:
        ValueError: ``heads`` is no multiple of ``kv_heads``, or a size is out of range.
    """

    def __init__(self, heads: int, kv_heads: int, head_dim: int, m: int, capacity: int, team: Team) -> None:
        if min(heads, kv_heads, head_dim, m) < 1:
            raise ValueError(f"attention: expected positive sizes, got {(heads, kv_heads, head_dim, m)}")
        if heads % kv_heads:
            raise ValueError(f"attention: expected heads to be a multiple of {kv_heads} KV heads, got {heads}")
        if capacity < m:
            raise ValueError(f"attention: expected a capacity of at least the {m} new tokens, got {capacity}")
        self.shape = (m, heads, head_dim)
        self.cache_shape = (kv_heads, capacity, head_dim)
        self.team = team

    def __call__(self, query: Floats, keys: Halves, values: Halves, out: Floats, context: int) -> Floats:
        """Attend; token i sees the cache and the new tokens up to itself.

        Args:
            query: float32, shape (m, heads, head_dim), rotated.
            keys: float16, shape (kv_heads, capacity, head_dim), rotated: of the cache's tokens, then of the new ones;
                what lies behind them is not looked at.
            values: float16, shape (kv_heads, capacity, head_dim), alike.
            out: float32, shape (m, heads, head_dim), overwritten.
            context: Tokens in the cache before the new ones, at most ``capacity - m``.

        Returns:
            ``out``.

        Raises:
            ValueError: A shape or dtype differs, an array isn't contiguous, ``out`` is read-only, or the cache has no
                room for so many tokens; names what was expected and what came.
        """
        self._check_operands(query, keys, values, out, context)
        self._attend(query, keys, values, out, context)
        return out

    def bind(self, query: Floats, keys: Halves, values: Halves, out: Floats, context: int) -> Callable[[], object]:
        """Check operands once; returns what attends to whatever they hold when it is called.

        Args:
            query: As for a call.
            keys: As for a call.
            values: As for a call.
            out: As for a call.
            context: As for a call.

        Raises:
            ValueError: As for a call.
        """
        self._check_operands(query, keys, values, out, context)
        return partial(self._attend, query, keys, values, out, context)

    def _check_operands(self, query: Floats, keys: Halves, values: Halves, out: Floats, context: int) -> None:
        most = self.cache_shape[1] - self.shape[0]
        if not 0 <= context <= most:
            raise ValueError(f"attention: expected a context of 0 to {most} tokens, got {context}")
        operands: tuple[tuple[str, NDArray[Any], tuple[int, ...], type[np.floating[Any]]], ...] = (
            ("query", query, self.shape, np.float32),
            ("keys", keys, self.cache_shape, np.float16),
            ("values", values, self.cache_shape, np.float16),
            ("out", out, self.shape, np.float32),
        )
        for name, array, shape, dtype in operands:
            if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
                order = "" if array.flags.c_contiguous else "non-contiguous "
                raise ValueError(
                    f"attention {name}: expected {np.dtype(dtype)} of shape {shape}, "
                    f"got {order}{array.dtype} of shape {array.shape}"
                )
        if not out.flags.writeable:
            raise ValueError("attention out: expected an array that can be written to, got a read-only one")

    def _attend(self, query: Floats, keys: Halves, values: Halves, out: Floats, context: int) -> None:
        m, heads, head_dim = self.shape
        kv_heads, tokens = self.cache_shape[0], context + m
        group = heads // kv_heads
        unseen = np.triu(np.ones((m, m), bool), 1) if m > 1 else None

        def work(member: int) -> None:
            first, last = share(kv_heads, self.team.threads, member)
            for head in range(first, last):
                mine = slice(head * group, (head + 1) * group)
                rows = query[:, mine].swapaxes(0, 1).reshape(group * m, head_dim)
                rows = rows * (HALF_BIAS / np.sqrt(np.float32(head_dim)))
                scores = np.empty((group * m, tokens), np.float32)
                for start in range(0, tokens, _CONTEXT_BLOCK):
                    block = keys[head, start : min(start + _CONTEXT_BLOCK, tokens)]
                    wide = widen(block, self.team.scratch(member, block.shape))
                    np.matmul(rows, wide.T, out=scores[:, start : start + _CONTEXT_BLOCK])
                scores *= HALF_BIAS
                if unseen is not None:
                    scores.reshape(group, m, tokens)[:, :, context:][:, unseen] = -np.inf
                scores -= scores.max(axis=1, keepdims=True)
                np.exp(scores, out=scores)
                # Weights are at most 1, so they can take all of the bias that widening leaves out.
                scores *= HALF_BIAS * HALF_BIAS / scores.sum(axis=1, keepdims=True)
                mixed = np.zeros((group * m, head_dim), np.float32)
                for start in range(0, tokens, _CONTEXT_BLOCK):
                    block = values[head, start : min(start + _CONTEXT_BLOCK, tokens)]
                    wide = widen(block, self.team.scratch(member, block.shape))
                    mixed += scores[:, start : start + _CONTEXT_BLOCK] @ wide
                out[:, mine] = mixed.reshape(group, m, head_dim).swapaxes(0, 1)

        self.team.run(work)


class Workspace:
    """What the small operations of a layer of some geometry work on, for any number of tokens up to a largest.

    The inputs are random and drawn once: what is timed depends on the shapes alone.

    Args:
        geometry: The layer's widths.
        m: Most tokens.
    """

    def __init__(self, geometry: LayerGeometry, m: int) -> None:
        hidden_size, intermediate_size, heads, kv_heads, head_dim, _ = geometry
        rng = np.random.default_rng(0)
        angles = rng.random((m, head_dim // 2), np.float32)
        self.cos, self.sin = np.cos(angles), np.sin(angles)
        self.stream = rng.standard_normal((m, hidden_size), np.float32)
        self.query = rng.standard_normal((m, heads, head_dim), np.float32)
        self.key = rng.standard_normal((m, kv_heads, head_dim), np.float32)
        self.gated = rng.standard_normal((m, intermediate_size), np.float32)
        self.value = rng.standard_normal(self.key.shape, np.float32)
        self.rotated = np.empty_like(self.query)
        self.keys, self.values = (np.zeros((kv_heads, m, head_dim), np.float16) for _ in "kv")
        # Added to the stream, it leaves that as it is, call after call.
        self.residual = np.zeros_like(self.stream)
        widths = hidden_size, heads * head_dim, intermediate_size
        self.norms = [np.ones(width, np.float32) for width in widths]
        self.inputs = Inputs(*(room(m, width) for width in (hidden_size, heads * head_dim, hidden_size, widths[2])))

    def first(self, m: int) -> Workspace:
        """The same memory, of the first m tokens; the cache keeps its room."""
        if m > len(self.stream):
            raise ValueError(f"workspace: expected at most {len(self.stream)} tokens, got {m}")
        part = copy(self)
        for name in ("cos", "sin", "stream", "residual", "query", "key", "value", "rotated", "gated"):
            setattr(part, name, getattr(self, name)[:m])
        part.inputs = Inputs(*(Quantized(values[:m], scale[:m]) for values, scale in self.inputs))
        return part


class SmallOps:
    """All of a layer but its products and attention, on m tokens: the calls that a runtime makes between its products.

    Norm and quantisation for q, k, v; rotation of q; rotation of k, which goes with v to the KV cache; norm and
    quantisation for o, and for gate and up; the gate with norm and quantisation for down. A residual is added in the
    pass that norms and quantises the sum.

    Args:
        geometry: The layer's widths.
        m: Tokens.
        ops: What does each operation; None: numpy, on the calling thread.
        workspace: Memory to share with others of the same geometry; None: its own.
    """

    def __init__(
        self, geometry: LayerGeometry, m: int, ops: StepOps | None = None, workspace: Workspace | None = None
    ) -> None:
        ops = ops or StepOps()
        self._memory = memory = (workspace or Workspace(geometry, m)).first(m)
        inputs, angles = memory.inputs, (memory.cos, memory.sin)
        stream_norm, attention_norm, gate_norm = memory.norms
        self._operations = (
            ops.norm(memory.stream, stream_norm, inputs.attention, memory.residual),
            ops.rotate(memory.query, *angles, memory.rotated),
            ops.append(memory.key, *angles, memory.value, memory.keys, memory.values, geometry.head_dim, 0),
            ops.norm(memory.rotated.reshape(m, -1), attention_norm, inputs.output),
            ops.norm(memory.stream, stream_norm, inputs.gate, memory.residual),
            ops.gate(memory.gated, memory.gated, geometry.activation, inputs.down, gate_norm),
        )

    def __call__(self) -> Inputs:
        """Run them; returns what the layer's products would take, which the next call overwrites."""
        for operation in self._operations:
            operation()
        return self._memory.inputs


class Inputs(NamedTuple):
    """Quantised activations that a layer's products take.

    Attributes:
        attention: Of q, k and v.
        output: Of o.
        gate: Of gate and up.
        down: Of down.
    """

    attention: Quantized
    output: Quantized
    gate: Quantized
    down: Quantized


def room(m: int, columns: int) -> Quantized:
    """Uninitialised memory for quantised activations."""
    return Quantized(np.empty((m, columns), np.int8), np.empty(m, np.float32))
