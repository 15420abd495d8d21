"""The whole way: model and host in, benchmark, cost model, search, result out; or again from saved measurements."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

from msgspec.structs import replace

from autotune.bench import campaign as bench
from autotune.bench.campaign import Progress
from autotune.bench.gpu_plan import GpuTasks, gpu_ceilings, plan_gpus
from autotune.bench.plan import Task, ceilings, describe_first_missing, plan
from autotune.bench.rivals import choose_kernels, gates
from autotune.bench.shortfalls import check_complete
from autotune.conclusion import Evidence, check_fits, conclude, tier_of
from autotune.costmodel.heldout import fit
from autotune.costmodel.model import CostModel
from autotune.errors import ConstraintError, ResultNotFoundError, StoreError, UsageError
from autotune.host.detect import detect
from autotune.host.kernels import find_kernels
from autotune.loader import find_answer, load_result
from autotune.model import memory
from autotune.options import (
    GPU_BUDGET_S,
    Options,
    benchmark_budget_s,
    check_budget,
    counted_budget_s,
    tune_command,
)
from autotune.records import Campaign, Host, Kernel, Model, Result, Tier, Workload
from autotune.search.study import TRIALS
from autotune.search.variants import format_of, in_order, read_variants
from autotune.search.workload import make_workload
from autotune.store import cache
from autotune.store.entry import WORKLOADS
from autotune.store.recording import Recording

_HOST_BUDGET_S = 2.0


def tune(
    model: str | os.PathLike[str],
    options: Options | None = None,
    *,
    budget_s: float | None = None,
    quick: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Result:
    """The saved result for this host, model and options; if there is none, measure, decide and save.

    Where no cache folder can be written, the result is returned all the same, with a warning.

    Args:
        model: Path of a config.json or GGUF file, or the name of a preset.
        options: Workload, limits, format and kernel.
        budget_s: Wall time for the benchmark; default ``DEFAULT_BUDGET_S``, or ``QUICK_BUDGET_S`` if ``quick``.
        quick: Time fewer points.
        force: Measure again, whatever is saved.
        progress: Told how far the benchmark is.

    Raises:
        ModelError: The model can't be read.
        UsageError: An option that no run could use.
        MemoryLimitError: No configuration fits the memory.
        ConstraintError: None keeps the limits.
        BudgetError: The budget is too small to measure what a decision needs.
        BenchmarkError: Nothing that was measured is usable.
        KernelUnavailableError: The kernel asked for can't run here, or none can.
    """
    options = options or Options()
    least_s = counted_budget_s(check_budget(budget_s, quick=quick), quick=quick)
    if not force and find_answer(model, options, least_s) is not None:
        saved = load_result(model, options.workload, options.format)
        if saved is not None:
            return saved
    result = obtain(model, options, budget_s=budget_s, quick=quick, force=force, progress=progress)
    try:
        cache.write(result, request(options, result))
    except StoreError as error:
        warnings.warn(str(error), cache.StoreWarning, stacklevel=2)
    return result


def obtain(
    model: str | os.PathLike[str],
    options: Options,
    *,
    budget_s: float | None,
    quick: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Result:
    """A result that isn't saved yet: from saved measurements if they cover all that is asked for, else from new ones.

    New measurements that no limit can be kept with are saved with the best there is without a limit, so that the next
    limit is answered without measuring.

    Args and raises: as for ``tune``.
    """
    for saved in () if force else _saved(model, options):
        host = detect()
        if saved.campaign.budget_s >= benchmark_budget_s(budget_s, quick=quick, gpu=bool(host.gpus.usable)):
            workload = _workload(options, saved.model, host)
            tasks, gpus = _plans(_models(saved), host, workload, find_kernels(host), options.kernel, quick=quick)
            if _covers(saved.campaign, tasks, gpus):
                return conclude_again(saved, workload, host)
    started = time.monotonic()
    evidence = _benchmark(model, options, budget_s=budget_s, quick=quick, progress=progress)
    try:
        workload = _workload(options, evidence.models[0], evidence.host)
        return conclude(evidence, workload, started=started, trials=TRIALS)
    except ConstraintError as error:
        unlimited = options._replace(max_tpot_ms=None, max_ttft_ms=None)
        workload = _workload(unlimited, evidence.models[0], evidence.host)
        result = conclude(evidence, workload, started=started, trials=TRIALS)
        with contextlib.suppress(StoreError):
            cache.write(result, request(unlimited, result))
        raise ConstraintError(f"{error}; what was measured is saved, so another limit is answered at once") from None


def measure(
    model: str | os.PathLike[str],
    options: Options,
    *,
    budget_s: float | None,
    quick: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Measure this host and decide, whatever is saved, and save nothing.

    Args:
        model: As for ``tune``.
        options: As for ``tune``.
        budget_s: Wall time for the benchmark; None: the default.
        quick: Time fewer points.
        seed: Of the sampling order and the Optuna study.
        progress: Told how far the benchmark is.

    Raises:
        AutotuneError: As for ``tune``.
    """
    started = time.monotonic()
    evidence = _benchmark(model, options, budget_s=budget_s, quick=quick, seed=seed, progress=progress)
    workload = _workload(options, evidence.models[0], evidence.host)
    return conclude(evidence, workload, started=started, trials=TRIALS, seed=seed)


