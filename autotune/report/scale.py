"""Scales of a chart's axes: values to positions, and where ticks stand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
"""Steps between ticks that people read easily, within a decade."""


class Tick(NamedTuple):
    """A value that an axis is labelled at."""

    value: float
    text: str


class Scale(NamedTuple):
    """Maps values to positions.

    Attributes:
        low: The value at ``start``.
        high: The value at ``end``.
        start: Position in a drawing's units.
        end: Likewise; less than ``start`` where values grow upwards.
        logarithmic: Whether equal ratios take equal lengths; then both values are positive.
    """

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """The position of a value; one beyond the ends lies at the end."""
        value = min(max(value, self.low), self.high)
        if self.logarithmic:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def nice_ticks(high: float, most: int = 6) -> list[Tick]:
    """Ticks from 0 to the first easily read number that isn't below a value.

    Args:
        high: The largest value that is shown, positive.
        most: How many ticks there may be; at least 2.
    """
    raw = high / (most - 1)
    decade = 10.0 ** math.floor(math.log10(raw))
    step = next(step * decade for step in _STEPS if step * decade >= raw * (1 - 1e-9))
    return [Tick(step * count, plain(step * count)) for count in range(math.ceil(high / step * (1 - 1e-9)) + 1)]


def decades(low: float, high: float) -> list[Tick]:
    """Powers of ten from the last that isn't above the lowest value to the first that isn't below the highest."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    last = max(last, first + 1)
    return [Tick(10.0**power, plain(10.0**power)) for power in range(first, last + 1)]


def plain(value: float) -> str:
    """A tick's number: no exponent, no more digits than it has; thousands and above with k, M, G."""
    for least, size, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / size:.10g}{letter}"
    return f"{value:.10g}"


def thinned(ticks: Sequence[Tick], scale: Scale, unit_width: float, gap: float = 6.0) -> list[Tick]:
    """The ticks whose texts have room beside each other; the last stays.

    Args:
        ticks: Ascending.
        scale: Of a horizontal axis.
        unit_width: Width of one character.
        gap: Least room between two texts.
    """
    kept: list[Tick] = []
    free = math.inf
    for tick in reversed(ticks):
        half = len(tick.text) * unit_width / 2
        if scale.at(tick.value) + half <= free:
            kept.append(tick)
            free = scale.at(tick.value) - half - gap
    return kept[::-1]
