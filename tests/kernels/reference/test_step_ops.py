"""The small operations in numpy: as functions against float64, and bound to buffers against the functions."""

import math
import re

import numpy as np
import pytest

from ternary_kernels.activations import Quantized, quantize
from ternary_kernels.reference.layer_ops import room
from ternary_kernels.reference.step_ops import StepOps, gate, rms_norm, rotate

TOLERANCE = 1e-5
"""Absolute, for values of magnitude about 1: some sixty float32 roundings."""


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


# Norm, rotation, gate


def test_rms_norm():
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((5, 300), np.float32) * 20, rng.standard_normal(300, np.float32)
    exact = x.astype(np.float64)
    expected = exact / np.sqrt(np.mean(exact**2, axis=1, keepdims=True) + 1e-5) * weight
    normed = rms_norm(x, weight)
    assert normed.dtype == np.float32
    np.testing.assert_allclose(normed, expected, rtol=TOLERANCE)


def test_rms_norm_of_a_token_of_zeros_is_zero_and_epsilon_bounds_a_tiny_one():
    x = np.array([[0, 0], [3e-3, 4e-3]], np.float32)
    expected = [[0, 0], [3e-3 / math.sqrt(12.5e-6 + 1e-5), 4e-3 / math.sqrt(12.5e-6 + 1e-5)]]
    np.testing.assert_allclose(rms_norm(x, np.ones(2, np.float32)), expected, rtol=TOLERANCE)
    assert rms_norm(x, np.ones(2, np.float32), epsilon=1.0)[1, 1] == pytest.approx(4e-3, rel=1e-4)


def test_rotation_turns_pairs_of_half_a_head_apart():
    """Elements i and i + d / 2 are a complex number, turned by the token's i-th angle, the same in every head."""
    rng = np.random.default_rng(0)
    x, angles = rng.standard_normal((3, 4, 10), np.float32), rng.random((3, 5), np.float32) * 6
    turned = (x[..., :5] + 1j * x[..., 5:]) * np.exp(1j * angles[:, None])
    rotated = rotate(x, np.cos(angles), np.sin(angles))
    assert rotated.dtype == np.float32
    np.testing.assert_allclose(rotated, np.concatenate([turned.real, turned.imag], axis=2), rtol=0, atol=TOLERANCE)


ACTIVATIONS = {
    "relu2": lambda x: max(x, 0.0) ** 2,
    "silu": lambda x: x / (1 + math.exp(-x)),
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
}


@pytest.mark.parametrize(("activation", "tolerance"), [("relu2", 1e-5), ("silu", 1e-5), ("gelu", 5e-4)])
def test_the_gate_multiplies_by_its_activation(activation, tolerance):
    """GELU in its tanh form lies within 5e-4 of the exact one (the error function)."""
    gated = np.linspace(-6, 6, 121, dtype=np.float32).reshape(11, 11)
    up = np.where(np.arange(121).reshape(11, 11) % 2, np.float32(1), np.float32(-0.5))
    out = gate(gated, up, activation)
    assert out.dtype == np.float32
    expected = [[ACTIVATIONS[activation](value) for value in row] for row in gated.tolist()] * up
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=tolerance)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_gate_saturates_without_overflow(activation):
    """An overflow would be numpy's warning, which pytest turns into an error."""
    gated = np.array([[-1e4, 1e4]], np.float32)
    out = gate(gated, np.ones_like(gated), activation)
    assert out[0, 0] == pytest.approx(0, abs=1e-20)
    assert out[0, 1] == pytest.approx(1e8 if activation == "relu2" else 1e4)


# Bound to buffers


@pytest.fixture(params=[1, 2, 9], ids=lambda m: f"m={m}")
def m(request):
    return request.param


@pytest.fixture
def ops(team):
    return StepOps(team)


