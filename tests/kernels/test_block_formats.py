"""TQ1_0, TQ2_0, Q8_0, Q6_K and IQ2_S against the gguf library, which reads and writes what upstream ggml does."""

from itertools import product

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from hypothesis import given, settings
from hypothesis import strategies as st

from ternary_kernels.formats import get_format

TERNARY = ("TQ1_0", "TQ2_0")
QUANTISED = ("Q8_0", "Q6_K", "IQ2_S")


def gguf_bytes(name, weights):
    return quants.quantize(weights.astype(np.float32), GGMLQuantizationType[name]).reshape(-1)


def gguf_weights(name, packed, n_out):
    return quants.dequantize(packed.reshape(n_out, -1), GGMLQuantizationType[name])


# Ternary


@pytest.mark.parametrize("name", TERNARY)
@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_out=st.integers(1, 5),
    blocks=st.integers(1, 3),
    zeros=st.sampled_from([0.0, 1 / 3, 0.99, 1.0]),
    scale=st.floats(2.0**-24, 65504, width=16),
)
def test_ternary_weights_are_packed_as_gguf_packs_them_and_come_back(name, seed, n_out, blocks, zeros, scale):
    """With blocks that are all zero, whose scale is 0."""
    rng = np.random.default_rng(seed)
    shape = n_out, 256 * blocks
    weights = np.where(rng.random(shape) < zeros, 0, rng.choice([-1, 1], shape)).astype(np.int8)
    packed = get_format(name).pack(weights, scale)
    assert np.array_equal(packed, gguf_bytes(name, np.float32(scale) * weights))
    unpacked, found = get_format(name).unpack(packed, *shape)
    assert unpacked.dtype == np.int8
    assert np.array_equal(unpacked, weights)
    assert found == (scale if weights.any() else 1.0)
    assert np.array_equal(np.float32(found) * unpacked, gguf_weights(name, packed, n_out))


@pytest.mark.parametrize("name", TERNARY)
def test_all_groups_of_five_weights_are_packed_as_gguf_packs_them(name):
    groups = np.array(list(product((-1, 0, 1), repeat=5)), np.int8)
    weights = groups[:, np.arange(512) % 5]
    packed = get_format(name).pack(weights, 0.5)
    assert np.array_equal(packed, gguf_bytes(name, 0.5 * weights))
    assert np.array_equal(get_format(name).unpack(packed, 243, 512)[0], weights)


@pytest.mark.parametrize("name", TERNARY)
def test_a_scale_is_stored_as_float16_with_its_sign(name):
    weights = np.ones((1, 256), np.int8)
    unpacked, scale = get_format(name).unpack(get_format(name).pack(weights, -0.37), 1, 256)
    assert scale == float(np.float16(-0.37))
    assert np.array_equal(unpacked, weights)


@pytest.mark.parametrize("name", TERNARY)
@pytest.mark.parametrize("scale", [0.0, 1e-9, 65520.0, np.inf, np.nan])
def test_a_scale_that_float16_cannot_hold_is_refused(name, scale):
    message = f"{name} stores its scale as float16: expected a magnitude of 6e-08 to 65504, got {scale}"
    with pytest.raises(ValueError, match=message):
        get_format(name).pack(np.ones((1, 256), np.int8), scale)


@pytest.mark.parametrize("name", TERNARY)
def test_blocks_of_different_scales_are_no_ternary_matrix(name):
    held = get_format(name)
    packed = np.concatenate([held.pack(np.ones((1, 256), np.int8), scale) for scale in (0.5, 0.75)])
    with pytest.raises(ValueError, match=f"{name}: expected one scale in all blocks of a ternary matrix, got 0.5 to 0"):
        held.unpack(packed, 2, 256)


@pytest.mark.parametrize("name", TERNARY)
def test_the_scale_of_a_block_of_zeros_means_nothing(name):
    weights = np.array([[0] * 256, [0] * 256, [1] * 256], np.int8)
    packed = get_format(name).pack(weights, 0.5)
    packed.reshape(3, -1)[:2, -2:] = np.array([[0.75], [0.25]], np.float16).view(np.uint8)
    unpacked, scale = get_format(name).unpack(packed, 3, 256)
    assert scale == 0.5
    assert np.array_equal(unpacked, weights)


