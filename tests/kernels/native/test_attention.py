"""Compiled attention against float64, on every instruction set that this machine can run."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ternary_kernels.native import compiler, isa
from ternary_kernels.native.attention import NativeAttention
from ternary_kernels.native.attention_kernels import kernel
from ternary_kernels.team import Team

TOLERANCE = 2e-6
"""Absolute, for values of magnitude about 1: some twenty float32 roundings."""

PATHS = isa.runnable(*isa.this_machine())
NEON = next(path for path in isa.PATHS if path.name == "neon_dot")

# Query heads per KV head and elements per head: with and without a tail in every vector width.
GEOMETRIES = [(1, 64), (4, 128), (8, 80), (3, 17), (2, 1)]


@pytest.fixture(scope="module", params=PATHS, ids=lambda path: path.name)
def path(request):
    return request.param


@pytest.fixture(scope="module", params=[1, 2, 3], ids=lambda threads: f"{threads}threads")
def team(request):
    with Team(request.param) as team:
        yield team


def problem(heads, kv_heads, head_dim, m, context, seed=0):
    rng = np.random.default_rng(seed)
    query = rng.standard_normal((m, heads, head_dim), np.float32)
    cache = (kv_heads, context + m, head_dim)
    keys, values = (rng.standard_normal(cache, np.float32).astype(np.float16) for _ in "kv")
    return query, keys, values


def attend(query, keys, values, team, path=None):
    m, heads, head_dim = query.shape
    kv_heads, tokens, _ = keys.shape
    out = np.full(query.shape, np.nan, np.float32)
    attention = NativeAttention(heads, kv_heads, head_dim, m, tokens, team, path)
    assert attention(query, keys, values, out, tokens - m) is out
    return out


def reference(query, keys, values):
    """Head by head in float64: softmax over what each token may see."""
    m, heads, head_dim = query.shape
    kv_heads, tokens, _ = keys.shape
    out = np.empty(query.shape)
    unseen = np.arange(tokens) > np.arange(tokens - m, tokens)[:, None]
    for head in range(heads):
        served_by = head * kv_heads // heads
        scores = query[:, head].astype(np.float64) @ keys[served_by].astype(np.float64).T / math.sqrt(head_dim)
        scores[unseen] = -np.inf
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        out[:, head] = weights / weights.sum(axis=1, keepdims=True) @ values[served_by].astype(np.float64)
    return out


@pytest.mark.parametrize(("m", "context"), [(1, 0), (1, 1), (1, 63), (1, 700), (2, 0), (3, 64), (33, 0), (70, 130)])
@pytest.mark.parametrize(("group", "head_dim"), GEOMETRIES)
def test_it_is_causal_and_grouped(team, path, group, head_dim, m, context):
    """Head h reads KV head h // group; token i sees the cache and the new tokens up to itself."""
    operands = problem(2 * group, 2, head_dim, m, context)
    np.testing.assert_allclose(attend(*operands, team, path), reference(*operands), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("m", "context"), [(300, 0), (257, 500), (64, 2000)])