def assert_leaves(bind, expected):
    """An operation leaves a result in a float32 output, and quantised in a quantised one, both to the last bit."""
    out, quantized = np.full_like(expected, np.nan), room(*expected.shape)
    bind(out)()
    assert np.array_equal(out, expected)
    bind(quantized)()
    for found, wanted in zip(quantized, quantize(expected), strict=True):
        assert np.array_equal(found, wanted)


def test_bound_norm(ops, m):
    x, weight = normal(m, 40), normal(40, seed=1)
    assert_leaves(lambda out: ops.norm(x, weight, out), rms_norm(x, weight))


def test_bound_norm_adds_a_residual_in_place_first(ops, m):
    x, weight, residual = normal(m, 40), normal(40, seed=1), normal(m, 40, seed=2)
    total = x + residual
    out = np.empty_like(x)
    ops.norm(x, weight, out, residual)()
    assert np.array_equal(x, total)
    assert np.array_equal(out, rms_norm(total, weight))


def test_bound_add_and_quantize_run_as_often_as_they_are_called(ops, m):
    x, residual, out = normal(m, 40), normal(m, 40, seed=2), room(m, 40)
    twice = x + residual + residual
    add = ops.add(x, residual)
    add()
    add()
    assert np.array_equal(x, twice)
    ops.quantize(x, out)()
    assert all(np.array_equal(found, wanted) for found, wanted in zip(out, quantize(twice), strict=True))


def test_bound_rotation(ops, m):
    x, cos, sin = normal(m, 3, 10), normal(m, 5, seed=1), normal(m, 5, seed=2)
    expected = rotate(x, cos, sin)
    ops.rotate(x, cos, sin, x)()
    assert np.array_equal(x, expected)


@pytest.mark.parametrize("activation", ["relu2", "silu", "gelu"])
def test_bound_gate(ops, m, activation):
    gated, up, weight = normal(m, 40), normal(m, 40, seed=1), normal(40, seed=2)
    product = gate(gated, up, activation)
    assert_leaves(lambda out: ops.gate(gated, up, activation, out), product)
    assert_leaves(lambda out: ops.gate(gated, up, activation, out, weight), rms_norm(product, weight))


def test_a_prompts_tokens_go_to_consecutive_slots_of_every_kv_head(ops, m):
    key, value, cos, sin = normal(m, 3, 6), normal(m, 3, 6, seed=1), normal(m, 3, seed=2), normal(m, 3, seed=3)
    keys, values = (np.full((3, 12, 6), np.nan, np.float16) for _ in "kv")
    ops.append(key, cos, sin, value, keys, values, row_stride=6, offset=2 * 6)()
    for cache, rows in ((keys, rotate(key, cos, sin)), (values, value)):
        assert np.array_equal(cache[:, 2 : 2 + m], rows.swapaxes(0, 1).astype(np.float16))
        assert np.isnan(cache[:, :2]).all()
        assert np.isnan(cache[:, 2 + m :]).all()


def test_the_tokens_of_a_decode_step_go_to_a_slot_of_each_sequence(ops, m):
    key, value, cos, sin = normal(m, 3, 6), normal(m, 3, 6, seed=1), normal(m, 3, seed=2), normal(m, 3, seed=3)
    keys, values = (np.full((m, 3, 4, 6), np.nan, np.float16) for _ in "kv")
    ops.append(key, cos, sin, value, keys, values, row_stride=3 * 4 * 6, offset=3 * 6)()
    for cache, rows in ((keys, rotate(key, cos, sin)), (values, value)):
        assert np.array_equal(cache[:, :, 3], rows.astype(np.float16))
        assert np.isnan(cache[:, :, :3]).all()


# What they refuse

X, WEIGHT, COS = normal(2, 8), normal(8), normal(2, 3)
HEADS, CACHE = normal(2, 4, 6), np.zeros((4, 10, 6), np.float16)
TWO = np.zeros((2, *CACHE.shape), np.float16)
FIXED = X.copy()
FIXED.flags.writeable = False
OPS = StepOps()


def append(**changed):
    given = {"key": HEADS, "cos": COS, "sin": COS, "value": HEADS, "keys": CACHE, "values": CACHE.copy()}
    return OPS.append(**{**given, "row_stride": 6, "offset": 0, **changed})


