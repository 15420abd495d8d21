"""What a campaign fell short of: an error where nothing can be decided without it, else words for the user."""

from __future__ import annotations

from collections.abc import Sequence

from autotune.bench.plan import Task, describe, describe_first_missing
from autotune.bench.rivals import REFERENCE
from autotune.errors import BenchmarkError, BudgetError
from autotune.options import DEFAULT_BUDGET_S
from autotune.records import Campaign, Host


def check_complete(campaign: Campaign, tasks: Sequence[Task]) -> None:
    """Check that all was timed that a decision can't do without.

    Args:
        campaign: What was timed.
        tasks: What was to be.

    Raises:
        BenchmarkError: Something couldn't be timed.
        BudgetError: The budget ended before.
    """
    missing = describe_first_missing(tasks, (found.point for found in campaign.measurements()))
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


def shortfalls(campaign: Campaign, host: Host) -> tuple[str, ...]:
    """What wasn't timed, and kernels that were timed in place of better ones; one sentence each."""
    return (*_failures(campaign), *_numpy_alone(campaign), *_untimed_gpus(host))


def _failures(campaign: Campaign) -> tuple[str, ...]:
    """What could not be timed, in words, one line per kind of failure."""
    lines: dict[str, list[str]] = {}
    for failure in campaign.failures():
        lines.setdefault(failure.kind, []).append(failure.message)
    return tuple(
        f"{len(messages)} of {len(campaign.outcomes)} points were not timed ({kind.replace('_', ' ')}): {messages[0]}"
        for kind, messages in lines.items()
    )


def _numpy_alone(campaign: Campaign) -> tuple[str, ...]:
    """What it means that no other kernel than numpy's was timed; nothing where one was."""
    timed = {found.point.kernel for found in campaign.measurements() if found.point.op == "matmul"}
    if timed != {REFERENCE} or not campaign.kernels:
        return ()
    if campaign.kernel == REFERENCE:
        why, remedy = "as --kernel asked for", ""
    else:
        reasons = [kernel.reason for kernel in campaign.kernels if kernel.reason is not None]
        why = f"the native ones can't run: {reasons[0]}" if reasons else "the native ones failed"
        remedy = "; `pip install llvmlite` gives the native ones" if "llvmlite" in why else ""
    return (
        f"speeds are those of the numpy kernels, {why}: they are bound by computing and gain from every thread, where "
        f"a native runtime is bound by memory and often needs fewer threads than are advised here{remedy}",
    )


def _untimed_gpus(host: Host) -> tuple[str, ...]:
    names = [gpu.name for gpu in host.gpus.devices if gpu.unusable_reason is None]
    return (f"GPUs are listed but not timed yet: {', '.join(names)}",) if names else ()