def test_prompts_of_several_blocks_of_tokens_and_of_keys(team, path, m, context):
    operands = problem(8, 2, 128, m, context)
    np.testing.assert_allclose(attend(*operands, team, path), reference(*operands), rtol=0, atol=TOLERANCE)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    geometry=st.sampled_from(GEOMETRIES),
    kv_heads=st.integers(1, 6),
    m=st.one_of(st.just(1), st.integers(1, 150)),
    context=st.integers(0, 400),
)
def test_any_size(team, seed, geometry, kv_heads, m, context):
    group, head_dim = geometry
    operands = problem(kv_heads * group, kv_heads, head_dim, m, context, seed)
    np.testing.assert_allclose(attend(*operands, team), reference(*operands), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("threads", [4, 7])
@pytest.mark.parametrize("m", [1, 5])
def test_more_threads_than_kv_heads_share_the_context(threads, m):
    operands = problem(4, 1, 128, m, context=600)
    with Team(threads) as team:
        np.testing.assert_allclose(attend(*operands, team), reference(*operands), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("m", [1, 40])
def test_a_second_call_says_the_same_to_the_last_bit(team, path, m):
    """Whichever member takes which unit; and nothing of the first call is left over."""
    query, keys, values = problem(8, 2, 128, m, context=500)
    attention = NativeAttention(8, 2, 128, m, 500 + m, team, path)
    first, again = np.empty_like(query), np.empty_like(query)
    attention(query, keys, values, first, 500)
    attention(query * 30, keys, values, again, 500)
    attention(query, keys, values, again, 500)
    assert np.array_equal(first, again)


def test_no_token_sees_what_comes_after_it(team, path):
    """To the last bit: other keys and values of the last token change the last token's output only."""
    query, keys, values = problem(8, 2, 128, 70, context=5)
    before = attend(query, keys, values, team, path)
    keys[:, -1], values[:, -1] = 3, -60000
    after = attend(query, keys, values, team, path)
    assert np.array_equal(after[:-1], before[:-1])
    assert not np.isclose(after[-1], before[-1]).any()


@pytest.mark.parametrize("m", [1, 2])
def test_scores_far_beyond_the_range_of_exp_do_not_overflow(team, path, m):
    """One key wins by thousands: its value comes out to the last bit, and it may be the largest F16."""
    query = np.full((m, 1, 4), 1000, np.float32)
    keys = np.full((1, 3 + m - 1, 4), -1, np.float16)
    keys[0, :2] = [[-60000] * 4, [60000] * 4]
    values = np.ones_like(keys)
    values[0, 1] = winner = [65504, -65504, 2.0**-24, 0]
    assert attend(query, keys, values, team, path).tolist() == [[winner]] * m


@pytest.mark.parametrize("m", [1, 9])
def test_keys_that_are_all_alike_give_the_mean_of_the_values(team, path, m):
    query, _, values = problem(4, 2, 128, m, context=200)
    keys = np.full(values.shape, 0.5, np.float16)
    out = attend(query, keys, values, team, path)
    for token in range(m):
        mean = values[:, : 201 + token].astype(np.float64).mean(axis=1)
        np.testing.assert_allclose(out[token], np.repeat(mean, 2, axis=0), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("m", [1, 9])
def test_subnormal_halves_count(team, path, m):
    """Keys and values below 2^-14: the query makes up for the keys' size."""
    query, keys, values = problem(4, 2, 128, m, context=100)
    tiny = np.float16(2.0**-20)
    keys, values = keys * tiny, values * tiny
    assert (np.abs(values[values != 0]).max() < 2.0**-14).all()
    query *= np.float32(2.0**20)
    expected = reference(query, keys, values)
    np.testing.assert_allclose(
        attend(query, keys, values, team, path) * 2.0**20, expected * 2.0**20, rtol=0, atol=10 * TOLERANCE
    )


@pytest.mark.parametrize("m", [1, 5, 70])
def test_a_context_grows_within_one_capacity(team, path, m):
    """Step by step to the last bit as with a cache of just that many tokens; what lies behind them is never read."""
    capacity, group, head_dim = 700, 4, 80
    query, keys, values = problem(2 * group, 2, head_dim, m, context=capacity - m)
    last = 640
    keys[:, last:], values[:, last:] = np.nan, np.nan
    attention, found = NativeAttention(2 * group, 2, head_dim, m, capacity, team, path), np.empty_like(query)
    for context in (0, 1, 2, 63 - m % 63, 64, 65, 127, 128, 500, last - m, 3):
        tokens = context + m
        attention(query, keys, values, found, context)
        just = [np.ascontiguousarray(cache[:, :tokens]) for cache in (keys, values)]
        assert np.array_equal(found, attend(query, *just, team, path))


def test_a_full_cache_and_not_a_token_more(team):
    query, keys, values = problem(4, 2, 8, 3, context=5)
    attention, out = NativeAttention(4, 2, 8, 3, 8, team), np.empty_like(query)
    np.testing.assert_allclose(
        attention(query, keys, values, out, 5), reference(query, keys, values), rtol=0, atol=TOLERANCE
    )
    for context in (6, -1):
        with pytest.raises(ValueError, match=f"attention: expected a context of 0 to 5 tokens, got {context}"):
            attention(query, keys, values, out, context)


def test_operands_that_do_not_fit_are_refused(team):
    query, keys, values = problem(4, 2, 8, 3, context=5)
    good = {"query": query, "keys": keys, "values": values, "out": np.empty_like(query), "context": 5}
    attention = NativeAttention(4, 2, 8, 3, 8, team)
    for name in ("query", "keys", "values", "out"):
        array = good[name]
        strided = np.repeat(array, 2, axis=2)[..., ::2]
        for wrong, got in (
            (array[:-1], array.dtype),
            (array.astype(np.float64), "float64"),
            (strided, f"non-contiguous {array.dtype}"),
        ):
            with pytest.raises(ValueError, match=f"attention {name}: expected {array.dtype} of shape .*, got {got}"):
                attention(**{**good, name: wrong})


def test_a_geometry_that_cannot_be_is_refused(team):
    with pytest.raises(ValueError, match="heads to be a multiple of 4 KV heads, got 6"):
        NativeAttention(6, 4, 8, 1, 1, team)


@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize(("group", "head_dim"), [(4, 128), (3, 17)])
def test_it_compiles_for_arm(decode, group, head_dim):
    name, build = kernel(group, head_dim, decode=decode)
    image = compiler.compile_object(name, {"attend": build}, NEON, triple="aarch64-unknown-linux-gnu")
    assert image[:4] == b"\x7fELF"
    assert int.from_bytes(image[18:20], "little") == 183  # EM_AARCH64
