"""Weights to run with: valid in every format, each layer's its own, of a size that keeps activations as they are."""

from __future__ import annotations

import numpy as np
import pytest

from autotune.engine.weights import HeldWeights, PackedWeights, RandomWeights
from autotune.model.fusion import fused
from autotune.model.memory import layers_bytes, site_bytes, weight_bytes
from autotune.model.sites import on_gpu
from autotune.records import Site
from ternary_kernels.formats import FORMATS, get_format
from tests.engine.models import small_model


def unpacked(site, data):
    weights, scale = get_format(site.format).unpack(data, site.n_out, site.k_in)
    return weights.astype(np.float64) * scale


class Counted(RandomWeights):
    """Counts what is asked for."""

    def __init__(self):
        super().__init__()
        self.made = []

    def matrix(self, layer, site):
        self.made.append((layer, site.name))
        return super().matrix(layer, site)


@pytest.mark.parametrize("name", FORMATS)
def test_random_weights_are_weights_of_every_format(name):
    """They unpack, none is infinite or subnormal, and products of activations of size 1 have size 1."""
    site = Site("gate", 640, 2560, name)
    data = RandomWeights(1).matrix(4, site)
    assert data.shape == (get_format(name).size_bytes(640, 2560),)
    weights = unpacked(site, data)
    assert np.isfinite(weights).all()
    assert np.abs(weights[weights != 0]).min() > 1e-8
    x = np.random.default_rng(0).standard_normal((4, 2560))
    assert 0.5 < np.sqrt(((x @ weights.T) ** 2).mean()) < 2


def test_random_weights_fill_more_than_a_tile():
    """A matrix of many tiles has its scale behind all of them, and no rows that repeat."""
    site = Site("down", 2560, 6912, "I2_S")
    weights = unpacked(site, RandomWeights().matrix(0, site))
    assert set(np.unique(np.sign(weights))) == {-1, 0, 1}
    assert len(np.unique(weights[:600].astype(np.float32).view("V27648"))) == 600


@pytest.mark.parametrize("source", [RandomWeights(), PackedWeights(small_model())])
def test_each_matrix_has_memory_and_weights_of_its_own(source):
    model = small_model()
    q, o = (site for site in model.layers[0].sites if site.name in "qo")
    matrices = [source.matrix(layer, site) for layer in range(3) for site in (q, o)]
    for turn, data in enumerate(matrices):
        for other in matrices[:turn]:
            assert not np.shares_memory(data, other)
            assert (data != other).mean() > 0.3
    assert np.array_equal(source.matrix(1, q), matrices[2])


def test_a_tied_head_is_the_embedding():
    model = small_model()
    for source in (RandomWeights(), PackedWeights(model)):
        assert np.array_equal(source.matrix(None, model.head), source.matrix(None, model.embedding))
    model = small_model(head_format="F16")
    untied = PackedWeights(model)
    assert not np.array_equal(untied.matrix(None, model.head), untied.matrix(None, model.embedding))


def test_norms_are_near_1_and_differ():
    weights = RandomWeights()
    norms = [weights.norm(layer, name, 256) for layer in (None, 0, 1) for name in ("attention", "o")]
    assert all(norm.dtype == np.float32 and 0.7 < norm.min() < norm.max() < 1.3 for norm in norms)
    assert np.array_equal(norms[2], weights.norm(0, "attention", 256))
    assert len({norm.tobytes() for norm in norms[2:]}) == 4


def test_another_seed_gives_other_weights():
    model = small_model()
    site = model.layers[0].sites[0]
    for make in (RandomWeights, lambda seed: PackedWeights(model, seed)):
        assert not np.array_equal(make(1).matrix(0, site), make(2).matrix(0, site))


