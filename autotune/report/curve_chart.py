"""Draws a curve over one setting: prediction with its band, what was measured, what can't be had."""

from __future__ import annotations

from itertools import pairwise

from markupsafe import Markup

from autotune.report.curves import Curve, Mark
from autotune.report.layout import RIGHT, WIDTH, Plot, draw_axes, margin_of
from autotune.report.scale import Scale, Tick, nice_ticks
from autotune.report.svg import Drawing
from autotune.report.wording import counted, inside, rate
from autotune.summary import three_digits

_INSET = 10.0
_MANY = 12
"""More values than this are not labelled one by one."""
_TOP, _BOTTOM, _HEIGHT = 44.0, 204.0, 244.0


def draw_curve(curve: Curve) -> Markup:
    """The chart of a curve with two marks or more, one of which at least can be predicted."""
    marks = curve.marks
    drawing = Drawing(WIDTH, _HEIGHT, describe(curve))
    highest = max(end for mark in marks for within in (mark.within, mark.measured_within) for end in within or ())
    y_ticks = nice_ticks(highest)
    plot = Plot(
        Scale(marks[0].value, marks[-1].value, margin_of(y_ticks) + _INSET, RIGHT - 8, logarithmic=curve.doubling),
        Scale(0.0, y_ticks[-1].value, _BOTTOM, _TOP),
        _INSET,
    )
    x_ticks = _value_ticks(curve)
    draw_axes(drawing, plot, (x_ticks, y_ticks), (inside(curve.title), "tokens/s"))
    known = [(mark, mark.predicted, mark.within) for mark in marks if mark.predicted is not None and mark.within]
    low = [plot.at(mark.value, within[0]) for mark, _, within in known]
    high = [plot.at(mark.value, within[1]) for mark, _, within in known]
    drawing.path("band", [*low, *reversed(high)], closed=True)
    for (before, from_rate, _), (after, to_rate, _) in pairwise(known):
        kind = "curve barred" if before.obstacles or after.obstacles else "curve"
        drawing.line(kind, plot.at(before.value, from_rate), plot.at(after.value, to_rate))
    for mark in marks:
        _draw_mark(drawing, plot, mark)
    return drawing.markup()


def _value_ticks(curve: Curve) -> list[Tick]:
    """All values, or where there are many the first and round ones."""
    values = [mark.value for mark in curve.marks]
    if len(values) <= _MANY or curve.doubling:
        return [Tick(value, str(value)) for value in values]
    rounded = [tick for tick in nice_ticks(values[-1], 9) if values[0] < tick.value <= values[-1]]
    return [Tick(values[0], str(values[0])), *rounded]


def describe(curve: Curve) -> str:
    """The chart in a sentence."""
    marks, known = curve.marks, [mark for mark in curve.marks if mark.predicted is not None]
    ends = " to ".join(three_digits(mark.predicted or 0.0) for mark in (known[0], known[-1]))
    parts = [
        f"Predicted tokens per second over {inside(curve.title)} from {marks[0].value} to {marks[-1].value}: {ends}"
    ]
    feasible = [mark for mark in known if not mark.obstacles]
    if feasible:
        best = max(feasible, key=lambda mark: mark.predicted or 0.0)
        parts.append(f"highest feasible at {best.value} with {rate(best.predicted)}")
    parts += [f"chosen {mark.value} with {rate(mark.predicted)}" for mark in marks if mark.chosen]
    parts.append(f"{counted(sum(mark.measured is not None for mark in marks), 'value')} measured")
    return "; ".join(parts) + "."


def _draw_mark(drawing: Drawing, plot: Plot, mark: Mark) -> None:
    predicted = 0.0 if mark.predicted is None else mark.predicted
    title = f"{mark.value}: {rate(mark.predicted)} predicted"
    if mark.measured is not None:
        title += f", {rate(mark.measured)} measured"
    if mark.obstacles:
        title += f". {mark.obstacles[0]}"
    if mark.chosen:
        shown, how = (predicted, "predicted") if mark.measured is None else (mark.measured, "measured")
        x, y = plot.at(mark.value, shown)
        drawing.line("chosen-line", (x, _TOP - 4), (x, _BOTTOM))
        drawing.text("chosen-text", (RIGHT, _TOP - 12), f"chosen {mark.value}: {three_digits(shown)} {how}", "end")
        drawing.circle("chosen-ring", (x, y), 7.0, title)
    if mark.measured is not None and mark.measured_within is not None:
        low, high = (plot.at(mark.value, end) for end in mark.measured_within)
        drawing.line("interval", low, high)
        for x, y in (low, high):
            drawing.line("interval", (x - 3, y), (x + 3, y))
        drawing.circle("measured", plot.at(mark.value, mark.measured), 3.4, title)
    if mark.obstacles:
        drawing.cross("impossible", plot.at(mark.value, predicted), 3.4, title)
    elif mark.measured is None:
        drawing.circle("predicted", plot.at(mark.value, predicted), 2.4, title)
