"""Decode attention in Triton against the numpy one, and where its tokens are shared among programs."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("triton")

from ternary_kernels.cuda import triton_products
from ternary_kernels.cuda.layer_ops import Attention
from ternary_kernels.cuda.triton_attention import TritonAttention
from ternary_kernels.reference import layer_ops as reference
from ternary_kernels.team import Team

HALF = 2.0**-10
"""Spacing of float16 about 1: queries and softmax weights are rounded to it."""


def problem(heads, kv_heads, head_dim, sequences, tokens, m=1, scale=1.0):
    rng = np.random.default_rng(0)
    query = rng.standard_normal((sequences, m, heads, head_dim), np.float32) * np.float32(scale)
    keys, values = (rng.standard_normal((sequences, kv_heads, tokens, head_dim), np.float32) for _ in "kv")
    return query, keys.astype(np.float16), values.astype(np.float16)


def expected(query, keys, values):
    """The numpy attention, sequence after sequence."""
    _, m, heads, head_dim = query.shape
    _, kv_heads, tokens, _ = keys.shape
    with Team(1) as team:
        alone = reference.Attention(heads, kv_heads, head_dim, m, tokens, team)
        each = zip(query, keys, values, strict=True)
        return np.stack([alone(*one, np.empty_like(one[0]), tokens - m) for one in each])


def attend(operands, put, device, dtype=torch.float32):
    query, keys, values = operands
    sequences, m, heads, head_dim = query.shape
    attention = TritonAttention(heads, keys.shape[1], head_dim, sequences, m, keys.shape[2] - m, device)
    out = torch.full(query.shape, torch.nan, dtype=dtype, device=device)
    assert attention(put(query).to(dtype), put(keys), put(values), out) is out
    return attention, out.float().cpu().numpy()


@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 257, 600])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "sequences"), [(1, 1, 16, 1), (6, 2, 80, 2), (20, 1, 8, 1), (4, 4, 128, 3)]
)
def test_every_token_is_seen_by_the_heads_of_its_group(put, device, heads, kv_heads, head_dim, sequences, tokens):
    operands = problem(heads, kv_heads, head_dim, sequences, tokens)
    _, found = attend(operands, put, device)
    np.testing.assert_allclose(found, expected(*operands), rtol=0, atol=4 * HALF)


@pytest.mark.parametrize("tokens", [257, 1000, 1025])
def test_shares_are_joined(monkeypatch, put, device, tokens):
    """Scores that differ much from share to share, so that a wrong weight for one would show."""
    monkeypatch.setattr(triton_products, "MULTIPROCESSORS", 7)
    operands = problem(4, 2, 128, 1, tokens, scale=4)
    attention, found = attend(operands, put, device)
    assert attention._shares > 1
    np.testing.assert_allclose(found, expected(*operands), rtol=0, atol=16 * HALF)


@pytest.mark.parametrize("tokens", [5, 600])
def test_slots_beyond_the_tokens_are_not_looked_at(put, device, tokens):
    """To the last bit, whatever is in them; with one share of the tokens and with several."""
    query, keys, values = problem(6, 2, 80, 2, tokens)
    _, wanted = attend((query, keys, values), put, device)
    room = np.full((2, 2, tokens + 300, 80), np.nan, np.float16)
    roomy_keys, roomy_values = room.copy(), room
    roomy_keys[:, :, :tokens], roomy_values[:, :, :tokens] = keys, values
    attention = TritonAttention(6, 2, 80, 2, 1, tokens - 1, device, tokens + 300)
    out = attention(put(query), put(roomy_keys), put(roomy_values), torch.empty(query.shape, device=device))
    np.testing.assert_array_equal(out.cpu().numpy(), wanted)


def test_queries_and_outputs_may_be_half_precision(put, device):
    operands = problem(4, 2, 64, 2, 40)
    _, found = attend(operands, put, device, torch.float16)
    np.testing.assert_allclose(found, expected(*operands), rtol=0, atol=8 * HALF)


def test_several_new_tokens_are_torchs_business(put, device):
    operands = problem(4, 2, 16, 1, 9, m=3)
    _, found = attend(operands, put, device)
    wanted = Attention(4, 2, 16, 1, 3, 6, device)(
        *(put(each) for each in operands), torch.empty(1, 3, 4, 16, device=device)
    )
    assert np.array_equal(found, wanted.cpu().numpy())


@given(st.integers(1, 300), st.integers(1, 16), st.sampled_from([16, 80, 128, 256]), st.integers(0, 40000))
def test_shares_cover_the_tokens_and_none_is_empty(sequences, kv_heads, head_dim, context):
    attention = TritonAttention(kv_heads, kv_heads, head_dim, sequences, 1, context, "cpu")
    assert (attention._shares - 1) * attention._share < context + 1 <= attention._shares * attention._share


def test_operands_that_do_not_fit_are_refused(device):
    attention = TritonAttention(4, 2, 16, 1, 1, 4, device)
    query, cache = torch.zeros(1, 1, 4, 16, device=device), torch.zeros(1, 2, 5, 16, device=device).half()
    with pytest.raises(ValueError, match=r"attention keys: expected torch.float16 of shape \(1, 2, 5, 16\)"):
        attention(query, cache.float(), cache, query.clone())
    with pytest.raises(ValueError, match=r"attention query: .*got non-contiguous"):
        attention(query.transpose(2, 3).contiguous().transpose(2, 3), cache, cache, query.clone())
    with pytest.raises(ValueError, match="expected heads to be a multiple of 3 KV heads, got 4"):
        TritonAttention(4, 3, 16, 1, 1, 4, device)
