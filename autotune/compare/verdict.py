"""From intervals to a verdict: better, the same, worse, or not to be told."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

from autotune.compare.statistics import Interval
from autotune.records import Configuration, Record, Workload
from autotune.search.evaluate import serving_time_s

Verdict = Literal["worse", "can't tell", "better", "same"]
MetricName = Literal["TPOT", "TTFT", "tokens/s"]

METRICS: tuple[MetricName, ...] = ("TPOT", "TTFT", "tokens/s")


class Change(Record, frozen=True):
    """What became of one metric."""

    metric: MetricName
    base: float
    """Seconds, or tokens per second: the median of BASE's rounds or runs."""
    head: float
    change: float
    """Of the metric, relative: 0.1 is a tenth more, of TPOT and TTFT a tenth slower, of tokens/s a tenth faster."""
    low: float
    """Ends of the interval around ``change``; the intervals of all metrics together are 95 % sure."""
    high: float
    verdict: Verdict
    decides: bool
    """Whether it counts in the verdict on the whole."""


class Compared(Record, frozen=True, kw_only=True):
    """What one model does under one workload on one class of hardware, with BASE and with HEAD."""

    hardware_class: str
    model_name: str
    weight_format: tuple[str, str]
    """BASE's and HEAD's."""
    workload: Workload
    configuration: tuple[Configuration, Configuration]
    runs: tuple[int, int]
    """Rounds, or records."""
    alike: bool
    """Whether all of them ran the same configuration and format, so that every metric counts."""
    changes: tuple[Change, ...]
    verdict: Verdict


class Pace(Record, frozen=True):
    """What one side did in one round."""

    tpot_s: float
    """Of its decode steps: the geometric mean over slices of each one's median."""
    ttft_s: float
    """The same of its prompts."""


class Comparison(Record, frozen=True, kw_only=True):
    """The answer of `autotune compare`."""

    mode: Literal["interleaved", "recorded"]
    base: str
    """What it was, in words."""
    head: str
    margin: float
    """Relative time; what lies within it counts as the same."""
    verdict: Verdict
    compared: tuple[Compared, ...]
    notes: tuple[str, ...]
    """What a reader should know beside the figures, in sentences."""
    spent_s: float | None
    """Wall time of the rounds; None where records were compared."""
    rounds: tuple[tuple[Pace, Pace], ...] = ()
    """BASE's and HEAD's, in the order taken; empty where records were compared."""


def log_times(tpot_s: float, ttft_s: float, configuration: Configuration, workload: Workload) -> tuple[float, ...]:
    """Logarithms of what each of ``METRICS`` takes: seconds per token or prompt, of tokens/s the reciprocal."""
    batch = configuration.batch_size
    per_token_s = serving_time_s(workload, batch, tpot_s, ttft_s) / (batch * workload.output_tokens)
    return math.log(tpot_s), math.log(ttft_s), math.log(per_token_s)


def objective(workload: Workload) -> MetricName:
    """The metric that a workload is after."""
    return "TPOT" if workload.name == "chat" else "tokens/s"


def judge(slowdown: Interval, margin: float) -> Verdict:
    """The verdict on an interval around the logarithm of a ratio of times, HEAD's over BASE's.

    Only where all of it lies beyond the margin is something worse or better, and the same only where all of it lies
    within.
    """
    limit = math.log1p(margin)
    if slowdown.low > limit:
        return "worse"
    if slowdown.high < -limit:
        return "better"
    return "same" if -limit <= slowdown.low and slowdown.high <= limit else "can't tell"


def change_of(
    metric: MetricName, times: tuple[float, float], slowdown: Interval, margin: float, *, decides: bool
) -> Change:
    """What became of a metric.

    Args:
        metric: Which.
        times: Logarithms of BASE's and HEAD's time, see ``log_times``.
        slowdown: Around the logarithm of HEAD's time over BASE's.
        margin: See ``judge``.
        decides: Whether it counts.
    """
    sign = -1 if metric == "tokens/s" else 1
    low, high = sorted((math.expm1(sign * slowdown.low), math.expm1(sign * slowdown.high)))
    base, head = (math.exp(sign * time) for time in times)
    change = math.expm1(sign * slowdown.middle)
    return Change(metric, base, head, change, low, high, judge(slowdown, margin), decides)


def on_the_whole(verdicts: Iterable[Verdict]) -> Verdict:
    """One verdict for several: the worst news counts."""
    found: Sequence[Verdict] = tuple(verdicts)
    order: tuple[Verdict, ...] = ("worse", "can't tell", "better", "same")
    return next(verdict for verdict in order if verdict in found)


def overall(changes: Iterable[Change]) -> Verdict:
    """The verdict of the metrics that count."""
    return on_the_whole(change.verdict for change in changes if change.decides)
