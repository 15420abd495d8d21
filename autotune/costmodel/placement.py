"""What each device multiplies with: its share of a model, in the formats and matrices that it holds."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from msgspec.structs import replace

from autotune.costmodel.roofline import Product, product_of
from autotune.model.fusion import fused
from autotune.model.sites import on_gpu
from autotune.records import Configuration, Layer, Model


def model_on(device: str, model: Model) -> Model:
    """A model as a device holds it."""
    return model if device == "cpu" else on_gpu(model)


def products_on(device: str, layer: Layer) -> tuple[Product, ...]:
    """The products of a layer that a device holds, in order; a GPU takes those of the same input at once."""
    return tuple(product_of(site) for site in (layer.sites if device == "cpu" else fused(layer)))


class Part(NamedTuple):
    """What a configuration puts on one device.

    Attributes:
        device: The device.
        model: Its layers alone, as it holds them.
        products: Those of the layers, each with how often it occurs.
        head: The head's, if it is here.
    """

    device: str
    model: Model
    products: Counter[Product]
    head: Product | None


def parts(model: Model, configuration: Configuration) -> tuple[Part, ...]:
    """What each device that a configuration uses holds, in the order data flows; first what comes first."""
    found, start = [], 0
    for device in dict.fromkeys([*configuration.device_layers, configuration.head_device]):
        held = model_on(device, model)
        end = start + configuration.device_layers.get(device, 0)
        layers = held.layers[start:end]
        products = Counter(product for layer in layers for product in products_on(device, layer))
        head = product_of(held.head) if device == configuration.head_device else None
        found.append(Part(device, replace(held, layers=layers), products, head))
        start = end
    return tuple(found)
