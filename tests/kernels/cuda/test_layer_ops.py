"""Attention and the small operations of a layer on a device against the numpy ones, on the same numbers."""

import numpy as np
import pytest
import torch

from ternary_kernels.activations import quantize as numpy_quantize
from ternary_kernels.cuda.activations import quantize, with_sums
from ternary_kernels.cuda.layer_ops import Attention, SmallOps
from ternary_kernels.cuda.step_ops import gate, rms_norm, rotate
from ternary_kernels.geometry import LayerGeometry
from ternary_kernels.reference import layer_ops as reference
from ternary_kernels.team import Team

HALF = 2.0**-10
"""Spacing of float16 about 1: queries, softmax weights and outputs are rounded to it, each once or twice."""


def problem(heads, kv_heads, head_dim, sequences, m, context, seed=0):
    rng = np.random.default_rng(seed)
    query = rng.standard_normal((sequences, m, heads, head_dim), np.float32)
    cache = (sequences, kv_heads, context + m, head_dim)
    keys, values = (rng.standard_normal(cache, np.float32).astype(np.float16) for _ in "kv")
    return query, keys, values


def attend(query, keys, values, put, device):
    sequences, m, heads, head_dim = query.shape
    _, kv_heads, tokens, _ = keys.shape
    attention = Attention(heads, kv_heads, head_dim, sequences, m, tokens - m, device)
    assert attention.shape == query.shape
    assert attention.cache_shape == keys.shape
    out = torch.full(query.shape, np.nan, device=device)
    assert attention(put(query), put(keys), put(values), out) is out
    return out.cpu().numpy()


def expected(query, keys, values):
    """The numpy attention, sequence after sequence."""
    _, m, heads, head_dim = query.shape
    _, kv_heads, tokens, _ = keys.shape
    with Team(1) as team:
        alone = reference.Attention(heads, kv_heads, head_dim, m, tokens, team)
        each = zip(query, keys, values, strict=True)
        return np.stack([alone(*one, np.empty_like(one[0]), tokens - m) for one in each])


@pytest.mark.parametrize("context", [0, 1, 9, 200])
@pytest.mark.parametrize("m", [1, 2, 5, 33])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (6, 2), (5, 1)])
def test_attention_is_causal_and_grouped(put, device, heads, kv_heads, m, context):
    """Head h reads KV head h * kv_heads / heads; token i sees the cache and the new tokens up to itself."""
    operands = problem(heads, kv_heads, 16, 1, m, context)
    np.testing.assert_allclose(attend(*operands, put, device), expected(*operands), rtol=0, atol=8 * HALF)


@pytest.mark.parametrize(("m", "context"), [(1, 70), (3, 0), (3, 70)])
def test_sequences_decoded_together_see_their_own_cache_only(put, device, m, context):
    operands = problem(8, 2, 128, 4, m, context)
    np.testing.assert_allclose(attend(*operands, put, device), expected(*operands), rtol=0, atol=8 * HALF)


@pytest.mark.parametrize("context", [0, 5])
def test_no_token_sees_what_comes_after_it(put, device, context):
    """To the last bit: other keys and values of the last token change the last token's output only."""
    query, keys, values = problem(4, 2, 16, 2, 6, context)
    before = attend(query, keys, values, put, device)
    keys[:, :, -1], values[:, :, -1] = 3, -60000
    after = attend(query, keys, values, put, device)
    assert np.array_equal(after[:, :-1], before[:, :-1])
    assert not np.isclose(after[:, -1], before[:, -1]).any()


@pytest.mark.parametrize(("sequences", "m"), [(3, 1), (1, 5)])
def test_slots_beyond_the_tokens_are_not_looked_at(put, device, sequences, m):
    """To the last bit, whatever is in them."""
    query, keys, values = problem(8, 2, 16, sequences, m, 40)
    wanted = attend(query, keys, values, put, device)
    room = np.full((sequences, 2, 64, 16), np.nan, np.float16)
    roomy_keys, roomy_values = room.copy(), room
    roomy_keys[:, :, : 40 + m], roomy_values[:, :, : 40 + m] = keys, values
    attention = Attention(8, 2, 16, sequences, m, 40, device, 64)
    assert attention.cache_shape == roomy_keys.shape
    out = attention(put(query), put(roomy_keys), put(roomy_values), torch.empty(query.shape, device=device))
    np.testing.assert_array_equal(out.cpu().numpy(), wanted)


def test_queries_and_outputs_may_be_half_precision(put, device):
    query, keys, values = (put(array) for array in problem(4, 2, 16, 2, 3, 4))
    attention = Attention(4, 2, 16, 2, 3, 4, device)
    wide = attention(query, keys, values, torch.empty_like(query))
    half = attention(query.half(), keys, values, torch.empty_like(query, dtype=torch.float16))
    assert half.dtype == torch.float16
    assert torch.equal(half.float(), wide)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((6, 4, 8, 1, 1, 0), "heads to be a multiple of 4 KV heads, got 6"),
        ((0, 1, 8, 1, 1, 0), r"expected positive sizes, got \(0, 1, 8, 1, 1, 0\)"),
        ((4, 2, 8, 0, 1, 0), "expected positive sizes"),
        ((4, 2, 8, 1, 0, 0), "expected positive sizes"),
        ((4, 2, 8, 1, 1, -1), "expected positive sizes"),
        ((4, 2, 8, 1, 3, 6, "cpu", 8), r"expected room for 6 \+ 3 tokens, got 8 slots"),
    ],
)
def test_a_geometry_that_cannot_be_is_refused(device, sizes, message):
    with pytest.raises(ValueError, match=message):
        Attention(*sizes, *([device] if len(sizes) == 6 else []))


