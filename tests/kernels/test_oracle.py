"""The oracle, against int64 and against sums by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ternary_kernels import oracle
from ternary_kernels.activations import Quantized


@settings(deadline=None)
@given(data=st.data(), m=st.integers(1, 4), n_out=st.integers(1, 4), k_in=st.integers(1, 50))
def test_sums_are_those_of_int64(data, m, n_out, k_in):
    x = data.draw(hnp.arrays(np.int8, (m, k_in)))
    weights = data.draw(hnp.arrays(np.int8, (n_out, k_in), elements=st.integers(-1, 1)))
    sums = oracle.accumulate(x, weights)
    assert sums.dtype == np.int32
    assert np.array_equal(sums, np.einsum("mk,nk->mn", x, weights, dtype=np.int64))


@pytest.mark.parametrize(("value", "weight"), [(-128, 1), (-128, -1), (127, 1)])
def test_the_longest_sums_do_not_wrap(value, weight):
    """300,000 columns at the extremes: int16 would wrap at 256 of them."""
    x, weights = np.full((1, 300_000), value, np.int8), np.full((1, 300_000), weight, np.int8)
    assert oracle.accumulate(x, weights).item() == 300_000 * value * weight


def test_a_product_by_hand():
    """(2, 3) . (1, -1) = -1 and (2, 3) . (1, 1) = 5; over 0.5, times 3. The second token's scale is 4."""
    x = Quantized(np.array([[2, 3], [-4, 8]], np.int8), np.array([0.5, 4], np.float32))
    out = oracle.matmul(x, np.array([[1, -1], [1, 1]], np.int8), 3.0)
    assert out.dtype == np.float32
    assert out.tolist() == [[-6, 30], [-9, 3]]


def test_the_sum_is_divided_before_it_is_multiplied_and_rounded_each_time():
    rng = np.random.default_rng(0)
    values, scales = rng.integers(-128, 128, (50, 1), np.int8), rng.random(50, np.float32) + 1
    expected = [np.float32(q) / s * np.float32(0.7) for q, s in zip(values[:, 0], scales, strict=True)]
    assert oracle.matmul(Quantized(values, scales), np.ones((1, 1), np.int8), 0.7)[:, 0].tolist() == expected


@pytest.mark.parametrize(("total", "rounded"), [(16_808_829, 16_808_828), (16_808_831, 16_808_832)])
def test_a_sum_beyond_2_to_the_24_is_rounded_once_half_to_even(total, rounded):
    """There float32 holds even numbers only."""
    x = np.full((1, 132_353), 127, np.int8)
    x[0, 0] += total - x.sum(dtype=np.int64)
    out = oracle.matmul(Quantized(x, np.ones(1, np.float32)), np.ones((1, 132_353), np.int8), 1.0)
    assert out.item() == rounded


@pytest.mark.parametrize(
    ("x", "weights", "message"),
    [
        (np.zeros((1, 4)), np.zeros((1, 4), np.int8), "got float64 and int8"),
        (np.zeros((1, 4), np.int8), np.zeros((1, 4), np.uint8), "got int8 and uint8"),
        (np.zeros((1, 4), np.int8), np.zeros((1, 5), np.int8), r"got \(1, 4\) and \(1, 5\)"),
        (np.zeros(4, np.int8), np.zeros((1, 4), np.int8), r"got \(4,\) and \(1, 4\)"),
        (np.zeros((1, 4), np.int8), np.zeros(4, np.int8), r"got \(1, 4\) and \(4,\)"),
    ],
)
def test_other_dtypes_and_shapes_are_refused(x, weights, message):
    with pytest.raises(ValueError, match=f"oracle: expected .*{message}"):
        oracle.accumulate(x, weights)