@pytest.mark.parametrize("name", TERNARY)
def test_a_block_of_scale_0_is_zero_whatever_its_codes(name):
    packed = get_format(name).pack(np.ones((2, 256), np.int8), 0.5)
    packed.reshape(2, -1)[1, -2:] = 0
    unpacked, scale = get_format(name).unpack(packed, 2, 256)
    assert scale == 0.5
    assert unpacked[0].all()
    assert not unpacked[1].any()


def test_a_tq2_0_code_3_is_refused():
    packed = get_format("TQ2_0").pack(np.ones((1, 256), np.int8))
    packed[10] |= 0b1100
    with pytest.raises(ValueError, match=r"TQ2_0: expected codes of -1, 0 and \+1, got one that means nothing"):
        get_format("TQ2_0").unpack(packed, 1, 256)


def test_each_byte_of_tq1_0_is_read_as_gguf_reads_it():
    """Those too that no writer writes: 256 bytes for 243 groups."""
    packed = np.resize(get_format("TQ1_0").pack(np.ones((1, 256), np.int8)), (256, 54))
    packed[:, :52] = np.arange(256, dtype=np.uint8)[:, None]
    unpacked, _ = get_format("TQ1_0").unpack(packed.reshape(-1), 256, 256)
    assert np.array_equal(unpacked, gguf_weights("TQ1_0", packed, 256))


# Floating point


