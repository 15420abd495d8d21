"""The fused kernels between products against torch's operations one after the other, and what they refuse."""

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from ternary_kernels.cuda.activations import quantize
from ternary_kernels.cuda.layer_ops import SmallOps, gate, rms_norm
from ternary_kernels.cuda.layer_ops import rotate as torch_rotate
from ternary_kernels.cuda.triton_layer import (
    TritonQuantizer,
    TritonSmallOps,
    gate_norm_quantize,
    norm_quantize,
    room,
    rotate,
)
from ternary_kernels.geometry import LayerGeometry


def random(*shape, device, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, np.float32)).to(device)


def assert_close(found, wanted):
    """Where the last bit of a norm differs, a value on the edge may be rounded the other way."""
    assert (found.values.int() - wanted.values.int()).abs().max() <= 1
    assert (found.values != wanted.values).float().mean() < 0.01
    torch.testing.assert_close(found.scale, wanted.scale, rtol=1e-5, atol=0)
    assert torch.equal(found.sums, found.values.sum(dim=1, dtype=torch.int32))


@pytest.mark.parametrize("shape", [(1, 1), (3, 129), (5, 2560), (2, 16385)])
@pytest.mark.parametrize("magnitude", [0.0, 1e-9, 1e-5, 1.0, 3e7, 1e30])
def test_quantisation_equals_torchs_to_the_last_bit(device, shape, magnitude):
    x = random(*shape, device=device) * magnitude
    assert all(torch.equal(*pair) for pair in zip(TritonQuantizer(x)(), quantize(x), strict=True))


def test_halves_are_rounded_to_even(device):
    """127 sets the scale to 1, so that values are rounded as they are."""
    x = torch.tensor([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -126.5, 125.5]], device=device)
    assert TritonQuantizer(x)().values.tolist() == [[127, 0, 2, 2, 0, -2, -2, 126, -126, 126]]


@pytest.mark.parametrize(("m", "columns"), [(1, 64), (3, 100), (4, 2560)])
def test_norm_and_quantisation_in_one(device, m, columns):
    x, weight = random(m, columns, device=device) * 3, random(columns, device=device, seed=1)
    into = room(x)
    before = x.clone()
    norm_quantize(x, weight, into)
    assert torch.equal(x, before)
    assert_close(into, quantize(rms_norm(x, weight)))


def test_a_residual_is_added_in_place_and_then_normed(device):
    x, added = random(3, 100, device=device), random(3, 100, device=device, seed=1)
    weight = torch.ones(100, device=device)
    total, into = x + added, room(x)
    norm_quantize(x, weight, into, added)
    assert torch.equal(x, total)
    assert_close(into, quantize(rms_norm(total, weight)))


def test_a_large_epsilon_shrinks_small_activations(device):
    """Quantisation hides any factor of a whole token but in its scale."""
    x, weight = random(1, 64, device=device) * 1e-3, torch.ones(64, device=device)
    scales = []
    for epsilon in (1e-12, 1.0):
        into = room(x)
        norm_quantize(x, weight, into, epsilon=epsilon)
        torch.testing.assert_close(into.scale, quantize(rms_norm(x, weight, epsilon)).scale, rtol=1e-5, atol=0)
        scales.append(into.scale.item())
    assert scales[1] > 100 * scales[0]


@pytest.mark.parametrize("activation", ["silu", "relu2", "gelu"])
@pytest.mark.parametrize("columns", [96, 1000])
def test_gate_norm_and_quantisation_in_one(device, activation, columns):
    gated, up = random(3, columns, device=device) * 4, random(3, columns, device=device, seed=1)
    weight, into = random(columns, device=device, seed=2), room(gated)
    gate_norm_quantize(gated, up, activation, weight, into)
    assert_close(into, quantize(rms_norm(gate(gated, up, activation), weight)))


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_gates_far_from_zero_do_not_overflow(device, activation):
    gated = torch.tensor([[-1e4, -100.0, 0.0, 100.0]], device=device)
    into = room(gated)
    gate_norm_quantize(gated, torch.ones_like(gated), activation, torch.ones(4, device=device), into)
    assert into.values.tolist() == [[0, 0, 0, 127]]


@pytest.mark.parametrize(("m", "heads", "kv_heads", "head_dim"), [(1, 1, 1, 2), (3, 6, 2, 80), (2, 5, 1, 128)])
def test_queries_and_keys_are_rotated_in_one(device, m, heads, kv_heads, head_dim):
    query, key = random(m, heads, head_dim, device=device), random(m, kv_heads, head_dim, device=device, seed=1)
    angles = random(m, head_dim // 2, device=device, seed=2)
    rotated = torch.full_like(query, np.nan), torch.full_like(key, np.nan)
    rotate(query, key, angles.cos(), angles.sin(), rotated)
    for found, source in zip(rotated, (query, key), strict=True):
        torch.testing.assert_close(found, torch_rotate(source, angles.cos(), angles.sin()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", ["silu", "relu2", "gelu"])
def test_small_operations_give_what_torchs_give_call_after_call(device, activation):
    geometry = LayerGeometry(64, 176, 6, 2, 16, activation), 3, device
    small = TritonSmallOps(*geometry)
    for _ in range(2):
        for found, wanted in zip(small(), SmallOps(*geometry)(), strict=True):
            assert_close(found, wanted)


def test_operands_that_do_not_fit_are_refused(device):
    x = torch.zeros(2, 8, device=device)
    weight = torch.ones(8, device=device)
    with pytest.raises(ValueError, match=r"activations: expected contiguous torch.float32 of shape \(any, any\)"):
        TritonQuantizer(x.half())
    with pytest.raises(ValueError, match=r"norm, x: .*got non-contiguous"):
        norm_quantize(torch.zeros(8, 2, device=device).T, weight, room(x))
    with pytest.raises(ValueError, match=r"norm, weight: expected .* of shape \(8,\), got .* of shape \(7,\)"):
        norm_quantize(x, weight[:7], room(x))
    with pytest.raises(ValueError, match=r"norm, residual: expected .* of shape \(2, 8\), got .* of shape \(1, 8\)"):
        norm_quantize(x, weight, room(x), x[:1])
    with pytest.raises(ValueError, match=r"gate: expected silu, relu2, gelu, got 'tanh'"):
        gate_norm_quantize(x, x, "tanh", weight, room(x))
    with pytest.raises(ValueError, match=r"gate, up: expected .* of shape \(2, 8\)"):
        gate_norm_quantize(x, x[:1], "silu", weight, room(x))


def test_rotations_that_do_not_fit_are_refused(device):
    query, angles = torch.zeros(2, 3, 8, device=device), torch.zeros(2, 4, device=device)
    with pytest.raises(ValueError, match="rotation: expected heads of an even size, got 7"):
        rotate(query[:, :, :7].contiguous(), query, angles, angles, (query, query))
    with pytest.raises(ValueError, match=r"rotation, key: expected .* of shape \(2, any, 8\), got"):
        rotate(query, query[:1], angles, angles, (query, query))
    with pytest.raises(ValueError, match=r"rotation, sin: expected .* of shape \(2, 4\)"):
        rotate(query, query, angles, angles[:, :3], (query, query))
    with pytest.raises(ValueError, match=r"rotation, rotated key: expected .* of shape \(2, 3, 8\)"):
        rotate(query, query, angles, angles, (query, query[:1]))
