"""From what was measured to a result: pure, so that it can be repeated from a file."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from autotune.bench.shortfalls import shortfalls
from autotune.costmodel.kernels import fastest_kernels
from autotune.costmodel.model import CostModel
from autotune.errors import MemoryLimitError
from autotune.host.tier import classify
from autotune.loader import FALLBACK_THREADS
from autotune.model import memory
from autotune.records import (
    Campaign,
    Configuration,
    CostModelReport,
    Decision,
    DeviceConfig,
    Host,
    Model,
    Result,
    Tier,
    Workload,
)
from autotune.search.decide import Alternative, decide
from autotune.search.variants import format_of
from autotune.search.workload import batch_grid, chunk_grid

_USABLE_SHARE = 0.9
"""Share of the usable memory that a configuration may plan with: the rest is for what else runs and grows."""

_UNKNOWN_NOISE = 0.05
"""Relative noise assumed where no point was sampled often enough to tell."""


class Evidence(NamedTuple):
    """What a decision rests on: the model in all formats that were timed, and what was measured on which host."""

    models: tuple[Model, ...]
    host: Host
    campaign: Campaign
    cost_model: CostModel
    report: CostModelReport


def conclude(evidence: Evidence, workload: Workload, *, started: float, trials: int | None, seed: int = 0) -> Result:
    """What follows from model, host, workload and measurements; nothing is timed.

    Args:
        evidence: What a decision rests on.
        workload: What to decide for.
        started: When the work began, on the monotonic clock.
        trials: Of the Optuna study; None: exact ranking only.
        seed: Of the study.

    Raises:
        MemoryLimitError: No configuration fits the memory.
        ConstraintError: None keeps the workload's limits.
    """
    models, host, campaign, cost_model, report = evidence
    chosen, decision = decide(
        [_alternative(model, workload, host, cost_model) for model in models],
        workload,
        available_bytes={"cpu": _plannable_bytes(host)},
        overhead_bytes={"cpu": campaign.runtime_overhead_bytes},
        default=_default(models[0], workload, host),
        noise=campaign.noise.median_relative_interval or _UNKNOWN_NOISE,
        trials=trials,
        seed=seed,
    )
    model = chosen.model
    return Result(
        device_config=_device_config(decision),
        provenance="measured",
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        host=host,
        tier=tier_of(host, report),
        model=model,
        workload=workload,
        decision=decision,
        cost_model=report,
        campaign=campaign,
        tune_time_s=time.monotonic() - started,
        warnings=(
            *cost_model.caveats(model, workload, decision.chosen.configuration),
            *shortfalls(campaign, host),
        ),
        kernels=fastest_kernels(campaign, model, decision.chosen.configuration),
        alternatives=tuple(other for other in models if other is not model),
    )


def check_fits(models: Sequence[Model], workload: Workload, host: Host) -> None:
    """Before anything is timed: the smallest configuration in the smallest format must fit.

    Raises:
        MemoryLimitError: It doesn't.
    """
    model = min(models, key=memory.model_bytes)
    available, overhead = {"cpu": _plannable_bytes(host)}, {"cpu": 0}
    smallest = Configuration(
        device_layers={"cpu": len(model.layers)},
        head_device="cpu",
        decode_threads=1,
        prefill_threads=1,
        batch_size=1,
        prefill_chunk=chunk_grid(workload.prompt_tokens)[0],
    )
    (use,) = memory.plan(model, smallest, workload.context_tokens, available, overhead)
    if use.total_bytes > use.available_bytes:
        raise MemoryLimitError(memory.what_would_fit(model, workload, available, overhead))


def tier_of(host: Host, report: CostModelReport) -> Tier:
    """The tier that the measured ceilings put a host in."""
    return classify(host, max(report.read_bytes_per_s.values()), max(report.operations_per_s.values()))


def _alternative(model: Model, workload: Workload, host: Host, cost_model: CostModel) -> Alternative:
    costs = cost_model.steps(
        model,
        workload,
        range(1, host.limits.usable_threads + 1),
        batch_grid(workload.max_batch),
        chunk_grid(workload.prompt_tokens),
    )
    return Alternative(format_of(model), model, costs, functools.partial(cost_model.bound_by, model, workload))


def _default(model: Model, workload: Workload, host: Host) -> Configuration:
    """What would run without tuning: the loader's fallback, with the largest chunk."""
    threads = min(FALLBACK_THREADS, host.limits.usable_threads)
    return Configuration(
        device_layers={"cpu": len(model.layers)},
        head_device="cpu",
        decode_threads=threads,
        prefill_threads=threads,
        batch_size=1,
        prefill_chunk=chunk_grid(workload.prompt_tokens)[-1],
    )


def _device_config(decision: Decision) -> DeviceConfig:
    """What a loader needs of a decision. All layers are on the CPU as long as no GPU is timed."""
    chosen = decision.chosen.configuration
    return DeviceConfig(
        strategy="CpuOnly",
        cpu_threads=chosen.decode_threads,
        gpu_memory_fraction=None,
        recommended_batch_size=chosen.batch_size,
    )


def _plannable_bytes(host: Host) -> int:
    return int(host.memory.usable_bytes * _USABLE_SHARE)
