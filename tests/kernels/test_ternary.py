"""Every ternary kernel must equal the oracle to the last bit, whatever the shape, the values and the team."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ternary_kernels import oracle
from ternary_kernels.activations import Quantized
from ternary_kernels.formats import get_format
from ternary_kernels.matmul import KERNELS, get_kernel
from ternary_kernels.numpy_cpu import NumpyI2S

EXACT_FLOAT32 = 2**24


@pytest.fixture(scope="module", params=[key for key in KERNELS if get_format(key[1]).ternary], ids="-".join)
def multiply(request):
    """A product on one kernel and format, into an output that holds NaN before."""
    kernel, name = request.param

    def multiply(x, weights, scale, team):
        n_out, k_in = weights.shape
        out = np.full((len(x.values), n_out), np.nan, np.float32)
        product = get_kernel(kernel, name)(name, n_out, k_in, len(x.values), team)
        return product(x, get_format(name).pack(weights, scale), out)

    return multiply


def test_the_numpy_kernel_is_among_those_tested():
    assert KERNELS["numpy", "I2_S"] is KERNELS["numpy", "I2_S_ARM"] is NumpyI2S


@pytest.mark.parametrize("m", [1, 2, 7, 31, 32, 33])
@pytest.mark.parametrize("n_out", [1, 3, 7, 8, 9, 29])
def test_ragged_rows_and_any_number_of_tokens(multiply, team, make_problem, n_out, m):
    weights, x = make_problem(n_out, 384, m)
    assert np.array_equal(multiply(x, weights, 0.37, team), oracle.matmul(x, weights, 0.37))


def test_a_long_prompt(multiply, team, make_problem):
    weights, x = make_problem(19, 256, 512)
    assert np.array_equal(multiply(x, weights, 1.5, team), oracle.matmul(x, weights, 1.5))


@pytest.mark.parametrize(("n_out", "k_in", "m"), [(50, 16_384, 3), (140, 8192, 32)])
def test_rows_beyond_one_block_of_the_cache(multiply, team, make_problem, n_out, k_in, m):
    """More rows than are unpacked at once, for few tokens and for many, the last block cut short."""
    weights, x = make_problem(n_out, k_in, m)
    assert np.array_equal(multiply(x, weights, 0.01, team), oracle.matmul(x, weights, 0.01))


@pytest.mark.parametrize("m", [1, 16])
def test_a_real_site(multiply, team, make_problem, m):
    """The key projection of bitnet-b1.58-2B-4T."""
    weights, x = make_problem(640, 2560, m)
    assert np.array_equal(multiply(x, weights, 1.2, team), oracle.matmul(x, weights, 1.2))


@pytest.mark.parametrize("value", [-128, -1, 0, 127])
@pytest.mark.parametrize("weight", [-1, 0, 1])
def test_uniform_weights_and_activations(multiply, team, weight, value):
    """The sum is weight x value x columns, by hand: no oracle in between."""
    weights = np.full((13, 2560), weight, np.int8)
    x = Quantized(np.full((2, 2560), value, np.int8), np.array([1, 4], np.float32))
    expected = np.repeat([[weight * value * 2560 * 0.5], [weight * value * 640 * 0.5]], 13, axis=1)
    assert np.array_equal(multiply(x, weights, 0.5, team), expected)


def test_every_byte_value_in_every_plane(multiply, team):
    """81 rows of one byte value each, times activations that tell the columns apart: int64 sums, scales of 1."""
    codes = np.stack(np.unravel_index(np.arange(81), (3, 3, 3, 3)), axis=1)
    weights = np.tile(np.repeat(codes - 1, 16, axis=1), (1, 4)).astype(np.int8)
    values = np.random.default_rng(0).integers(-128, 128, (5, 256), np.int8)
    expected = np.einsum("mk,nk->mn", values, weights, dtype=np.int64)
    assert np.array_equal(multiply(Quantized(values, np.ones(5, np.float32)), weights, 1.0, team), expected)


@pytest.mark.parametrize("k_in", [65_408, 65_536, 66_176, 132_352, 199_936])
@pytest.mark.parametrize("value", [127, -128])
def test_rows_too_long_for_one_float32_sum(multiply, team, k_in, value):
    """All activations at an extreme, nearly all codes 2: beyond 65,535 columns the sum of code * q exceeds 2^24.

    One code 1 times an odd activation makes that sum odd, so a float32 couldn't hold it: a kernel that added the
    whole row in float32 would be wrong. From 132,352 columns on the result itself exceeds 2^24 and is rounded, once.
    """
    weights = np.ones((9, k_in), np.int8)
    weights[:, 77] = 0
    weights[3] = -1
    values = np.full((1, k_in), value, np.int8)
    values[:, 77] |= 1
    sums = values.astype(np.int64) @ weights.T
    code_sum = sums[0, 0] + values.sum(dtype=np.int64)
    assert (int(np.float32(code_sum)) != code_sum) == (abs(code_sum) > EXACT_FLOAT32) == (k_in > 65_536)
    out = multiply(Quantized(values, np.ones(1, np.float32)), weights, 1.0, team)
    assert np.array_equal(out, sums.astype(np.float32))


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_out=st.integers(1, 70),
    blocks=st.integers(1, 5),
    m=st.integers(1, 40),
    scale=st.floats(-(2.0**20), 2.0**20, width=32),
    extremes=st.booleans(),
)
def test_any_shape_values_and_scale(multiply, team, make_problem, seed, n_out, blocks, m, scale, extremes):
    weights, x = make_problem(n_out, blocks * 128, m, seed)
    if extremes:
        x = Quantized(np.where(x.values < 0, np.int8(-128), np.int8(127)), x.scale)
    assert np.array_equal(multiply(x, weights, scale, team), oracle.matmul(x, weights, scale))
