"""The numbers behind each chart, as tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from autotune.costmodel.roofline import Product
from autotune.records import Confirmation, CorrectionReport, CostModelReport, MemoryUse, Result
from autotune.report.curves import Curve
from autotune.report.rivals import CHOSEN, Rival
from autotune.report.rooflines import Roofline
from autotune.report.step_time import HANDOVER, HEAD, StepTime
from autotune.report.trials import Step
from autotune.report.wording import UNKNOWN, brief, percent, ranges, seconds, size
from autotune.summary import three_digits

_GIGA = 1e9


class Table(NamedTuple):
    """Rows of text under headings.

    Attributes:
        headings: One per column, with its unit.
        rows: Each as long as the headings.
        words: Columns whose cells are words, and set flush left.
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: frozenset[int] = frozenset({0})


def curve_table(curve: Curve) -> Table:
    """A curve's marks."""
    rows = [
        (
            f"{mark.value}{' (chosen)' if mark.chosen else ''}",
            _number(mark.predicted),
            _span(mark.within),
            _number(mark.measured),
            _span(mark.measured_within),
            " ".join(mark.obstacles) or "yes",
        )
        for mark in curve.marks
    ]
    headings = (curve.title, "predicted, tokens/s", "95 % band", "measured, tokens/s", "95 % interval", "possible")
    return Table(headings, tuple(rows), frozenset({0, 5}))


def roofline_table(roofline: Roofline) -> Table:
    """Ceilings and products."""
    ceilings = [
        (
            f"ceiling, {each.threads} thread{'s' if each.threads > 1 else ''}",
            UNKNOWN,
            UNKNOWN,
            f"{three_digits(each.read_bytes_per_s / _GIGA)} GB/s",
            three_digits(each.operations_per_s / _GIGA),
            "timed" if each.timed else "interpolated",
        )
        for each in roofline.ceilings
    ]
    points = [
        (
            f"{point.sites}: {point.product}",
            point.phase,
            str(point.tokens),
            three_digits(point.intensity),
            three_digits(point.operations_per_s / _GIGA),
            "timed" if point.timed else "interpolated",
        )
        for point in roofline.points
    ]
    headings = ("product", "phase", "tokens", "operations per byte", "GOP/s", "source")
    return Table(headings, (*ceilings, *points), frozenset({0, 1, 5}))


def step_table(step: StepTime) -> Table:
    """Every piece of a decode step."""
    of_layers = [
        _piece_row(
            f"layers {ranges(group.numbers)} on {group.device}",
            piece.name,
            piece.time_s,
            len(group.numbers),
            step.time_s,
        )
        for group in step.groups
        for piece in group.pieces
    ]
    of_devices = [
        _piece_row(device.device, piece.name, piece.time_s, 1, step.time_s)
        for device in step.devices
        for piece in device.pieces
        if piece.kind in (HEAD, HANDOVER)
    ]
    measured = [
        (device.device, "measured, all of it", UNKNOWN, seconds(device.measured_s), UNKNOWN)
        for device in step.devices
        if device.measured_s is not None
    ]
    headings = ("where", "what", "one", "all", "share of the step")
    return Table(headings, (*of_layers, *of_devices, *measured), frozenset({0, 1}))


def memory_table(uses: Iterable[MemoryUse], confirmation: Confirmation | None) -> Table:
    """The plan of each device."""
    used = {} if confirmation is None else confirmation.memory_used
    rows = [
        (
            use.device,
            size(use.weights_bytes),
            size(use.kv_cache_bytes),
            size(use.activations_bytes),
            size(use.overhead_bytes),
            size(use.total_bytes),
            size(use.available_bytes),
            size(used.get(use.device)),
        )
        for use in uses
    ]
    headings = ("device", "weights", "KV cache", "activations", "runtime", "planned", "available", "used when run")
    return Table(headings, tuple(rows))