@pytest.mark.parametrize(
    ("spoilt", "change", "message"),
    [
        (
            "query",
            lambda t: t[:1],
            r"attention query: expected .*float32 or .*float16 of shape \(2, 3, 4, 16\).*\(1, 3",
        ),
        ("query", lambda t: t.double(), "attention query: .*got torch.float64"),
        ("keys", lambda t: t.float(), "attention keys: expected torch.float16 of .*got torch.float32"),
        ("keys", lambda t: t.transpose(2, 3).contiguous().transpose(2, 3), "attention keys: .*got non-contiguous"),
        ("values", lambda t: t[:, :, 1:].contiguous(), r"attention values: .*\(2, 2, 7, 16\).*got .*\(2, 2, 6, 16\)"),
        ("out", lambda t: t.to("meta"), "attention out: expected .*on meta"),
    ],
)
def test_operands_that_do_not_fit_are_refused(put, device, spoilt, change, message):
    query, keys, values = (put(array) for array in problem(4, 2, 16, 2, 3, 4))
    operands = {"query": query, "keys": keys, "values": values, "out": torch.zeros_like(query)}
    operands[spoilt] = change(operands[spoilt])
    with pytest.raises(ValueError, match=message):
        Attention(4, 2, 16, 2, 3, 4, device)(*operands.values())


@pytest.mark.parametrize("m", [1, 5])
@pytest.mark.parametrize("activation", ["silu", "relu2", "gelu"])
def test_small_operations_give_what_numpys_give(device, activation, m):
    """Of the same numbers; where the last bit of a norm differs, a value on the edge may be rounded the other way."""
    geometry = LayerGeometry(64, 176, 6, 2, 16, activation)
    found = SmallOps(geometry, m, device)()
    wanted = reference.SmallOps(geometry, m)()
    assert found._fields == wanted._fields
    for first, second in zip(found, wanted, strict=True):
        values = first.values.cpu().numpy()
        assert values.dtype == np.int8
        assert values.shape == second.values.shape
        assert np.abs(values.astype(int) - second.values).max() <= 1
        assert (values != second.values).mean() < 0.02
        np.testing.assert_allclose(first.scale.cpu().numpy(), second.scale, rtol=1e-5)
        assert np.array_equal(first.sums.cpu().numpy(), values.sum(axis=1, dtype=np.int32))


def test_small_operations_can_be_repeated(device):
    """Call after call the same: the residual stream doesn't grow."""
    small = SmallOps(LayerGeometry(64, 176, 6, 2, 16, "silu"), 3, device)
    for first, second in zip(small(), small(), strict=True):
        assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_norm_rotation_and_gate_match_numpys(put):
    rng = np.random.default_rng(0)
    x, up = (rng.standard_normal((3, 40), np.float32) * 5 for _ in "xu")
    weight = rng.standard_normal(40, np.float32)
    found = rms_norm(put(x), put(weight)).cpu().numpy()
    np.testing.assert_allclose(found, reference.rms_norm(x, weight), rtol=1e-5, atol=1e-6)
    heads = rng.standard_normal((3, 4, 10), np.float32)
    cos, sin = (function(rng.random((3, 5), np.float32)) for function in (np.cos, np.sin))
    found = rotate(put(heads), put(cos), put(sin)).cpu().numpy()
    np.testing.assert_allclose(found, reference.rotate(heads, cos, sin), rtol=1e-5, atol=1e-6)
    for activation in ("silu", "relu2", "gelu"):
        found = gate(put(x), put(up), activation).cpu().numpy()
        np.testing.assert_allclose(found, reference.gate(x, up, activation), rtol=1e-4, atol=1e-5)


def test_a_norm_of_zeros_is_zeros(device):
    assert not rms_norm(torch.zeros(2, 8, device=device), torch.ones(8, device=device)).any()


@pytest.mark.parametrize("shape", [(1, 1), (3, 129), (33, 2560)])
def test_activations_are_quantised_to_the_same_bits_as_on_the_cpu(put, shape):
    rng = np.random.default_rng(0)
    for magnitude in (1e-9, 1e-5, 1.0, 3e7):
        x = (rng.standard_normal(shape) * magnitude).astype(np.float32)
        found, wanted = quantize(put(x)), numpy_quantize(x)
        assert np.array_equal(found.values.cpu().numpy(), wanted.values)
        assert np.array_equal(found.scale.cpu().numpy(), wanted.scale)
        assert np.array_equal(found.sums.cpu().numpy(), wanted.values.sum(axis=1, dtype=np.int32))


def test_halves_are_rounded_to_even_and_zeros_stay_zeros(put):
    """127 sets the scale to 1, so that values are rounded as they are."""
    x = put(np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5], [0, 0, 0, 0, 0, 0]], np.float32))
    assert quantize(x).values.tolist() == [[127, 0, 2, 2, 0, -2], [0] * 6]


def test_activations_that_cannot_be_quantised_are_refused(device):
    for shape, dtype in (((3,), torch.float32), ((2, 3), torch.float16)):
        with pytest.raises(ValueError, match=r"expected float32 of shape \(m, k_in\), got torch.float"):
            quantize(torch.zeros(shape, dtype=dtype, device=device))
    with pytest.raises(ValueError, match=r"expected at least one column, got shape \(2, 0\)"):
        quantize(torch.zeros(2, 0, device=device))


def test_sums_do_not_overflow_a_byte(device):
    values = torch.full((1, 4096), -128, dtype=torch.int8, device=device)
    assert with_sums(values, torch.ones(1, device=device)).sums.tolist() == [-128 * 4096]