def synthetic_weights(seed, n_out, k_in):
    """Normal weights whose rows differ in size by up to 10^7, with zeros, blocks of zeros and blocks of equal ones."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((n_out, k_in)) * 10.0 ** rng.integers(-4, 4, (n_out, 1))
    weights[rng.random((n_out, k_in)) < 0.05] = 0
    weights[0, :256] = 0
    weights[-1, -256:] = 0.25
    return weights.astype(np.float32)


@pytest.mark.parametrize("name", QUANTISED)
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), n_out=st.integers(1, 5), blocks=st.integers(1, 3))
def test_any_bytes_are_read_as_gguf_reads_them(name, seed, n_out, blocks):
    held = get_format(name)
    shape = n_out, 256 * blocks
    packed = np.random.default_rng(seed).integers(0, 256, held.size_bytes(*shape), np.uint8)
    with np.errstate(all="ignore"):  # infinities and NaN among the scales
        unpacked, scale = held.unpack(packed, *shape)
        expected = gguf_weights(name, packed, n_out)
    assert unpacked.dtype == np.float32
    assert scale == 1.0
    assert np.array_equal(unpacked, expected, equal_nan=True)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), n_out=st.integers(1, 5), blocks=st.integers(1, 3))
def test_q8_0_is_packed_as_gguf_packs_it(seed, n_out, blocks):
    weights = synthetic_weights(seed, n_out, 256 * blocks)
    assert np.array_equal(get_format("Q8_0").pack(weights), gguf_bytes("Q8_0", weights))


def test_q8_0_rounds_half_away_from_zero():
    weights = np.zeros((1, 32), np.float32)
    weights[0, :5] = [127, 0.5, -0.5, 1.5, -2.5]
    packed = get_format("Q8_0").pack(weights)
    assert packed[2:].view(np.int8).tolist() == [127, 1, -1, 2, -3] + [0] * 27
    assert np.array_equal(packed, gguf_bytes("Q8_0", weights))


@pytest.mark.parametrize(("name", "steps", "group"), [("Q8_0", 127, 32), ("Q6_K", 31, 256)])
def test_what_comes_back_is_within_a_step_of_what_was_packed(name, steps, group):
    """Half a step for rounding, the rest for the scale, which is rounded as well."""
    weights = np.random.default_rng(3).standard_normal((40, 512), np.float32)
    unpacked, _ = get_format(name).unpack(get_format(name).pack(weights), 40, 512)
    largest = np.repeat(np.abs(weights.reshape(40, -1, group)).max(axis=2), group, axis=1)
    assert np.all(np.abs(unpacked - weights) <= largest / steps)


@pytest.mark.parametrize(("name", "error"), [("Q8_0", 0.006), ("Q6_K", 0.02), ("IQ2_S", 0.35)])
def test_normal_weights_come_back_with_the_formats_error(name, error):
    weights = np.random.default_rng(0).standard_normal((64, 2560)).astype(np.float32)
    unpacked, _ = get_format(name).unpack(get_format(name).pack(weights), 64, 2560)
    assert 0.5 * error < np.linalg.norm(unpacked - weights) / np.linalg.norm(weights) < error


@pytest.mark.parametrize("name", QUANTISED)
@pytest.mark.parametrize("size", [1e-42, 1e-20, 1e-9])
def test_weights_too_small_for_float16_scales_come_back_nearly_zero(name, size):
    weights = np.full((1, 256), size, np.float32)
    weights[0, ::2] = -size
    unpacked, _ = get_format(name).unpack(get_format(name).pack(weights), 1, 256)
    assert np.all(np.abs(unpacked) <= 1e-8)


@pytest.mark.parametrize("name", QUANTISED)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -1e300])
def test_weights_beyond_what_float16_scales_reach_are_refused(name, value):
    held = get_format(name)
    weights = np.ones((2, 256))
    weights[1, 7] = value
    with pytest.raises(ValueError, match=rf"{name} packs finite weights of magnitude up to [\d.e+]+, got others"):
        held.pack(weights)
    weights[1, 7] = -held.largest
    unpacked, _ = held.unpack(held.pack(weights), 2, 256)
    assert unpacked[1, 7] == pytest.approx(-held.largest, rel=0.01)


@pytest.mark.parametrize("name", QUANTISED)
def test_weights_of_any_float_type_and_order_are_taken(name):
    weights = synthetic_weights(1, 6, 256).astype(np.float64)
    expected = get_format(name).pack(weights.astype(np.float32))
    assert np.array_equal(get_format(name).pack(np.asfortranarray(weights)), expected)


# IQ2_S on ternary weights


def relative_error(weights, x):
    held = get_format("IQ2_S")
    unpacked, _ = held.unpack(held.pack(0.5 * weights), *weights.shape)
    expected = 0.5 * weights @ x
    return np.linalg.norm(unpacked @ x - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize(("zeros", "least", "most"), [(1 / 3, 0.24, 0.30), (1 / 2, 0.29, 0.36)])
def test_iq2_s_loses_a_quarter_to_a_third_of_a_ternary_product(zeros, least, most):
    rng = np.random.default_rng(0)
    weights = np.where(rng.random((640, 2560)) < zeros, 0, rng.choice([-1, 1], (640, 2560))).astype(np.float32)
    assert least < relative_error(weights, rng.standard_normal((2560, 16), np.float32)) < most


def test_iq2_s_is_useless_for_activations_of_one_sign():
    """Its zeros are all positive."""
    rng = np.random.default_rng(0)
    weights = rng.integers(-1, 2, (640, 2560)).astype(np.float32)
    assert relative_error(weights, rng.random((2560, 1), np.float32)) > 1


def test_iq2_s_takes_the_nearest_point_of_its_grid():
    """For magnitudes of the grid's own values there is one point at no distance: it is found, with all signs."""
    quants.IQ2_S.init_grid()
    grid = np.array(quants.IQ2_S.grid, np.float32).reshape(1024, 8)
    points = grid[(grid == 43).any(axis=1)]
    points = points[: len(points) // 32 * 32].reshape(-1, 256)
    weights = points * np.random.default_rng(0).choice([-1, 1], points.shape)
    # s = 15 brings d (15 + 1/2) / 4 = 1; the scale is set so that float16 holds d
    scale = np.float32(np.float16(4 / 15.5) * 15.5 / 4)
    unpacked, _ = get_format("IQ2_S").unpack(get_format("IQ2_S").pack(scale * weights), *weights.shape)
    assert np.allclose(unpacked, scale * weights, rtol=1e-3, atol=0)