def test_fused_sites_are_their_parts_one_below_the_other():
    model = small_model()
    weights = PackedWeights(model)
    parts = {site.name: unpacked(site, weights.matrix(1, site)) for site in model.layers[1].sites}
    found = {site.name: unpacked(site, weights.matrix(1, site)) for site in fused(model.layers[1])}
    assert np.array_equal(found["qkv"], np.concatenate([parts["q"], parts["k"], parts["v"]]))
    assert np.array_equal(found["gate_up"], np.concatenate([parts["gate"], parts["up"]]))
    assert np.array_equal(found["o"], parts["o"])


def test_a_gpu_holds_the_same_weights_in_its_own_formats():
    """TQ1_0 becomes I2_S; what even that can't hold is F16."""
    model = small_model(layer_format="TQ1_0", embedding_format="Q8_0")
    weights, there = PackedWeights(model), on_gpu(model)
    pairs = [*zip(model.layers[0].sites, there.layers[0].sites, strict=True)]
    assert {site.format for _, site in pairs} == {"I2_S"}
    pairs.append((pairs[0][0], Site("q", 256, 256, "F16")))
    for site, other in pairs:
        np.testing.assert_allclose(
            unpacked(other, weights.matrix(0, other)), unpacked(site, weights.matrix(0, site)), rtol=1e-3
        )


def test_held_weights_are_made_once():
    model, source = small_model(), Counted()
    held = HeldWeights(source, model)
    held.make_room(range(3), embedding=True, head=True, room_bytes=None)
    site = model.layers[0].sites[0]
    assert held.matrix(0, site) is held.matrix(0, site)
    assert held.matrix(None, model.head) is held.matrix(None, model.embedding)
    assert held.norm(0, "o", 256) is held.norm(0, "o", 256)
    assert len(source.made) == 2


def fill(held, model, layers):
    return {layer: [held.matrix(layer, site) for site in model.layers[layer].sites] for layer in layers}


def test_held_weights_stay_while_there_is_room():
    model, source = small_model(layers=4), Counted()
    held = HeldWeights(source, model)
    room_bytes = layers_bytes(model.layers[:3])
    for layers, made in (
        (range(2), 2),
        (range(2, 3), 3),
        (range(2), 3),
        (range(3), 3),
        (range(1, 4), 4),
        (range(1), 5),
    ):
        held.make_room(layers, embedding=False, head=False, room_bytes=room_bytes)
        fill(held, model, layers)
        assert len(source.made) == made * len(model.layers[0].sites), layers


def test_layers_take_turns_where_memory_does_not_hold_all():
    """With as many of their own as fit, and with enough of them that none is still in the cache."""
    model = small_model(layers=5)
    layer_bytes, ends_bytes = weight_bytes(model.layers[0]), site_bytes(model.embedding) + model.norm_bytes
    held = HeldWeights(RandomWeights(), model)
    room_bytes = ends_bytes + 2 * layer_bytes + 1

    def make_room(room_bytes, least_bytes):
        return held.make_room(range(5), embedding=True, head=True, room_bytes=room_bytes, least_bytes=least_bytes)

    assert make_room(room_bytes, 2 * layer_bytes) == 3
    matrices = fill(held, model, range(5))
    assert [matrices[layer][0] is matrices[layer % 2][0] for layer in range(5)] == [True] * 5
    assert matrices[0][0] is not matrices[1][0]
    with pytest.raises(MemoryError, match=r"synthetic/bitnet: its weights on the CPU take .* and there is room for"):
        make_room(room_bytes, 2 * layer_bytes + 1)
    with pytest.raises(MemoryError):
        make_room(ends_bytes - 1, 0)
    assert make_room(ends_bytes + 5 * layer_bytes, 100 * layer_bytes) == 0


def test_layers_of_another_format_do_not_take_turns_with_bytes_that_are_none_of_theirs():
    model = small_model(layers=2)
    other = small_model(layer_format="F16").layers[0]
    held = HeldWeights(RandomWeights(), model)
    held.make_room(range(2), embedding=False, head=False, room_bytes=weight_bytes(model.layers[0]))
    for site in (*model.layers[0].sites, *other.sites):
        assert len(held.matrix(1, site)) == site_bytes(site)
