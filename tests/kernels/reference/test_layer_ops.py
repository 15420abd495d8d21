"""Attention, norm, rotation and gate against float64, and the small operations of a layer as a whole."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ternary_kernels.geometry import LayerGeometry
from ternary_kernels.reference.layer_ops import Attention, SmallOps, gate, rms_norm, rotate

TOLERANCE = 1e-5
"""Absolute, for values of magnitude about 1: some sixty float32 roundings."""


def problem(heads, kv_heads, head_dim, m, context, seed=0):
    rng = np.random.default_rng(seed)
    query = rng.standard_normal((m, heads, head_dim), np.float32)
    cache = (kv_heads, context + m, head_dim)
    keys, values = (rng.standard_normal(cache, np.float32).astype(np.float16) for _ in "kv")
    return query, keys, values


def attend(query, keys, values, team):
    m, heads, head_dim = query.shape
    kv_heads, tokens, _ = keys.shape
    out = np.full(query.shape, np.nan, np.float32)
    attention = Attention(heads, kv_heads, head_dim, m, tokens - m, team)
    assert attention(query, keys, values, out) is out
    return out


def reference(query, keys, values):
    """Token by token and head by head, in float64: softmax over what the token may see."""
    m, heads, head_dim = query.shape
    kv_heads, tokens, _ = keys.shape
    query, keys, values = (array.astype(np.float64) for array in (query, keys, values))
    out = np.empty(query.shape)
    for token in range(m):
        seen = tokens - m + token + 1
        for head in range(heads):
            served_by = head * kv_heads // heads
            scores = keys[served_by, :seen] @ query[token, head] / math.sqrt(head_dim)
            weights = np.exp(scores - scores.max())
            out[token, head] = weights / weights.sum() @ values[served_by, :seen]
    return out


@pytest.mark.parametrize("m", [1, 2, 5, 33])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (6, 2), (5, 1)])
def test_attention_is_causal_and_grouped(team, heads, kv_heads, m):
    """Head h reads KV head h * kv_heads / heads; token i sees the cache and the new tokens up to itself."""
    operands = problem(heads, kv_heads, 16, m, context=9)
    np.testing.assert_allclose(attend(*operands, team), reference(*operands), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("tokens", [1023, 1024, 1025, 2050])
@pytest.mark.parametrize("m", [1, 3])
def test_attention_over_contexts_about_a_block_of_1024(team, tokens, m):
    operands = problem(4, 2, 8, m, context=tokens - m)
    np.testing.assert_allclose(attend(*operands, team), reference(*operands), rtol=0, atol=TOLERANCE)


def test_a_prompt_longer_than_a_block_with_an_empty_cache(team):
    """The causal mask itself crosses the block: 1,030 new tokens and none before."""
    operands = problem(1, 1, 4, 1030, context=0)
    np.testing.assert_allclose(attend(*operands, team), reference(*operands), rtol=0, atol=TOLERANCE)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    kv_heads=st.integers(1, 4),
    group=st.integers(1, 4),
    head_dim=st.integers(1, 40),
    m=st.integers(1, 12),
    context=st.integers(0, 60),
)
def test_attention_of_any_geometry(team, seed, kv_heads, group, head_dim, m, context):
    operands = problem(kv_heads * group, kv_heads, head_dim, m, context, seed)
    np.testing.assert_allclose(attend(*operands, team), reference(*operands), rtol=0, atol=TOLERANCE)


def test_no_token_sees_what_comes_after_it(team):
    """To the last bit: other keys and values of the last token change the last token's output only."""
    query, keys, values = problem(4, 2, 8, 6, context=5)
    before = attend(query, keys, values, team)
    keys[:, -1], values[:, -1] = 3, -60000
    after = attend(query, keys, values, team)
    assert np.array_equal(after[:-1], before[:-1])
    assert not np.isclose(after[-1], before[-1]).any()


def test_the_first_token_of_a_prompt_sees_itself_alone(team):
    query, keys, values = problem(4, 2, 8, 3, context=0)
    out = attend(query, keys, values, team)
    np.testing.assert_allclose(out[0], np.repeat(values[:, 0], 2, axis=0), rtol=TOLERANCE)


