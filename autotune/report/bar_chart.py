"""Draws stacked bars, one below the other on a common scale: what a total consists of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from autotune.report.layout import RIGHT, WIDTH
from autotune.report.scale import Scale, nice_ticks, thinned
from autotune.report.svg import CHARACTER, Anchor, Drawing, shortened

_LEFT, _ROW, _BAR, _TOP = 4.0, 46.0, 16.0, 4.0
_MOST_BEYOND = 2.5
"""A capacity beyond so many times what is drawn isn't drawn whole: the bars would be too short to be told apart."""


class Segment(NamedTuple):
    """A part of a bar.

    Attributes:
        series: The style sheet's number for it, from 1.
        name: What it is.
        value: In the chart's unit.
    """

    series: int
    name: str
    value: float


class Bar(NamedTuple):
    """A total.

    Attributes:
        label: What it is of; shortened where there is no room.
        note: The total in words, to the right of the label.
        segments: From left to right.
        mark: A value to compare the total with, drawn as a line across the bar; None: there is none.
        capacity: How much there could be, drawn as a frame; None: no limit.
    """

    label: str
    note: str
    segments: tuple[Segment, ...]
    mark: float | None = None
    capacity: float | None = None

    @property
    def total(self) -> float:
        """Of all segments."""
        return sum(segment.value for segment in self.segments)


def axis_end(bars: Sequence[Bar]) -> float:
    """Up to where bars are drawn: a capacity far beyond all of them isn't drawn whole."""
    longest = max(max(bar.total, bar.mark or 0.0) for bar in bars)
    most = max(longest, *(bar.capacity or 0.0 for bar in bars))
    return nice_ticks(min(most, _MOST_BEYOND * longest))[-1].value


def draw_bars(
    bars: Sequence[Bar], unit: str, description: str, words: Callable[[float], str], family: str = ""
) -> Markup:
    """The chart of one bar or more.

    Args:
        bars: From top to bottom.
        unit: Of the axis.
        description: For who can't see it.
        words: Puts a value in words.
        family: Which of the style sheet's families of series it is drawn with.
    """
    bottom = _TOP + _ROW * len(bars)
    drawing = Drawing(WIDTH, bottom + 40, description)
    ticks = nice_ticks(axis_end(bars))
    scale = Scale(0.0, ticks[-1].value, _LEFT, RIGHT)
    for tick in ticks:
        x = scale.at(tick.value)
        drawing.line("grid", (x, _TOP), (x, bottom))
        drawing.line("axis", (x, bottom), (x, bottom + 4))
    for tick in thinned(ticks, scale._replace(end=RIGHT - 12), CHARACTER):
        x = scale.at(tick.value)
        last = tick is ticks[-1]
        drawing.text("tick", (RIGHT if last else x, bottom + 16), tick.text, _anchor(tick.value, last=last))
    drawing.text("title", (RIGHT, bottom + 33), unit, "end")
    drawing.line("axis", (_LEFT, bottom), (RIGHT, bottom))
    for row, bar in enumerate(bars):
        _draw_bar(drawing, scale, bar, _TOP + _ROW * row, words, family)
    return drawing.markup()


def _anchor(value: float, *, last: bool) -> Anchor:
    return "end" if last else "middle" if value else "start"


def _draw_bar(drawing: Drawing, scale: Scale, bar: Bar, top: float, words: Callable[[float], str], family: str) -> None:
    base, upper = top + 14, top + 20
    room = RIGHT - _LEFT - (len(bar.note) + 2) * CHARACTER
    drawing.text("label", (_LEFT, base), shortened(bar.label, room))
    drawing.text("note", (RIGHT, base), bar.note, "end")
    if bar.capacity is not None:
        beyond = bar.capacity > scale.high
        end = RIGHT if beyond else scale.at(bar.capacity)
        kind = "frame open" if beyond else "frame"
        corners = [(end, upper), (_LEFT, upper), (_LEFT, upper + _BAR), (end, upper + _BAR)]
        drawing.path(kind, corners, closed=not beyond)
    start = 0.0
    for segment in bar.segments:
        x, end = scale.at(start), scale.at(start + segment.value)
        title = f"{segment.name}: {words(segment.value)}"
        # A hair of the page between segments tells neighbours of similar lightness apart.
        width = end - x - 0.8 if end - x > 1.6 else end - x
        drawing.rectangle(f"series-{family}{segment.series}", (x, upper), width, _BAR, title)
        start += segment.value
    if bar.mark is not None:
        x = scale.at(bar.mark)
        drawing.line("mark", (x, upper - 4), (x, upper + _BAR + 4))
