"""Attention against float64, and the small operations of a layer as a whole."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ternary_kernels.geometry import LayerGeometry
from ternary_kernels.reference.layer_ops import Attention, SmallOps, Workspace
from ternary_kernels.reference.step_ops import StepOps

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
    attention = Attention(heads, kv_heads, head_dim, m, tokens, team)
    assert attention(query, keys, values, out, tokens - m) is out
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


def test_bound_attention_attends_to_what_its_operands_hold_then(team):
    query, keys, values = problem(4, 2, 16, 3, context=9)
    out = np.full(query.shape, np.nan, np.float32)
    attention = Attention(4, 2, 16, 3, 12, team)
    run = attention.bind(query, keys, values, out, 9)
    assert np.isnan(out).all(), "nothing is computed yet"
    for _ in range(2):
        run()
        np.testing.assert_allclose(out, reference(query, keys, values), rtol=0, atol=TOLERANCE)
        values *= np.float16(0.5)
    with pytest.raises(ValueError, match="attention keys"):
        attention.bind(query, keys[:1], values, out, 9)


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
        ((6, 4, 8, 1, 1), "heads to be a multiple of 4 KV heads, got 6"),
        ((0, 1, 8, 1, 1), r"expected positive sizes, got \(0, 1, 8, 1\)"),
        ((4, 0, 8, 1, 1), "expected positive sizes"),
        ((4, 2, 0, 1, 1), "expected positive sizes"),
        ((4, 2, 8, 0, 1), "expected positive sizes"),
        ((4, 2, 8, 3, 2), "expected a capacity of at least the 3 new tokens, got 2"),
    ],
)
def test_a_geometry_that_cannot_be_is_refused(team, sizes, message):
    with pytest.raises(ValueError, match=message):
        Attention(*sizes, team)


@pytest.mark.parametrize("name", ["query", "keys", "values", "out"])
def test_operands_of_another_shape_dtype_or_order_are_refused(team, name):
    query, keys, values = problem(4, 2, 8, 3, context=5)
    good = {"query": query, "keys": keys, "values": values, "out": np.empty_like(query), "context": 5}
    attention = Attention(4, 2, 8, 3, 8, team)
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
        Attention(4, 2, 8, 3, 8, team)(query, keys, values, out, 5)


@pytest.mark.parametrize(("context", "most"), [(6, 5), (-1, 5)])
def test_a_context_that_the_cache_has_no_room_for_is_refused(team, context, most):
    query, keys, values = problem(4, 2, 8, 3, context=5)
    with pytest.raises(ValueError, match=f"attention: expected a context of 0 to {most} tokens, got {context}"):
        Attention(4, 2, 8, 3, 8, team)(query, keys, values, np.empty_like(query), context)


@pytest.mark.parametrize("m", [1, 3])
def test_a_context_grows_within_one_capacity(team, m):
    """Step by step to the last bit as with a cache of just that many tokens; what lies behind them is never read."""
    capacity = 1030
    query, keys, values = problem(4, 2, 8, m, context=capacity - m)
    keys[:], values[:] = np.where(np.arange(capacity)[:, None] < 1026, (keys, values), np.nan)
    attention, found = Attention(4, 2, 8, m, capacity, team), np.empty_like(query)
    for context in (0, 1, 2, 700, 1023 - m, 1024 - m, 1025 - m, 1026 - m, 5):
        tokens = context + m
        attention(query, keys, values, found, context)
        just = [np.ascontiguousarray(cache[:, :tokens]) for cache in (keys, values)]
        assert np.array_equal(found, attend(query, *just, team))


# The layer


@pytest.mark.parametrize("m", [1, 5])
@pytest.mark.parametrize("activation", ["relu2", "silu", "gelu"])
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
    alone, shared = (
        SmallOps(LayerGeometry(64, 176, 6, 2, 16, "silu"), m, StepOps(members))() for members in (None, team)
    )
    for first, second in zip(alone, shared, strict=True):
        assert np.array_equal(first.values, second.values)
        assert np.array_equal(first.scale, second.scale)


def test_small_ops_depend_on_the_gate():
    down = [SmallOps(LayerGeometry(64, 176, 6, 2, 16, activation), 3)()[3].values for activation in ("relu2", "silu")]
    assert not np.array_equal(*down)


def test_a_workspace_lends_its_first_tokens_and_no_more():
    workspace = Workspace(LayerGeometry(64, 176, 6, 2, 16, "silu"), 3)
    alone, lent = (
        SmallOps(LayerGeometry(64, 176, 6, 2, 16, "silu"), 2, None, memory)() for memory in (None, workspace)
    )
    assert [values.shape for values, _ in lent] == [values.shape for values, _ in alone]
    assert lent.down.values.base is workspace.inputs.down.values
    with pytest.raises(ValueError, match="workspace: expected at most 3 tokens, got 4"):
        SmallOps(LayerGeometry(64, 176, 6, 2, 16, "silu"), 4, None, workspace)
