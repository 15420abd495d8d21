"""Compiled norm, rotation, KV cache, gate and quantisation, on every instruction set that this machine can run."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ternary_kernels import activations
from ternary_kernels.geometry import LayerGeometry
from ternary_kernels.native import compiler, elementary, isa
from ternary_kernels.native.crew import callable_at
from ternary_kernels.native.emit import F32, POINTER, vector
from ternary_kernels.native.layer_kernels import MODULES
from ternary_kernels.native.step_ops import NativeStepOps
from ternary_kernels.native.words import Words
from ternary_kernels.reference import layer_ops as numpy_ops
from ternary_kernels.reference.step_ops import StepOps
from ternary_kernels.team import Team

TOLERANCE = 2e-6
"""Relative: some twenty float32 roundings."""

PATHS = isa.runnable(*isa.this_machine())
COLUMNS = [1, 3, 16, 63, 64, 65, 300, 2560]
ACTIVATIONS = ["relu2", "silu", "gelu"]


@pytest.fixture(scope="module", params=PATHS, ids=lambda path: path.name)
def path(request):
    return request.param


@pytest.fixture(scope="module")
def team():
    with Team(3) as team:
        yield team


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def assert_same(found, expected):
    """To the last bit."""
    assert found.values.dtype == np.int8
    assert np.array_equal(found.values, expected.values)
    assert found.scale.tobytes() == expected.scale.tobytes()


def assert_close(found, expected, tolerance=TOLERANCE):
    """A rounding may fall to the other side where the norm differs in its last bit."""
    np.testing.assert_allclose(found.scale, expected.scale, rtol=tolerance)
    difference = np.abs(found.values.astype(int) - expected.values)
    assert difference.max() <= 1
    assert difference.mean() <= 0.01 + 1 / difference.size


def exact_norm(x, weight, epsilon=1e-5):
    x = x.astype(np.float64)
    return (x / np.sqrt(np.mean(x**2, axis=1, keepdims=True) + epsilon) * weight).astype(np.float32)


@pytest.fixture(params=["alone", "shared"])
def ops(request, path, team):
    """On the calling thread, and shared among three."""
    return NativeStepOps(team if request.param == "shared" else None, path)


def quantized(bind, shape):
    """What an operation, bound to an output of that shape, leaves there."""
    out = numpy_ops.room(*shape)
    bind(out)()
    return out


def written(bind, shape):
    """The same of a float32 output."""
    out = np.full(shape, np.nan, np.float32)
    bind(out)()
    return out


def quantize(x, ops):
    return quantized(lambda out: ops.quantize(x, out), x.shape)


# Quantisation


@settings(deadline=None, max_examples=60)
@given(
    x=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 70)),
        elements=st.one_of(
            st.floats(-(2.0**100), 2.0**100, width=32),
            st.integers(-254, 254).map(lambda half: np.float32(half / 2)),
        ),
    )
)
def test_quantisation_is_numpys_to_the_last_bit(path, x):
    """Numbers of all sizes, and halves between integers, which round to even."""
    assert_same(quantize(x, NativeStepOps(None, path)), activations.quantize(x))


@pytest.mark.parametrize("columns", COLUMNS)
def test_quantisation_of_many_tokens_is_shared(ops, columns):
    x = normal(7, columns) * np.float32(3)
    assert_same(quantize(x, ops), activations.quantize(x))


@pytest.mark.parametrize("magnitude", [np.finfo(np.float32).max, np.finfo(np.float32).tiny, 1e-5, 1e-6, 1e-45, 0])
def test_quantisation_at_the_ends_of_float32(path, magnitude):
    x = np.array([[magnitude, -magnitude / 2, -magnitude, 0, -0.0]], np.float32)
    assert_same(quantize(x, NativeStepOps(None, path)), activations.quantize(x))


def test_halves_round_to_even(path):
    x = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]], np.float32)
    assert quantize(x, NativeStepOps(None, path)).values.tolist() == [[127, 0, 2, 2, 0, -2, -2]]


def test_no_tokens_give_nothing(ops):
    assert quantize(np.empty((0, 8), np.float32), ops).values.shape == (0, 8)


def test_a_bound_operation_takes_what_its_buffers_hold_when_it_runs(ops):
    x, out = normal(3, 40), numpy_ops.room(3, 40)
    run = ops.quantize(x, out)
    for seed in (1, 2):
        x[:] = normal(3, 40, seed=seed) * seed
        run()
        assert_same(out, activations.quantize(x))


# Norm


@pytest.mark.parametrize("m", [1, 5])
@pytest.mark.parametrize("columns", COLUMNS)
def test_norm(ops, m, columns):
    x, weight = normal(m, columns) * 20, normal(columns, seed=1)
    before = x.copy()
    found = written(lambda out: ops.norm(x, weight, out), x.shape)
    np.testing.assert_allclose(found, exact_norm(x, weight), rtol=TOLERANCE, atol=1e-12)
    assert np.array_equal(x, before)


def test_epsilon_bounds_the_norm_of_a_tiny_token(ops):
    x, weight = np.array([[0, 0], [3e-3, 4e-3]], np.float32), np.ones(2, np.float32)
    found = written(lambda out: ops.norm(x, weight, out), x.shape)
    np.testing.assert_allclose(found, x / np.sqrt(1e-5 + np.array([[0], [12.5e-6]])), rtol=TOLERANCE)


def test_a_norm_may_take_the_place_of_its_input(ops):
    x, weight = normal(5, 300), normal(300, seed=1)
    expected = exact_norm(x, weight)
    ops.norm(x, weight, x)()
    np.testing.assert_allclose(x, expected, rtol=TOLERANCE, atol=1e-12)


@pytest.mark.parametrize("columns", COLUMNS)
def test_norm_and_quantisation_in_one_pass(ops, columns):
    x, weight = normal(5, columns), normal(columns, seed=1)
    found = quantized(lambda out: ops.norm(x, weight, out), x.shape)
    assert_close(found, activations.quantize(exact_norm(x, weight)))


@pytest.mark.parametrize("m", [1, 5])
@pytest.mark.parametrize("columns", COLUMNS)
def test_a_residual_is_added_in_place_first(ops, m, columns):
    x, weight, residual = normal(m, columns), normal(columns, seed=1), normal(m, columns, seed=2)
    total = x + residual
    stream = x.copy()
    found = quantized(lambda out: ops.norm(stream, weight, out, residual), x.shape)
    assert np.array_equal(stream, total)
    assert_close(found, activations.quantize(exact_norm(total, weight)))
    stream = x.copy()
    found = written(lambda out: ops.norm(stream, weight, out, residual), x.shape)
    assert np.array_equal(stream, total)
    np.testing.assert_allclose(found, exact_norm(total, weight), rtol=TOLERANCE, atol=1e-12)


@pytest.mark.parametrize("m", [1, 5])
@pytest.mark.parametrize("columns", COLUMNS)
def test_a_residual_is_added_to_the_last_bit(ops, m, columns):
    x, residual = normal(m, columns), normal(m, columns, seed=2)
    total = x + residual
    ops.add(x, residual)()
    assert np.array_equal(x, total)


# Rotation


@pytest.mark.parametrize("half", [1, 5, 32, 64])
def test_rotation_turns_pairs_of_half_a_head_apart(ops, half):
    """Elements i and i + d / 2 are a complex number, turned by the token's i-th angle, the same in every head."""
    x, angles = normal(3, 4, 2 * half), np.random.default_rng(1).random((3, half), np.float32) * 6
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles[:, None])
    expected = np.concatenate([turned.real, turned.imag], axis=2)
    cos, sin = np.cos(angles), np.sin(angles)
    found = written(lambda out: ops.rotate(x, cos, sin, out), x.shape)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    ops.rotate(x, cos, sin, x)()
    assert np.array_equal(x, found)


