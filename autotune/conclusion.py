"""From what was measured to a result: pure, so that it can be repeated from a file."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from autotune.bench.plan import alike_threads
from autotune.bench.shortfalls import shortfalls
from autotune.costmodel.kernels import fastest_kernels
from autotune.costmodel.model import CostModel
from autotune.errors import MemoryLimitError
from autotune.host.tier import Speed, classify
from autotune.loader import FALLBACK_THREADS
from autotune.model import memory
from autotune.model.memory import Room
from autotune.records import (
    Campaign,
    Candidate,
    Configuration,
    CostModelReport,
    DeviceConfig,
    Host,
    Hybrid,
    HybridSplit,
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
    """What a decision rests on: the model in all formats that were timed, and what was measured on which host.

    Attributes:
        models: One per weight format.
        host: The host as it is now.
        campaign: What was measured on it.
        cost_model: Fitted to that.
        reports: On the fit, the CPU's first, then one per kind of GPU.
    """

    models: tuple[Model, ...]
    host: Host
    campaign: Campaign
    cost_model: CostModel
    reports: tuple[CostModelReport, ...]


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
    models, host, campaign, cost_model, reports = evidence
    chosen, decision = decide(
        [_alternative(model, workload, host, cost_model) for model in models],
        workload,
        room=_room(host, campaign, cost_model.devices),
        default=_default(models[0], workload, host),
        noise=_noise(campaign),
        trials=trials,
        seed=seed,
    )
    model = chosen.model
    configuration = decision.chosen.configuration
    return Result(
        device_config=_device_config(decision.chosen, host),
        provenance="measured",
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
        ),
        kernels=fastest_kernels(campaign, model, configuration),
        alternatives=tuple(other for other in models if other is not model),
        gpu_cost_models=reports[1:],
    )


def check_fits(models: Sequence[Model], workload: Workload, host: Host) -> None:
    """Before anything is timed: the smallest configuration in the smallest format must fit the memory of all devices.

    Raises:
        MemoryLimitError: It doesn't.
    """
    model = min(models, key=memory.model_bytes)
    available = {"cpu": _plannable_bytes(host.memory.usable_bytes)}
    available |= {device: _plannable_bytes(gpu.memory_free_bytes or 0) for device, gpu in host.gpus.usable.items()}
    room = Room(available, dict.fromkeys(available, 0))
    chunk = chunk_grid(workload.prompt_tokens)[0]
    if not memory.fits(model, workload, room, prefill_chunk=chunk):
        raise MemoryLimitError(memory.what_would_fit(model, workload, room, prefill_chunk=chunk))


def tier_of(host: Host, campaign: Campaign, reports: Sequence[CostModelReport]) -> Tier:
    """The tier that the measured ceilings put a host in."""
    usable_bytes = {"cpu": host.memory.usable_bytes, **_gpu_bytes(host, campaign)}
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


def _alternative(model: Model, workload: Workload, host: Host, cost_model: CostModel) -> Alternative:
    costs = cost_model.steps(
        model,
        workload,
        _thread_counts(host, cost_model),
        batch_grid(workload.max_batch),
        chunk_grid(workload.prompt_tokens),
    )
    return Alternative(format_of(model), model, costs, functools.partial(cost_model.bound_by, model, workload))


def _thread_counts(host: Host, cost_model: CostModel) -> list[int]:
    """Thread counts to choose from: all for which there are alike cores, beyond them those that were timed.

    The loader's fallback is always among them.
    """
    usable = host.limits.usable_threads
    timed = {count for count in cost_model.models["cpu"].ceilings.read_bytes_per_s if count <= usable}
    return sorted({*range(1, alike_threads(host) + 1), *timed, min(FALLBACK_THREADS, usable)})


def _room(host: Host, campaign: Campaign, devices: Sequence[str]) -> Room:
    """What a configuration may plan with on the devices that can be decided about."""
    runs = {device: run for run in campaign.gpus for device in run.devices}
    usable_bytes = {"cpu": host.memory.usable_bytes, **_gpu_bytes(host, campaign)}
    gpus = [device for device in devices if device != "cpu"]
    return Room(
        available_bytes={device: _plannable_bytes(usable_bytes[device]) for device in devices},
        overhead_bytes={
            "cpu": campaign.runtime_overhead_bytes,
            **{device: runs[device].context_bytes for device in gpus},
        },
        gpu_host_bytes=max((runs[device].host_bytes for device in gpus), default=0),
    )


def _gpu_bytes(host: Host, campaign: Campaign) -> dict[str, int]:
    """Memory free on each GPU that was timed: as the host tells now, or where it doesn't, as the worker found it."""
    free = {}
    for run in campaign.gpus:
        for device in run.devices:
            gpu = host.gpus.usable.get(device)
            told = 0 if gpu is None else gpu.memory_free_bytes
            free[device] = (run.free_bytes or 0) if told is None else told
    return free


def _noise(campaign: Campaign) -> float:
    """Relative noise below which two times aren't told apart: that of the device whose times are the least certain."""
    of_gpus = [run.noise for run in campaign.gpus if run.failure is None and run.noise is not None]
    widths = [noise.median_relative_interval for noise in (campaign.noise, *of_gpus)]
    return max(_UNKNOWN_NOISE if width is None else width for width in widths)


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


def _device_config(chosen: Candidate, host: Host) -> DeviceConfig:
    """What a loader needs of a configuration."""
    configuration = chosen.configuration
    cpu_layers = configuration.device_layers.get("cpu", 0)
    gpu_layers = sum(configuration.device_layers.values()) - cpu_layers
    strategy: Literal["CpuOnly", "GpuOnly"] | Hybrid
    if not gpu_layers:
        strategy = "CpuOnly"
    elif not cpu_layers and configuration.head_device != "cpu":
        strategy = "GpuOnly"
    else:
        strategy = Hybrid(HybridSplit(cpu_layers=cpu_layers, gpu_layers=gpu_layers))
    return DeviceConfig(
        strategy=strategy,
        cpu_threads=configuration.decode_threads,
        gpu_memory_fraction=_gpu_memory_fraction(chosen, host),
        recommended_batch_size=configuration.batch_size,
    )


def _gpu_memory_fraction(chosen: Candidate, host: Host) -> float | None:
    """The largest share of a GPU's memory that the plan takes, rounded up to a thousandth; None without a GPU.

    Of a GPU that doesn't tell its size, the share of what may be planned with.
    """
    shares = []
    for use in chosen.predicted.memory:
        if use.device != "cpu":
            gpu = host.gpus.usable.get(use.device)
            total_bytes = (gpu.memory_total_bytes if gpu is not None else None) or use.available_bytes
            shares.append(use.total_bytes / total_bytes)
    return min(1.0, math.ceil(max(shares) * 1000) / 1000) if shares else None


def _plannable_bytes(usable_bytes: int) -> int:
    return int(usable_bytes * _USABLE_SHARE)
