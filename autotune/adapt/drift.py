"""Whether a running model is as fast as it was: the ratio of observed to expected throughput, learnt and watched.

What a loader observes differs from what is expected of its configuration by a factor of its own: another runtime,
longer prompts, pauses between requests. So two things are kept apart.

The **ratio** is a running estimate: an exponentially weighted moving average of its logarithm, whose steps are clipped
so that a single odd observation moves it little.

A **slow-down** is a fall below what this loader showed at first. The median of its first observations is the
reference, their median absolute deviation the spread, which is at least the noise recorded with the result. A one-sided
cumulative sum then adds up by how much each observation lies below the reference, less a slack that a healthy one
rarely exceeds; it falls back to 0 where observations don't, and a slow-down is told where it passes a limit, until it
is back at 0. Each observation adds at most an eighth of the limit, so that no single one decides; the sum ends at twice
the limit, so that a recovery is seen as well. Tried with seeded noise: with up to 10 % of it no false alarm in 40 runs
of 10,000 observations; a fall by a fifth is told after 8 observations, at 10 % of noise after 13 (median).

Source: E. S. Page, "Continuous inspection schemes", Biometrika 41 (1954), for the sum; J. M. Lucas and R. B. Crosier,
"Robust CUSUM", Communications in Statistics 11 (1982), for limiting what one observation may add.
"""

from __future__ import annotations

import math
from statistics import median
from typing import Annotated, NamedTuple

import msgspec

from autotune.records.base import Record

LEARNT_FROM = 40
"""Observations that the reference is taken from."""

_WEIGHT = 0.1
"""Of a new observation in the running ratio."""

_LONGEST_STEP = 0.25
"""In the logarithm: what an observation may differ from the running ratio by and count in full."""

_SLACK_SPREADS = 1.2
_LEAST_SLACK = 0.05
"""Below the reference by less is no slow-down: not worth tuning again, and the reference is not known much better."""

_LIMIT_SPREADS = 8.0
_FEWEST = 8
"""Slow observations that it takes, however slow they are."""

_SPREAD_OF_MAD = 1.4826
"""The standard deviation is so many times the median absolute deviation, of normally distributed values."""

Natural = Annotated[int, msgspec.Meta(ge=0)]
Amount = Annotated[float, msgspec.Meta(ge=0)]


_WIDEST = 50.0
"""Logarithm of a ratio beyond which it is no number to calculate with."""

LogRatio = Annotated[float, msgspec.Meta(ge=-_WIDEST, le=_WIDEST)]


class Learnt(Record, frozen=True):
    """All that a watch knows, as it is saved."""

    seen: Natural = 0
    """Observations of this configuration."""
    log_ratio: LogRatio = 0.0
    first: Annotated[tuple[LogRatio, ...], msgspec.Meta(max_length=LEARNT_FROM - 1)] = ()
    """Logarithms of the first ratios, until the reference is taken from them."""
    reference: LogRatio | None = None
    """Logarithm of the ratio that counts as healthy; None: not enough was seen."""
    spread: Amount = 0.0
    """Standard deviation of the logarithm while healthy."""
    deficit: Amount = 0.0
    """The cumulative sum, as a share of its limit."""
    slow: bool = False


class Drift(NamedTuple):
    """How a running model compares with what was expected of it, and with itself at first.

    Attributes:
        ratio: Observed over expected throughput of the current configuration; None: nothing was observed.
        observations: How many the ratio was learnt from.
        slow_down: By how much it is slower than at first, relative, where that is sustained and beyond the noise;
            else None.
        host_changed: Whether this is no longer the host that the result was made on.
        why: All of that in words; what explains it, where something does.
    """

    ratio: float | None
    observations: int
    slow_down: float | None
    host_changed: bool
    why: str


class Watch:
    """Learns and watches the ratio of one running model.

    Args:
        noise: Relative noise recorded with the result: the least spread.
        learnt: What an earlier watch knew.
    """

    def __init__(self, noise: float, learnt: Learnt | None = None) -> None:
        self._noise = noise
        learnt = learnt or Learnt()
        self._seen, self._log_ratio, self._first = learnt.seen, learnt.log_ratio, list(learnt.first)
        self._reference, self._spread = learnt.reference, learnt.spread
        self._deficit, self._slow = learnt.deficit, learnt.slow

    @property
    def learnt(self) -> Learnt:
        """What is known, to go on from."""
        return Learnt(
            self._seen,
            self._log_ratio,
            tuple(self._first),
            self._reference,
            self._spread,
            self._deficit,
            self._slow,
        )

    @property
    def seen(self) -> int:
        """Observations of this configuration."""
        return self._seen

    @property
    def ratio(self) -> float | None:
        """Observed over expected throughput; None: nothing was observed."""
        return math.exp(self._log_ratio) if self._seen else None

    @property
    def slow_down(self) -> float | None:
        """How much slower than at first, relative, where that is sustained; else None."""
        if not self._slow or self._reference is None:
            return None
        return max(0.0, 1 - math.exp(self._log_ratio - self._reference))

    def observe(self, ratio: float, *, busy: bool) -> None:
        """Take in an observation.

        Args:
            ratio: Observed over expected throughput.
            busy: Whether the devices had work. Where they hadn't, a low throughput is the requests' doing and says
                nothing of how fast the model is.
        """
        log_ratio = min(_WIDEST, math.log(max(ratio, math.exp(-_WIDEST))))
        self._seen += 1
        step = log_ratio - self._log_ratio
        if self._seen > 1:
            step = max(-_LONGEST_STEP, min(_LONGEST_STEP, step))
        self._log_ratio += max(_WEIGHT, 1 / self._seen) * step
        if not busy:
            return
        if self._reference is None:
            self._first.append(log_ratio)
            if len(self._first) == LEARNT_FROM:
                self._refer()
            return
        slack = max(_LEAST_SLACK, _SLACK_SPREADS * self._spread)
        limit = max(_FEWEST * _LEAST_SLACK, _LIMIT_SPREADS * self._spread)
        excess = self._reference - log_ratio - slack
        self._deficit = min(2.0, max(0.0, self._deficit + min(excess / limit, 1 / _FEWEST)))
        self._slow = self._deficit >= 1 or (self._slow and self._deficit > 0)

    def restart(self) -> None:
        """Another configuration runs from now on, whose ratio is its own.

        While it is slow the reference stays: what the new one would show if healthy can't be seen now.
        """
        self._seen, self._log_ratio, self._first = 0, 0.0, []
        if not self._slow:
            self._reference, self._deficit = None, 0.0

    def _refer(self) -> None:
        self._reference = median(self._first)
        deviation = median(abs(log_ratio - self._reference) for log_ratio in self._first)
        self._spread = max(self._noise, _SPREAD_OF_MAD * deviation)
        self._first = []
