"""What a layer does besides its matrix products: attention over the KV cache, norm, rotation, gate."""

from __future__ import annotations

from copy import copy
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ternary_kernels.activations import Quantized, quantize
from ternary_kernels.geometry import Activation, LayerGeometry
from ternary_kernels.reference.products import HALF_BIAS, widen
from ternary_kernels.team import Team, share

Floats = NDArray[np.float32]
Halves = NDArray[np.float16]

EPSILON = 1e-5
"""Added to a mean square before its root is taken."""

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
        context: Tokens in the cache before them.
        team: The threads.

    Raises:
        ValueError: ``heads`` is no multiple of ``kv_heads``, or a size is out of range.
    """

    def __init__(self, heads: int, kv_heads: int, head_dim: int, m: int, context: int, team: Team) -> None:
        if min(heads, kv_heads, head_dim, m) < 1 or context < 0:
            raise ValueError(f"attention: expected positive sizes, got {(heads, kv_heads, head_dim, m, context)}")
        if heads % kv_heads:
            raise ValueError(f"attention: expected heads to be a multiple of {kv_heads} KV heads, got {heads}")
        self.shape = (m, heads, head_dim)
        self.cache_shape = (kv_heads, context + m, head_dim)
        self.context = context
        self.team = team

    def __call__(self, query: Floats, keys: Halves, values: Halves, out: Floats) -> Floats:
        """Attend; token i sees the cache and the new tokens up to itself.

        Args:
            query: float32, shape (m, heads, head_dim), rotated.
            keys: float16, shape (kv_heads, context + m, head_dim), rotated, the new tokens' last.
            values: float16, shape (kv_heads, context + m, head_dim).
            out: float32, shape (m, heads, head_dim), overwritten.

        Returns:
            ``out``.

        Raises:
            ValueError: A shape or dtype differs, an array isn't contiguous, or ``out`` is read-only; names what was
                expected and what came.
        """
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
        self._attend(query, keys, values, out)
        return out

    def _attend(self, query: Floats, keys: Halves, values: Halves, out: Floats) -> None:
        m, heads, head_dim = self.shape
        kv_heads, tokens, _ = self.cache_shape
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
                    block = keys[head, start : start + _CONTEXT_BLOCK]
                    wide = widen(block, self.team.scratch(member, block.shape))
                    np.matmul(rows, wide.T, out=scores[:, start : start + _CONTEXT_BLOCK])
                scores *= HALF_BIAS
                if unseen is not None:
                    scores.reshape(group, m, tokens)[:, :, self.context :][:, unseen] = -np.inf
                scores -= scores.max(axis=1, keepdims=True)
                np.exp(scores, out=scores)
                # Weights are at most 1, so they can take all of the bias that widening leaves out.
                scores *= HALF_BIAS * HALF_BIAS / scores.sum(axis=1, keepdims=True)
                mixed = np.zeros((group * m, head_dim), np.float32)
                for start in range(0, tokens, _CONTEXT_BLOCK):
                    block = values[head, start : start + _CONTEXT_BLOCK]
                    wide = widen(block, self.team.scratch(member, block.shape))
                    mixed += scores[:, start : start + _CONTEXT_BLOCK] @ wide
                out[:, mine] = mixed.reshape(group, m, head_dim).swapaxes(0, 1)

        self.team.run(work)


def rms_norm(x: Floats, weight: Floats, epsilon: float = EPSILON) -> Floats:
    """Root-mean-square norm of each token: x (m, n), weight (n,), to (m, n)."""
    mean_square = np.einsum("mn,mn->m", x, x) / np.float32(x.shape[1])
    normed: Floats = x * (1 / np.sqrt(mean_square + np.float32(epsilon)))[:, None]
    normed *= weight
    return normed


def rotate(x: Floats, cos: Floats, sin: Floats) -> Floats:
    """Rotary position embedding, halves of a head as pairs: x (m, heads, d), cos and sin (m, d / 2)."""
    first, second = np.split(x, 2, axis=2)
    cos, sin = cos[:, None], sin[:, None]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=2)


def gate(gated: Floats, up: Floats, activation: Activation) -> Floats:
    """activation(gated) * up, both (m, n)."""
    if activation == "relu2":
        active = np.square(np.maximum(gated, 0))
    elif activation == "silu":
        active = gated / (1 + np.exp(-np.clip(gated, -80, 80)))
    else:
        # Source: Hendrycks and Gimpel, Gaussian Error Linear Units, the tanh form.
        active = 0.5 * gated * (1 + np.tanh(0.7978845608 * (gated + 0.044715 * gated**3)))
    return active * up


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
        self.rotated_query, self.rotated_key = np.empty_like(self.query), np.empty_like(self.key)
        # Added to the stream, it leaves that as it is, call after call.
        self.residual = np.zeros_like(self.stream)
        widths = hidden_size, heads * head_dim, intermediate_size
        self.norms = [np.ones(width, np.float32) for width in widths]
        self.inputs = Inputs(*(room(m, width) for width in (hidden_size, heads * head_dim, hidden_size, widths[2])))

    def first(self, m: int) -> Workspace:
        """The same memory, of the first m tokens."""
        if m > len(self.stream):
            raise ValueError(f"workspace: expected at most {len(self.stream)} tokens, got {m}")
        part = copy(self)
        of_tokens = "cos", "sin", "stream", "residual", "query", "key", "rotated_query", "rotated_key", "gated"
        for name in of_tokens:
            setattr(part, name, getattr(self, name)[:m])
        part.inputs = Inputs(*(Quantized(values[:m], scale[:m]) for values, scale in self.inputs))
        return part


class SmallOps:
    """All of a layer but its products and attention, on m tokens, in the order a layer runs them.

    Norm and quantisation for q, k, v; rotation of q and k; norm and quantisation for o; residual; norm and
    quantisation for gate and up; the gate; norm and quantisation for down; residual. One token runs on the calling
    thread: handing it to a team would cost more than it does.

    Args:
        geometry: The layer's widths.
        m: Tokens.
        team: Shares the tokens if there are several; None: the calling thread does all.
        workspace: Memory to share with others of the same geometry; None: its own.
    """

    def __init__(
        self,
        geometry: LayerGeometry,
        m: int,
        team: Team | None = None,
        workspace: Workspace | None = None,
    ) -> None:
        self._activation = geometry.activation
        self._team = team if m > 1 else None
        own = workspace or Workspace(geometry, m)
        self._memory = own.first(m)

    def __call__(self) -> Inputs:
        """Run them; returns what the layer's products would take, which the next call overwrites."""
        m = len(self._memory.stream)
        team = self._team
        if team is None:
            self._run(0, m)
        else:
            team.run(lambda member: self._run(*share(m, team.threads, member)))
        return self._memory.inputs

    def _run(self, first: int, last: int) -> None:
        """Those of tokens ``[first, last)``."""
        if first == last:
            return
        mine, memory = slice(first, last), self._memory
        stream_norm, attention_norm, gate_norm = memory.norms
        stream, cos, sin = memory.stream[mine], memory.cos[mine], memory.sin[mine]

        def put(target: Quantized, normed: Floats) -> None:
            target.values[mine], target.scale[mine] = quantize(normed)

        put(memory.inputs.attention, rms_norm(stream, stream_norm))
        rotated = rotate(memory.query[mine], cos, sin)
        rotate(memory.key[mine], cos, sin)
        put(memory.inputs.output, rms_norm(rotated.reshape(len(rotated), -1), attention_norm))
        total = stream + stream
        put(memory.inputs.gate, rms_norm(total, stream_norm))
        gated = gate(memory.gated[mine], memory.gated[mine], self._activation)
        put(memory.inputs.down, rms_norm(gated, gate_norm))
        total += stream


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
