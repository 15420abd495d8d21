"""What charts have in common: the plot's place in the drawing, axes, grid and ticks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from autotune.report.scale import Scale, Tick, thinned
from autotune.report.svg import CHARACTER, Drawing

WIDTH = 360.0
"""Of all charts, in units: about a phone's width, so that text is as large as the page's on it and on a desktop."""
RIGHT = WIDTH - 8.0
TEXT_HEIGHT = 14.0


class Plot(NamedTuple):
    """The area that data is drawn in, with its axes.

    Attributes:
        x: Horizontal scale.
        y: Vertical scale; its start is at the bottom.
        inset: How far right of the vertical axis the horizontal scale begins, so that marks don't lie on its numbers.
    """

    x: Scale
    y: Scale
    inset: float = 0.0

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The position of a point."""
        return self.x.at(x), self.y.at(y)


def margin_of(ticks: Sequence[Tick]) -> float:
    """Room for a vertical axis' numbers."""
    return max(len(tick.text) for tick in ticks) * CHARACTER + 10.0


def draw_axes(
    drawing: Drawing, plot: Plot, ticks: tuple[Sequence[Tick], Sequence[Tick]], titles: tuple[str, str]
) -> None:
    """Grid lines, ticks' texts and titles: the horizontal axis' below it, the vertical axis' above the plot.

    Args:
        drawing: To draw on.
        plot: Where.
        ticks: Of the horizontal and of the vertical axis.
        titles: Likewise, each with its unit.
    """
    left, right = plot.x.start - plot.inset, plot.x.end
    bottom, top = plot.y.start, plot.y.end
    for tick in ticks[1]:
        y = plot.y.at(tick.value)
        drawing.line("axis" if tick is ticks[1][0] else "grid", (left - 4, y), (right, y))
        drawing.text("tick", (left - 7, y + 4), tick.text, "end")
    shown = {tick.value for tick in thinned(ticks[0], plot.x, CHARACTER)}
    for tick in ticks[0]:
        x = plot.x.at(tick.value)
        drawing.line("axis", (x, bottom), (x, bottom + 4))
        if tick.value in shown:
            drawing.text("tick", (x, bottom + 16), tick.text, "middle")
    drawing.text("title", (left, top - 12), titles[1])
    drawing.text("title", (right, bottom + 33), titles[0], "end")
