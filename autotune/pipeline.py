"""The whole way: model and host in, benchmark, cost model, search, result out; or again from saved measurements."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime

from autotune.bench import campaign as bench
from autotune.bench.campaign import Progress
from autotune.bench.plan import ceilings, describe, describe_first_missing, plan
from autotune.costmodel.heldout import fit
from autotune.costmodel.model import CostModel
from autotune.errors import BenchmarkError, BudgetError, MemoryLimitError, ResultNotFoundError, StoreError
from autotune.host.detect import detect
from autotune.host.tier import classify
from autotune.loader import FALLBACK_THREADS, find_answer, load_result
from autotune.model import memory
from autotune.model.analyse import analyse
from autotune.options import DEFAULT_BUDGET_S, Options, check_budget, counted_budget_s, tune_command
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
from autotune.search.decide import decide
from autotune.search.study import TRIALS
from autotune.search.workload import batch_grid, chunk_grid, make_workload
from autotune.store import cache
from autotune.store.entry import WORKLOADS

KERNEL = "numpy"
"""The kernel that is timed."""

_HOST_BUDGET_S = 2.0
_USABLE_SHARE = 0.9
"""Share of the usable memory that a configuration may plan with: the rest is for what else runs and grows."""

_UNKNOWN_NOISE = 0.05
"""Relative noise assumed where no point was sampled often enough to tell."""


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
        options: Workload, limits and format.
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

    Args and raises: as for ``tune``.
    """
    for saved in () if force else _saved(model, options):
        if saved.campaign.budget_s >= budget_s:
            host, workload = detect(), _workload(options, saved.model)
            if _covers(saved.campaign, saved.model, host, workload, quick=quick):
                return conclude_again(saved, workload, host)
    return measure(model, options, budget_s=budget_s, quick=quick, progress=progress)


