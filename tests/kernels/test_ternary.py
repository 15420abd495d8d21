"""Every ternary kernel must equal the oracle to the last bit, whatever the shape, the values and the team."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ternary_kernels import oracle
from ternary_kernels.activations import Quantized
from ternary_kernels.formats import get_format
from ternary_kernels.matmul import KERNELS, get_kernel
from ternary_kernels.reference.products import NumpyI2S, NumpyUnpacked

EXACT_FLOAT32 = 2**24


class Case:
    """A kernel and a format, and what the format can hold."""

    def __init__(self, kernel, name, fit):
        self.kernel, self.name, self._fit = kernel, name, fit

    def fit(self, n_out, k_in):
        return self._fit(self.name, n_out, k_in)

    def scale(self, scale):
        """The nearest scale that the format can store."""
        if not self.name.startswith("TQ"):
            return scale
        stored = float(np.float16(min(max(scale, -65504), 65504))) or 2.0**-24
        if (self.kernel, self.name) == ("native", "TQ2_0"):
            # It multiplies each block's sum by the scale, as the format means it: powers of two round nothing.
            return float(np.copysign(2.0 ** np.frexp(stored)[1] / 2, stored))
        return stored

    def multiply(self, x, weights, scale, team):
        """The product, into an output that holds NaN before."""
        n_out, k_in = weights.shape
        out = np.full((len(x.values), n_out), np.nan, np.float32)
        kernel = get_kernel(self.kernel, self.name)(self.name, n_out, k_in, len(x.values), team)
        return kernel(x, get_format(self.name).pack(weights, scale), out)

    def check(self, x, weights, scale, team):
        """Whether the product equals the oracle's to the last bit."""
        scale = self.scale(scale)
        return np.array_equal(self.multiply(x, weights, scale, team), oracle.matmul(x, weights, scale))


@pytest.fixture(scope="module", params=[key for key in KERNELS if get_format(key[1]).ternary], ids="-".join)
def case(request, fit):
    return Case(*request.param, fit)


def test_the_numpy_kernels_are_among_those_tested():
    assert KERNELS["numpy", "I2_S"] is KERNELS["numpy", "I2_S_ARM"] is NumpyI2S
    assert all(KERNELS["numpy", name] is NumpyUnpacked for name in ("TL1", "TL2", "TQ1_0", "TQ2_0"))


@pytest.mark.parametrize("m", [1, 2, 7, 31, 32, 33])
@pytest.mark.parametrize("n_out", [1, 3, 7, 8, 9, 29, 352])
def test_ragged_rows_and_any_number_of_tokens(case, team, make_problem, n_out, m):
    """352 rows are 11 tiles of formats that interleave rows."""
    weights, x = make_problem(*case.fit(n_out, 384), m)
    assert case.check(x, weights, 0.37, team)


def test_a_long_prompt(case, team, make_problem):
    weights, x = make_problem(*case.fit(19, 256), 512)
    assert case.check(x, weights, 1.5, team)


@pytest.mark.parametrize(("n_out", "k_in", "m"), [(50, 16_384, 3), (140, 8192, 32)])
def test_rows_beyond_one_block_of_the_cache(case, team, make_problem, n_out, k_in, m):
    """More rows than are unpacked at once, for few tokens and for many, the last block cut short."""
    weights, x = make_problem(*case.fit(n_out, k_in), m)
    assert case.check(x, weights, 0.01, team)


@pytest.mark.parametrize("m", [1, 16])
def test_a_real_site(case, team, make_problem, m):
    """The key projection of bitnet-b1.58-2B-4T."""
    weights, x = make_problem(640, 2560, m)
    assert case.check(x, weights, 1.2, team)


@pytest.mark.parametrize("value", [-128, -1, 0, 127])
@pytest.mark.parametrize("weight", [-1, 0, 1])
def test_uniform_weights_and_activations(case, team, weight, value):
    """The sum is weight x value x columns, by hand: no oracle in between."""
    n_out, k_in = case.fit(13, 2560)
    weights = np.full((n_out, k_in), weight, np.int8)
    x = Quantized(np.full((2, k_in), value, np.int8), np.array([1, 4], np.float32))
    expected = np.repeat([[weight * value * 2560 * 0.5], [weight * value * 640 * 0.5]], n_out, axis=1)
    assert np.array_equal(case.multiply(x, weights, 0.5, team), expected)


def test_all_groups_of_five_weights(case, team):
    """All 3^5, a row each, repeated along it, times activations that tell the columns apart: int64 sums, scales of 1.

    As 5 divides no format's stride, these are all codes of each format's bytes: four weights 32 apart, three in a row.
    """
    groups = np.array(list(product((-1, 0, 1), repeat=5)), np.int8)
    weights = np.resize(groups, (256, 5))[:, np.arange(512) % 5]
    values = np.random.default_rng(0).integers(-128, 128, (5, 512), np.int8)
    expected = np.einsum("mk,nk->mn", values, weights, dtype=np.int64)
    assert np.array_equal(case.multiply(Quantized(values, np.ones(5, np.float32)), weights, 1.0, team), expected)


@pytest.mark.parametrize("k_in", [65_408, 65_536, 66_176, 132_352, 199_936])
@pytest.mark.parametrize("value", [127, -128])
def test_rows_too_long_for_one_float32_sum(case, team, k_in, value):
    """All activations at an extreme, nearly all codes 2: beyond 65,535 columns the sum of code * q exceeds 2^24.

    One code 1 times an odd activation makes that sum odd, so a float32 couldn't hold it: a kernel that added the
    whole row in float32 would be wrong. From 132,352 columns on the result itself exceeds 2^24 and is rounded, once.
    """
    n_out, k_in = case.fit(9, k_in)
    weights = np.ones((n_out, k_in), np.int8)
    weights[:, 77] = 0
    weights[3] = -1
    values = np.full((1, k_in), value, np.int8)
    values[:, 77] |= 1
    sums = values.astype(np.int64) @ weights.T
    code_sum = sums[0, 0] + values.sum(dtype=np.int64)
    assert (int(np.float32(code_sum)) != code_sum) == (abs(code_sum) > EXACT_FLOAT32) == (k_in > 65_536)
    out = case.multiply(Quantized(values, np.ones(1, np.float32)), weights, 1.0, team)
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
def test_any_shape_values_and_scale(case, team, make_problem, seed, n_out, blocks, m, scale, extremes):
    weights, x = make_problem(*case.fit(n_out, blocks * 128), m, seed)
    if extremes:
        x = Quantized(np.where(x.values < 0, np.int8(-128), np.int8(127)), x.scale)
    assert case.check(x, weights, scale, team)


@pytest.mark.parametrize("name", ["TQ1_0", "TQ2_0"])
def test_blocks_of_different_scales_count_by_their_own(team, make_problem, name):
    """Such a matrix isn't ternary with one scale, but these formats hold it and their kernels multiply it."""
    weights, x = make_problem(11, 768, 5)
    packed = get_format(name).pack(weights, 1.0).reshape(33, -1)
    scales = 2.0 ** (np.arange(33) % 5 - 2)  # so small that float32 holds every sum
    packed[:, -2:] = scales.astype(np.float16).view(np.uint8).reshape(33, 2)
    out = np.full((5, 11), np.nan, np.float32)
    get_kernel("numpy", name)(name, 11, 768, 5, team)(x, packed.reshape(-1), out)
    sums = x.values.astype(np.float64) @ (weights * np.repeat(scales, 256).reshape(11, 768)).T
    assert np.array_equal(out, oracle.rescale(sums.astype(np.float32), x.scale, 1.0))
