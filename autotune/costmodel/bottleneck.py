"""What limits a decode step, in words, from where its time goes and the ceilings of its devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace

from autotune.costmodel.device import DeviceModel
from autotune.costmodel.passes import Passes
from autotune.costmodel.placement import Part, parts
from autotune.costmodel.roofline import Product
from autotune.model.work import decode_work
from autotune.records import Configuration, Model, Workload

_BOUND_SHARE = 0.6
"""A step whose roofline memory (or compute) time is at least this share of its time is bound by it."""


class _Share(NamedTuple):
    """One device's share of a decode step.

    Attributes:
        device: The device.
        spent_s: Where its time goes, by name.
        verdict: What limits it.
        uses: How near it comes to its ceilings.
    """

    device: str
    spent_s: dict[str, float]
    verdict: str
    uses: str


def bound_by(models: Mapping[str, DeviceModel], model: Model, workload: Workload, configuration: Configuration) -> str:
    """What limits a configuration's decode step: the limit of the device that takes longest, then the evidence.

    Args:
        models: Of all devices.
        model: What is run.
        workload: Gives the context.
        configuration: Where the model's layers and head are, and how many sequences are decoded.
    """
    shares = [_share(part, models[part.device], workload, configuration) for part in parts(model, configuration)]
    if [share.device for share in shares] == ["cpu"]:
        (share,) = shares
        total_s = sum(share.spent_s.values())
        return f"{share.verdict}: a decode step uses {share.uses}; time goes to {_places(share.spent_s, total_s)}"
    spent_s = {share.device: sum(share.spent_s.values()) for share in shares}
    handing_over_s = handovers_s(models, model, workload, configuration)
    total_s = sum(spent_s.values()) + handing_over_s
    slowest = max(shares, key=lambda share: spent_s[share.device])
    verdict = f"{slowest.verdict}, on {slowest.device}"
    if handing_over_s > spent_s[slowest.device]:
        verdict = "handing activations over between devices"
    alike: dict[str, list[str]] = {}
    for share in shares:
        text = f"{share.uses}, time there goes to {_places(share.spent_s, spent_s[share.device])}"
        alike.setdefault(text, []).append(share.device)
    uses = "; ".join(
        f"{' and '.join(devices)} {'uses' if len(devices) == 1 else 'each use'} {text}"
        for text, devices in alike.items()
    )
    spent_s["handing over"] = handing_over_s
    return f"{verdict}: a decode step's time goes to {_places(spent_s, total_s)}; {uses}"


def _share(part: Part, held: DeviceModel, workload: Workload, configuration: Configuration) -> _Share:
    on_cpu = part.device == "cpu"
    threads = np.array([configuration.decode_threads if on_cpu else 1])
    batch, context, layers = configuration.batch_size, workload.decode_context, len(part.model.layers)
    tokens = np.array([batch], np.float64)

    def product_s(product: Product) -> float:
        return float(held.products.time_s(product, tokens, threads)[0, 0])

    spent_s = {}
    if layers:
        spent_s["the layers' products"] = sum(count * product_s(product) for product, count in part.products.items())
    if part.head is not None:
        spent_s["the head"] = product_s(part.head)
    if layers:
        spent_s["attention"] = float(held.attention.decode_s(tokens, context, threads)[0, 0]) * layers
        spent_s["norms, gate and quantisation"] = float(held.small_ops.time_s(tokens, threads)[0, 0]) * layers
    total_s = sum(spent_s.values())
    work = decode_work(part.model, batch, context)
    moved_bytes, operations = work.moved_bytes, work.operations
    if part.head is None:
        head = decode_work(replace(part.model, layers=()), batch, context)
        moved_bytes, operations = moved_bytes - head.moved_bytes, operations - head.operations
    byte_s, operation_s = float(held.ceilings.byte_s(threads)[0]), float(held.ceilings.operation_s(threads)[0])
    memory, compute = moved_bytes * byte_s / total_s, operations * operation_s / total_s
    if memory >= _BOUND_SHARE and memory >= compute:
        verdict = "memory bandwidth"
    elif compute >= _BOUND_SHARE:
        verdict = "arithmetic"
    elif held.form == "sum" and memory + compute >= _BOUND_SHARE:
        verdict = "memory bandwidth and arithmetic together"
    else:
        verdict = "what the kernels do besides, short of both memory and arithmetic"
    uses = (
        f"{memory:.0%} of the measured {'read' if on_cpu else 'copy'} bandwidth ({1e-9 / byte_s:.1f} GB/s) and "
        f"{compute:.0%} of the measured arithmetic ({1e-9 / operation_s:.0f} GOP/s)"
    )
    return _Share(part.device, spent_s, verdict, uses)


def _places(spent_s: Mapping[str, float], total_s: float) -> str:
    """Shares of the total, largest first."""
    return ", ".join(
        f"{name} {part / total_s:.0%}" for name, part in sorted(spent_s.items(), key=lambda item: -item[1])
    )


def handovers_s(
    models: Mapping[str, DeviceModel], model: Model, workload: Workload, configuration: Configuration
) -> float:
    """What a decode step hands over on its way from the CPU, which has the tokens, through each GPU and back."""
    passes = Passes(workload, [configuration.batch_size], [configuration.prefill_chunk])
    gpus = [device for device in configuration.device_layers if device != "cpu"]
    head_on_cpu = configuration.head_device == "cpu"
    total_s = 0.0
    for index, device in enumerate(gpus):
        costs = models[device].handovers.costs(model.hidden_size, passes)
        # Tokens alone pass where the CPU does nothing before or after: neither embedding nor layers, nor the head.
        enters_with_tokens = index == 0 and not head_on_cpu and "cpu" not in configuration.device_layers
        leaves_with_tokens = index == len(gpus) - 1 and not head_on_cpu
        for tokens_alone in (enters_with_tokens, leaves_with_tokens):
            total_s += float(costs.decode_token_s if tokens_alone else costs.decode_crossing_s[0])
    return total_s
