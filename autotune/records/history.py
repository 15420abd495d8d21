"""One tune as a CI job keeps it: small enough to be committed, whole enough to be compared."""

from __future__ import annotations

from typing import Literal

from autotune.records.base import Record
from autotune.records.configuration import Configuration, DeviceConfig, Workload
from autotune.records.host import Versions
from autotune.records.measurement import Noise
from autotune.records.result import Figures, HeldOut, Provenance
from autotune.records.runs import Measured


class Job(Record, frozen=True, kw_only=True):
    """The CI job that a command ran in, as its variables say."""

    name: str | None
    run_id: str | None
    attempt: int | None
    """1 for the first; None where the service doesn't count."""
    url: str | None


class HistoryRecord(Record, frozen=True, kw_only=True):
    """One tune of one model on one host, without the measurements that the saved result rests on."""

    recorded_at: str
    """UTC, ISO 8601 with seconds: when the record was made."""
    measured_at: str
    """The same of the result: earlier where it came from the cache."""
    hardware_class: str
    """What hosts have in common that can be compared; empty in records of results older than it."""
    host_label: str
    """The hostname: only a label."""
    cpu_name: str | None
    usable_threads: int
    memory_usable_bytes: int
    gpus: tuple[str, ...]
    """Names of those that could be used."""
    driver: str | None
    """Version of the GPUs' driver."""
    versions: Versions
    commit: str | None
    """All hex digits of the git commit that was checked out where the command ran. None outside of a checkout; and
    where the result came from the cache, for it may have been measured at another one."""
    branch: str | None
    """None where no branch is checked out and no CI job says which one it is for."""
    dirty: bool | None
    """Whether tracked files differed from the commit; None outside of a checkout."""
    job: Job | None
    """None outside of CI."""
    tags: dict[str, str]
    """What the user wanted to remember: ``--tag KEY=VALUE``."""
    model_name: str
    model_digest: str
    weight_format: str
    workload: Workload
    configuration: Configuration
    device_config: DeviceConfig
    predicted: Figures
    measured: Measured | None
    """Of the chosen configuration; None: it was not chosen by running it."""
    default: Measured | None
    """Of the configuration that people start with; None: it was not run, or nothing was chosen by running it."""
    speedup_over_default: float | None
    """In the workload's own objective; None without a default."""
    decode_samples_s: tuple[float, ...]
    """Seconds per decode step of the chosen configuration, in the order taken; empty: none was run."""
    prefill_samples_s: tuple[float, ...]
    """Seconds per prompt of the chosen configuration, in the order taken; empty: none was run."""
    noise: Noise
    noise_label: Literal["quiet", "noisy", "very noisy"]
    held_out: dict[str, tuple[HeldOut, ...]]
    """Prediction errors by device."""
    memory_planned_bytes: dict[str, int]
    """By device, for the chosen configuration."""
    memory_used_bytes: dict[str, int]
    """By device, what the process that ran configurations held at its peak; empty: nothing was run."""
    tune_time_s: float
    provenance: Provenance
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What this record leaves out, in words."""
