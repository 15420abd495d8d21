"""Compiled norm, rotation, gate and quantisation, on every instruction set that this machine can run."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ternary_kernels import activations
from ternary_kernels.geometry import LayerGeometry
from ternary_kernels.native import compiler, elementary, isa
from ternary_kernels.native import layer_ops as native
from ternary_kernels.native.crew import callable_at
from ternary_kernels.native.emit import F32, POINTER, vector
from ternary_kernels.native.layer_kernels import KERNELS
from ternary_kernels.native.words import Words
from ternary_kernels.reference import layer_ops as numpy_ops
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
    assert_same(native.quantize(x, isa=path), activations.quantize(x))


@pytest.mark.parametrize("columns", COLUMNS)
def test_quantisation_of_many_tokens_is_shared(path, team, columns):
    x = normal(7, columns) * np.float32(3)
    assert_same(native.quantize(x, team, path), activations.quantize(x))


@pytest.mark.parametrize("magnitude", [np.finfo(np.float32).max, np.finfo(np.float32).tiny, 1e-5, 1e-6, 1e-45, 0])
def test_quantisation_at_the_ends_of_float32(path, magnitude):
    x = np.array([[magnitude, -magnitude / 2, -magnitude, 0, -0.0]], np.float32)
    assert_same(native.quantize(x, isa=path), activations.quantize(x))


def test_halves_round_to_even(path):
    x = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]], np.float32)
    assert native.quantize(x, isa=path).values.tolist() == [[127, 0, 2, 2, 0, -2, -2]]


def test_an_array_that_is_not_contiguous_is_quantised_as_well(path):
    x = normal(6, 40)[::2, ::2]
    assert_same(native.quantize(x, isa=path), activations.quantize(x))


def test_no_tokens_give_nothing():
    assert native.quantize(np.empty((0, 8), np.float32)).values.shape == (0, 8)


@pytest.mark.parametrize("x", [np.zeros((2, 3)), np.zeros(3, np.float32)])
def test_what_cannot_be_quantised_is_refused(x):
    with pytest.raises(ValueError, match=r"expected float32 of shape \(m, k_in\), got "):
        native.quantize(x)


# Norm


@pytest.mark.parametrize("columns", COLUMNS)
def test_norm(path, team, columns):
    x, weight = normal(5, columns) * 20, normal(columns, seed=1)
    for members in (None, team):
        found = native.rms_norm(x, weight, team=members, isa=path)
        np.testing.assert_allclose(found, exact_norm(x, weight), rtol=TOLERANCE, atol=1e-12)


def test_epsilon_bounds_the_norm_of_a_tiny_token(path):
    x = np.array([[0, 0], [3e-3, 4e-3]], np.float32)
    found = native.rms_norm(x, np.ones(2, np.float32), epsilon=1.0, isa=path)
    np.testing.assert_allclose(found, x / np.sqrt(1 + np.array([[0], [12.5e-6]])), rtol=TOLERANCE)


@pytest.mark.parametrize("columns", COLUMNS)
def test_norm_and_quantisation_in_one_pass(path, team, columns):
    x, weight = normal(5, columns), normal(columns, seed=1)
    for members in (None, team):
        found = native.norm_quantize(x, weight, team=members, isa=path)
        assert_close(found, activations.quantize(exact_norm(x, weight)))


@pytest.mark.parametrize("columns", COLUMNS)
def test_a_residual_is_added_in_place_first(path, team, columns):
    x, weight, residual = normal(5, columns), normal(columns, seed=1), normal(5, columns, seed=2)
    stream = x.copy()
    found = native.norm_quantize(stream, weight, residual=residual, team=team, isa=path)
    assert np.array_equal(stream, x + residual)
    assert_close(found, activations.quantize(exact_norm(x + residual, weight)))


# Rotation


@pytest.mark.parametrize("half", [1, 5, 32, 64])
def test_rotation_turns_pairs_of_half_a_head_apart(path, team, half):
    """Elements i and i + d / 2 are a complex number, turned by the token's i-th angle, the same in every head."""
    x, angles = normal(3, 4, 2 * half), np.random.default_rng(1).random((3, half), np.float32) * 6
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles[:, None])
    for members in (None, team):
        found = native.rotate(x, np.cos(angles), np.sin(angles), members, path)
        np.testing.assert_allclose(found, np.concatenate([turned.real, turned.imag], axis=2), rtol=0, atol=TOLERANCE)