def trials_table(steps: Iterable[Step]) -> Table:
    """All trials with what became of them."""
    rows = []
    for step in steps:
        measured = step.trial.measured
        interval = None if measured is None else measured.relative_interval
        rows.append(
            (
                str(step.number),
                step.trial.origin,
                brief(step.trial.configuration),
                f"{step.trial.state}{'' if step.trial.reason is None else f': {step.trial.reason}'}",
                UNKNOWN if measured is None else three_digits(measured.tokens_per_s),
                UNKNOWN if interval is None else f"±{percent(interval)}",
                seconds(None if measured is None else measured.tpot_s),
                seconds(None if measured is None else measured.ttft_s),
            )
        )
    headings = ("trial", "why", "configuration", "outcome", "tokens/s", "interval", "TPOT", "TTFT")
    return Table(headings, tuple(rows), frozenset({1, 2, 3}))


def rivals_table(rivals: Iterable[Rival]) -> Table:
    """The chosen configuration and the baselines."""
    rows = []
    for rival in rivals:
        measured = None if rival.rate is None else rival.rate.measured
        predicted = rival.prospect.predicted
        figures = predicted if measured is None else measured
        rows.append(
            (
                ", ".join(rival.names),
                brief(rival.prospect.configuration),
                three_digits(figures.tokens_per_s),
                seconds(figures.tpot_s),
                seconds(figures.ttft_s),
                "predicted" if measured is None else "measured",
                UNKNOWN if CHOSEN in rival.names else f"{rival.slowdown:.2f}",
                " ".join(rival.prospect.obstacles) or UNKNOWN,
                rival.origin,
            )
        )
    headings = ("", "configuration", "tokens/s", "TPOT", "TTFT", "source", "times slower", "obstacle", "where from")
    return Table(headings, tuple(rows), frozenset({0, 1, 5, 7, 8}))


def held_out_table(reports: Iterable[CostModelReport]) -> Table:
    """How well each device's cost model predicts what its fit didn't see."""
    rows = [
        (report.device, error.left_out, str(error.predictions), *map(percent, (error.median, error.p90, error.worst)))
        for report in reports
        for error in report.held_out
    ]
    headings = ("device", "left out", "points", "median", "p90", "worst")
    return Table(headings, tuple(rows), frozenset({0, 1}))


def corrections_table(reports: Iterable[CorrectionReport]) -> Table:
    """What runs changed about the predictions."""
    rows = [
        (
            report.device,
            report.phase,
            str(report.runs),
            f"× {report.factor:.3f}",
            percent(report.median_error_before),
            percent(report.median_error_after),
        )
        for report in reports
    ]
    headings = ("device", "phase", "runs", "measured to predicted", "median error before", "after")
    return Table(headings, tuple(rows), frozenset({0, 1}))


def kernels_table(result: Result) -> Table:
    """The fastest kernel of each product."""
    rows = [
        (
            kernels.device,
            str(Product(kernels.format, kernels.n_out, kernels.k_in)),
            _over_tokens(kernels.decode, kernels.prefill),
        )
        for kernels in result.kernels
    ]
    return Table(("device", "product", "fastest kernel, by tokens at once"), tuple(rows), frozenset({0, 1, 2}))


def _over_tokens(*by_tokens: dict[str, str]) -> str:
    """Kernels with the number of tokens from which each is the fastest."""
    kernels = {int(m): kernel for found in by_tokens for m, kernel in found.items()}
    parts, previous = [], None
    for m in sorted(kernels):
        if kernels[m] != previous:
            parts.append(kernels[m] if previous is None else f"{kernels[m]} from {m}")
            previous = kernels[m]
    return ", ".join(parts)


def _piece_row(where: str, what: str, time_s: float, count: int, total_s: float) -> tuple[str, ...]:
    return where, what, seconds(time_s), seconds(time_s * count), percent(time_s * count / total_s)


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else three_digits(value)


def _span(within: tuple[float, float] | None) -> str:
    return UNKNOWN if within is None else f"{three_digits(within[0])} to {three_digits(within[1])}"
