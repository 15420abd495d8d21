"""What a record keeps of a result."""

from __future__ import annotations

from collections.abc import Mapping

from autotune.history.surroundings import Checkout
from autotune.host.hardware_class import hardware_class
from autotune.records import Phase, Result, part_of, pooled
from autotune.records.history import HistoryRecord, Job
from autotune.search.variants import format_of

MAX_SAMPLES = 200
"""Samples kept per phase: more would make records large, and no interval much narrower."""


def history_record(
    result: Result,
    *,
    recorded_at: str,
    checkout: Checkout,
    job: Job | None = None,
    tags: Mapping[str, str] | None = None,
) -> HistoryRecord:
    """The record of a result.

    Args:
        result: What a tune gave.
        recorded_at: The time now, UTC, ISO 8601 with seconds.
        checkout: The git checkout that the tune ran in.
        job: The CI job.
        tags: What the user wants to remember.
    """
    host, chosen, run = result.host, result.decision.chosen, result.confirmation
    proven = run if result.confirmed else None
    decode, prefill = (_samples(result, phase) for phase in ("decode", "prefill"))
    (decode_samples_s, decode_note), (prefill_samples_s, prefill_note) = decode, prefill
    return HistoryRecord(
        recorded_at=recorded_at,
        measured_at=result.measured_at,
        hardware_class=hardware_class(host),
        host_label=host.label,
        cpu_name=host.cpu.name,
        usable_threads=host.limits.usable_threads,
        memory_usable_bytes=host.memory.usable_bytes,
        gpus=tuple(gpu.name for gpu in host.gpus.usable.values()),
        driver=host.gpus.driver_version,
        versions=host.versions,
        commit=checkout.commit,
        branch=checkout.branch,
        dirty=checkout.dirty,
        job=job,
        tags=dict(tags or {}),
        model_name=result.model.name,
        model_digest=result.model.source_digest,
        weight_format=format_of(result.model),
        workload=result.workload,
        configuration=chosen.configuration,
        device_config=result.device_config,
        predicted=chosen.predicted,
        measured=None if proven is None else proven.chosen,
        default=None if proven is None else proven.default,
        speedup_over_default=result.decision.speedup_over_default,
        decode_samples_s=decode_samples_s,
        prefill_samples_s=prefill_samples_s,
        noise=result.campaign.noise,
        noise_label=result.campaign.noise.label,
        held_out={report.device: report.held_out for report in (result.cost_model, *result.gpu_cost_models)},
        memory_planned_bytes={use.device: use.total_bytes for use in chosen.predicted.memory},
        memory_used_bytes={} if run is None else run.memory_used,
        tune_time_s=result.tune_time_s,
        provenance=result.provenance,
        warnings=result.warnings,
        notes=tuple(note for note in (decode_note, prefill_note) if note is not None),
    )


def _samples(result: Result, phase: Phase) -> tuple[tuple[float, ...], str | None]:
    """The chosen configuration's samples, evenly thinned out where there are many, and a note where they are."""
    runs = () if result.confirmation is None else result.confirmation.runs
    part = part_of(result.decision.chosen.configuration, result.workload, phase)
    samples_s = next((run.samples_s for run in pooled(runs) if run.part == part), ())
    taken = len(samples_s)
    if taken <= MAX_SAMPLES:
        return samples_s, None
    kept = tuple(samples_s[index * (taken - 1) // (MAX_SAMPLES - 1)] for index in range(MAX_SAMPLES))
    return kept, f"{MAX_SAMPLES} of {taken} {phase} samples, evenly chosen in the order taken"
