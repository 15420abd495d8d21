"""The whole way: model and host in, benchmark, cost model, search, result out; or again from saved measurements."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence

from msgspec.structs import replace

from autotune.bench import campaign as bench
from autotune.bench.campaign import Progress
from autotune.bench.plan import Task, ceilings, plan
from autotune.bench.rivals import choose_kernels, gates
from autotune.bench.shortfalls import check_complete
from autotune.conclusion import Evidence, check_fits, conclude, tier_of
from autotune.costmodel.heldout import fit
from autotune.costmodel.model import CostModel
from autotune.errors import ConstraintError, ResultNotFoundError, StoreError
from autotune.host.detect import detect
from autotune.host.kernels import find_kernels
from autotune.loader import find_answer, load_result
from autotune.model import memory
from autotune.options import Options, check_budget, counted_budget_s, tune_command
from autotune.records import Campaign, Host, Model, Result, Tier, Workload
from autotune.search.study import TRIALS
from autotune.search.variants import format_of, in_order, read_variants
from autotune.search.workload import make_workload
from autotune.store import cache
from autotune.store.entry import WORKLOADS

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
    budget_s = check_budget(budget_s, quick=quick)
    if not force and find_answer(model, options, counted_budget_s(budget_s, quick=quick)) is not None:
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
    budget_s: float,
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
        if saved.campaign.budget_s >= budget_s:
            host, workload = detect(), _workload(options, saved.model)
            kernels = choose_kernels(find_kernels(host.cpu), _formats(_models(saved)), options.kernel)
            if _covers(saved.campaign, plan(_models(saved), host, workload, kernels, quick=quick)):
                return conclude_again(saved, workload, host)
    started = time.monotonic()
    evidence = _benchmark(model, options, budget_s=budget_s, quick=quick, progress=progress)
    try:
        return conclude(evidence, _workload(options, evidence.models[0]), started=started, trials=TRIALS)
    except ConstraintError as error:
        unlimited = options._replace(max_tpot_ms=None, max_ttft_ms=None)
        result = conclude(evidence, _workload(unlimited, evidence.models[0]), started=started, trials=TRIALS)
        with contextlib.suppress(StoreError):
            cache.write(result, request(unlimited, result))
        raise ConstraintError(f"{error}; what was measured is saved, so another limit is answered at once") from None


def measure(
    model: str | os.PathLike[str],
    options: Options,
    *,
    budget_s: float,
    quick: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Measure this host and decide, whatever is saved, and save nothing.

    Args:
        model: As for ``tune``.
        options: As for ``tune``.
        budget_s: Wall time for the benchmark.
        quick: Time fewer points.
        seed: Of the sampling order and the Optuna study.
        progress: Told how far the benchmark is.

    Raises:
        AutotuneError: As for ``tune``.
    """
    started = time.monotonic()
    evidence = _benchmark(model, options, budget_s=budget_s, quick=quick, seed=seed, progress=progress)
    workload = _workload(options, evidence.models[0])
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
    return conclude_again(saved, _workload(options, saved.model), detect(), started=started)


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
    cost_model = CostModel(saved.campaign, saved.cost_model.roofline)
    return conclude(
        Evidence(_models(saved), host, saved.campaign, cost_model, saved.cost_model),
        workload,
        started=time.monotonic() if started is None else started,
        trials=None,
    )


def request(options: Options, result: Result) -> dict[str, object]:
    """What a result for these options answers, as it is saved beside it."""
    models, host, campaign = _models(result), result.host, result.campaign
    kernels = choose_kernels(campaign.kernels or find_kernels(host.cpu), _formats(models), campaign.kernel)
    full = _covers(campaign, plan(models, host, result.workload, kernels, quick=False))
    return options.request(counted_budget_s(result.campaign.budget_s, quick=not full))


def measure_tier(host: Host) -> Tier:
    """Time the host's read bandwidth and arithmetic alone, and say what tier they make it.

    Raises:
        BenchmarkError: They could not be timed.
    """
    kernels = choose_kernels(find_kernels(host.cpu), (), None)
    campaign = bench.run(None, host, ceilings(host, kernels), budget_s=_HOST_BUDGET_S)
    return tier_of(host, fit(campaign)[1])


def _benchmark(
    model: str | os.PathLike[str],
    options: Options,
    *,
    budget_s: float,
    quick: bool,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evidence:
    """The first half: what is told of the model, and what is measured."""
    host = detect()
    found = find_kernels(host.cpu)
    models = read_variants(model, options.format, found)
    workload = _workload(options, models[0])
    formats = _formats(models)
    kernels = choose_kernels(found, formats, options.kernel)
    check_fits(models, workload, host)
    tasks = plan(models, host, workload, kernels, quick=quick)
    # Weights rotate through as much memory as the largest variant takes.
    largest = max(models, key=memory.model_bytes)
    campaign = replace(
        bench.run(largest, host, tasks, budget_s=budget_s, progress=progress, seed=seed),
        kernel=options.kernel,
        kernels=tuple(kernel for kernel in found if kernel.format in formats),
    )
    check_complete(campaign, tasks)
    return Evidence(models, host, campaign, *fit(campaign))


def _models(result: Result) -> tuple[Model, ...]:
    """The model in all formats that a result compared, the host's usual one first."""
    by_format = {format_of(model): model for model in (result.model, *result.alternatives)}
    return tuple(by_format[name] for name in in_order(by_format, result.host.cpu.architecture))


def _formats(models: Iterable[Model]) -> tuple[str, ...]:
    """The weight formats of all sites that are multiplied with."""
    sites = (site for model in models for layer in dict.fromkeys(model.layers) for site in (*layer.sites, model.head))
    return tuple(dict.fromkeys(site.format for site in sites))


def _workload(options: Options, model: Model) -> Workload:
    return make_workload(
        options.workload,
        model,
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


def _covers(campaign: Campaign, tasks: Sequence[Task]) -> bool:
    """Whether a campaign has tried all points that a new one would, but those where the reference is compared."""
    points = [task.point for task in tasks]
    spared_by = gates(points)
    compared = {index for spares in spared_by for index in spares}
    wanted = {point for index, point in enumerate(points) if not spared_by[index] and index not in compared}
    return wanted <= {outcome.point for outcome in campaign.outcomes}
