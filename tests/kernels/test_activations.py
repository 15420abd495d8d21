"""Activation quantisation: its formula, its corners, and what it refuses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ternary_kernels.activations import quantize

rows = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 40)),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
)


@settings(deadline=None)
@given(x=rows)
def test_values_and_scale_follow_the_formula(x):
    """One number at a time: s = 127 / max(1e-5, absmax), q = round(x s), in float32, half to even."""
    values, scale = quantize(x)
    assert (values.dtype, scale.dtype) == (np.int8, np.float32)
    for token, row in enumerate(x.tolist()):
        s = np.float32(127) / max(np.float32(1e-5), np.float32(max(abs(value) for value in row)))
        assert scale[token] == s
        assert values[token].tolist() == [round(float(np.float32(value) * s)) for value in row]


@settings(deadline=None)
@given(x=rows)
def test_the_error_is_at_most_half_a_step(x):
    """Against float64: every x lies within half a step of its value, and the largest uses the whole range."""
    values, scale = quantize(x)
    step = 1 / scale.astype(np.float64)[:, None]
    assert np.all(np.abs(values * step - x) <= step * (0.5 + 127 * 2**-22))
    large = np.abs(x).max(axis=1) >= 1e-5
    assert np.all(np.abs(values[large].astype(int)).max(axis=1, initial=0) == 127)
    assert values.min() >= -127


def test_halves_round_to_even():
    x = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]], np.float32)
    assert quantize(x).values.tolist() == [[127, 0, 2, 2, 0, -2, -2]]


def test_each_token_has_its_own_scale():
    values, scale = quantize(np.array([[-4, 1], [1e-3, 0.5e-3], [0, 127]], np.float32))
    assert values.tolist() == [[-127, 32], [127, 64], [0, 127]]
    assert scale.tolist() == [31.75, pytest.approx(127_000, rel=1e-6), 1.0]


def test_a_token_of_zeros_stays_zero():
    values, scale = quantize(np.array([[0, 0, 0], [0, -0.0, 1]], np.float32))
    assert values.tolist() == [[0, 0, 0], [0, 0, 127]]
    assert scale[0] == np.float32(127) / np.float32(1e-5)


def test_a_token_below_the_floor_does_not_use_the_whole_range():
    """An absmax of 1e-6 counts as 1e-5: noise is not blown up."""
    assert quantize(np.array([[1e-6, -2e-7]], np.float32)).values.tolist() == [[13, -3]]


@pytest.mark.parametrize("magnitude", [np.finfo(np.float32).max, np.finfo(np.float32).tiny, 5e-324])
def test_the_ends_of_float32_do_not_overflow(magnitude):
    largest = np.float32(magnitude)
    values, scale = quantize(np.array([[-largest, largest / 2]], np.float32))
    assert values.tolist() == ([[-127, 64]] if largest > 1 else [[0, 0]])
    assert np.isfinite(scale).all()


def test_the_input_is_left_alone():
    x = np.array([[1, -2]], np.float32)
    x.flags.writeable = False
    assert quantize(x).values.tolist() == [[64, -127]]


def test_a_token_without_columns_is_refused():
    with pytest.raises(ValueError, match=r"expected at least one column, got shape \(2, 0\)"):
        quantize(np.empty((2, 0), np.float32))


@pytest.mark.parametrize(
    ("x", "got"),
    [
        (np.zeros((2, 3)), r"float64 of shape \(2, 3\)"),
        (np.zeros((2, 3), np.float16), r"float16 of shape \(2, 3\)"),
        (np.zeros((2, 3), np.int8), r"int8 of shape \(2, 3\)"),
        (np.zeros(3, np.float32), r"float32 of shape \(3,\)"),
        (np.zeros((1, 2, 3), np.float32), r"float32 of shape \(1, 2, 3\)"),
    ],
)
def test_another_dtype_or_rank_is_refused(x, got):
    with pytest.raises(ValueError, match=rf"expected float32 of shape \(m, k_in\), got {got}"):
        quantize(x)
