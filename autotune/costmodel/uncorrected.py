"""What the devices' models predict by themselves: the sums of separately timed operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from autotune.costmodel.device import DeviceModel, kinds_of
from autotune.costmodel.handovers import HandoverCosts
from autotune.costmodel.passes import Passes
from autotune.costmodel.steps import StepCosts
from autotune.records import Model, Part, Workload

Floats = NDArray[np.float64]


class Uncorrected:
    """Step tables and parts' times on all devices, kept once calculated: corrections change, these don't.

    Args:
        models: The model of each device, ``"cpu"`` first; identical GPUs share one.
    """

    def __init__(self, models: Mapping[str, DeviceModel]) -> None:
        self._models = models
        self._steps: dict[object, StepCosts] = {}
        self._parts: dict[tuple[Model, Part], dict[str, float]] = {}

    def steps(
        self, model: Model, workload: Workload, threads: Sequence[int], batches: Sequence[int], chunks: Sequence[int]
    ) -> StepCosts:
        """See :meth:`autotune.costmodel.model.CostModel.steps`."""
        key = model, workload.prompt_tokens, workload.decode_context, tuple(threads), tuple(batches), tuple(chunks)
        if key not in self._steps:
            self._steps[key] = self._find_steps(model, np.array(threads), Passes(workload, batches, chunks))
        return self._steps[key]

    def part_s(self, model: Model, part: Part) -> dict[str, float]:
        """Seconds of a part on each device that has layers or the head; handing over counts for the GPU.

        Raises:
            ValueError: The part isn't of this model, or uses a device that was not timed.
            BenchmarkError: A site can't be predicted on a device.
        """
        if (model, part) not in self._parts:
            self._parts[model, part] = self._find_part_s(model, part)
        return self._parts[model, part]

    def _find_steps(self, model: Model, threads: NDArray[np.int64], passes: Passes) -> StepCosts:
        layer_kinds, kinds = kinds_of(model)
        found = {
            held.device: held.steps(model, kinds, passes, threads if held.device == "cpu" else np.ones(1, np.int64))
            for held in dict.fromkeys(self._models.values())
        }
        rows = [found[held.device] for held in self._models.values()]
        return StepCosts(
            devices=tuple(self._models),
            layer_kinds=layer_kinds,
            threads=threads,
            batches=passes.batches,
            chunks=passes.chunks,
            decode_layer_s=_stack([row.decode_layer_s for row in rows]),
            decode_ends_s=_stack([row.decode_ends_s for row in rows]),
            prefill_layer_s=_stack([row.prefill_layer_s for row in rows]),
            prefill_ends_s=_stack([row.prefill_ends_s for row in rows]),
            decode_crossing_s=_stack([row.handovers.decode_crossing_s for row in rows]),
            prefill_crossing_s=_stack([row.handovers.prefill_crossing_s for row in rows]),
            decode_token_s=_stack([row.handovers.decode_token_s for row in rows]),
            prefill_token_s=_stack([row.handovers.prefill_token_s for row in rows]),
        )

    def _find_part_s(self, model: Model, part: Part) -> dict[str, float]:
        layers = dict(part.device_layers)
        if sum(layers.values()) != len(model.layers):
            raise ValueError(
                f"expected a part of the {len(model.layers)} layers of {model.name}, got one of {sum(layers.values())}"
            )
        layer_kinds, kinds = kinds_of(model)
        passes = _passes(part)
        found, start = {}, 0
        for device in dict.fromkeys([*layers, part.head_device]):
            if device not in self._models:
                raise ValueError(
                    f"expected a part on devices that were timed ({', '.join(self._models)}), got {device}"
                )
            steps = self._models[device].steps(
                model, kinds, passes, np.array([part.threads if device == "cpu" else 1], np.int64)
            )
            decode = part.phase == "decode"
            layer_s, ends_s = (
                (steps.decode_layer_s, steps.decode_ends_s) if decode else (steps.prefill_layer_s, steps.prefill_ends_s)
            )
            end = start + layers.get(device, 0)
            found[device] = float(layer_s[layer_kinds[start:end], 0, 0].sum())
            start = end
            if device == part.head_device:
                found[device] += float(ends_s[0, 0])
            if device != "cpu":
                found[device] += _handover_s(steps.handovers, part, device)
        return found


def _passes(part: Part) -> Passes:
    """Those of a part alone: there are none of the other phase."""
    workload = Workload(
        name="offline",
        prompt_tokens=part.context,
        output_tokens=0,
        context_tokens=part.context,
        max_batch=part.size,
        max_tpot_s=None,
        max_ttft_s=None,
    )
    return Passes(workload, *(([part.size], []) if part.phase == "decode" else ([], [part.size])))


def _handover_s(costs: HandoverCosts, part: Part, gpu: str) -> float:
    """Entering and leaving a GPU in one part.

    Token ids enter where the embedding is, and what leaves after the last layer of a prompt, or after the head, is of
    a single token's size; all else are activations. The search adds up the same.
    """
    devices = [device for device, _ in part.device_layers]
    ids_enter = devices[:1] == [gpu] and part.head_device != "cpu"
    if part.phase == "decode":
        crossing_s = costs.decode_crossing_s[0]
        enter_s = costs.decode_token_s if ids_enter else crossing_s
        leave_s = costs.decode_token_s if gpu == part.head_device else crossing_s
    else:
        crossing_s = costs.prefill_crossing_s[0]
        enter_s = costs.prefill_token_s[0] if ids_enter else crossing_s
        leave_s = costs.decode_token_s if gpu == devices[-1] else crossing_s
    return float(enter_s + leave_s)


def _stack(rows: Sequence[Floats | np.float64]) -> Floats:
    """The devices' rows, each spread over the CPU's thread counts: the first has them all."""
    return np.stack([np.broadcast_to(row, rows[0].shape) for row in rows])
