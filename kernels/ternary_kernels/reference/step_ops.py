"""The small operations of a step: norm, rotation, KV cache, gate, quantisation; as functions, and bound to buffers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import DTypeLike, NDArray

from ternary_kernels.activations import Quantized, quantize
from ternary_kernels.geometry import Activation
from ternary_kernels.team import Team, share

Floats = NDArray[np.float32]
Halves = NDArray[np.float16]
Run = Callable[[], object]
"""Runs a bound operation on what its buffers hold then."""

EPSILON = 1e-5
"""Added to a mean square before its root is taken."""

_ANY = -1


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


class StepOps:
    """Binds the small operations to the buffers they work on: a runtime's, which stay where they are.

    Each method checks its arrays once, keeps them, and returns what runs the operation on all of their m rows: the
    tokens of a prompt, or one of each sequence. One row runs on the calling thread, as handing it to a team would cost
    more than it does; several are shared among the team. Arrays are C-contiguous; an output of float32 may be the
    input itself, and is else apart from it.

    Args:
        team: Shares the rows; None: the calling thread does all.

    Raises:
        ValueError: By any method, of an array that doesn't fit; says which, what was expected and what came.
    """

    def __init__(self, team: Team | None = None) -> None:
        self._team = team

    def norm(self, x: Floats, weight: Floats, out: Quantized | Floats, residual: Floats | None = None) -> Run:
        """Root-mean-square norm of each row; with a residual, that is first added to x, in place.

        Args:
            x: float32, shape (m, n).
            weight: float32, shape (n,).
            out: Takes the result, (m, n), quantised if it is of that kind.
            residual: float32, shape (m, n).
        """
        shape = _check("norm", "x", x, (_ANY, _ANY), written=residual is not None)
        _check("norm", "weight", weight, shape[1:])
        _check_out("norm", out, shape)
        if residual is not None:
            _check("norm", "residual", residual, shape)
        return self._norm(x, weight, out, residual)

    def add(self, x: Floats, residual: Floats) -> Run:
        """Add a residual to x in place, both float32 of one shape (m, n)."""
        _check("add", "residual", residual, _check("add", "x", x, (_ANY, _ANY), written=True))
        return self._add(x, residual)

    def quantize(self, x: Floats, out: Quantized) -> Run:
        """Quantise each row as ``activations.quantize`` does, to the last bit: x float32, shape (m, n), finite."""
        _check_out("quantize", out, _check("quantize", "x", x, (_ANY, _ANY)))
        return self._quantize(x, out)

    def rotate(self, x: Floats, cos: Floats, sin: Floats, out: Floats) -> Run:
        """Rotary position embedding, halves of a head as pairs.

        Args:
            x: float32, shape (m, heads, d), d even.
            cos: float32, shape (m, d / 2): of each row's angles.
            sin: float32, shape (m, d / 2).
            out: float32, shape (m, heads, d).
        """
        shape = _check_rotation("rotate", "x", x, cos, sin)
        _check("rotate", "out", out, shape, written=True)
        return self._rotate(x, cos, sin, out)

    def append(
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
        """Rotate the keys and store them and the values, rounded to float16, in KV caches.

        Row r of head h goes to element ``offset + r * row_stride + h * capacity * d`` of each cache. A prompt's rows go
        to consecutive slots of one sequence, ``row_stride`` being d; those of a decode step to a slot of each sequence,
        ``row_stride`` being the elements of a whole sequence.

        Args:
            key: float32, shape (m, kv_heads, d), d even.
            cos: float32, shape (m, d / 2): of each row's angles.
            sin: float32, shape (m, d / 2).
            value: float32, shape (m, kv_heads, d).
            keys: float16, shape (kv_heads, capacity, d) or (sequences, kv_heads, capacity, d).
            values: The same.
            row_stride: Elements from a row to the next.
            offset: Elements before the first row.
        """
        shape = _check_rotation("append", "key", key, cos, sin)
        _check("append", "value", value, shape)
        rows, kv_heads, head_dim = shape
        several = (_ANY,) * (keys.ndim == 4)
        cache_shape = _check("append", "keys", keys, (*several, kv_heads, _ANY, head_dim), np.float16, written=True)
        _check("append", "values", values, cache_shape, np.float16, written=True)
        capacity = cache_shape[-2]
        # Heads follow each other: what overflows the first would fall into the next one's memory.
        places = offset + row_stride * np.arange(rows)
        slots, misplaced = np.divmod(places % (kv_heads * capacity * head_dim), head_dim)
        outside = (places < 0) | (places >= keys.size) | (slots >= capacity) | (misplaced != 0)
        if row_stride < head_dim or outside.any():
            raise ValueError(
                f"append: expected a slot of its own for each of {rows} rows in a cache of shape {cache_shape}, "
                f"got elements {offset} and further by {row_stride}"
            )
        return self._append(key, cos, sin, value, keys, values, row_stride, offset)

    def gate(
        self, gated: Floats, up: Floats, activation: Activation, out: Quantized | Floats, weight: Floats | None = None
    ) -> Run:
        """activation(gated) * up of each row, normed if there is a weight.

        Args:
            gated: float32, shape (m, n).
            up: float32, shape (m, n).
            activation: The function.
            out: Takes the result, (m, n), quantised if it is of that kind.
            weight: float32, shape (n,).
        """
        if activation not in get_args(Activation):
            raise ValueError(f"gate: expected {', '.join(get_args(Activation))}, got {activation!r}")
        shape = _check("gate", "gated", gated, (_ANY, _ANY))
        _check("gate", "up", up, shape)
        _check_out("gate", out, shape)
        if weight is not None:
            _check("gate", "weight", weight, shape[1:])
        return self._gate(gated, up, activation, out, weight)

    # How numpy does it -----------------------------------------------------------------------------------------

    def _norm(self, x: Floats, weight: Floats, out: Quantized | Floats, residual: Floats | None) -> Run:
        def work(rows: slice) -> None:
            if residual is not None:
                x[rows] += residual[rows]
            _put(out, rows, rms_norm(x[rows], weight))

        return self._shared(len(x), work)

    def _add(self, x: Floats, residual: Floats) -> Run:
        def work(rows: slice) -> None:
            x[rows] += residual[rows]

        return self._shared(len(x), work)

    def _quantize(self, x: Floats, out: Quantized) -> Run:
        return self._shared(len(x), lambda rows: _put(out, rows, x[rows]))

    def _rotate(self, x: Floats, cos: Floats, sin: Floats, out: Floats) -> Run:
        return self._shared(len(x), lambda rows: _put(out, rows, rotate(x[rows], cos[rows], sin[rows])))

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
        capacity, head_dim = keys.shape[-2:]
        strides = [stride * keys.itemsize for stride in (row_stride, capacity * head_dim, 1)]
        key_slots, value_slots = (
            as_strided(cache.reshape(-1)[offset:], key.shape, strides) for cache in (keys, values)
        )

        def work(rows: slice) -> None:
            key_slots[rows] = rotate(key[rows], cos[rows], sin[rows])
            value_slots[rows] = value[rows]

        return self._shared(len(key), work)

    def _gate(
        self, gated: Floats, up: Floats, activation: Activation, out: Quantized | Floats, weight: Floats | None
    ) -> Run:
        def work(rows: slice) -> None:
            product = gate(gated[rows], up[rows], activation)
            _put(out, rows, product if weight is None else rms_norm(product, weight))

        return self._shared(len(gated), work)

    def _shared(self, m: int, work: Callable[[slice], None]) -> Run:
        """Runs the work on all rows, each member of the team on its own."""
        team = self._team
        if team is None or m == 1:
            return partial(work, slice(0, m))
        shares = [share(m, team.threads, member) for member in range(team.threads)]
        slices = [slice(first, last) for first, last in shares]

        def of_member(member: int) -> None:
            work(slices[member])

        return partial(team.run, of_member)


def _put(out: Quantized | Floats, rows: slice, result: Floats) -> None:
    if isinstance(out, Quantized):
        out.values[rows], out.scale[rows] = quantize(result)
    else:
        out[rows] = result


def _check_rotation(operation: str, name: str, x: Floats, cos: Floats, sin: Floats) -> tuple[int, ...]:
    """Refuse heads and angles that don't fit each other; returns the heads' shape."""
    shape = m, _, head_dim = _check(operation, name, x, (_ANY, _ANY, _ANY))
    if head_dim % 2:
        raise ValueError(f"{operation}, {name}: expected heads of an even size, got {head_dim}")
    for angle, of in (("cos", cos), ("sin", sin)):
        _check(operation, angle, of, (m, head_dim // 2))
    return shape


def _check_out(operation: str, out: Quantized | Floats, shape: tuple[int, ...]) -> None:
    if isinstance(out, Quantized):
        _check(operation, "out.values", out.values, shape, np.int8, written=True)
        _check(operation, "out.scale", out.scale, shape[:1], written=True)
    else:
        _check(operation, "out", out, shape, written=True)


def _check(
    operation: str,
    name: str,
    array: NDArray[Any],
    shape: tuple[int, ...],
    dtype: DTypeLike = np.float32,
    *,
    written: bool = False,
) -> tuple[int, ...]:
    """Refuse an array that doesn't fit; -1 stands for any size, but rows can't be empty.

    Returns:
        Its shape.

    Raises:
        ValueError: It has another shape, dtype or memory order, or is to be written and can't be.
    """
    fits = array.ndim == len(shape) and all(want in (_ANY, size) for want, size in zip(shape, array.shape, strict=True))
    if not fits or 0 in array.shape[1:] or array.dtype != dtype or not array.flags.c_contiguous:
        order = "" if array.flags.c_contiguous else "non-contiguous "
        raise ValueError(
            f"{operation}, {name}: expected {np.dtype(dtype)} of shape {str(shape).replace('-1', 'any')}, "
            f"got {order}{array.dtype} of shape {array.shape}"
        )
    if written and not array.flags.writeable:
        raise ValueError(f"{operation}, {name}: expected an array that can be written to, got a read-only one")
    return array.shape
