"""The whole way: model and host in, benchmark, cost model, search, runs, result out; or again from what is saved."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Iterator

from autotune.bench import campaign as bench
from autotune.bench.campaign import Progress
from autotune.bench.gpu_plan import gpu_ceilings
from autotune.bench.plan import ceilings
from autotune.bench.rivals import choose_kernels
from autotune.conclusion import conclude, tier_of
from autotune.confirmation import confirm, proven_before
from autotune.costmodel.heldout import fit
from autotune.errors import ConstraintError, ResultNotFoundError, StoreError
from autotune.evidence import Evidence, covers, gather, models_of, recall, workload_of
from autotune.host.detect import detect
from autotune.host.kernels import find_kernels
from autotune.loader import find_answer, load_result
from autotune.options import GPU_BUDGET_S, Budget, Options, counted_budget_s, split_budget, tune_command
from autotune.records import Campaign, Host, Result, Tier, Workload
from autotune.search.measured import Running
from autotune.search.study import TRIALS
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
    storage: str | None = None,
    progress: Progress | None = None,
    running: Running | None = None,
) -> Result:
    """The saved result for this host, model and options; if there is none, measure, decide, run, decide and save.

    Where no cache folder can be written, the result is returned all the same, with a warning.

    Args:
        model: Path of a config.json or GGUF file, or the name of a preset.
        options: Workload, limits, format, kernel, and whether to run what is predicted.
        budget_s: Wall time for benchmark and runs; default ``DEFAULT_BUDGET_S`` and ``RUN_BUDGET_S``.
        quick: Time fewer points, in ``QUICK_BUDGET_S``, and run nothing.
        force: Measure again, whatever is saved.
        storage: URL of a database that keeps the search among runs, so that it can be watched, stopped and resumed.
        progress: Told how far the benchmark is.
        running: Told how far the runs are.

    Raises:
        ModelError: The model can't be read.
        UsageError: An option that no run could use.
        MemoryLimitError: No configuration fits the memory.
        ConstraintError: None keeps the limits.
        BudgetError: The budget is too small to measure what a decision needs.
        BenchmarkError: Nothing that was measured is usable.
        KernelUnavailableError: The kernel asked for can't run here, or none can.
        StoreError: The database can't be used.
    """
    options = without_runs(options or Options()) if quick else options or Options()
    if not force:
        budget = split_budget(budget_s, quick=quick, confirm=options.confirm)
        if find_answer(model, options, counted_budget_s(budget.benchmark_s, quick=quick)) is not None:
            saved = load_result(model, options.workload, options.format)
            if saved is not None:
                return saved
    result = obtain(
        model,
        options,
        budget_s=budget_s,
        quick=quick,
        force=force,
        storage=storage,
        progress=progress,
        running=running,
    )
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
    storage: str | None = None,
    progress: Progress | None = None,
    running: Running | None = None,
) -> Result:
    """A result that isn't saved yet: from saved measurements if they cover all that is asked for, else from new ones.

    What was measured is saved before anything is run, and where no limit can be kept: whoever is stopped, or sets
    another limit, need not measure again.

    Args and raises: as for ``tune``.
    """
    started = time.monotonic()
    host = detect()
    budget = split_budget(budget_s, quick=quick, confirm=options.confirm, gpu=bool(host.gpus.usable))
    if storage is not None:
        from autotune.search.storage import check  # light: this module's other users load no Optuna

        check(storage)
    evidence = None if force else _recalled(model, options, host, budget, quick=quick)
    measured = evidence is None
    if evidence is None:
        evidence = gather(model, options, budget_s=budget.benchmark_s, quick=quick, progress=progress)
    workload, trials = workload_of(options, evidence.models[0], evidence.host), TRIALS if measured else None
    try:
        predicted = conclude(evidence, workload, started=started, trials=trials)
    except ConstraintError as error:
        if measured:  # else it is saved, perhaps with a better answer
            unlimited = without_runs(options)._replace(max_tpot_ms=None, max_ttft_ms=None)
            workload = workload_of(unlimited, evidence.models[0], evidence.host)
            _keep(conclude(evidence, workload, started=started, trials=trials), unlimited)
        raise ConstraintError(
            f"{error}; what was measured is saved: `autotune retune` answers another limit at once"
        ) from None
    if not options.confirm:
        return predicted
    if measured and not _is_proven(model, options):
        _keep(predicted, without_runs(options))
    return confirm(evidence, predicted, budget_s=budget.runs_s, started=started, storage=storage, running=running)


def measure(
    model: str | os.PathLike[str],
    options: Options,
    *,
    budget_s: float | None,
    quick: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    running: Running | None = None,
) -> Result:
    """Measure this host and decide, whatever is saved, and save nothing.

    Args:
        model: As for ``tune``.
        options: As for ``tune``.
        budget_s: As for ``tune``.
        quick: Time fewer points, and run nothing.
        seed: Of the sampling order and the searches.
        progress: Told how far the benchmark is.
        running: Told how far the runs are.

    Raises:
        AutotuneError: As for ``tune``.
    """
    started = time.monotonic()
    budget = split_budget(budget_s, quick=quick, confirm=options.confirm and not quick, gpu=bool(detect().gpus.usable))
    evidence = gather(model, options, budget_s=budget.benchmark_s, quick=quick, seed=seed, progress=progress)
    workload = workload_of(options, evidence.models[0], evidence.host)
    predicted = conclude(evidence, workload, started=started, trials=TRIALS, seed=seed)
    if not budget.runs_s:
        return predicted
    return confirm(evidence, predicted, budget_s=budget.runs_s, started=started, running=running, seed=seed)


def retune(model: str | os.PathLike[str], options: Options | None = None) -> Result:
    """Choose again from saved measurements: exact ranking only, no benchmark, no runs, no Optuna.

    What was run for the saved result still corrects the predictions; for the same workload, what it found stays.

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
    return conclude_again(saved, workload_of(options, saved.model, host), host, started=started)


