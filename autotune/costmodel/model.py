"""The cost model of one host: from a campaign's points, and from runs, to the time of any step on its devices."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from autotune.costmodel.bottleneck import bound_by
from autotune.costmodel.caveats import caveats
from autotune.costmodel.correction import Correction, corrections
from autotune.costmodel.device import DeviceModel
from autotune.costmodel.points import timed_devices
from autotune.costmodel.roofline import Form
from autotune.costmodel.steps import StepCosts
from autotune.costmodel.uncorrected import Uncorrected
from autotune.records import Campaign, Configuration, CorrectionReport, Model, Part, PartRun, Phase, Workload, pooled

Floats = NDArray[np.float64]


class CostModel:
    """Predicts decode steps and prefills on the CPU and on the GPUs that were timed.

    Args:
        campaign: What was measured.
        forms: The roofline's form per timed device, ``"cpu"`` and the first of each kind of GPU.
        runs: Of whole configurations; they correct the predictions.
        model: Which model was run; needed if there are runs.

    Attributes:
        devices: ``"cpu"``, then the GPUs.
        models: The model of each device; identical GPUs share one.

    Raises:
        BenchmarkError: The campaign lacks the ceilings of a device.
        ValueError: As for :meth:`corrected_by`.
    """

    def __init__(
        self, campaign: Campaign, forms: Mapping[str, Form], runs: Sequence[PartRun] = (), model: Model | None = None
    ) -> None:
        timed = timed_devices(campaign)
        fitted = {device: DeviceModel(campaign, forms[device], device) for device in dict.fromkeys(timed.values())}
        self.models = {device: fitted[representative] for device, representative in timed.items()}
        self.devices = tuple(self.models)
        self._uncorrected = Uncorrected(self.models)
        self._corrections = corrections((), self._measured_as)
        if runs:
            if model is None:
                raise ValueError(f"expected the model that was run beside its {len(runs)} runs, got none")
            self._corrections = self._learn(runs, model)

    def corrected_by(self, runs: Sequence[PartRun], model: Model) -> CostModel:
        """The same cost model corrected by these runs, and by no others; in milliseconds.

        What they tell is about the devices and the runtime, so it counts for other models and workloads as well.

        Args:
            runs: Of parts of ``model``; those of the same part are pooled.
            model: The model that was run.

        Raises:
            ValueError: A part isn't of this model, or uses a device that was not timed.
            BenchmarkError: A site can't be predicted on a device.
        """
        corrected = copy.copy(self)
        corrected._corrections = self._learn(runs, model)
        return corrected

    def steps(
        self,
        model: Model,
        workload: Workload,
        threads: Sequence[int],
        batches: Sequence[int],
        chunks: Sequence[int],
        *,
        sigmas: float = 0.0,
    ) -> StepCosts:
        """The table that the search ranks.

        Args:
            model: The model.
            workload: Its prompt and output lengths.
            threads: CPU thread counts, ascending.
            batches: Batch sizes, ascending.
            chunks: Prefill chunks, ascending.
            sigmas: By how many standard deviations of what is known of the correction times are raised; negative:
                lowered, for what could be at best.

        Raises:
            BenchmarkError: A site can't be predicted on a device.
        """
        costs = self._uncorrected.steps(model, workload, threads, batches, chunks)
        decode = self._factors("decode", costs.threads, costs.batches, workload.decode_context, sigmas)
        prefill = self._factors("prefill", costs.threads, costs.chunks, workload.prompt_tokens, sigmas)
        one_token = self._factors("decode", costs.threads[:1], np.ones(1, np.int64), workload.decode_context, sigmas)
        # Crossings are a GPU's, which no thread count of the CPU's changes; the CPU's are 0.
        return replace(
            costs,
            decode_layer_s=costs.decode_layer_s * decode[:, None],
            decode_ends_s=costs.decode_ends_s * decode,
            prefill_layer_s=costs.prefill_layer_s * prefill[:, None],
            prefill_ends_s=costs.prefill_ends_s * prefill,
            decode_crossing_s=costs.decode_crossing_s * decode[:, 0],
            prefill_crossing_s=costs.prefill_crossing_s * prefill[:, 0],
            decode_token_s=costs.decode_token_s * one_token[:, 0, 0],
            prefill_token_s=costs.prefill_token_s * prefill[:, 0],
        )

    def predict(self, model: Model, part: Part, *, corrected: bool = True) -> dict[str, float]:
        """Seconds of a part on each device that has layers or the head; their sum is a decode step or prompt.

        Handing over counts for the GPU that is entered or left.

        Args:
            model: The model.
            part: What is run, and where.
            corrected: Whether by the runs; else as summed up from what was timed.

        Raises:
            ValueError: The part isn't of this model, or uses a device that was not timed.
            BenchmarkError: A site can't be predicted on a device.
        """
        found = dict(self._uncorrected.part_s(model, part))
        if corrected:
            for device in found:
                found[device] *= self._corrections[self._measured_as[device]].factor(part)
        return found

    def corrections(self) -> tuple[CorrectionReport, ...]:
        """What the runs told of each device and phase that was run; of identical GPUs together."""
        return tuple(report for found in self._corrections.values() for report in found.reports())

    def bound_by(self, model: Model, workload: Workload, configuration: Configuration) -> str:
        """What limits a configuration's decode step, in words, from where its time goes and the devices' ceilings."""
        return bound_by(self.models, model, workload, configuration)

    def caveats(self, model: Model, workload: Workload, configuration: Configuration) -> tuple[str, ...]:
        """Where a configuration lies outside the measured range, in words; empty where all was interpolated."""
        return caveats(self.models, model, workload, configuration)

    @property
    def _measured_as(self) -> dict[str, str]:
        """For each device the one whose points count for it."""
        return {device: held.device for device, held in self.models.items()}

    def _learn(self, runs: Sequence[PartRun], model: Model) -> dict[str, Correction]:
        predicted = [(run, self._uncorrected.part_s(model, run.part)) for run in pooled(runs)]
        return corrections(predicted, self._measured_as)

    def _factors(
        self, phase: Phase, threads: NDArray[np.int64], sizes: NDArray[np.int64], context: int, sigmas: float
    ) -> Floats:
        """What to multiply times by, shape (D, T, X); 1 where nothing was run, unless they are to be raised."""
        found = {}
        for device, correction in self._corrections.items():
            mean, sd = correction.over(phase, threads if device == "cpu" else np.ones(1, np.int64), sizes, context)
            found[device] = np.broadcast_to(np.exp(mean + sigmas * sd), (len(threads), len(sizes)))
        return np.stack([found[representative] for representative in self._measured_as.values()])