def retune(model: str | os.PathLike[str], options: Options | None = None) -> Result:
    """Choose again from saved measurements: exact ranking only, no benchmark, no Optuna.

    Args:
        model: As for ``tune``; this host must have a result for it, of whatever workload.
        options: New workload and limits.

    Raises:
        ResultNotFoundError: This host has no measurements of the model.
        ModelError, UsageError, MemoryLimitError, ConstraintError: As for ``tune``.
    """
    started = time.monotonic()
    options = options or Options()
    saved = next(_saved(model, options), None)
    if saved is None:
        name = os.fspath(model)
        with_kernel = "" if options.kernel is None else f" with --kernel {options.kernel}"
        raise ResultNotFoundError(
            f"this host has no saved measurements of {name}{with_kernel}: "
            f"run `{tune_command(name, options.workload, options.format, options.kernel)}` first"
        )
    host = detect()
    return conclude_again(saved, _workload(options, saved.model, host), host, started=started)


def record(models: Sequence[str], *, budget_s: float | None, progress: Progress | None = None) -> Recording:
    """Time models on this host and return all that was measured, to be replayed where the host isn't.

    The points are those of the workload with the largest batches, so that a replay can answer for the others as well.

    Args:
        models: Model files or presets.
        budget_s: Wall time for each; None: the default.
        progress: Told how far the benchmark of a model is.

    Raises:
        AutotuneError: As for ``tune``.
    """
    options = Options(workload="offline")
    host = detect()
    for model in models:  # before the first one is timed
        variants = read_variants(model, options.format, find_kernels(host))
        check_fits(variants, _workload(options, variants[0], host), host)
    found = [_benchmark(model, options, budget_s=budget_s, quick=False, progress=progress) for model in models]
    names = ", ".join(evidence.models[0].name for evidence in found)
    return Recording(
        recorded_at=datetime.now(UTC).isoformat(timespec="seconds"),
        synthetic=False,
        note=f"measured with {names}",
        host=found[0].host,
        campaigns=tuple(evidence.campaign for evidence in found),
    )


def replay(recording: Recording, model: str | os.PathLike[str], options: Options | None = None) -> Result:
    """Decide for a recorded host from its measurements: all of ``tune`` but detecting, timing and saving.

    Args:
        recording: The host, and what was measured on it.
        model: A model that it was recorded with, or one whose shapes were timed as well.
        options: As for ``tune``.

    Raises:
        ModelError, MemoryLimitError, ConstraintError: As for ``tune``.
        UsageError: As for ``tune``; or a kernel was asked for, which is about timing.
        ResultNotFoundError: The recording doesn't hold what the model needs.
    """
    started = time.monotonic()
    options = options or Options()
    if options.kernel is not None:
        raise UsageError("--kernel is about timing, and --replay times nothing: leave one of them out")
    host, missing = recording.host, []
    for campaign in recording.campaigns:
        models = read_variants(model, options.format, campaign.kernels, host.cpu.architecture)
        workload = _workload(options, models[0], host)
        wanting = _wanting(campaign, models, host, workload)
        if wanting is None:
            cost_model, reports = fit(campaign)
            result = conclude(
                Evidence(models, host, campaign, cost_model, reports), workload, started=started, trials=TRIALS
            )
            kind = "a synthetic host, which nobody measured" if recording.synthetic else "a recorded host"
            return replace(
                result, provenance="replayed", warnings=(f"decided for {kind}: {recording.note}", *result.warnings)
            )
        missing.append(wanting)
    what = f"the recording of {host.label} has no measurements of {os.fspath(model)}"
    raise ResultNotFoundError(f"{what}: expected {missing[0]}" if missing else f"{what}: it holds none at all")


def _wanting(campaign: Campaign, models: Sequence[Model], host: Host, workload: Workload) -> str | None:
    """What a decision can't do without and a recorded campaign lacks, in words; None: it is all there.

    A GPU that could not be timed is no part of the decision, so nothing of it is needed.
    """
    tasks, gpus = _plans(models, host, workload, campaign.kernels or find_kernels(host), None, quick=True)
    timed = {run.devices[0] for run in campaign.gpus if run.failure is None}
    needed = (*tasks, *(task for gpu in gpus if gpu.devices[0] in timed for task in gpu.tasks))
    return describe_first_missing(needed, (found.point for found in campaign.measurements()))


