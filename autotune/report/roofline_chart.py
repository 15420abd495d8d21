"""Draws a roofline: attained operations per second over arithmetic intensity, both logarithmic."""

from __future__ import annotations

import itertools

from markupsafe import Markup

from autotune.report.layout import RIGHT, WIDTH, Plot, draw_axes, margin_of
from autotune.report.rooflines import Ceiling, Roofline, RooflinePoint
from autotune.report.scale import Scale, decades
from autotune.report.svg import CHARACTER, Drawing
from autotune.report.wording import counted
from autotune.summary import three_digits

_TOP, _BOTTOM, _HEIGHT = 30.0, 230.0, 270.0
_GIGA = 1e9

Box = tuple[float, float, float, float]


def draw_roofline(roofline: Roofline) -> Markup:
    """The chart of one kind of device."""
    points, ceilings = roofline.points, roofline.ceilings
    drawing = Drawing(WIDTH, _HEIGHT, describe(roofline))
    intensities, rates = zip(*((each.intensity, each.operations_per_s / _GIGA) for each in points), strict=True)
    ridges = [each.operations_per_s / each.read_bytes_per_s for each in ceilings]
    x_ticks = decades(min(intensities), max(*intensities, *ridges) * 1.5)
    lowest = min(*rates, *(allowed(each, min(intensities)) / _GIGA for each in ceilings))
    highest = max(*rates, *(each.operations_per_s / _GIGA for each in ceilings))
    y_ticks = decades(lowest, highest * 1.2)
    plot = Plot(
        Scale(x_ticks[0].value, x_ticks[-1].value, margin_of(y_ticks) + 4, RIGHT - 12, logarithmic=True),
        Scale(y_ticks[0].value, y_ticks[-1].value, _BOTTOM, _TOP, logarithmic=True),
    )
    draw_axes(drawing, plot, (x_ticks, y_ticks), ("operations per byte", "GOP/s"))
    for ceiling in ceilings:
        _draw_ceiling(drawing, plot, ceiling, chief=ceiling is ceilings[-1])
    taken = [*(_around(plot, point) for point in points), *_along(plot, ceilings[-1])]
    for point in points:
        _draw_point(drawing, plot, point)
    for point in sorted(points, key=lambda point: -len(point.sites)):
        _draw_name(drawing, plot, point, taken)
    return drawing.markup()


def describe(roofline: Roofline) -> str:
    """The chart in a sentence."""
    best = roofline.ceilings[-1]
    shares = [
        f"{point.sites} in {point.phase} {point.operations_per_s / allowed(best, point.intensity):.0%}"
        for point in roofline.points
    ]
    return (
        f"Roofline of {', '.join(roofline.devices)}: {three_digits(best.read_bytes_per_s / _GIGA)} GB/s and "
        f"{three_digits(best.operations_per_s / _GIGA)} GOP/s at most; of what these allow reach {'; '.join(shares)}."
    )


def allowed(ceiling: Ceiling, intensity: float) -> float:
    """Operations per second that the nearer one of the two ceilings allows."""
    return min(intensity * ceiling.read_bytes_per_s, ceiling.operations_per_s)


def _draw_ceiling(drawing: Drawing, plot: Plot, ceiling: Ceiling, *, chief: bool) -> None:
    ridge = ceiling.operations_per_s / ceiling.read_bytes_per_s
    # The slope begins where it enters the plot, at its left or at its bottom.
    start = max(plot.x.low, plot.y.low * _GIGA / ceiling.read_bytes_per_s)
    corners = [
        (intensity, allowed(ceiling, intensity) / _GIGA) for intensity in (start, min(ridge, plot.x.high), plot.x.high)
    ]
    drawing.path("ceiling" if chief else "ceiling lesser", [plot.at(*corner) for corner in corners])


def _draw_point(drawing: Drawing, plot: Plot, point: RooflinePoint) -> None:
    at = plot.at(point.intensity, point.operations_per_s / _GIGA)
    source = "timed" if point.timed else "interpolated"
    title = (
        f"{point.sites} ({point.product}), {point.phase} of {counted(point.tokens, 'token')}: "
        f"{three_digits(point.operations_per_s / _GIGA)} GOP/s at {point.intensity:.3g} operations per byte, {source}"
    )
    draw = drawing.circle if point.phase == "decode" else drawing.diamond
    draw(f"product {point.phase}{'' if point.timed else ' hollow'}", at, 4.0 if point.phase == "decode" else 5.0, title)


def _draw_name(drawing: Drawing, plot: Plot, point: RooflinePoint, taken: list[Box]) -> None:
    """Name a point where there is room around it; else the table alone does."""
    x, y = plot.at(point.intensity, point.operations_per_s / _GIGA)
    width = len(point.sites) * CHARACTER
    for left, base in itertools.product((x + 8, x - width / 2, x - 8 - width), (y + 4, y + 17, y - 9)):
        box = (left - 3, base - 10, left + width + 3, base + 3)
        inside = plot.x.start <= box[0] and box[2] <= plot.x.end and plot.y.end <= box[1] and box[3] <= plot.y.start
        if inside and not any(_overlap(box, other) for other in taken):
            drawing.text("name", (left, base), point.sites)
            taken.append(box)
            return


def _around(plot: Plot, point: RooflinePoint) -> Box:
    x, y = plot.at(point.intensity, point.operations_per_s / _GIGA)
    return x - 5, y - 5, x + 5, y + 5


def _along(plot: Plot, ceiling: Ceiling) -> list[Box]:
    """Boxes along a ceiling's line, so that no text lies on it."""
    count = 80
    ratio = plot.x.high / plot.x.low
    intensities = [plot.x.low * ratio ** (step / count) for step in range(count + 1)]
    positions = [plot.at(intensity, allowed(ceiling, intensity) / _GIGA) for intensity in intensities]
    return [(x - 2, y - 2, x + 2, y + 2) for x, y in positions]


def _overlap(box: Box, other: Box) -> bool:
    return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