def measure(
    model: str | os.PathLike[str],
    options: Options,
    *,
    budget_s: float,
    quick: bool = False,
    kernel: str = KERNEL,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Measure this host and decide, whatever is saved, and save nothing.

    Args:
        model: As for ``tune``.
        options: As for ``tune``.
        budget_s: Wall time for the benchmark.
        quick: Time fewer points.
        kernel: Kernel to time.
        seed: Of the sampling order and the Optuna study.
        progress: Told how far the benchmark is.

    Raises:
        AutotuneError: As for ``tune``.
    """
    started = time.monotonic()
    analysed = analyse(model, options.format)
    workload = _workload(options, analysed)
    host = detect()
    _check_fits(analysed, workload, host)
    tasks = plan(analysed, host, workload, kernel, quick=quick)
    campaign = bench.run(analysed, host, tasks, budget_s=budget_s, progress=progress, seed=seed)
    _check_complete(campaign, describe_first_missing(tasks, (found.point for found in campaign.measurements())))
    cost_model, report = fit(campaign)
    return _conclude(analysed, host, workload, campaign, cost_model, report, started=started, trials=TRIALS, seed=seed)


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
        raise ResultNotFoundError(
            f"this host has no saved measurements of {name}: "
            f"run `{tune_command(name, options.workload, options.format)}` first"
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
    return _conclude(
        saved.model,
        host,
        workload,
        saved.campaign,
        CostModel(saved.campaign, saved.cost_model.roofline),
        saved.cost_model,
        started=time.monotonic() if started is None else started,
        trials=None,
    )


def request(options: Options, result: Result) -> dict[str, object]:
    """What a result for these options answers, as it is saved beside it."""
    full = _covers(result.campaign, result.model, result.host, result.workload, quick=False)
    return options.request(counted_budget_s(result.campaign.budget_s, quick=not full))


def measure_tier(host: Host) -> Tier:
    """Time the host's read bandwidth and arithmetic alone, and say what tier they make it.

    Raises:
        BenchmarkError: They could not be timed.
    """
    campaign = bench.run(None, host, ceilings(host, KERNEL), budget_s=_HOST_BUDGET_S)
    return _tier(host, fit(campaign)[1])


def _conclude(
    model: Model,
    host: Host,
    workload: Workload,
    campaign: Campaign,
    cost_model: CostModel,
    report: CostModelReport,
    *,
    started: float,
    trials: int | None,
    seed: int = 0,
) -> Result:
    """The pure second half: what follows from model, host, workload and measurements."""
    costs = cost_model.steps(
        model,
        workload,
        range(1, host.limits.usable_threads + 1),
        batch_grid(workload.max_batch),
        chunk_grid(workload.prompt_tokens),
    )
    decision = decide(
        model,
        workload,
        costs,
        available_bytes={"cpu": _plannable_bytes(host)},
        overhead_bytes={"cpu": campaign.runtime_overhead_bytes},
        default=_default(model, workload, host),
        noise=campaign.noise.median_relative_interval or _UNKNOWN_NOISE,
        bound_by=lambda configuration: cost_model.bound_by(model, workload, configuration),
        trials=trials,
        seed=seed,
    )
    return Result(
        device_config=_device_config(decision),
        provenance="measured",
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        host=host,
        tier=_tier(host, report),
        model=model,
        workload=workload,
        decision=decision,
        cost_model=report,
        campaign=campaign,
        tune_time_s=time.monotonic() - started,
        warnings=(
            *cost_model.caveats(model, workload, decision.chosen.configuration),
            *_failures(campaign),
            *_untimed_gpus(host),
        ),
    )


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


def _check_fits(model: Model, workload: Workload, host: Host) -> None:
    """Before anything is timed: the smallest configuration must fit.

    Raises:
        MemoryLimitError: It doesn't.
    """
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


def _check_complete(campaign: Campaign, missing: str | None) -> None:
    if missing is None:
        return
    failures = [
        failure for failure in campaign.failures() if failure.kind != "budget" and describe(failure.point) == missing
    ]
    if failures:
        raise BenchmarkError(
            f"{missing} could not be timed, and without it nothing can be decided: {failures[0].message}"
        )
    longer_s = max(DEFAULT_BUDGET_S, 2 * campaign.budget_s)
    raise BudgetError(
        f"a budget of {campaign.budget_s:g} s is too small: it ended before {missing} was timed; "
        f"try --budget {longer_s:g}"
    )


def _failures(campaign: Campaign) -> tuple[str, ...]:
    """What could not be timed, in words, one line per kind of failure."""
    lines: dict[str, list[str]] = {}
    for failure in campaign.failures():
        lines.setdefault(failure.kind, []).append(failure.message)
    return tuple(
        f"{len(messages)} of {len(campaign.outcomes)} points were not timed ({kind.replace('_', ' ')}): {messages[0]}"
        for kind, messages in lines.items()
    )


def _untimed_gpus(host: Host) -> tuple[str, ...]:
    names = [gpu.name for gpu in host.gpus.devices if gpu.unusable_reason is None]
    return (f"GPUs are listed but not timed yet: {', '.join(names)}",) if names else ()


def _tier(host: Host, report: CostModelReport) -> Tier:
    return classify(host, max(report.read_bytes_per_s.values()), max(report.operations_per_s.values()))


def _saved(model: str | os.PathLike[str], options: Options) -> Iterator[Result]:
    """The saved results for this host and model: that of the wanted workload first.

    Raises:
        ModelError: The model can't be read.
        UsageError: There is no such workload.
    """
    for workload in dict.fromkeys((options.workload, *WORKLOADS)):
        saved = load_result(model, workload, options.format)
        if saved is not None:
            yield saved


def _covers(campaign: Campaign, model: Model, host: Host, workload: Workload, *, quick: bool) -> bool:
    """Whether a campaign has tried all points that a new one would."""
    wanted = {task.point for task in plan(model, host, workload, KERNEL, quick=quick)}
    return wanted <= {outcome.point for outcome in campaign.outcomes}