def test_scores_far_beyond_the_range_of_exp_do_not_overflow(team):
    """One key wins by thousands: its value comes out, and it may be the largest F16."""
    query = np.full((1, 1, 4), 1000, np.float32)
    keys = np.array([[[-60000] * 4, [60000] * 4, [-1] * 4]], np.float16)
    values = np.array([[[1] * 4, [65504, -65504, 2.0**-24, 0], [2] * 4]], np.float16)
    assert attend(query, keys, values, team).tolist() == [[[65504, -65504, 2.0**-24, 0]]]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((6, 4, 8, 1, 0), "heads to be a multiple of 4 KV heads, got 6"),
        ((0, 1, 8, 1, 0), r"expected positive sizes, got \(0, 1, 8, 1, 0\)"),
        ((4, 0, 8, 1, 0), "expected positive sizes"),
        ((4, 2, 0, 1, 0), "expected positive sizes"),
        ((4, 2, 8, 0, 0), "expected positive sizes"),
        ((4, 2, 8, 1, -1), "expected positive sizes"),
    ],
)
def test_a_geometry_that_cannot_be_is_refused(team, sizes, message):
    with pytest.raises(ValueError, match=message):
        Attention(*sizes, team)


@pytest.mark.parametrize("name", ["query", "keys", "values", "out"])
def test_operands_of_another_shape_dtype_or_order_are_refused(team, name):
    query, keys, values = problem(4, 2, 8, 3, context=5)
    good = {"query": query, "keys": keys, "values": values, "out": np.empty_like(query)}
    attention = Attention(4, 2, 8, 3, 5, team)
    for wrong in (good[name][:-1], good[name][None], good[name].astype(np.float64)):
        shape = str(wrong.shape).replace("(", r"\(").replace(")", r"\)")
        message = rf"attention {name}: expected {good[name].dtype} of shape .*, got {wrong.dtype} of shape {shape}"
        with pytest.raises(ValueError, match=message):
            attention(**{**good, name: wrong})
    strided = np.repeat(good[name], 2, axis=2)[..., ::2]
    with pytest.raises(ValueError, match=rf"attention {name}: expected .*, got non-contiguous {good[name].dtype}"):
        attention(**{**good, name: strided})


def test_a_result_that_cannot_be_written_is_refused(team):
    query, keys, values = problem(4, 2, 8, 3, context=5)
    out = np.empty_like(query)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="attention out: expected an array that can be written to, got a read-only"):
        Attention(4, 2, 8, 3, 5, team)(query, keys, values, out)


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


# The layer


@pytest.mark.parametrize("m", [1, 5])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_small_ops_quantise_the_input_of_each_group_of_products(activation, m):
    """q/k/v, o, gate/up and down take tokens of these widths, each scaled to use the whole range of int8."""
    operations = SmallOps(LayerGeometry(64, 176, 6, 2, 16, activation), m)
    inputs = operations()
    assert [quantized.values.shape for quantized in inputs] == [(m, 64), (m, 96), (m, 64), (m, 176)]
    for values, scale in inputs:
        assert values.dtype == np.int8
        assert np.all(np.abs(values.astype(int)).max(axis=1) == 127)
        assert scale.shape == (m,)
        assert scale.dtype == np.float32


def test_small_ops_do_the_same_work_every_time():
    operations = SmallOps(LayerGeometry(64, 176, 6, 2, 16, "relu2"), 3)
    first = [(values.copy(), scale.copy()) for values, scale in operations()]
    for (values, scale), again in zip(first, operations(), strict=True):
        assert np.array_equal(values, again.values)
        assert np.array_equal(scale, again.scale)


@pytest.mark.parametrize("m", [1, 2, 9])
def test_small_ops_are_the_same_to_the_last_bit_when_a_team_shares_the_tokens(team, m):
    alone, shared = (SmallOps(LayerGeometry(64, 176, 6, 2, 16, "silu"), m, members)() for members in (None, team))
    for first, second in zip(alone, shared, strict=True):
        assert np.array_equal(first.values, second.values)
        assert np.array_equal(first.scale, second.scale)


def test_small_ops_depend_on_the_gate():
    down = [SmallOps(LayerGeometry(64, 176, 6, 2, 16, activation), 3)()[3].values for activation in ("relu2", "silu")]
    assert not np.array_equal(*down)
