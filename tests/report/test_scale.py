"""Axes: ticks that people read, where values stand, and texts that have room."""

from __future__ import annotations

import itertools

import pytest

from autotune.report.scale import Scale, Tick, decades, nice_ticks, plain, thinned


@pytest.mark.parametrize("high", [1e-4, 0.37, 1.0, 7.3, 60.0, 99.9, 100.0, 12_345.0, 3e9])
def test_ticks_start_at_zero_and_reach_the_highest_value(high: float) -> None:
    """In equal steps, no more of them than there is room for, and none beyond the first that covers the value."""
    ticks = [tick.value for tick in nice_ticks(high, most=6)]
    steps = {round((after - before) / ticks[1], 9) for before, after in itertools.pairwise(ticks)}
    assert ticks[0] == 0
    assert ticks[-2] < high <= ticks[-1] * (1 + 1e-9)
    assert steps == {1.0}
    assert len(ticks) <= 7


def test_decades_surround_all_values() -> None:
    """At least one whole decade, powers of ten themselves included."""
    assert [tick.value for tick in decades(3, 420)] == [1, 10, 100, 1000]
    assert [tick.value for tick in decades(10, 1000)] == [10, 100, 1000]
    assert [tick.value for tick in decades(2, 3)] == [1, 10]
    assert [tick.value for tick in decades(10, 10)] == [10, 100]


def test_numbers_are_short() -> None:
    """Thousands and more get a letter, nothing gets an exponent or a rounding error's digits."""
    assert [plain(value) for value in (0.1 + 0.2, 2.5, 5000.0, 20_000.0, 1e6, 2e9, 0.001)] == [
        "0.3",
        "2.5",
        "5000",
        "20k",
        "1M",
        "2G",
        "0.001",
    ]


def test_a_scale_maps_its_ends_and_keeps_to_them() -> None:
    """Linear in values or in their logarithms; upside down where the end lies above."""
    linear, upwards = Scale(0, 10, 100, 200), Scale(0, 10, 200, 100)
    logarithmic = Scale(1, 100, 0, 50, logarithmic=True)
    assert [linear.at(value) for value in (0, 5, 10, 12, -3)] == [100, 150, 200, 200, 100]
    assert upwards.at(2.5) == 175
    assert logarithmic.at(10) == pytest.approx(25)
    assert logarithmic.at(1e-9) == 0


def test_ticks_without_room_lose_their_text() -> None:
    """The last stays; what stays does not overlap."""
    scale = Scale(0, 100, 0, 100)
    kept = thinned([Tick(value, str(value)) for value in range(0, 101, 5)], scale, unit_width=6, gap=6)
    assert kept[-1].text == "100"
    edges = [(scale.at(tick.value) - 3 * len(tick.text), scale.at(tick.value) + 3 * len(tick.text)) for tick in kept]
    assert len(kept) > 3
    assert all(before[1] + 6 <= after[0] for before, after in itertools.pairwise(edges))
