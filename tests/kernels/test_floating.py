"""Kernels of unquantised and block-quantised weights: exact where float32 is, else within the rounding of its sums."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ternary_kernels.formats import get_format
from ternary_kernels.matmul import KERNELS, get_kernel
from ternary_kernels.reference.products import NumpyFloat, NumpyUnpacked

DTYPES = {"F16": np.float16, "F32": np.float32}
QUANTISED = ("Q8_0", "Q6_K", "IQ2_S")


@pytest.fixture(scope="module", params=[key for key in KERNELS if key[1] in DTYPES], ids="-".join)
def kernel(request):
    """A kernel's name and a floating-point format."""
    return request.param


def multiply(kernel, x, weights, team):
    """The product, into an output that holds NaN before."""
    _, name = kernel
    out = np.full((len(x), len(weights)), np.nan, np.float32)
    return get_kernel(*kernel)(name, *weights.shape, len(x), team)(x, get_format(name).pack(weights), out)


def within_rounding(out, x, weights):
    """Whether a float32 product lies as near to the exact one as any order of addition must come.

    |error| <= gamma_k sum |x| |w| with gamma_k = k u / (1 - k u), u = 2^-24 (Higham, Accuracy and Stability of
    Numerical Algorithms, 3.1). Products below float32's range lose at most half its smallest step each, 2^-150,
    which counts 2^56 times where F16 is widened with a bias.
    """
    x, weights = x.astype(np.float64), weights.astype(np.float64)
    k_in = x.shape[1]
    gamma = k_in * 2.0**-24 / (1 - k_in * 2.0**-24)
    bound = gamma * (np.abs(x) @ np.abs(weights).T) + k_in * 2.0 ** (56 - 150)
    return np.all(np.abs(out - x @ weights.T) <= bound)


def test_the_numpy_kernels_are_among_those_tested():
    assert KERNELS["numpy", "F16"] is KERNELS["numpy", "F32"] is NumpyFloat
    assert all(KERNELS["numpy", name] is NumpyUnpacked for name in QUANTISED)


@pytest.mark.parametrize("m", [1, 2, 33])
@pytest.mark.parametrize(("n_out", "k_in"), [(1, 256), (29, 512), (300, 2560)])
@pytest.mark.parametrize("key", [key for key in KERNELS if key[1] in QUANTISED], ids="-".join)
def test_quantised_weights_are_multiplied_as_they_unpack(key, team, n_out, k_in, m):
    held = get_format(key[1])
    rng = np.random.default_rng(m)
    packed = held.pack(0.02 * rng.standard_normal((n_out, k_in), np.float32))
    x = rng.standard_normal((m, k_in), np.float32)
    out = np.full((m, n_out), np.nan, np.float32)
    get_kernel(*key)(key[1], n_out, k_in, m, team)(x, packed, out)
    assert within_rounding(out, x, held.unpack(packed, n_out, k_in)[0])


@pytest.mark.parametrize("m", [1, 2, 31, 33])
@pytest.mark.parametrize("n_out", [1, 7, 8, 29])
def test_small_integers_come_out_exactly(kernel, team, n_out, m):
    """Their sums stay below 2^24, so no order of addition can round."""
    rng = np.random.default_rng(0)
    weights = rng.integers(-16, 17, (n_out, 100)).astype(DTYPES[kernel[1]])
    x = rng.integers(-99, 100, (m, 100)).astype(np.float32)
    expected = x.astype(np.int64) @ weights.astype(np.int64).T
    assert np.array_equal(multiply(kernel, x, weights, team), expected)


@pytest.mark.parametrize(("n_out", "k_in", "m"), [(300, 2560, 1), (300, 2560, 2), (150, 8192, 32)])
def test_rows_beyond_one_block_of_the_cache(kernel, team, n_out, k_in, m):
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((n_out, k_in), np.float32).astype(DTYPES[kernel[1]])
    x = rng.standard_normal((m, k_in), np.float32)
    assert within_rounding(multiply(kernel, x, weights, team), x, weights)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_out=st.integers(1, 40),
    k_in=st.integers(1, 200),
    m=st.integers(1, 40),
    spread=st.sampled_from([0, 1, 8]),
)
def test_any_shape_and_magnitudes(kernel, team, seed, n_out, k_in, m, spread):
    """Magnitudes over up to 2^+-40 in one row; F16's subnormals, largest and zeros among the weights."""
    rng = np.random.default_rng(seed)
    size = n_out, k_in
    weights = rng.standard_normal(size) * 2.0 ** rng.integers(-2 * spread, spread, size, endpoint=True)
    corners = rng.choice([0.0, -0.0, 2.0**-24, -(2.0**-14) + 2.0**-24, 65504.0, -65504.0], size)
    weights = np.where(rng.random(size) < 0.1 * (spread > 0), corners, weights).astype(DTYPES[kernel[1]])
    x = rng.standard_normal((m, k_in)) * 2.0 ** rng.integers(-5 * spread, 5 * spread, (m, k_in), endpoint=True)
    x = x.astype(np.float32)
    assert within_rounding(multiply(kernel, x, weights, team), x, weights)


@pytest.mark.parametrize("factor", [1.0, -0.5, 2.0**40, 2.0**-40, 2.0**71])
def test_every_finite_f16_is_widened_exactly(team, factor):
    """All 63,488 of them, subnormals, zeros and 65,504 included, times a power of two."""
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    weights = every[np.isfinite(every)][:, None]
    assert len(weights) == 63_488
    x = np.array([[factor]], np.float32)
    out = multiply(("numpy", "F16"), x, weights, team)
    assert np.array_equal(out[0], weights[:, 0].astype(np.float32) * x[0])


def test_small_terms_beside_large_ones_count(team):
    """65,504 cancels, and what is left are the smallest subnormal and 1."""
    weights = np.array([[65504, -65504, 2.0**-24], [65504, -65504, 1]], np.float16)
    out = multiply(("numpy", "F16"), np.ones((1, 3), np.float32), weights, team)
    assert out.tolist() == [[2.0**-24, 1]]
