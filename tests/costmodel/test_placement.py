"""What each device multiplies with."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from autotune.costmodel.placement import model_on, parts, products_on
from autotune.costmodel.roofline import Product, product_of
from autotune.model.fusion import fused
from autotune.records import Configuration, Layer, Site
from tests.builders import build_model

MODEL = build_model()


def configuration(layers, head):
    return Configuration(layers, head, decode_threads=1, prefill_threads=1, batch_size=1, prefill_chunk=32)


class TestFusion:
    def test_sites_of_the_same_input_are_one_with_their_rows_below_each_other(self):
        assert fused(MODEL.layers[0]) == (
            Site("qkv", 512, 256, "I2_S"),
            Site("o", 256, 256, "I2_S"),
            Site("gate_up", 1536, 256, "I2_S"),
            Site("down", 256, 768, "I2_S"),
        )

    @pytest.mark.parametrize("change", [{"format": "F16"}, {"k_in": 512}])
    def test_a_site_of_another_format_or_input_keeps_all_three_apart(self, change):
        sites = MODEL.layers[0].sites
        layer = Layer((sites[0], replace(sites[1], **change), *sites[2:]))
        assert fused(layer)[:3] == layer.sites[:3]
        assert [site.name for site in fused(layer)[3:]] == ["o", "gate_up", "down"]

    def test_a_layer_that_lacks_some_of_them_stays_as_it_is(self):
        layer = Layer((MODEL.layers[0].sites[0], MODEL.layers[0].sites[4]))
        assert fused(layer) == layer.sites

    def test_no_weight_is_lost(self):
        (layer, _) = MODEL.layers
        weights = [sum(site.n_out * site.k_in for site in sites) for sites in (layer.sites, fused(layer))]
        assert weights[0] == weights[1]


def test_a_gpu_holds_look_up_formats_repacked_and_fuses_them():
    layer = Layer(tuple(replace(site, format="TL2") for site in MODEL.layers[0].sites))
    held = model_on("cuda:1", replace(MODEL, layers=(layer, layer)))
    assert products_on("cuda:1", held.layers[0])[0] == Product("I2_S", 512, 256)
    assert products_on("cpu", layer)[0] == Product("TL2", 256, 256)


def test_layers_go_to_the_devices_in_the_order_data_flows():
    """The first to the CPU, whose layer differs from the GPU's; the head's device comes last where it has no layer."""
    other = Layer(MODEL.layers[0].sites[3:4])
    model = replace(MODEL, layers=(other, *MODEL.layers))
    cpu, gpu = parts(model, configuration({"cpu": 1, "cuda:0": 2}, "cuda:0"))
    assert (cpu.device, gpu.device) == ("cpu", "cuda:0")
    assert cpu.products == {product_of(other.sites[0]): 1}
    assert gpu.products[Product("I2_S", 1536, 256)] == 2
    assert (cpu.head, gpu.head) == (None, product_of(MODEL.head))
    gpu, cpu = parts(model, configuration({"cuda:0": 3}, "cpu"))
    assert (len(gpu.model.layers), len(cpu.model.layers)) == (3, 0)
    assert (gpu.head, cpu.head, cpu.products) == (None, product_of(MODEL.head), {})
