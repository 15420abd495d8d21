"""What was run end to end: parts of configurations with their raw samples, and the search that ran them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from autotune.records.base import Record
from autotune.records.configuration import Configuration, Workload
from autotune.records.measurement import FailureKind, median, relative_median_interval

Phase = Literal["decode", "prefill"]
TrialState = Literal["complete", "pruned", "infeasible", "failed"]


class Part(Record, frozen=True):
    """One half of a configuration's work: decode steps of its batch, or the prefill of one prompt.

    Configurations that differ in the other half share it, so it is run once for all of them.
    """

    phase: Phase
    device_layers: tuple[tuple[str, int], ...]
    """Layers per device in the order data flows; devices with none are left out."""
    head_device: str
    threads: int
    """CPU threads."""
    size: int
    """Of decode the sequences that a step advances, of prefill the prompt tokens processed at once."""
    context: int
    """Of decode the tokens in each sequence's KV cache before the step, of prefill the prompt's tokens."""


class PartRun(Record, frozen=True, tag="run"):
    """Raw samples of a part."""

    part: Part
    samples_s: tuple[float, ...]
    """Seconds per decode step, or per whole prompt; one entry per sample, in the order taken."""
    device_s: dict[str, tuple[float, ...]]
    """Of these, the seconds in each device's layers and head, whatever is between its kernels included. Handing over
    counts for the GPU that is entered or left."""

    @property
    def median_s(self) -> float:
        """Median seconds per step or prompt."""
        return median(self.samples_s)

    @property
    def relative_interval(self) -> float | None:
        """Half the width of the median's 95 % interval, relative to the median; None below 6 samples."""
        return relative_median_interval(self.samples_s)


class RunFailure(Record, frozen=True, tag="run failure"):
    """A part that could not be run, and why."""

    part: Part
    kind: FailureKind
    message: str


class Measured(Record, frozen=True):
    """A configuration's figures under a workload, from its parts' medians."""

    tokens_per_s: float
    tpot_s: float
    ttft_s: float
    relative_interval: float | None
    """Half the width of a 95 % interval of what the workload is after, relative; None where samples are too few."""


class Trial(Record, frozen=True):
    """One configuration that the search took up."""

    configuration: Configuration
    origin: str
    """Why it was tried, in words: ``predicted best``, ``default``, ``all threads``, ``could win``."""
    state: TrialState
    """complete: it was run. pruned: it was run until it could not win any more. infeasible: the memory plan or a limit
    speaks against it. failed: the engine could not run it."""
    reason: str | None = None
    """Why it isn't complete, in words."""
    measured: Measured | None = None
    """None where a part of it was not run."""


class CorrectionReport(Record, frozen=True):
    """What runs told about the cost model's predictions of one device's share of one phase."""

    device: str
    phase: Phase
    runs: int
    factor: float
    """Geometric mean of measured over predicted time."""
    median_error_before: float
    """Median over the runs of the predictions' relative error, absolute value."""
    median_error_after: float | None
    """The same of corrected predictions, each run predicted from the others; None where there is no other."""


class Confirmation(Record, frozen=True):
    """The measured search: what was run, why it ended, and how the winner did."""

    engine: str
    budget_s: float
    spent_s: float
    stopped: Literal["decided", "budget", "failed"]
    """decided: nothing that was not run could win beyond the noise; failed: the engine could not run the default or
    anything else, so the predicted choice stands."""
    workload: Workload
    """What was searched for; a result for another one keeps the runs, which correct its predictions as well."""
    trials: tuple[Trial, ...]
    runs: tuple[PartRun, ...]
    """The evidence, that of earlier searches for this model and host included."""
    failures: tuple[RunFailure, ...]
    corrections: tuple[CorrectionReport, ...]
    chosen: Measured | None
    """None where the choice doesn't follow from the runs: nothing that was run could be chosen, or it was predicted for
    another workload."""
    default: Measured | None
    """None where the default could not be run."""
    runner_up: Configuration | None
    """The best of the rest that was run to the end; None where there is none."""
    overhead_share: float | None
    """Share of the chosen configuration's decode step that is spent outside the kernels; None: unknown."""
    memory_used: dict[str, int]
    """Bytes per device that the engine's process held at its peak."""
    reused_layers: int
    """Layers whose weights are another layer's, because the memory doesn't hold all; 0: as in a real model."""
    storage: str | None = None
    """Where the study was kept (``--storage``), without a password; None: nowhere."""


def part_of(configuration: Configuration, workload: Workload, phase: Phase) -> Part:
    """A configuration's half of a phase."""
    decode = phase == "decode"
    return Part(
        phase=phase,
        device_layers=tuple(configuration.device_layers.items()),
        head_device=configuration.head_device,
        threads=configuration.decode_threads if decode else configuration.prefill_threads,
        size=configuration.batch_size if decode else configuration.prefill_chunk,
        context=workload.decode_context if decode else workload.prompt_tokens,
    )


def pooled(runs: Iterable[PartRun]) -> Iterator[PartRun]:
    """One run for each part, with the samples of all."""
    of_part: dict[Part, list[PartRun]] = {}
    for run in runs:
        of_part.setdefault(run.part, []).append(run)
    for part, found in of_part.items():
        yield PartRun(
            part,
            samples_s=tuple(sample for run in found for sample in run.samples_s),
            device_s={
                device: tuple(sample for run in found for sample in run.device_s.get(device, ()))
                for device in dict.fromkeys(device for run in found for device in run.device_s)
            },
        )
