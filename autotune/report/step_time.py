"""Where the chosen configuration's decode step spends its time: layers, head and handing over."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from autotune.costmodel.device import DeviceModel
from autotune.costmodel.model import CostModel
from autotune.costmodel.placement import model_on
from autotune.costmodel.roofline import product_of
from autotune.model.fusion import fused
from autotune.records import Configuration, Layer, Result, Site, median, part_of, pooled

FAMILIES = {
    **dict.fromkeys(("q", "k", "v", "qkv"), "q, k, v"),
    "o": "o",
    **dict.fromkeys(("gate", "up", "gate_up"), "gate, up"),
    "down": "down",
}
"""What sites are drawn as: those of the same input together, as a GPU multiplies them."""
ATTENTION, SMALL, HEAD, HANDOVER = "attention", "norms, gate, quantisation", "head", "handing over"
KINDS = (*dict.fromkeys(FAMILIES.values()), ATTENTION, SMALL, HEAD, HANDOVER)


class Piece(NamedTuple):
    """A share of a step.

    Attributes:
        name: The site's, or what else it is.
        kind: One of ``KINDS``.
        time_s: Seconds, corrected by what was run.
    """

    name: str
    kind: str
    time_s: float


class LayerGroup(NamedTuple):
    """Layers of a device that are alike.

    Attributes:
        device: Where they are.
        numbers: Which they are, from 1, ascending.
        pieces: Of a single one.
    """

    device: str
    numbers: list[int]
    pieces: tuple[Piece, ...]

    @property
    def layer_s(self) -> float:
        """Seconds of one."""
        return sum(piece.time_s for piece in self.pieces)


class DeviceTime(NamedTuple):
    """A device's share of a step.

    Attributes:
        device: The device.
        pieces: Of all its layers together, its head, and handing over to it and back; by ``KINDS``.
        measured_s: Median of the runs; None: it was not run.
    """

    device: str
    pieces: tuple[Piece, ...]
    measured_s: float | None

    @property
    def time_s(self) -> float:
        """Seconds, predicted."""
        return sum(piece.time_s for piece in self.pieces)


class StepTime(NamedTuple):
    """A decode step, taken apart.

    Attributes:
        groups: Its layers.
        devices: In the order data flows.
        measured_s: Median of the whole step; what its devices leave of it is outside the kernels. None: not run.
    """

    groups: tuple[LayerGroup, ...]
    devices: tuple[DeviceTime, ...]
    measured_s: float | None

    @property
    def time_s(self) -> float:
        """Seconds, predicted."""
        return sum(device.time_s for device in self.devices)


def step_time(result: Result, cost_model: CostModel) -> StepTime:
    """Take the chosen configuration's decode step apart."""
    chosen = result.decision.chosen.configuration
    part = part_of(chosen, result.workload, "decode")
    corrected, summed = (cost_model.predict(result.model, part, corrected=each) for each in (True, False))
    runs = [] if result.confirmation is None else [run for run in pooled(result.confirmation.runs) if run.part == part]
    groups: list[LayerGroup] = []
    devices: list[DeviceTime] = []
    start = 0
    for device, total_s in corrected.items():
        held, factor = cost_model.models[device], total_s / summed[device]
        count = chosen.device_layers.get(device, 0)
        own = _groups(result, device, held, range(start, start + count), factor)
        start += count
        totals = dict.fromkeys(KINDS, 0.0)
        for group in own:
            for piece in group.pieces:
                totals[piece.kind] += piece.time_s * len(group.numbers)
        if device == chosen.head_device:
            totals[HEAD] = factor * _product_s(held, model_on(device, result.model).head, chosen)
        if device != "cpu":
            # What the device takes beyond its layers and head is being entered and left.
            totals[HANDOVER] = max(0.0, total_s - sum(totals.values()))
        pieces = tuple(Piece(kind, kind, time_s) for kind, time_s in totals.items() if time_s > 0)
        found = [sample for run in runs for sample in run.device_s.get(device, ())]
        groups += own
        devices.append(DeviceTime(device, pieces, median(found) if found else None))
    return StepTime(tuple(groups), tuple(devices), runs[0].median_s if runs else None)


def _groups(result: Result, device: str, held: DeviceModel, layers: range, factor: float) -> list[LayerGroup]:
    chosen, model = result.decision.chosen.configuration, model_on(device, result.model)
    alike: dict[Layer, list[int]] = {}
    for index in layers:
        alike.setdefault(model.layers[index], []).append(index + 1)
    tokens, threads = np.array([chosen.batch_size], np.float64), _threads(held, chosen)
    attention_s = float(held.attention.decode_s(tokens, result.workload.decode_context, threads)[0, 0])
    small_s = float(held.small_ops.time_s(tokens, threads)[0, 0])
    groups = []
    for layer, numbers in alike.items():
        sites = layer.sites if device == "cpu" else fused(layer)
        products = [(site.name, FAMILIES[site.name], _product_s(held, site, chosen)) for site in sites]
        both = (ATTENTION, ATTENTION, attention_s), (SMALL, SMALL, small_s)
        pieces = tuple(Piece(name, kind, factor * time_s) for name, kind, time_s in (*products, *both))
        groups.append(LayerGroup(device, numbers, pieces))
    return groups


def _product_s(held: DeviceModel, site: Site, chosen: Configuration) -> float:
    tokens = np.array([chosen.batch_size], np.float64)
    return float(held.products.time_s(product_of(site), tokens, _threads(held, chosen))[0, 0])


def _threads(held: DeviceModel, chosen: Configuration) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array([chosen.decode_threads if held.device == "cpu" else 1])