# Gate


def active(activation, x):
    """In float64; gelu in its tanh form."""
    if activation == "relu2":
        return max(x, 0.0) ** 2
    exponent = -x if activation == "silu" else -2 * 0.7978845608 * (x + 0.044715 * x**3)
    return x / (1 + math.exp(min(exponent, 700)))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_gate_multiplies_by_its_activation(path, team, activation):
    gated = np.linspace(-9, 9, 301, dtype=np.float32).reshape(7, 43)
    up = normal(7, 43)
    expected = np.array([[active(activation, value) for value in row] for row in gated.tolist()]) * up
    for members in (None, team):
        found = native.gate(gated, up, activation, members, path)
        # The exponent of an exponential is itself rounded: to 2^-20 of it at 12, further out by less than it shrinks.
        np.testing.assert_allclose(found, expected, rtol=1e-4 if activation == "gelu" else 4 * TOLERANCE, atol=1e-7)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_gate_saturates_without_overflow(path, activation):
    out = native.gate(np.array([[-1e4, 1e4]], np.float32), np.ones((1, 2), np.float32), activation, isa=path)
    assert out[0, 0] == pytest.approx(0, abs=1e-20)
    assert out[0, 1] == pytest.approx(1e8 if activation == "relu2" else 1e4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("columns", COLUMNS)
def test_gate_norm_and_quantisation_in_one_pass(path, team, activation, columns):
    gated, up, weight = normal(5, columns), normal(5, columns, seed=1), normal(columns, seed=2)
    expected = activations.quantize(exact_norm(numpy_ops.gate(gated, up, activation), weight))
    for members in (None, team):
        assert_close(native.gate_norm_quantize(gated, up, activation, weight, team=members, isa=path), expected)


# What they refuse


def test_operands_that_do_not_fit_are_refused():
    x, weight = normal(2, 8), normal(8)
    cos, sin = normal(2, 3), normal(2, 3)
    fixed = x.copy()
    fixed.flags.writeable = False
    calls = [
        (lambda: native.rms_norm(x, weight[:-1]), r"norm, weight: expected float32 of shape \(8,\), got .* \(7,\)"),
        (lambda: native.rms_norm(x[0], weight), r"norm, x: expected float32 of shape \(any, any\), got .* \(8,\)"),
        (lambda: native.norm_quantize(x.astype(float), weight), "norm, x: expected float32 .*, got float64"),
        (lambda: native.norm_quantize(x, weight, residual=x[:1]), r"residual: expected float32 of shape \(2, 8\), got"),
        (lambda: native.norm_quantize(x[:, ::2], weight[:4], residual=x[:, :4]), "contiguous array to add to, got"),
        (lambda: native.norm_quantize(fixed, weight, residual=x), "contiguous array to add to, got a read-only one"),
        (lambda: native.rotate(normal(2, 1, 6), cos, sin[:1]), r"rotation, sin: expected float32 of shape \(2, 3\)"),
        (lambda: native.rotate(normal(2, 1, 5), cos, sin), "rotation: expected heads of an even size, got 5"),
        (lambda: native.gate(x, x[:1], "silu"), r"gate, up: expected float32 of shape \(2, 8\), got .* \(1, 8\)"),
        (lambda: native.gate(x, x, "swish"), "gate: expected silu, relu2, gelu, got 'swish'"),
        (lambda: native.gate_norm_quantize(x, x, "silu", weight[:2]), "gate, weight: expected float32"),
    ]
    for call, message in calls:
        with pytest.raises(ValueError, match=message):
            call()


# The layer


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("m", [1, 5])
def test_small_ops_are_numpys(path, team, activation, m):
    """On the same random inputs, alone and with a team, and again in a second call.

    Numpy's norm before the gate is of twice the stream, to which epsilon means less.
    """
    geometry = LayerGeometry(64, 176, 6, 2, 16, activation), m
    expected = numpy_ops.SmallOps(*geometry)()
    for members in (None, team):
        operations = native.NativeSmallOps(*geometry, members, isa=path)
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


def test_they_compile_for_arm():
    neon = next(path for path in isa.PATHS if path.name == "neon_dot")
    image = compiler.compile_object("layer_ops", KERNELS, neon, triple="aarch64-unknown-linux-gnu")
    assert int.from_bytes(image[18:20], "little") == 183  # EM_AARCH64
