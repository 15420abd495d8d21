"""The shapes that are timed are those of the published models."""

from __future__ import annotations

import pytest

from autotune.model.analyse import analyse
from autotune.model.source import PRESETS
from ternary_kernels.bench.shapes import MODELS, Shape


def test_there_is_an_entry_for_every_preset():
    assert set(MODELS) == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_models_shapes_are_what_its_config_gives(name):
    model, shapes = analyse(name, machine="x86_64"), MODELS[name]
    ours = {site: (shape.n_out, shape.k_in) for shape in shapes.shapes for site in shape.sites}
    assert shapes.layers == len(model.layers)
    for layer in model.layers:
        assert ours == {site.name: (site.n_out, site.k_in) for site in layer.sites}
    assert (shapes.head.n_out, shapes.head.k_in) == (model.head.n_out, model.head.k_in)


def test_sites_of_one_shape_are_timed_once():
    for shapes in MODELS.values():
        sizes = [(shape.n_out, shape.k_in) for shape in shapes.shapes]
        assert len(sizes) == len(set(sizes))


def test_a_shape_is_named_after_its_sites_and_size():
    assert str(Shape(("q", "o"), 2560, 2560)) == "q/o 2560x2560"
    assert str(Shape((), 10, 20)) == "10x20"