@pytest.mark.parametrize(
    ("bind", "message"),
    [
        (
            lambda: OPS.norm(X, WEIGHT[:-1], X),
            "norm, weight: expected float32 of shape (8,), got float32 of shape (7,)",
        ),
        (lambda: OPS.norm(X[0], WEIGHT, X), "norm, x: expected float32 of shape (any, any), got float32 of shape (8,)"),
        (lambda: OPS.norm(X.astype(float), WEIGHT, X), "norm, x: expected float32 of shape (any, any), got float64"),
        (lambda: OPS.norm(X[:, :0], WEIGHT[:0], X), "norm, x: expected float32 of shape (any, any), got"),
        (lambda: OPS.norm(X, WEIGHT, X, X[:1]), "norm, residual: expected float32 of shape (2, 8), got float32 of"),
        (lambda: OPS.norm(FIXED, WEIGHT, X, X), "norm, x: expected an array that can be written to, got a read-only"),
        (lambda: OPS.norm(X, WEIGHT, FIXED), "norm, out: expected an array that can be written to, got a read-only"),
        (lambda: OPS.norm(X, WEIGHT, room(2, 7)), "norm, out.values: expected int8 of shape (2, 8), got int8 of shape"),
        (
            lambda: OPS.quantize(X, Quantized(room(2, 8).values, WEIGHT)),
            "quantize, out.scale: expected float32 of shape (2,), got float32 of shape (8,)",
        ),
        (lambda: OPS.add(X, X[:, ::-1]), "add, residual: expected float32 of shape (2, 8), got non-contiguous float32"),
        (lambda: OPS.add(FIXED, X), "add, x: expected an array that can be written to, got a read-only one"),
        (lambda: OPS.rotate(HEADS, COS, COS[:1], HEADS), "rotate, sin: expected float32 of shape (2, 3), got float32"),
        (lambda: OPS.rotate(normal(2, 1, 5), COS, COS, HEADS), "rotate, x: expected heads of an even size, got 5"),
        (lambda: OPS.rotate(HEADS, COS, COS, HEADS[:, :2]), "rotate, out: expected float32 of shape (2, 4, 6), got"),
        (lambda: OPS.gate(X, X[:1], "silu", X), "gate, up: expected float32 of shape (2, 8), got float32 of shape (1"),
        (lambda: OPS.gate(X, X, "swish", X), "gate: expected silu, relu2, gelu, got 'swish'"),
        (lambda: OPS.gate(X, X, "silu", X, WEIGHT[:2]), "gate, weight: expected float32 of shape (8,), got float32"),
        (
            lambda: append(value=HEADS[:1]),
            "append, value: expected float32 of shape (2, 4, 6), got float32 of shape (1",
        ),
        (lambda: append(keys=HEADS), "append, keys: expected float16 of shape (4, any, 6), got float32 of shape (2, 4"),
        (
            lambda: append(values=CACHE[:, 1:].copy()),
            "append, values: expected float16 of shape (4, 10, 6), got float16 of shape (4, 9, 6)",
        ),
        (
            lambda: append(offset=9 * 6),
            "append: expected a slot of its own for each of 2 rows in a cache of shape (4, 10, 6), got elements 54 and "
            "further by 6",
        ),
        (lambda: append(row_stride=60), "append: expected a slot of its own for each of 2 rows"),
        (lambda: append(row_stride=240), "append: expected a slot of its own for each of 2 rows"),
        (lambda: append(row_stride=0), "append: expected a slot of its own for each of 2 rows"),
        (lambda: append(offset=3), "append: expected a slot of its own for each of 2 rows"),
        (lambda: append(offset=-6), "append: expected a slot of its own for each of 2 rows"),
        (lambda: append(keys=TWO, values=TWO.copy(), offset=54), "append: expected a slot of its own for each of 2"),
    ],
)
def test_operands_that_do_not_fit_are_refused(bind, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        bind()