def conclude_again(saved: Result, workload: Workload, host: Host, *, started: float | None = None) -> Result:
    """A result for another workload from a saved result's measurements, under the memory that ``host`` has now.

    Args:
        saved: Holds model, campaign and cost model.
        workload: What to decide for.
        host: The host that it was measured on, as it is now.
        started: When the work began, on the monotonic clock.

    Raises:
        MemoryLimitError, ConstraintError: As for ``tune``.
    """
    reports = (saved.cost_model, *saved.gpu_cost_models)
    cost_model = CostModel(saved.campaign, {report.device: report.roofline for report in reports})
    return conclude(
        Evidence(_models(saved), host, saved.campaign, cost_model, reports),
        workload,
        started=time.monotonic() if started is None else started,
        trials=None,
    )


def request(options: Options, result: Result) -> dict[str, object]:
    """What a result for these options answers, as it is saved beside it."""
    models, host, campaign = _models(result), result.host, result.campaign
    found = campaign.kernels or find_kernels(host)
    full = _covers(campaign, *_plans(models, host, result.workload, found, campaign.kernel, quick=False))
    return options.request(counted_budget_s(result.campaign.budget_s, quick=not full))


def measure_tier(host: Host) -> Tier:
    """Time read bandwidth and arithmetic of the host's CPU and GPUs alone, and say what tier they make it.

    Raises:
        BenchmarkError: The CPU's could not be timed.
    """
    kernels = choose_kernels(find_kernels(host), (), None)
    gpus = gpu_ceilings(host, kernels)
    budget_s = _HOST_BUDGET_S + (GPU_BUDGET_S if gpus else 0.0)
    campaign = bench.run(None, host, ceilings(host, kernels), gpus=gpus, budget_s=budget_s)
    _, reports = fit(campaign)
    return tier_of(host, campaign, reports)


def _benchmark(
    model: str | os.PathLike[str],
    options: Options,
    *,
    budget_s: float | None,
    quick: bool,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evidence:
    """The first half: what is told of the model, and what is measured."""
    host = detect()
    found = find_kernels(host)
    models = read_variants(model, options.format, found)
    workload = _workload(options, models[0], host)
    check_fits(models, workload, host)
    tasks, gpus = _plans(models, host, workload, found, options.kernel, quick=quick)
    formats = _formats(models)
    # Weights rotate through as much memory as the largest variant takes.
    largest = max(models, key=memory.model_bytes)
    campaign = replace(
        bench.run(
            largest,
            host,
            tasks,
            gpus=gpus,
            budget_s=benchmark_budget_s(budget_s, quick=quick, gpu=bool(gpus)),
            progress=progress,
            seed=seed,
        ),
        kernel=options.kernel,
        kernels=tuple(kernel for kernel in found if kernel.device == "gpu" or kernel.format in formats),
    )
    check_complete(campaign, tasks)
    return Evidence(models, host, campaign, *fit(campaign))


def _plans(
    models: Sequence[Model], host: Host, workload: Workload, found: Sequence[Kernel], forced: str | None, *, quick: bool
) -> tuple[tuple[Task, ...], tuple[GpuTasks, ...]]:
    """What to time on the CPU, and on each kind of GPU."""
    kernels = choose_kernels(found, _formats(models), forced)
    tasks = plan(models, host, workload, kernels, quick=quick)
    return tasks, plan_gpus(models, host, workload, kernels)


def _models(result: Result) -> tuple[Model, ...]:
    """The model in all formats that a result compared, the host's usual one first."""
    by_format = {format_of(model): model for model in (result.model, *result.alternatives)}
    return tuple(by_format[name] for name in in_order(by_format, result.host.cpu.architecture))


def _formats(models: Iterable[Model]) -> tuple[str, ...]:
    """The weight formats of all sites that are multiplied with."""
    sites = (site for model in models for layer in dict.fromkeys(model.layers) for site in (*layer.sites, model.head))
    return tuple(dict.fromkeys(site.format for site in sites))


def _workload(options: Options, model: Model, host: Host) -> Workload:
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


def _saved(model: str | os.PathLike[str], options: Options) -> Iterator[Result]:
    """The saved results for this host, model and kernel: that of the wanted workload first.

    Raises:
        ModelError: The model can't be read.
        UsageError: There is no such workload.
    """
    for workload in dict.fromkeys((options.workload, *WORKLOADS)):
        saved = load_result(model, workload, options.format)
        if saved is not None and saved.campaign.kernel == options.kernel:
            yield saved


def _covers(campaign: Campaign, tasks: Sequence[Task], gpus: Sequence[GpuTasks]) -> bool:
    """Whether a campaign has tried all points that a new one would, but those where the reference is compared.

    A GPU that could not be timed is not tried again until the host changes.
    """
    failed = {run.devices[0] for run in campaign.gpus if run.failure is not None}
    of_gpus = (task for gpu in gpus if gpu.devices[0] not in failed for task in gpu.tasks)
    points = [task.point for task in (*tasks, *of_gpus)]
    spared_by = gates(points)
    compared = {index for spares in spared_by for index in spares}
    wanted = {point for index, point in enumerate(points) if not spared_by[index] and index not in compared}
    return wanted <= {outcome.point for outcome in campaign.outcomes}