# KV cache


def cached(ops, key, angles, value, shape, row_stride, offset):
    """Caches of that shape, NaN before, with the keys and values appended."""
    keys, values = (np.full(shape, np.nan, np.float16) for _ in "kv")
    ops.append(key, np.cos(angles), np.sin(angles), value, keys, values, row_stride, offset)()
    return keys, values


@pytest.mark.parametrize("half", [1, 5, 32, 64])
@pytest.mark.parametrize("m", [1, 2, 7])
def test_a_prompts_tokens_go_to_consecutive_slots(ops, m, half):
    """Of each KV head, rounded to the nearest F16; all other slots are left alone."""
    kv_heads, capacity, context = 3, 12, 4
    key, value, angles = normal(m, kv_heads, 2 * half), normal(m, kv_heads, 2 * half, seed=1), normal(m, half, seed=2)
    rotated = written(lambda out: ops.rotate(key, np.cos(angles), np.sin(angles), out), key.shape)
    shape = kv_heads, capacity, 2 * half
    keys, values = cached(ops, key, angles, value, shape, 2 * half, context * 2 * half)
    for cache, rows in ((keys, rotated), (values, value)):
        assert np.array_equal(cache[:, context : context + m], rows.swapaxes(0, 1).astype(np.float16))
        assert np.isnan(cache[:, :context]).all()
        assert np.isnan(cache[:, context + m :]).all()


