"""Drawing: the few shapes that charts are made of, as elements of an SVG tree.

Colours, strokes and text sizes are the style sheet's, by class; so one drawing serves light, dark and print.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal
from xml.etree import ElementTree as ET

from markupsafe import Markup

Anchor = Literal["start", "middle", "end"]
Position = tuple[float, float]

CHARACTER = 6.3
"""Estimated width of a character at the style sheet's text size of 11.5, to tell what has room."""


class Drawing:
    """An SVG image under construction.

    Args:
        width: Of its coordinate system; on a page it scales.
        height: Likewise.
        description: What is to be seen, for who can't see it.
    """

    def __init__(self, width: float, height: float, description: str) -> None:
        self.width, self.height = width, height
        self._root = ET.Element(
            "svg",
            {
                "xmlns": "http://www.w3.org/2000/svg",
                "viewBox": f"0 0 {_number(width)} {_number(height)}",
                "role": "img",
                "aria-label": description,
            },
        )

    def line(self, kind: str, start: Position, end: Position) -> None:
        """A straight line; ``kind`` is the style sheet's class, here and below."""
        (x1, y1), (x2, y2) = start, end
        self._add("line", kind, x1=_number(x1), y1=_number(y1), x2=_number(x2), y2=_number(y2))

    def path(self, kind: str, positions: Iterable[Position], *, closed: bool = False) -> None:
        """A line through positions, or the area that it surrounds."""
        steps = "L".join(f"{_number(x)} {_number(y)}" for x, y in positions)
        self._add("path", kind, d=f"M{steps}{'Z' if closed else ''}")

    def circle(self, kind: str, centre: Position, radius: float, title: str | None = None) -> None:
        """A circle; the title is shown where a pointer rests on it."""
        _title(
            self._add("circle", kind, cx=_number(centre[0]), cy=_number(centre[1]), r=_number(radius)),
            title,
        )

    def diamond(self, kind: str, centre: Position, radius: float, title: str | None = None) -> None:
        """A square that stands on its corner."""
        (x, y), r = centre, radius
        steps = "L".join(f"{_number(a)} {_number(b)}" for a, b in ((x, y - r), (x + r, y), (x, y + r), (x - r, y)))
        _title(self._add("path", kind, d=f"M{steps}Z"), title)

    def cross(self, kind: str, centre: Position, radius: float, title: str | None = None) -> None:
        """Two lines that cross."""
        (x, y), r = centre, radius
        strokes = ((x - r, y - r), (x + r, y + r)), ((x - r, y + r), (x + r, y - r))
        steps = "".join(f"M{_number(a)} {_number(b)}L{_number(c)} {_number(d)}" for (a, b), (c, d) in strokes)
        _title(self._add("path", kind, d=steps), title)

    def rectangle(self, kind: str, corner: Position, width: float, height: float, title: str | None = None) -> None:
        """A rectangle, from its upper left corner."""
        x, y = corner
        _title(
            self._add("rect", kind, x=_number(x), y=_number(y), width=_number(max(width, 0.0)), height=_number(height)),
            title,
        )

    def text(self, kind: str, at: Position, words: str, anchor: Anchor = "start") -> None:
        """A line of text; ``at`` is on its base line."""
        found = self._add("text", kind, x=_number(at[0]), y=_number(at[1]))
        if anchor != "start":
            found.set("text-anchor", anchor)
        found.text = words

    def markup(self) -> Markup:
        """The image, ready for a page."""
        # ElementTree escapes what is text and what is an attribute.
        return Markup(ET.tostring(self._root, encoding="unicode"))  # noqa: S704

    def _add(self, tag: str, kind: str, **attributes: str) -> ET.Element:
        return ET.SubElement(self._root, tag, {"class": kind, **attributes})


def shortened(words: str, width: float) -> str:
    """Words that take no more than a width, at the style sheet's text size; the middle is left out if need be."""
    most = max(3, int(width / CHARACTER))
    if len(words) <= most:
        return words
    head = (most - 1) * 2 // 3
    return f"{words[:head].rstrip()}…{words[len(words) - (most - 1 - head) :].lstrip()}"


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _title(element: ET.Element, title: str | None) -> None:
    if title is not None:
        ET.SubElement(element, "title").text = title
