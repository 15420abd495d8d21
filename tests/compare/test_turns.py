"""How sides take turns within a round, with synthetic sides that keep account."""

from __future__ import annotations

import math

import numpy as np
import pytest

from autotune.compare.protocol import Run, Start
from autotune.compare.turns import Turns, _orders
from tests.compare.sides import ABOUT, CONFIGURATION

START = Start(CONFIGURATION, ABOUT.workload)


class Player:
    """A synthetic side that writes down when it was asked what; samples take ``times`` seconds."""

    def __init__(self, name: str, log: list[str], **times: float) -> None:
        self.name, self.log, self.times = name, log, times

    def start(self, asked: Start) -> None:
        self.log.append(f"start {self.name}")

    def run(self, asked: Run) -> tuple[float, ...]:
        self.log.append(self.name)
        return (self.times[asked.phase],) * 3

    def stop(self) -> None:
        self.log.append(f"stop {self.name}")


def turns(log: list[str], **times: float) -> Turns:
    sides = Player("A", log, **times), Player("B", log, **{phase: 2 * time for phase, time in times.items()})
    return Turns(sides, (START, START), seed=0)  # type: ignore[arg-type]


def test_each_side_is_first_once_in_every_two_rounds() -> None:
    """By lot: both orders of a block come up."""
    orders = _orders(np.random.default_rng(0))
    blocks = {(next(orders), next(orders)) for _ in range(50)}
    assert blocks == {((0, 1), (1, 0)), ((1, 0), (0, 1))}


def test_slices_alternate_so_that_drift_cancels() -> None:
    """ABBA, an even number of turns, with one engine of each side per round."""
    log: list[str] = []
    base, head = turns(log, prefill=0.03, decode=0.05).play()
    assert (base.tpot_s, base.ttft_s) == (pytest.approx(0.05), pytest.approx(0.03))
    assert math.isclose(head.tpot_s / base.tpot_s, 2)
    first, second = log[0][-1], log[1][-1]
    runs = "".join(log[2:-2])
    assert runs == (first + second + second + first) * (len(runs) // 4)
    assert len(runs) >= 8
    assert sorted(log[:2] + log[-2:]) == ["start A", "start B", "stop A", "stop B"]


def test_a_long_prompt_is_run_once_by_each_side() -> None:
    """It takes the time of many slices."""
    log: list[str] = []
    turns(log, prefill=3.0, decode=0.05).play()
    assert len(log) == 2 + 2 + 4 + 2
