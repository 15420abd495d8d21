"""Rooflines: what each device's ceilings allow, and how near the sites' products come to them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from msgspec.structs import replace

from autotune.costmodel.device import DeviceModel
from autotune.costmodel.model import CostModel
from autotune.costmodel.placement import model_on
from autotune.costmodel.points import fastest
from autotune.costmodel.roofline import Product, product_of
from autotune.model.fusion import fused
from autotune.records import Phase, Result

_NAMES = {"qkv": "q, k, v", "gate_up": "gate, up"}
"""Matrices that a GPU takes at once, by the sites that they consist of."""


class Ceiling(NamedTuple):
    """What a device can do at most.

    Attributes:
        threads: CPU threads; 1 on a GPU.
        read_bytes_per_s: Streaming reads (on a GPU a copy, whose bytes count when read and when written).
        operations_per_s: Multiplications and additions.
        timed: Whether both were timed on just as many threads; else they lie between those that were.
    """

    threads: int
    read_bytes_per_s: float
    operations_per_s: float
    timed: bool


class RooflinePoint(NamedTuple):
    """A product at the size that one phase has.

    Attributes:
        sites: Names of the sites that are such products.
        product: Format and shape.
        phase: Decode multiplies with the batch, prefill with the chunk.
        tokens: So many.
        intensity: Operations per byte moved.
        operations_per_s: As attained.
        timed: Whether it was timed at just this size and thread count; else the cost model's.
    """

    sites: str
    product: Product
    phase: Phase
    tokens: int
    intensity: float
    operations_per_s: float
    timed: bool


class Roofline(NamedTuple):
    """One kind of device.

    Attributes:
        devices: Those that the measurements count for.
        ceilings: By ascending threads: one thread, and as many as the chosen configuration decodes and prefills with;
            all where it leaves the CPU nothing to do.
        points: The sites' products on as many threads.
    """

    devices: tuple[str, ...]
    ceilings: tuple[Ceiling, ...]
    points: tuple[RooflinePoint, ...]


def rooflines(result: Result, cost_model: CostModel) -> tuple[Roofline, ...]:
    """One per kind of device that was timed, the CPU's first."""
    kinds: dict[DeviceModel, list[str]] = {}
    for device, held in cost_model.models.items():
        kinds.setdefault(held, []).append(device)
    return tuple(_roofline(result, held, tuple(devices)) for held, devices in kinds.items())


def _roofline(result: Result, held: DeviceModel, devices: tuple[str, ...]) -> Roofline:
    chosen, on_cpu = result.decision.chosen.configuration, held.device == "cpu"
    works = any(device in (*chosen.device_layers, chosen.head_device) for device in devices)
    if on_cpu and not works:
        # Its threads are of no consequence then: what all could do tells more than what one could.
        every = max(held.ceilings.read_bytes_per_s)
        chosen = replace(chosen, decode_threads=every, prefill_threads=every)
    sizes: tuple[tuple[Phase, int, int], ...] = (
        ("decode", chosen.batch_size, chosen.decode_threads if on_cpu else 1),
        ("prefill", min(chosen.prefill_chunk, result.workload.prompt_tokens), chosen.prefill_threads if on_cpu else 1),
    )
    threads = np.array(sorted({1, *(count for _, _, count in sizes)}))
    rates = (1 / held.ceilings.byte_s(threads), 1 / held.ceilings.operation_s(threads))
    known = held.ceilings.read_bytes_per_s.keys() & held.ceilings.operations_per_s.keys()
    ceilings = tuple(
        Ceiling(count, read, operations, timed=count in known)
        for count, read, operations in zip(*(found.tolist() for found in (threads, *rates)), strict=True)
    )
    timed = {
        (Product(point.format, point.n_out, point.k_in), point.m, point.threads)
        for point in fastest(result.campaign, "matmul", held.device)
    }
    points = []
    for phase, size, count in sizes:
        tokens = np.array([size], np.float64)
        for product, sites in _products(result, held.device, phase).items():
            time_s = float(held.products.time_s(product, tokens, np.array([count]))[0, 0])
            operations = float(product.operations(tokens)[0])
            points.append(
                RooflinePoint(
                    sites=", ".join(sites),
                    product=product,
                    phase=phase,
                    tokens=size,
                    intensity=operations / float(product.moved_bytes(tokens)[0]),
                    operations_per_s=operations / time_s,
                    timed=(product, size, count) in timed,
                )
            )
    return Roofline(devices, ceilings, tuple(points))


def _products(result: Result, device: str, phase: Phase) -> dict[Product, dict[str, None]]:
    """The distinct products with their sites' names; of a prompt only the last token goes through the head."""
    held = model_on(device, result.model)
    found: dict[Product, dict[str, None]] = {}
    for layer in dict.fromkeys(held.layers):
        for site in layer.sites if device == "cpu" else fused(layer):
            found.setdefault(product_of(site), {})[_NAMES.get(site.name, site.name)] = None
    if phase == "decode":
        found.setdefault(product_of(held.head), {})[held.head.name] = None
    return found
