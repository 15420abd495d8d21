"""Intervals for a comparison: of paired rounds that are looked at again and again, and of runs that were recorded."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from statistics import NormalDist, mean, median
from typing import NamedTuple

LEVEL = 0.95
"""Of all intervals of a comparison together: the chance that every one of them holds what it should."""

_FIRST_SHARE = 0.5
"""Of what may go wrong, the share that the first look spends: most comparisons are decided there."""

LOOKS = (8, 12, 18, 27, 40)
"""Rounds after which a sequential comparison is looked at."""

_SPARE_ROUNDS = 1.5
"""Factor on the rounds that would just do, as what they will show moves by about as much."""

_PRIOR_RUNS = 4
"""How many runs the noise that was recorded counts for, beside what the runs themselves show."""


class Interval(NamedTuple):
    """An estimate, and the interval around it."""

    low: float
    middle: float
    high: float


def alpha_of_look(index: int, intervals: int, *, last: bool = False) -> float:
    """How often one interval may miss at one look, so that all looks of all intervals together keep ``LEVEL``.

    Shares are added up (Bonferroni), so an interval holds whenever the rounds stop. Source: Lan and DeMets, Discrete
    sequential boundaries for clinical trials, 1983 (what may go wrong is spent step by step; here in fixed ones).

    Args:
        index: Of the look in ``LOOKS``, from 0.
        intervals: How many intervals are looked at.
        last: Whether no look follows, for a reason that is not in what is looked at, such as the time: then it spends
            all that is left.
    """
    shares = [_FIRST_SHARE, *[(1 - _FIRST_SHARE) / (len(LOOKS) - 1)] * (len(LOOKS) - 1)]
    return (1 - LEVEL) / intervals * (math.fsum(shares[index:]) if last else shares[index])


def signed_rank_interval(values: Sequence[float], alpha: float) -> Interval | None:
    """The centre of symmetrically distributed values: Hodges and Lehmann's estimate and Tukey's exact interval.

    A round's log ratio is symmetric about the true one, as which side runs first is drawn by lot. The interval asks
    for no other law. A round that something disturbed moves the estimate little; of 8 rounds the interval reaches from
    the lowest to the highest value, so there it widens it, and from 18 on hardly.

    Source: Hollander, Wolfe and Chicken, Nonparametric Statistical Methods, 3rd edition, sections 3.2 and 3.3.

    Args:
        values: One per round.
        alpha: How often the interval may miss the centre.

    Returns:
        The interval; None: with so few values there is none.
    """
    count = len(values)
    averages = sorted((values[i] + values[j]) / 2 for i in range(count) for j in range(i, count))
    rank, missed = 0, 0.0
    for ways in _signed_rank_ways(count):
        missed += ways * 0.5**count
        if missed > alpha / 2:
            break
        rank += 1
    return Interval(averages[rank - 1], median(averages), averages[-rank]) if rank else None


def rounds_needed(values: Sequence[float], limit: float, intervals: int) -> float:
    """How many rounds like these it takes until an interval lies on one side of ``limit`` and of ``-limit``.

    A rough figure, as the interval of a mean with the values' spread (by their median deviation, which disturbed rounds
    hardly move) shrinks.

    Args:
        values: One per round.
        limit: More than 0.
        intervals: How many intervals are looked at.
    """
    centre = median(values)
    deviation = median(abs(value - centre) for value in values) / NormalDist().inv_cdf(0.75)
    gap = abs(abs(centre) - limit)
    quantile = NormalDist().inv_cdf(1 - alpha_of_look(len(LOOKS) - 1, intervals) / 2)
    return _SPARE_ROUNDS * (quantile * deviation / gap) ** 2 if gap else math.inf


@functools.cache
def _signed_rank_ways(count: int) -> tuple[int, ...]:
    """In how many ways the ranks 1 to ``count`` can be signed so that the positive ones add up to 0, 1, 2, ..."""
    ways = [1]
    for rank in range(1, count + 1):
        longer = ways + [0] * rank
        for total, number in enumerate(ways):
            longer[total + rank] += number
        ways = longer
    return tuple(ways)


def runs_interval(base: Sequence[float], head: Sequence[float], deviations: Sequence[float], alpha: float) -> Interval:
    """By how much the runs of one side lie above those of another, on average.

    Student's interval with a common deviation. Few runs can't tell how far runs lie apart: what is known of the noise
    beforehand counts as four more (a conjugate prior; source: Gelman et al., Bayesian Data Analysis, 3rd edition,
    section 2.6).

    Args:
        base: One value per run, at least one.
        head: Likewise.
        deviations: The standard deviation that each run, of either side, is known to have by itself.
        alpha: How often the interval may miss.
    """
    difference = mean(head) - mean(base)
    squares = sum((value - mean(side)) ** 2 for side in (base, head) for value in side)
    prior = mean(deviation**2 for deviation in deviations)
    degrees = _PRIOR_RUNS + len(base) + len(head) - 2
    variance = (_PRIOR_RUNS * prior + squares) / degrees
    margin = student_t(1 - alpha / 2, degrees) * math.sqrt(variance * (1 / len(base) + 1 / len(head)))
    return Interval(difference - margin, difference, difference + margin)


def student_t(probability: float, degrees: int) -> float:
    """A quantile of Student's t, above the median.

    Args:
        probability: Above 0.5, below 1.
        degrees: Of freedom, at least 1.
    """
    low, high = 0.0, 1.0
    while _student_t_below(high, degrees) < probability:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_t_below(middle, degrees) < probability else (low, middle)
    return high


def _student_t_below(value: float, degrees: int) -> float:
    """Student's distribution function at a value of at least 0.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    angle = math.atan(value / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for step in range(1 + odd, degrees, 2):
        total += term
        term *= cosine**2 * step / (step + 1)
    within = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return (1 + within) / 2
