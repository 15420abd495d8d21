"""Intervals: against brute force and printed tables, and how often they miss in simulated comparisons."""

from __future__ import annotations

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest

from autotune.compare.statistics import (
    LEVEL,
    LOOKS,
    alpha_of_look,
    rounds_needed,
    runs_interval,
    signed_rank_interval,
    student_t,
)


@pytest.mark.parametrize("count", [6, 7, 9])
@pytest.mark.parametrize("alpha", [0.05, 0.0625, 0.2])
def test_the_interval_holds_what_the_exact_test_does_not_reject(count: int, alpha: float) -> None:
    """A centre lies within just where Wilcoxon's test of it, by all 2^n signs, has a p-value above alpha."""
    values = np.random.default_rng(count).normal(1, 2, count)
    interval = signed_rank_interval(list(values), alpha)
    assert interval is not None
    averages = sorted((values[i] + values[j]) / 2 for i in range(count) for j in range(i, count))
    for below, above in itertools.pairwise((averages[0] - 2, *averages, averages[-1] + 2)):
        centre = (below + above) / 2
        ranks = np.argsort(np.argsort(np.abs(values - centre))) + 1
        positive = ranks[values > centre].sum()
        totals = [sum(signs) for signs in itertools.product(*((0, rank) for rank in range(1, count + 1)))]
        fewer = sum(total <= min(positive, count * (count + 1) // 2 - positive) for total in totals)
        assert (interval.low < centre < interval.high) == (2 * fewer / 2**count > alpha)


def test_the_estimate_is_hodges_and_lehmanns() -> None:
    """The median of all pairs' means, which one wild value doesn't move far."""
    interval = signed_rank_interval([0.1, 0.0, 0.2, 0.1, 0.1, 0.0, 0.2, 90.0], 0.05)
    assert interval is not None
    assert interval.middle == pytest.approx(0.1)


def test_too_few_rounds_have_no_interval() -> None:
    """Seven signs can't be as rare as the first look asks for; eight can."""
    alpha = alpha_of_look(0, 3)
    assert signed_rank_interval([1.0, 2, 3, 4, 5, 6, 7], alpha) is None
    assert signed_rank_interval([1.0, 2, 3, 4, 5, 6, 7, 8], alpha) is not None


@pytest.mark.parametrize("intervals", [1, 3])
def test_all_looks_together_spend_what_there_is(intervals: int) -> None:
    """No more and no less than the level allows, and every look can be taken."""
    spent = [alpha_of_look(index, intervals) for index in range(len(LOOKS))]
    assert sum(spent) * intervals == pytest.approx(1 - LEVEL)
    for index, alpha in enumerate(spent):
        rest = alpha_of_look(index, intervals, last=True)
        assert (sum(spent[:index]) + rest) * intervals == pytest.approx(1 - LEVEL)
        assert rest >= alpha - 1e-15
    for count, alpha in zip(LOOKS, spent, strict=True):
        assert signed_rank_interval(list(np.linspace(0, 1, count)), alpha) is not None


@pytest.mark.parametrize("law", ["normal", "heavy tails", "bursts"])
def test_an_interval_looked_at_again_and_again_seldom_misses(law: str) -> None:
    """Over all looks, whenever one may stop: in at most 5 % of 1,000 simulated comparisons, less sampling error."""
    rng = np.random.default_rng(1)
    draws = {
        "normal": lambda: rng.normal(0, 0.03, LOOKS[-1]),
        "heavy tails": lambda: rng.standard_t(2, LOOKS[-1]) * 0.02,
        "bursts": lambda: rng.normal(0, 0.01, LOOKS[-1]) + rng.choice((-0.3, 0, 0, 0, 0, 0.3), LOOKS[-1]),
    }
    missed = 0
    for _ in range(1000):
        values = draws[law]().tolist()
        for index, count in enumerate(LOOKS):
            interval = signed_rank_interval(values[:count], alpha_of_look(index, 1))
            assert interval is not None
            if not interval.low <= 0 <= interval.high:
                missed += 1
                break
    assert missed <= 1000 * (1 - LEVEL) + 3 * math.sqrt(1000 * LEVEL * (1 - LEVEL))


@pytest.mark.parametrize(
    ("probability", "degrees", "value"),
    [
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.95, 3, 2.353),
        (0.975, 4, 2.776),
        (0.995, 5, 4.032),
        (0.99, 10, 2.764),
        (0.975, 30, 2.042),
        (0.9995, 20, 3.850),
    ],
)
def test_students_quantiles_are_those_of_printed_tables(probability: float, degrees: int, value: float) -> None:
    """Source: NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2."""
    assert student_t(probability, degrees) == pytest.approx(value, abs=6e-4)


def test_with_many_degrees_of_freedom_student_is_normal() -> None:
    """As the series is long then."""
    assert student_t(0.975, 2000) == pytest.approx(NormalDist().inv_cdf(0.975), rel=1e-3)


@pytest.mark.parametrize("runs", [(1, 1), (1, 3), (4, 4)])
def test_an_interval_of_runs_seldom_misses(runs: tuple[int, int]) -> None:
    """Where runs lie apart as far as their noise says: 5 % of 2,000 simulations at most, less sampling error."""
    rng, missed = np.random.default_rng(2), 0
    for _ in range(2000):
        base, head = (rng.normal(0, 0.02, count).tolist() for count in runs)
        interval = runs_interval(base, head, [0.02] * sum(runs), 0.05)
        missed += not interval.low <= 0 <= interval.high
    assert missed <= 2000 * 0.05 + 3 * math.sqrt(2000 * 0.05 * 0.95)


def test_the_spread_between_runs_widens_their_interval() -> None:
    """However steady each run is within: the next one may be as far off as these are from each other."""
    together = runs_interval([0.0, 0.001, 0.0], [0.1, 0.101, 0.1], [0.005] * 6, 0.05)
    apart = runs_interval([0.0, 0.1, -0.1], [0.1, 0.2, 0.0], [0.005] * 6, 0.05)
    assert together.low > 0.08
    assert apart.low < 0 < apart.high


def test_more_runs_narrow_their_interval() -> None:
    """Of the same spread."""
    few = runs_interval([0.0, 0.02], [0.1, 0.12], [0.01] * 4, 0.05)
    many = runs_interval([0.0, 0.02] * 4, [0.1, 0.12] * 4, [0.01] * 16, 0.05)
    assert many.high - many.low < few.high - few.low
    assert many.middle == pytest.approx(0.1)


def test_rounds_needed_grow_with_the_square_of_the_noise() -> None:
    """And shrink with the distance to the limit; at the limit no number does."""
    noise = np.random.default_rng(3).normal(0, 0.02, 12)
    noise -= np.median(noise)
    once, twice = (rounds_needed((by * noise).tolist(), 0.03, 3) for by in (1, 2))
    assert twice == pytest.approx(4 * once)
    assert rounds_needed((noise + 0.09).tolist(), 0.03, 3) == pytest.approx(once / 4)
    assert rounds_needed([0.03] * 8, 0.03, 3) == math.inf


def test_as_many_rounds_as_are_said_to_be_needed_tell() -> None:
    """More often than not, in simulated comparisons of equals."""
    rng, told = np.random.default_rng(4), 0
    for _ in range(100):
        needed = rounds_needed(rng.normal(0, 0.025, 8).tolist(), 0.03, 3)
        look = next((index for index, count in enumerate(LOOKS) if count >= needed), len(LOOKS) - 1)
        interval = signed_rank_interval(rng.normal(0, 0.025, LOOKS[look]).tolist(), alpha_of_look(look, 3))
        assert interval is not None
        told += -0.03 < interval.low < interval.high < 0.03
    assert told > 50
