"""From what was measured to a result: pure, so that it can be repeated from a file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime

from msgspec.structs import replace

from autotune.bench.shortfalls import shortfalls
from autotune.costmodel.kernels import fastest_kernels
from autotune.device_config import device_config
from autotune.evidence import Evidence, alternatives
from autotune.host.tier import Speed, classify
from autotune.records import (
    Campaign,
    Confirmation,
    CostModelReport,
    Host,
    Model,
    Result,
    Tier,
    Workload,
)
from autotune.room import gpu_bytes, room_on
from autotune.search.baselines import fallback
from autotune.search.decide import Proven, decide
from autotune.search.variants import format_of

_UNKNOWN_NOISE = 0.05
"""Relative noise assumed where no point was sampled often enough to tell."""


def conclude(
    evidence: Evidence,
    workload: Workload,
    *,
    started: float,
    trials: int | None,
    seed: int = 0,
    proven: Proven | None = None,
) -> Result:
    """What follows from model, host, workload and measurements; nothing is timed.

    Args:
        evidence: What a decision rests on.
        workload: What to decide for.
        started: When the work began, on the monotonic clock.
        trials: Of the Optuna study; None: exact ranking only.
        seed: Of the study.
        proven: What was found by running configurations; None: nothing that overrides the predictions.

    Raises:
        MemoryLimitError: No configuration fits the memory.
        ConstraintError: None keeps the workload's limits.
    """
    models, host, campaign, cost_model, reports = evidence[:5]
    chosen, decision, smaller = decide(
        alternatives(evidence, workload),
        workload,
        room=room_on(host, campaign, cost_model.devices),
        default=fallback(models[0], host, workload),
        noise=noise_of(campaign),
        trials=trials,
        seed=seed,
        proven=proven,
    )
    model = chosen.model
    configuration = decision.chosen.configuration
    return Result(
        device_config=device_config(decision.chosen, host.gpus),
        provenance="measured" if evidence.origin is None else "imported",
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        host=host,
        tier=tier_of(host, campaign, reports),
        model=model,
        workload=workload,
        decision=decision,
        cost_model=reports[0],
        campaign=campaign,
        tune_time_s=time.monotonic() - started,
        warnings=(
            *cost_model.caveats(model, workload, configuration),
            *shortfalls(campaign, model, {*configuration.device_layers, configuration.head_device}),
            *(() if evidence.origin is None else evidence.origin.doubts),
        ),
        kernels=fastest_kernels(campaign, model, configuration),
        alternatives=tuple(other for other in models if other is not model),
        gpu_cost_models=reports[1:],
        confirmation=_of_choice(evidence, model, proven),
        smaller=smaller,
        origin=evidence.origin,
    )


def _of_choice(evidence: Evidence, model: Model, proven: Proven | None) -> Confirmation | None:
    """What was run, as it is kept beside a choice.

    Runs are of the model that they are kept with, so those in another format than the chosen one are not. Where the
    choice doesn't follow from them, they say nothing of what was chosen.
    """
    confirmation = evidence.confirmation
    if confirmation is None or evidence.run_format != format_of(model):
        return None
    return confirmation if proven is not None else replace(confirmation, chosen=None, overhead_share=None)


def tier_of(host: Host, campaign: Campaign, reports: Sequence[CostModelReport]) -> Tier:
    """The tier that the measured ceilings put a host in."""
    usable_bytes = {"cpu": host.memory.usable_bytes, **gpu_bytes(host, campaign)}
    return classify(
        [
            Speed(
                report.device,
                usable_bytes[report.device],
                max(report.read_bytes_per_s.values()),
                max(report.operations_per_s.values()),
            )
            for report in reports
        ]
    )


def noise_of(campaign: Campaign) -> float:
    """Relative noise below which two times aren't told apart: that of the device whose times are the least certain."""
    of_gpus = [run.noise for run in campaign.gpus if run.failure is None and run.noise is not None]
    widths = [noise.median_relative_interval for noise in (campaign.noise, *of_gpus)]
    return max(_UNKNOWN_NOISE if width is None else width for width in widths)
