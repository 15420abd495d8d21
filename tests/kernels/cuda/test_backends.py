"""The ways to do what is no product on a GPU: alike in what they say, and chosen by name."""

import sys
from importlib.util import find_spec

import pytest
import torch

from ternary_kernels.cuda.backends import BACKENDS, get_backend
from ternary_kernels.geometry import LayerGeometry

USABLE = [name for name in BACKENDS if name == "torch" or find_spec("triton") is not None]


@pytest.mark.parametrize("activation", ["silu", "relu2", "gelu"])
@pytest.mark.parametrize("m", [1, 3])
def test_small_operations_agree(device, activation, m):
    geometry = LayerGeometry(64, 176, 6, 2, 16, activation)
    found = [get_backend(name).small_ops(geometry, m, device)() for name in USABLE]
    for inputs in found[1:]:
        for first, second in zip(found[0], inputs, strict=True):
            assert (first.values.int() - second.values.int()).abs().max() <= 1
            torch.testing.assert_close(first.scale, second.scale, rtol=1e-5, atol=0)
            assert torch.equal(second.sums, second.values.sum(dim=1, dtype=torch.int32))


@pytest.mark.parametrize("name", USABLE)
def test_attention_is_built_for_a_geometry(name, device):
    backend = get_backend(name)
    assert backend.name == name
    attention = backend.attention(4, 2, 16, 2, 1, 7, device)
    query, cache = torch.randn(2, 1, 4, 16, device=device), torch.ones(2, 2, 8, 16, device=device).half()
    out = attention(query, cache, cache, torch.empty_like(query))
    assert torch.equal(out, torch.ones_like(out))


def test_a_name_that_is_none_is_refused():
    with pytest.raises(ValueError, match="no backend 'native' for a GPU: expected one of triton, torch"):
        get_backend("native")


def test_without_triton_its_backend_says_why_and_torchs_works(monkeypatch):
    monkeypatch.setitem(sys.modules, "ternary_kernels.cuda.triton_step_ops", None)
    get_backend.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"backend 'triton' can't be used here: .*triton_step_ops"):
            get_backend("triton")
        assert get_backend("torch").name == "torch"
    finally:
        get_backend.cache_clear()
