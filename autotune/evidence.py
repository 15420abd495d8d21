"""What a decision rests on: the model in all formats asked for, the host, and what was measured on it."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from autotune.bench import campaign as bench
from autotune.bench.campaign import Progress
from autotune.bench.gpu_plan import GpuTasks, plan_gpus
from autotune.bench.plan import Task, alike_threads, plan
from autotune.bench.rivals import choose_kernels, gates
from autotune.bench.shortfalls import check_complete
from autotune.costmodel.heldout import fit
from autotune.costmodel.model import CostModel
from autotune.host.kernels import find_kernels
from autotune.host.limits import FALLBACK_THREADS
from autotune.model import memory
from autotune.options import Options
from autotune.records import Campaign, Confirmation, CostModelReport, Host, Kernel, Model, Origin, Result, Workload
from autotune.room import check_fits, room_on
from autotune.search.decide import Alternative
from autotune.search.relevance import Relevance
from autotune.search.variants import format_of, in_order, read_variants
from autotune.search.workload import batch_grid, chunk_grid, make_workload


class Evidence(NamedTuple):
    """What a decision rests on.

    Attributes:
        models: One per weight format.
        host: The host as it is now.
        campaign: What was measured on it.
        cost_model: Fitted to that, and corrected by what was run.
        reports: On the fit, the CPU's first, then one per kind of GPU.
        confirmation: What was run, which corrects the cost model; None: nothing was.
        run_format: The weight format that it was run in; None: nothing was.
        origin: Where it was measured, if on another host of this one's hardware class; None: here.
    """

    models: tuple[Model, ...]
    host: Host
    campaign: Campaign
    cost_model: CostModel
    reports: tuple[CostModelReport, ...]
    confirmation: Confirmation | None = None
    run_format: str | None = None
    origin: Origin | None = None


class Axes(NamedTuple):
    """What is offered beside placements: thread counts, batch sizes and prefill chunks, each ascending."""

    threads: Sequence[int]
    batches: Sequence[int]
    chunks: Sequence[int]


def gather(
    model: str | os.PathLike[str],
    options: Options,
    *,
    budget_s: float,
    quick: bool,
    whole: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evidence:
    """Detect the host, read the model, and time what a decision needs.

    Args:
        model: Path of a config.json or GGUF file, or the name of a preset.
        options: Workload, limits, format and kernel.
        budget_s: Wall time for the benchmark.
        quick: Time fewer points.
        whole: Time all points, and not only those that can change the decision.
        seed: Of the sampling order.
        progress: Told how far the benchmark is.

    Raises:
        AutotuneError: As for ``pipeline.tune``.
    """
    from autotune.host.detect import detect  # it takes longer to import than all that reads saved evidence

    host = detect()
    found = find_kernels(host)
    models = read_variants(model, options.format, found)
    workload = workload_of(options, models[0], host)
    check_fits(models, workload, host)
    tasks, gpus = plans(models, host, workload, found, options.kernel, quick=quick)
    formats = _formats(models)
    # Weights rotate through as much memory as the largest variant takes.
    largest = max(models, key=memory.model_bytes)
    campaign = replace(
        bench.run(
            largest,
            host,
            tasks,
            gpus=gpus,
            budget_s=budget_s,
            choose=None if whole else _relevance(models, host, workload, tasks),
            progress=progress,
            seed=seed,
        ),
        kernel=options.kernel,
        quick=quick,
        kernels=tuple(kernel for kernel in found if kernel.device == "gpu" or kernel.format in formats),
    )
    check_complete(campaign, tasks)
    return Evidence(models, host, campaign, *fit(campaign))


def recall(saved: Result, host: Host) -> Evidence:
    """What a saved result rests on, on the host as it is now; nothing is fitted anew."""
    reports = (saved.cost_model, *saved.gpu_cost_models)
    forms = {report.device: report.roofline for report in reports}
    runs = () if saved.confirmation is None else saved.confirmation.runs
    cost_model = CostModel(saved.campaign, forms, runs, saved.model)
    run_format = None if saved.confirmation is None else format_of(saved.model)
    return Evidence(
        models_of(saved), host, saved.campaign, cost_model, reports, saved.confirmation, run_format, saved.origin
    )


def alternatives(evidence: Evidence, workload: Workload) -> list[Alternative]:
    """The formats to choose from, each with its step costs."""
    cost_model = evidence.cost_model
    axes = axes_of(evidence.host, cost_model, workload)
    return [
        Alternative(
            format_of(model),
            model,
            cost_model.steps(model, workload, *axes),
            functools.partial(cost_model.bound_by, model, workload),
        )
        for model in evidence.models
    ]


def axes_of(host: Host, cost_model: CostModel, workload: Workload) -> Axes:
    """What a host and a workload leave to choose from."""
    return Axes(thread_counts(host, cost_model), batch_grid(workload.max_batch), chunk_grid(workload.prompt_tokens))


def thread_counts(host: Host, cost_model: CostModel) -> list[int]:
    """Thread counts to choose from: all for which there are alike cores, beyond them those that were timed.

    The loader's fallback is always among them.
    """
    usable = host.limits.usable_threads
    timed = {count for count in cost_model.models["cpu"].ceilings.read_bytes_per_s if count <= usable}
    return sorted({*range(1, alike_threads(host) + 1), *timed, min(FALLBACK_THREADS, usable)})


def plans(
    models: Sequence[Model], host: Host, workload: Workload, found: Sequence[Kernel], forced: str | None, *, quick: bool
) -> tuple[tuple[Task, ...], tuple[GpuTasks, ...]]:
    """What to time on the CPU, and on each kind of GPU."""
    kernels = choose_kernels(found, _formats(models), forced)
    tasks = plan(models, host, workload, kernels, quick=quick)
    return tasks, plan_gpus(models, host, workload, kernels)


def covers(
    campaign: Campaign, models: Sequence[Model], host: Host, workload: Workload, found: Sequence[Kernel], *, quick: bool
) -> bool:
    """Whether a campaign has what a new one with the same kernels would time for a workload.

    Of the CPU that is all that could change the decision. A GPU that could not be timed is not tried again until the
    host changes.
    """
    tasks, gpus = plans(models, host, workload, found, campaign.kernel, quick=quick)
    failed = {run.devices[0] for run in campaign.gpus if run.failure is not None}
    of_gpus = [task.point for gpu in gpus if gpu.devices[0] not in failed for task in gpu.tasks]
    spared_by = gates(of_gpus)
    compared = {index for spares in spared_by for index in spares}
    wanted = {point for index, point in enumerate(of_gpus) if not spared_by[index] and index not in compared}
    tried = {outcome.point for outcome in campaign.outcomes}
    return wanted <= tried and _relevance(models, host, workload, tasks).covers(campaign)


def _relevance(models: Sequence[Model], host: Host, workload: Workload, tasks: Sequence[Task]) -> Relevance:
    return Relevance(
        models,
        workload,
        tasks,
        room=functools.partial(room_on, host),
        threads=functools.partial(thread_counts, host),
    )


def workload_of(options: Options, model: Model, host: Host) -> Workload:
    """The workload that options ask for.

    Raises:
        UsageError: A value that no run could use.
    """
    return make_workload(
        options.workload,
        model,
        gpu=bool(host.gpus.usable),
        prompt=options.prompt,
        output=options.output,
        context=options.context,
        max_batch=options.max_batch,
        max_tpot_ms=options.max_tpot_ms,
        max_ttft_ms=options.max_ttft_ms,
    )


def models_of(result: Result) -> tuple[Model, ...]:
    """The model in all formats that a result compared, the host's usual one first."""
    by_format = {format_of(model): model for model in (result.model, *result.alternatives)}
    return tuple(by_format[name] for name in in_order(by_format, result.host.cpu.architecture))


def _formats(models: Iterable[Model]) -> tuple[str, ...]:
    """The weight formats of all sites that are multiplied with."""
    sites = (site for model in models for layer in dict.fromkeys(model.layers) for site in (*layer.sites, model.head))
    return tuple(dict.fromkeys(site.format for site in sites))
