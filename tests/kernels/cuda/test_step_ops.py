"""The small operations on a device, in torch and fused in Triton, against numpy's, and what they refuse."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from ternary_kernels.cuda.activations import Quantized, quantize
from ternary_kernels.cuda.backends import BACKENDS, get_backend
from ternary_kernels.cuda.layer_ops import SmallOps
from ternary_kernels.cuda.step_ops import gate, rms_norm, rotate
from ternary_kernels.geometry import LayerGeometry

USABLE = [name for name in BACKENDS if name == "torch" or find_spec("triton") is not None]


@pytest.fixture(params=USABLE)
def ops(request):
    return get_backend(request.param).step_ops


def random(*shape, device, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, np.float32)).to(device)


def assert_close(found, wanted):
    """Where the last bit of a norm differs, a value on the edge may be rounded the other way."""
    if not isinstance(wanted, Quantized):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        return
    assert (found.values.int() - wanted.values.int()).abs().max() <= 1
    assert (found.values != wanted.values).float().mean() < 0.01
    torch.testing.assert_close(found.scale, wanted.scale, rtol=1e-5, atol=0)
    assert torch.equal(found.sums, found.values.sum(dim=1, dtype=torch.int32))


def as_wanted(x, quantized):
    return quantize(x) if quantized else x


@pytest.mark.parametrize("shape", [(1, 1), (3, 129), (5, 2560), (2, 16385)])
@pytest.mark.parametrize("magnitude", [0.0, 1e-9, 1e-5, 1.0, 3e7, 1e30])
def test_quantisation_is_the_same_to_the_last_bit(ops, device, shape, magnitude):
    x = random(*shape, device=device) * magnitude
    assert all(torch.equal(*pair) for pair in zip(ops.quantize(x), quantize(x), strict=True))


def test_halves_are_rounded_to_even(ops, device):
    """127 sets the scale to 1, so that values are rounded as they are."""
    x = torch.tensor([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -126.5, 125.5]], device=device)
    assert ops.quantize(x).values.tolist() == [[127, 0, 2, 2, 0, -2, -2, 126, -126, 126]]


@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize(("m", "columns"), [(1, 64), (3, 100), (4, 2560)])
def test_norm(ops, device, m, columns, quantized):
    x, weight = random(m, columns, device=device) * 3, random(columns, device=device, seed=1)
    before = x.clone()
    found = ops.norm(x, weight, quantized=quantized)
    assert torch.equal(x, before)
    assert_close(found, as_wanted(rms_norm(x, weight), quantized))


@pytest.mark.parametrize("quantized", [True, False])
def test_a_residual_is_added_in_place_and_then_normed(ops, device, quantized):
    x, added = random(3, 100, device=device), random(3, 100, device=device, seed=1)
    weight = torch.ones(100, device=device)
    total = x + added
    found = ops.norm(x, weight, added, quantized=quantized)
    assert torch.equal(x, total)
    assert_close(found, as_wanted(rms_norm(total, weight), quantized))


def test_small_activations_are_shrunk_by_what_is_added_to_their_mean_square(ops, device):
    """Quantisation hides any factor of a whole token but in its scale."""
    x = random(1, 64, device=device) * 1e-3
    found = ops.norm(x, torch.ones(64, device=device), quantized=False)
    wanted = x / (x.double().square().mean() + 1e-5).sqrt()
    torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("activation", ["silu", "relu2", "gelu"])
@pytest.mark.parametrize("columns", [96, 1000])
def test_gate(ops, device, activation, columns, normed, quantized):
    gated, up = random(3, columns, device=device) * 4, random(3, columns, device=device, seed=1)
    weight = random(columns, device=device, seed=2) if normed else None
    wanted = gate(gated, up, activation)
    wanted = as_wanted(rms_norm(wanted, weight) if normed else wanted, quantized)
    assert_close(ops.gate(gated, up, activation, weight, quantized=quantized), wanted)
    together = torch.cat([gated, up], dim=1)  # as a product of both matrices gives them
    parts = together[:, :columns], together[:, columns:]
    assert_close(ops.gate(*parts, activation, weight, quantized=quantized), wanted)


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_gates_far_from_zero_do_not_overflow(ops, device, activation):
    gated = torch.tensor([[-1e4, -100.0, 0.0, 100.0]], device=device)
    found = ops.gate(gated, torch.ones_like(gated), activation, torch.ones(4, device=device), quantized=True)
    assert found.values.tolist() == [[0, 0, 0, 127]]


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize(("m", "heads", "kv_heads", "head_dim"), [(1, 1, 1, 2), (3, 6, 2, 80), (2, 5, 1, 128)])
def test_queries_and_keys_are_rotated_and_the_cache_is_filled(
    ops, device, m, heads, kv_heads, head_dim, decode, together
):
    """One slot of each of several sequences, or several of one; all other slots stay as they are."""
    shapes = [(m, count, head_dim) for count in (heads, kv_heads, kv_heads)]
    query, key, value = (random(*shape, device=device, seed=seed) for seed, shape in enumerate(shapes))
    given = query, key, value
    if together:  # as a product of all three matrices gives them
        product = torch.cat([part.flatten(1) for part in given], dim=1)
        widths = [part.shape[1] * head_dim for part in given]
        parts = product.split(widths, dim=1)
        given = tuple(part.view(shape) for part, shape in zip(parts, shapes, strict=True))
    angles = random(m, head_dim // 2, device=device, seed=3)
    cos, sin = angles.cos(), angles.sin()
    caches = [torch.full((m + 1, kv_heads, 9 + m, head_dim), 7.0, device=device).half() for _ in "kv"]
    slots = [cache[1:, :, 4] if decode else cache[1, :, 4 : 4 + m].transpose(0, 1) for cache in caches]
    rotated = ops.rotate(*given, cos, sin, *slots)
    half = {"rtol": 2e-3, "atol": 1e-4}
    assert rotated.dtype == torch.float16
    torch.testing.assert_close(rotated.float(), rotate(query, cos, sin), **half)
    torch.testing.assert_close(slots[0].float(), rotate(key, cos, sin), **half)
    assert torch.equal(slots[1], value.half())
    for cache, slot in zip(caches, slots, strict=True):
        slot.fill_(7.0)
        assert (cache == 7.0).all()


@pytest.mark.parametrize("activation", ["silu", "relu2", "gelu"])
def test_a_layers_operations_give_the_same_call_after_call(ops, device, activation):
    geometry = LayerGeometry(64, 176, 6, 2, 16, activation), 3, device
    small = SmallOps(*geometry, ops)
    for _ in range(2):
        for found, wanted in zip(small(), SmallOps(*geometry)(), strict=True):
            assert_close(found, wanted)


def test_operands_that_do_not_fit_are_refused(ops, device):
    x = torch.zeros(2, 8, device=device)
    weight = torch.ones(8, device=device)
    with pytest.raises(ValueError, match=r"activations: expected contiguous torch.float32 of shape \(any, any\)"):
        ops.quantize(x.half())
    with pytest.raises(ValueError, match=r"activations: .*got contiguous torch.float32 of shape \(0, 8\)"):
        ops.quantize(x[:0])
    with pytest.raises(ValueError, match=r"norm, x: .*got non-contiguous"):
        ops.norm(torch.zeros(8, 2, device=device).T, weight, quantized=True)
    with pytest.raises(ValueError, match=r"norm, weight: expected .* of shape \(8,\) .* got .* of shape \(7,\)"):
        ops.norm(x, weight[:7], quantized=True)
    with pytest.raises(ValueError, match=r"norm, residual: expected .* of shape \(2, 8\) .* got .* of shape \(1, 8\)"):
        ops.norm(x, weight, x[:1], quantized=True)
    with pytest.raises(ValueError, match=r"norm, weight: .* got .* on meta"):
        ops.norm(x, weight.to("meta"), quantized=True)
    with pytest.raises(ValueError, match=r"gate: expected silu, relu2, gelu, got 'tanh'"):
        ops.gate(x, x, "tanh", weight, quantized=True)
    with pytest.raises(ValueError, match=r"gate, up: expected .* of shape \(2, 8\)"):
        ops.gate(x, x[:1], "silu", weight, quantized=True)
    with pytest.raises(ValueError, match=r"gate, gated: .*got non-contiguous"):
        ops.gate(x[:, ::2], x[:, ::2], "silu", quantized=True)


def test_rotations_that_do_not_fit_are_refused(ops, device):
    query, angles = torch.zeros(2, 3, 8, device=device), torch.zeros(2, 4, device=device)
    slots = query.half()

    def refused(message, query=query, key=query, value=query, cos=angles, sin=angles, keys=slots, values=slots):
        with pytest.raises(ValueError, match=message):
            ops.rotate(query, key, value, cos, sin, keys, values)

    refused("rotation: expected heads of an even size, got 7", query=query[:, :, :7].contiguous())
    refused(r"rotation, key: expected .* of shape \(2, any, 8\) .* got", key=query[:1])
    refused(r"rotation, value: expected .* of shape \(2, 3, 8\)", value=query[:, :2].contiguous())
    refused(r"rotation, sin: expected .* of shape \(2, 4\)", sin=angles[:, :3])
    refused(r"rotation, keys: expected contiguous torch.float16", keys=query)
    refused(r"rotation, values: expected .* of shape \(2, 3, 8\)", values=slots[:1])
    refused(r"rotation: expected caches laid out alike", values=torch.zeros(2, 4, 8, device=device).half()[:, :3])
