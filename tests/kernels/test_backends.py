"""The two ways to do what is no product: alike in what they say, and chosen by name."""

import sys

import numpy as np
import pytest

from ternary_kernels.backends import BACKENDS, get_backend
from ternary_kernels.geometry import LayerGeometry
from ternary_kernels.native import amx
from ternary_kernels.reference.layer_ops import SmallOps, room
from ternary_kernels.team import Team

USABLE = [name for name in BACKENDS if name != "amx" or amx.unusable() is None]


@pytest.fixture(params=USABLE)
def backend(request):
    return get_backend(request.param)


def test_attention_and_small_operations_agree(team):
    rng = np.random.default_rng(0)
    query = rng.standard_normal((3, 8, 32), np.float32)
    keys, values = (rng.standard_normal((2, 103, 32), np.float32).astype(np.float16) for _ in "kv")
    outs, inputs = [], []
    for name in ("numpy", "native"):
        backend = get_backend(name)
        assert backend.name == name
        attention = backend.attention(8, 2, 32, 3, 103, team)
        outs.append(attention(query, keys, values, np.empty_like(query), 100))
        inputs.append(SmallOps(LayerGeometry(64, 176, 6, 2, 16, "silu"), 3, backend.step_ops(team))())
    np.testing.assert_allclose(*outs, rtol=0, atol=1e-5)
    for first, second in zip(*inputs, strict=True):
        assert np.abs(first.values.astype(int) - second.values).max() <= 1
        np.testing.assert_allclose(first.scale, second.scale, rtol=1e-5)


def test_quantisation_agrees_to_the_last_bit():
    x = np.random.default_rng(0).standard_normal((3, 100), np.float32)
    with Team(2) as team:
        first, second = room(*x.shape), room(*x.shape)
        for name, out in (("numpy", first), ("native", second)):
            get_backend(name).step_ops(team).quantize(x, out)()
    assert np.array_equal(first.values, second.values)
    assert np.array_equal(first.scale, second.scale)


def test_the_read_takes_any_bytes_and_leaves_them_alone(backend, team):
    data = np.arange(1000, dtype=np.uint8)
    data.flags.writeable = False
    backend.read(team, data)
    backend.read(team, data[:0])


def test_every_member_works_at_the_peak(backend, team):
    """A multiplication and an addition are two operations, and each member does a whole product's."""
    peak = backend.peak(team, (4, 8, 16))
    assert peak.operations == 2 * 4 * 8 * 16 * team.threads
    peak()
    assert backend.arithmetic in ("int8", "float32")
    with pytest.raises(ValueError, match=r"expected a positive m, n_out and k_in, got \(4, 0, 16\)"):
        backend.peak(team, (4, 0, 16))


def test_a_name_that_is_none_is_refused():
    with pytest.raises(ValueError, match="no backend 'cuda': expected one of numpy, native, amx"):
        get_backend("cuda")


def test_tiles_are_the_native_backend_with_another_peak():
    if refusal := amx.unusable():
        with pytest.raises(ValueError, match="backend 'amx' can't be used here: ") as refused:
            get_backend("amx")
        assert refusal in str(refused.value)
    else:
        native, tiles = get_backend("native"), get_backend("amx")
        assert tiles == native._replace(name="amx", peak=tiles.peak)


def test_without_llvmlite_the_native_one_says_why_and_numpys_works(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("ternary_kernels.native")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("ternary_kernels.native", None, raising=False)
    monkeypatch.delattr("ternary_kernels.native")
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    get_backend.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"backend 'native' can't be used here: .*llvmlite"):
            get_backend("native")
        assert get_backend("numpy").name == "numpy"
    finally:
        get_backend.cache_clear()
