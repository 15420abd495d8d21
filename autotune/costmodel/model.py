"""The cost model of one host: from a campaign's points to the time of any step on its devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from autotune.costmodel.bottleneck import bound_by
from autotune.costmodel.caveats import caveats
from autotune.costmodel.device import DeviceModel, kinds_of
from autotune.costmodel.passes import Passes
from autotune.costmodel.points import timed_devices
from autotune.costmodel.roofline import Form
from autotune.costmodel.steps import StepCosts
from autotune.records import Campaign, Configuration, Model, Workload

Floats = NDArray[np.float64]


class CostModel:
    """Predicts decode steps and prefills on the CPU and on the GPUs that were timed.

    Args:
        campaign: What was measured.
        forms: The roofline's form per timed device, ``"cpu"`` and the first of each kind of GPU.

    Attributes:
        devices: ``"cpu"``, then the GPUs.
        models: The model of each device; identical GPUs share one.

    Raises:
        BenchmarkError: The campaign lacks the ceilings of a device.
    """

    def __init__(self, campaign: Campaign, forms: Mapping[str, Form]) -> None:
        timed = timed_devices(campaign)
        fitted = {device: DeviceModel(campaign, forms[device], device) for device in dict.fromkeys(timed.values())}
        self.models = {device: fitted[representative] for device, representative in timed.items()}
        self.devices = tuple(self.models)

    def steps(
        self, model: Model, workload: Workload, threads: Sequence[int], batches: Sequence[int], chunks: Sequence[int]
    ) -> StepCosts:
        """The table that the search ranks.

        Args:
            model: The model.
            workload: Its prompt and output lengths.
            threads: CPU thread counts, ascending.
            batches: Batch sizes, ascending.
            chunks: Prefill chunks, ascending.

        Raises:
            BenchmarkError: A site can't be predicted on a device.
        """
        counts, passes = np.array(threads), Passes(workload, batches, chunks)
        layer_kinds, kinds = kinds_of(model)
        found = {
            held.device: held.steps(model, kinds, passes, counts if held.device == "cpu" else np.ones(1, np.int64))
            for held in dict.fromkeys(self.models.values())
        }
        rows = [found[held.device] for held in self.models.values()]
        return StepCosts(
            devices=self.devices,
            layer_kinds=layer_kinds,
            threads=counts,
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

    def bound_by(self, model: Model, workload: Workload, configuration: Configuration) -> str:
        """What limits a configuration's decode step, in words, from where its time goes and the devices' ceilings."""
        return bound_by(self.models, model, workload, configuration)

    def caveats(self, model: Model, workload: Workload, configuration: Configuration) -> tuple[str, ...]:
        """Where a configuration lies outside the measured range, in words; empty where all was interpolated."""
        return caveats(self.models, model, workload, configuration)


def _stack(rows: Sequence[Floats | np.float64]) -> Floats:
    """The devices' rows, each spread over the CPU's thread counts: the first has them all."""
    return np.stack([np.broadcast_to(row, rows[0].shape) for row in rows])
