"""Draws the measured search: what each trial came to, in order, and the best so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from markupsafe import Markup

from autotune.report.layout import RIGHT, WIDTH, Plot, draw_axes, margin_of
from autotune.report.scale import Scale, Tick, nice_ticks
from autotune.report.svg import Drawing
from autotune.report.trials import Step
from autotune.report.wording import counted, rate, seconds

_TOP, _BOTTOM, _HEIGHT = 30.0, 176.0, 244.0
_STRIP = _BOTTOM + 13
"""Where trials stand that have no figures: below the axis."""


def draw_trials(steps: Sequence[Step], *, chat: bool) -> Markup:
    """The chart of one trial or more.

    Args:
        steps: In order.
        chat: Whether values are times per output token, of which less is better; else tokens per second.
    """
    drawing = Drawing(WIDTH, _HEIGHT, describe(steps, chat=chat))
    factor, unit = (1e3, "TPOT, ms") if chat else (1.0, "tokens/s")
    y_ticks = nice_ticks(max((step.value or 0.0) for step in steps) * factor or 1.0)
    plot = Plot(
        Scale(0.5, len(steps) + 0.5, margin_of(y_ticks) + 4, RIGHT),
        Scale(0.0, y_ticks[-1].value, _BOTTOM, _TOP),
    )
    draw_axes(drawing, plot, ([], y_ticks), ("", unit))
    drawing.rectangle("strip", (plot.x.start, _BOTTOM + 2), plot.x.end - plot.x.start, 22)
    corners: list[tuple[float, float]] = []
    for step in steps:
        if step.incumbent is not None:
            y = plot.y.at(step.incumbent * factor)
            corners += [
                (plot.x.at(step.number - 0.5 if corners else step.number), y),
                (plot.x.at(step.number + 0.5), y),
            ]
    if corners:
        drawing.path("incumbent", corners)
    for step in steps:
        _draw_step(drawing, plot, step, factor, chat=chat)
    for tick in _numbers(len(steps)):
        drawing.text("tick", (plot.x.at(tick.value), _STRIP + 28), tick.text, "middle")
    drawing.text("title", (RIGHT, _STRIP + 46), "trial", "end")
    return drawing.markup()


def describe(steps: Sequence[Step], *, chat: bool) -> str:
    """The chart in a sentence."""
    states = Counter(step.trial.state for step in steps)
    told = ", ".join(f"{count} {state}" for state, count in states.items())
    leaders = [step for step in steps if step.leads]
    best = ""
    if leaders:
        best = f"; the best so far is reached at trial {leaders[-1].number} with {_words(leaders[-1].value, chat=chat)}"
    return f"{counted(len(steps), 'trial')} in order ({told}){best}."


def _numbers(count: int) -> list[Tick]:
    step = max(1, -(-count // 8))
    return [Tick(number, str(number)) for number in range(1, count + 1, step)]


def _draw_step(drawing: Drawing, plot: Plot, step: Step, factor: float, *, chat: bool) -> None:
    trial = step.trial
    title = f"{step.number}, {trial.origin}: {trial.state}"
    if step.value is not None:
        title += f", {_words(step.value, chat=chat)}"
    if trial.reason is not None:
        title += f" ({trial.reason})"
    x = plot.x.at(step.number)
    y = _STRIP if step.value is None else plot.y.at(step.value * factor)
    if step.chosen:
        drawing.circle("chosen-ring", (x, y), 7.5, title)
    if trial.state == "complete":
        drawing.circle("leader" if step.leads else "measured", (x, y), 4.0, title)
    elif trial.state == "pruned":
        drawing.circle("pruned", (x, y), 4.0, title)
    elif trial.state == "infeasible":
        drawing.cross("impossible", (x, y), 4.0, title)
    else:
        drawing.diamond("failed", (x, y), 5.0, title)


def _words(value: float | None, *, chat: bool) -> str:
    return seconds(value) if chat else rate(value)
