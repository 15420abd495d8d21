"""What comes out: the chosen configuration, what it is predicted to do, and the evidence for it."""

from __future__ import annotations

from typing import Literal

from autotune.records.base import Record
from autotune.records.configuration import Configuration, DeviceConfig, Workload
from autotune.records.host import Host, Tier, Versions
from autotune.records.measurement import Campaign
from autotune.records.model import MemoryUse, Model
from autotune.records.runs import Confirmation, Measured

Provenance = Literal["measured", "imported", "replayed"]
"""measured: on the host that it is for. imported: on another one of its kind. replayed: decided from a recording."""


class Figures(Record, frozen=True):
    """What a configuration does under a workload."""

    tokens_per_s: float
    """Output tokens per second over whole requests: prefill of every sequence included."""
    tpot_s: float
    """Time per output token of each sequence: one decode step of the whole batch."""
    ttft_s: float
    """Time to the first token of one sequence: its prefill."""
    memory: tuple[MemoryUse, ...]


class Candidate(Record, frozen=True):
    """A configuration with its predicted figures."""

    configuration: Configuration
    predicted: Figures


class SplitFigures(Record, frozen=True):
    """The best that can be done with so many layers on GPUs: one point of the curve over the split."""

    gpu_layers: int
    best: Configuration | None
    """None: no configuration with so many fits the memory and keeps the limits."""
    tokens_per_s: float | None
    tpot_s: float | None
    broken: Literal["memory", "limits"] | None
    """What keeps the best from being feasible; None: nothing does."""


class HeldOut(Record, frozen=True):
    """Prediction error on what a fit didn't see: relative, absolute value."""

    left_out: Literal["interior m", "site", "thread count"]
    predictions: int
    """How many points were predicted without having been seen; 0: there was nothing to leave out."""
    median: float | None
    p90: float | None
    worst: float | None


class CostModelReport(Record, frozen=True):
    """Which form the cost model took for a device and how well it predicts."""

    roofline: Literal["sum", "max", "waves"]
    """How memory and compute time combine, chosen by held-out error; waves: fitted, with the work cut into tiles that a
    GPU's multiprocessors take in waves."""
    read_bytes_per_s: dict[str, float]
    """Measured read bandwidth per thread count (JSON keys are strings)."""
    operations_per_s: dict[str, float]
    """Measured multiply and add operations per second, per thread count."""
    held_out: tuple[HeldOut, ...]
    device: str = "cpu"


class SiteKernels(Record, frozen=True):
    """Which kernel was fastest for a site, on the chosen configuration's threads."""

    format: str
    n_out: int
    k_in: int
    decode: dict[str, str]
    """Kernel by the tokens multiplied at once, those timed from 1 to the batch size (JSON keys are strings)."""
    prefill: dict[str, str]
    """The same up to the prefill chunk; empty for the head, through which only a prompt's last token goes."""
    device: str = "cpu"


class Study(Record, frozen=True):
    """What the Optuna study over the cost model found."""

    sampler: str
    seed: int
    trials: int
    feasible_trials: int
    best: Configuration | None
    gap: float | None
    """How far its best lies from the exact best: 0.01 is 1 % worse. None without a feasible trial."""


class SearchReport(Record, frozen=True):
    """How the configuration was chosen."""

    objective: Literal["tpot_s", "tokens_per_s"]
    points: int
    """Configurations in the space."""
    feasible: int
    """Those that fit memory and keep the workload's limits."""
    effective_max_tpot_s: float | None
    """The TPOT limit after relaxation; None: no limit."""
    ranking_time_s: float
    study: Study | None


class FormatCandidate(Record, frozen=True):
    """The best configuration of the model in a weight format that was compared and not chosen."""

    format: str
    candidate: Candidate | None
    """None: no configuration in this format fits the memory and keeps the limits."""


class Decision(Record, frozen=True):
    """What the search returns: the chosen configuration beside those it was compared with."""

    chosen: Candidate
    runner_up: Candidate | None
    default: Candidate | None
    """The fallback's figures; None where the fallback itself does not fit."""
    speedup_over_default: float | None
    """In the workload's own objective; None without a default."""
    bound_by: str
    """What limits the chosen configuration, in words."""
    reasons: tuple[str, ...]
    search: SearchReport
    other_formats: tuple[FormatCandidate, ...] = ()
    """The best in each other weight format, where the format was searched for as well (``--format auto``)."""
    split_curve: tuple[SplitFigures, ...] = ()
    """The best with 0, 1, ... and all layers on GPUs; empty on a host without a GPU that was timed."""


class Origin(Record, frozen=True):
    """Where an imported result was measured."""

    host_label: str
    """Its hostname: only a label."""
    hardware_class: str
    measured_at: str
    """UTC, ISO 8601."""
    versions: Versions | None = None
    """Its software; None: not known."""
    doubts: tuple[str, ...] = ()
    """What may keep its figures from holding on the host that the result is for now, a sentence each."""


class Check(Record, frozen=True):
    """A short run of a saved result's configuration: whether what was saved holds on this host, now."""

    checked_at: str
    """UTC, ISO 8601."""
    spent_s: float
    expected: Measured
    """As saved: measured, or predicted where nothing was run."""
    found: Measured
    tolerance: float
    """Relative: by how much more time counts as the same."""
    holds: bool
    prefill_ran: bool = True
    """Whether a prompt was run as well; False: there was no time, ``found`` has the expected TTFT, and TPOT counts."""


class Result(Record, frozen=True):
    """One document per host, model and workload; it holds its evidence, so any stage can be replayed from it."""

    device_config: DeviceConfig
    provenance: Provenance
    created_at: str
    """UTC, ISO 8601."""
    host: Host
    tier: Tier
    model: Model
    workload: Workload
    decision: Decision
    cost_model: CostModelReport
    """The CPU's."""
    campaign: Campaign
    tune_time_s: float
    warnings: tuple[str, ...] = ()
    kernels: tuple[SiteKernels, ...] = ()
    """The fastest kernel of each distinct site."""
    alternatives: tuple[Model, ...] = ()
    """The model in the other weight formats that were compared (``--format auto``)."""
    gpu_cost_models: tuple[CostModelReport, ...] = ()
    """One per kind of GPU that was timed."""
    confirmation: Confirmation | None = None
    """What was run; None: nothing was."""
    smaller: tuple[Candidate, ...] = ()
    """Configurations that need less memory than the chosen one on some device, the best first: what a loader takes
    where the memory has become less."""
    origin: Origin | None = None
    """Where an imported result was measured; None: here."""
    check: Check | None = None
    """The last short run (``autotune confirm``); None: there was none since it was decided."""

    @property
    def measured_at(self) -> str:
        """When the benchmark began, UTC, ISO 8601; of results older than that field when it was decided."""
        return self.campaign.measured_at or self.created_at

    @property
    def confirmed(self) -> bool:
        """Whether the configuration was chosen by running it; else it is predicted, whatever was run."""
        run = self.confirmation
        return run is not None and run.workload == self.workload and run.chosen is not None