def conclude_again(saved: Result, workload: Workload, host: Host, *, started: float | None = None) -> Result:
    """A result for another workload from a saved result's measurements, under the memory that ``host`` has now.

    Args:
        saved: Holds model, campaign, runs and cost model.
        workload: What to decide for.
        host: The host that it was measured on, as it is now.
        started: When the work began, on the monotonic clock.

    Raises:
        MemoryLimitError, ConstraintError: As for ``tune``.
    """
    started = time.monotonic() if started is None else started
    proven = proven_before(saved, host) if workload == saved.workload else None
    return conclude(recall(saved, host), workload, started=started, trials=None, proven=proven)


def request(options: Options, result: Result) -> dict[str, object]:
    """What a result for these options answers, as it is saved beside it."""
    asked = options if result.confirmed else without_runs(options)
    return asked.request(_counted_s(result.campaign))


def without_runs(options: Options) -> Options:
    """The same wish, content with predictions."""
    return options._replace(confirm=False)


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


def _is_proven(model: str | os.PathLike[str], options: Options) -> bool:
    """Whether what is saved was run: it stays until what takes its place was run as well."""
    saved = load_result(model, options.workload, options.format)
    return saved is not None and saved.confirmed


def _keep(predicted: Result, options: Options) -> None:
    """Save what was measured, if it can be saved: the result that follows says where it can't."""
    with contextlib.suppress(StoreError):
        cache.write(predicted, request(options, predicted))


def _recalled(
    model: str | os.PathLike[str], options: Options, host: Host, budget: Budget, *, quick: bool
) -> Evidence | None:
    """Saved evidence that has all that would be measured anew; None where there is none."""
    for saved in _saved(model, options):
        if _counted_s(saved.campaign) >= counted_budget_s(budget.benchmark_s, quick=quick):
            workload = workload_of(options, saved.model, host)
            # What was measured for the same workload ended with the budget, or as nothing more mattered.
            if workload == saved.workload or covers(
                saved.campaign, models_of(saved), host, workload, find_kernels(host), quick=quick
            ):
                return recall(saved, host)
    return None


def _counted_s(campaign: Campaign) -> float:
    return counted_budget_s(campaign.budget_s, quick=campaign.quick)


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