@pytest.mark.parametrize("sequences", [1, 2, 7])
def test_the_tokens_of_a_decode_step_go_to_a_slot_of_each_sequence(ops, sequences):
    kv_heads, capacity, head_dim, context = 2, 5, 10, 3
    key, value = normal(sequences, kv_heads, head_dim), normal(sequences, kv_heads, head_dim, seed=1)
    angles = normal(sequences, head_dim // 2, seed=2)
    rotated = written(lambda out: ops.rotate(key, np.cos(angles), np.sin(angles), out), key.shape)
    shape = sequences, kv_heads, capacity, head_dim
    keys, values = cached(ops, key, angles, value, shape, kv_heads * capacity * head_dim, context * head_dim)
    for cache, rows in ((keys, rotated), (values, value)):
        assert np.array_equal(cache[:, :, context], rows.astype(np.float16))
        assert np.isnan(np.delete(cache, context, axis=2)).all()


def test_appending_at_the_end_of_a_cache_fills_its_last_slot(ops):
    key, angles = normal(2, 2, 6), normal(2, 3)
    keys, values = cached(ops, key, angles, key, (2, 2, 4, 6), 2 * 4 * 6, 3 * 6)
    assert not np.isnan(keys[:, :, 3]).any()
    assert np.array_equal(values[1, 1, 3], key[1, 1].astype(np.float16))


@pytest.mark.parametrize("m", [1, 5])
def test_appended_keys_and_values_are_numpys(ops, m):
    """Values to the last bit; keys may round the other way where the rotation differs in its last bit."""
    key, value, angles = normal(m, 2, 64), normal(m, 2, 64, seed=1) * 1000, normal(m, 32, seed=2)
    place = (2, 9, 64), 64, 3 * 64
    keys, values = cached(ops, key, angles, value, *place)
    expected_keys, expected_values = cached(StepOps(), key, angles, value, *place)
    assert np.array_equal(values, expected_values, equal_nan=True)
    np.testing.assert_allclose(keys, expected_keys, rtol=2.0**-10, atol=1e-6)


# Gate


def active(activation, x):
    """In float64; gelu in its tanh form."""
    if activation == "relu2":
        return max(x, 0.0) ** 2
    exponent = -x if activation == "silu" else -2 * 0.7978845608 * (x + 0.044715 * x**3)
    return x / (1 + math.exp(min(exponent, 700)))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_gate_multiplies_by_its_activation(ops, activation):
    gated = np.linspace(-9, 9, 301, dtype=np.float32).reshape(7, 43)
    up = normal(7, 43)
    expected = np.array([[active(activation, value) for value in row] for row in gated.tolist()]) * up
    found = written(lambda out: ops.gate(gated, up, activation, out), up.shape)
    # The exponent of an exponential is itself rounded: to 2^-20 of it at 12, further out by less than it shrinks.
    np.testing.assert_allclose(found, expected, rtol=1e-4 if activation == "gelu" else 4 * TOLERANCE, atol=1e-7)
    # Quantised without a norm, it is what quantising the float32 result gives, to the last bit.
    assert_same(quantized(lambda out: ops.gate(gated, up, activation, out), up.shape), activations.quantize(found))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_gate_saturates_without_overflow(path, activation):
    gated, up = np.array([[-1e4, 1e4]], np.float32), np.ones((1, 2), np.float32)
    out = written(lambda out: NativeStepOps(None, path).gate(gated, up, activation, out), up.shape)
    assert out[0, 0] == pytest.approx(0, abs=1e-20)
    assert out[0, 1] == pytest.approx(1e8 if activation == "relu2" else 1e4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("columns", COLUMNS)
def test_gate_norm_and_quantisation_in_one_pass(ops, activation, columns):
    gated, up, weight = normal(5, columns), normal(5, columns, seed=1), normal(columns, seed=2)
    expected = exact_norm(numpy_ops.gate(gated, up, activation), weight)
    found = quantized(lambda out: ops.gate(gated, up, activation, out, weight), up.shape)
    assert_close(found, activations.quantize(expected))
    found = written(lambda out: ops.gate(gated, up, activation, out, weight), up.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    ops.gate(gated, up, activation, gated, weight)()
    assert np.array_equal(gated, found)


# What they refuse


def test_operands_that_do_not_fit_are_refused_before_compiled_code_sees_them():
    """As ``StepOps`` does: see there for all of it."""
    x, out = normal(2, 8), normal(2, 8)
    with pytest.raises(
        ValueError, match=r"norm, weight: expected float32 of shape \(8,\), got float32 of shape \(7,\)"
    ):
        NativeStepOps().norm(x, normal(7), out)
    with pytest.raises(ValueError, match=r"norm, x: expected float32 of .*, got non-contiguous float32"):
        NativeStepOps().norm(normal(2, 16)[:, ::2], normal(8), out)


# The layer


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("m", [1, 5])
def test_small_ops_are_numpys(ops, activation, m):
    """On the same random inputs, alone and with a team, and again in a second call."""
    geometry = LayerGeometry(64, 176, 6, 2, 16, activation), m
    expected = numpy_ops.SmallOps(*geometry)()
    operations = numpy_ops.SmallOps(*geometry, ops)
    for _ in range(2):
        for found, wanted in zip(operations(), expected, strict=True):
            assert_close(found, wanted, 1e-5)


# The exponential


def test_the_exponential_is_as_near_as_it_says(path):
    """Over all of its range a relative 1.2e-7; 0 below 2^-126.5; and no overflow above."""

    def build(emitter):
        source, target = emitter.argument(0, POINTER), emitter.argument(1, POINTER)
        with emitter.loop(0, emitter.argument(2), emitter.isa.floats) as index:
            x = emitter.load(vector(F32, emitter.isa.floats), source, emitter.mul(index, 4))
            emitter.store(elementary.exponential(emitter, x), target, emitter.mul(index, 4))

    def exponential(x):
        out = np.empty_like(x)
        words = Words(3)
        words.point(0, x)
        words.point(1, out)
        words[2] = x.size
        callable_at(compiler.load("test-exponential", {"exponential": build}, path)["exponential"])(words.address, 0, 1)
        return out

    x = np.linspace(-87.6, 88.0, 1 << 20, dtype=np.float32)
    exact = np.exp(x.astype(np.float64))
    assert np.abs(exponential(x) / exact - 1).max() < 1.2e-7
    ends = np.array([-88, -1e3, -3e38, -np.inf] * 4 + [89, 1e3, 3e38, np.inf] * 4, np.float32)
    assert np.array_equal(exponential(ends), np.repeat(exponential(np.full(32, 88.02, np.float32))[:2] * [0, 1], 16))
    assert exponential(np.zeros(16, np.float32))[0] == 1


@pytest.mark.parametrize("module", MODULES)
def test_they_compile_for_arm(module):
    neon = next(path for path in isa.PATHS if path.name == "neon_dot")
    image = compiler.compile_object(module, MODULES[module], neon, triple="aarch64-unknown-linux-gnu")
    assert int.from_bytes(image[18:20], "little") == 183  # EM_AARCH64
