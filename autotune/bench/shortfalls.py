"""What a campaign fell short of: an error where nothing can be decided without it, else words for the user."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from autotune.bench.plan import Task, describe, describe_first_missing
from autotune.bench.rivals import GPU_REFERENCE, REFERENCE
from autotune.errors import BenchmarkError, BudgetError
from autotune.model.sites import on_gpu
from autotune.options import DEFAULT_BUDGET_S, RUN_BUDGET_S
from autotune.records import Campaign, Failure, GpuRun, Layer, Measurement, Model
from ternary_kernels.formats import get_format

_BUSY = 0.10
"""Share of the time; below it, what shows a picture on a screen doesn't matter."""

_INTENDED = ("applications_clocks_setting", "display_clock_setting", "sync_boost")
"""Reasons for lower clocks that somebody set, and that last."""


def check_complete(campaign: Campaign, tasks: Sequence[Task]) -> None:
    """Check that all was timed on the CPU that a decision can't do without.

    Args:
        campaign: What was timed.
        tasks: What was to be, on the CPU.

    Raises:
        BenchmarkError: Something couldn't be timed.
        BudgetError: The budget ended before.
    """
    missing = describe_first_missing(tasks, (found.point for found in campaign.measurements()))
    if missing is None:
        return
    failures = [
        failure
        for failure in campaign.failures()
        if failure.point.device == "cpu" and failure.kind != "budget" and describe(failure.point) == missing
    ]
    if failures:
        raise BenchmarkError(
            f"{missing} could not be timed, and without it nothing can be decided: {failures[0].message}"
        )
    # About half of a budget is for kernels, where configurations are run as well.
    longer_s = max(DEFAULT_BUDGET_S + RUN_BUDGET_S, 4 * campaign.budget_s)
    raise BudgetError(
        f"a budget of {campaign.budget_s:.3g} s is too small: it ended before {missing} was timed; "
        f"try --budget {longer_s:g}"
    )


def shortfalls(campaign: Campaign, model: Model, used: Collection[str]) -> tuple[str, ...]:
    """What wasn't timed, what to mistrust, and what was timed in place of something else; one sentence each.

    Args:
        campaign: What was timed.
        model: The model that it counts for, in the format that was chosen.
        used: The devices that are to run it.
    """
    return (
        *_failures(campaign),
        *_numpy_alone(campaign),
        *(line for run in campaign.gpus for line in (*_of_gpu(run, model, used), *_torch_alone(campaign, run))),
    )


def _failures(campaign: Campaign) -> tuple[str, ...]:
    """What could not be timed, in words, one line per device and kind of failure.

    Of a GPU that can't be decided about, its own line says enough.
    """
    given_up = {run.devices[0] for run in campaign.gpus if run.failure is not None}
    points = Counter(outcome.point.device for outcome in campaign.outcomes)
    lines: dict[tuple[str, str], list[str]] = {}
    for failure in campaign.failures():
        if failure.point.device not in given_up:
            lines.setdefault((failure.point.device, failure.kind), []).append(failure.message)
    return tuple(
        f"{len(messages)} of {points[device]} points{'' if device == 'cpu' else f' on {device}'} were not timed "
        f"({kind.replace('_', ' ')}): {messages[0]}"
        for (device, kind), messages in lines.items()
    )


def _of_gpu(run: GpuRun, model: Model, used: Collection[str]) -> Iterator[str]:
    """What a kind of GPU fell short of."""
    devices = " and ".join(run.devices)
    if run.failure is not None:
        yield f"no layer is put on {devices}: {run.failure}"
        return
    clocks = run.clocks
    if clocks is not None and (clocks.busy_before or 0.0) > _BUSY:
        yield (
            f"{run.devices[0]} was at work for others just before it was timed ({clocks.busy_before:.0%} of the time): "
            "alone it would be faster"
        )
    held_back = [reason for reason in clocks.throttle_reasons if reason not in _INTENDED] if clocks else []
    if held_back:
        yield f"the clocks of {run.devices[0]} were held back while it was timed ({', '.join(held_back)})"
    for weight_format, stored in _repacked(model) if any(device in used for device in run.devices) else ():
        yield f"on {devices} {weight_format} weights are held as {stored}, for which there are kernels"


def _torch_alone(campaign: Campaign, run: GpuRun) -> Iterator[str]:
    """What it means that no other kernel than torch's was timed on a GPU; nothing where one was."""
    device = run.devices[0]
    products = [
        outcome
        for outcome in campaign.outcomes
        if outcome.point.device == device and outcome.point.op == "matmul" and get_format(outcome.point.format).ternary
    ]
    timed = {found.point.kernel for found in products if isinstance(found, Measurement)}
    if run.failure is not None or timed != {GPU_REFERENCE}:
        return
    if campaign.kernel == GPU_REFERENCE:
        why = "as --kernel asked for"
    else:
        formats = {found.point.format for found in products}
        reasons = [kernel.reason for kernel in campaign.kernels if kernel.device == "gpu" and kernel.format in formats]
        failed = [found.message for found in products if isinstance(found, Failure)]
        known = [reason for reason in reasons if reason is not None] or failed
        why = f"Triton's can't run: {known[0]}" if known else "Triton's failed"
    yield f"on {device} speeds are those of torch's operations, which unpack weights before they multiply, {why}"


def _repacked(model: Model) -> list[tuple[str, str]]:
    """Formats of a model's sites that a GPU holds as others, and those."""
    stored = on_gpu(model)
    pairs = zip((*model.layers, Layer((model.head,))), (*stored.layers, Layer((stored.head,))), strict=True)
    sites = {pair for before, after in set(pairs) for pair in zip(before.sites, after.sites, strict=True)}
    return sorted({(old.format, new.format) for old, new in sites if old.format != new.format})


def _numpy_alone(campaign: Campaign) -> tuple[str, ...]:
    """What it means that no other kernel than numpy's was timed; nothing where one was."""
    on_cpu = (found.point for found in campaign.measurements() if found.point.device == "cpu")
    timed = {point.kernel for point in on_cpu if point.op == "matmul"}
    if timed != {REFERENCE} or not campaign.kernels:
        return ()
    if campaign.kernel == REFERENCE:
        why, remedy = "as --kernel asked for", ""
    else:
        reasons = [kernel.reason for kernel in campaign.kernels if kernel.device == "cpu" and kernel.reason is not None]
        why = f"the native ones can't run: {reasons[0]}" if reasons else "the native ones failed"
        remedy = "; `pip install llvmlite` gives the native ones" if "llvmlite" in why else ""
    return (
        f"speeds are those of the numpy kernels, {why}: they are bound by computing and gain from every thread, where "
        f"a native runtime is bound by memory and often needs fewer threads than are advised here{remedy}",
    )
