"""What was measured of configurations: the samples of their parts, put together to the figures of a workload."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from autotune.records import Configuration, Measured, Part, PartRun, Phase, Workload, part_of, pooled
from autotune.search.contest import TIE
from autotune.search.evaluate import serving_time_s

_PRIOR_SAMPLES = 4
_STUDENT_T = (2.776, 2.571, 2.447, 2.365, 2.306)
"""97.5 % quantiles of Student's t for 4 to 8 degrees of freedom."""

Halves = tuple[Part, Part]
"""The decode and the prefill part of a configuration: they say all that is run of it."""


class Standing(NamedTuple):
    """How a configuration did whose parts were both run.

    Attributes:
        configuration: What was run.
        measured: Its figures.
        costs: What the workload minimises, in seconds, most important first, as in ``Evaluation``.
        margins_s: Half the width of a 95 % interval of each cost.
    """

    configuration: Configuration
    measured: Measured
    costs: tuple[float, ...]
    margins_s: tuple[float, ...]


class Runs:
    """The samples of every part that was run, pooled.

    Args:
        workload: What figures are for.
        noise: Relative standard deviation that single samples are taken to have until there are enough to tell.
        known: Of parts that were run before.
    """

    def __init__(self, workload: Workload, noise: float, known: Iterable[PartRun] = ()) -> None:
        self._workload, self._noise = workload, noise
        self._runs: dict[Part, PartRun] = {}
        for run in known:
            self.add(run)

    def add(self, run: PartRun) -> None:
        """Add samples to what there is of their part."""
        before = self._runs.get(run.part)
        (self._runs[run.part],) = pooled([run] if before is None else [before, run])

    def all(self) -> tuple[PartRun, ...]:
        """One run per part, in the order first run."""
        return tuple(self._runs.values())

    def of(self, part: Part) -> PartRun | None:
        """The samples of a part; None: there are none."""
        return self._runs.get(part)

    def halves(self, configuration: Configuration) -> Halves:
        """The parts that a configuration consists of."""
        phases: tuple[Phase, Phase] = "decode", "prefill"
        decode, prefill = (part_of(configuration, self._workload, phase) for phase in phases)
        return decode, prefill

    def margin(self, run: PartRun) -> float:
        """Half the width of a 95 % interval of a run's median, relative to it.

        Few samples can't tell their own spread: until there are enough for an interval, it is taken to be what the
        noise is on a host, with the weight of four samples, and what they show beside it.
        """
        width = run.relative_interval
        if width is not None:
            return width
        count, centre = len(run.samples_s), run.median_s
        deviations = math.fsum((sample / centre - 1) ** 2 for sample in run.samples_s)
        spread = math.sqrt((_PRIOR_SAMPLES * self._noise**2 + deviations) / (_PRIOR_SAMPLES + count - 1))
        return _STUDENT_T[count - 1] * spread / math.sqrt(count)

    def standing(self, configuration: Configuration) -> Standing | None:
        """How a configuration did; None where a part of it was not run."""
        found = [self.of(part) for part in self.halves(configuration)]
        decode, prefill = found
        if decode is None or prefill is None:
            return None
        tpot_s, ttft_s = decode.median_s, prefill.median_s
        workload, sequences = self._workload, configuration.batch_size
        tokens = sequences * workload.output_tokens
        costs = _costs(workload, sequences, tpot_s, ttft_s)
        # A cost is linear in both times, so each one's error adds its own share.
        shares = (self.margin(decode) * tpot_s, 0.0), (0.0, self.margin(prefill) * ttft_s)
        of_decode, of_prefill = (_costs(workload, sequences, *share) for share in shares)
        margins_s = tuple(map(math.hypot, of_decode, of_prefill))
        return Standing(
            configuration,
            Measured(
                tokens_per_s=tokens / serving_time_s(workload, sequences, tpot_s, ttft_s),
                tpot_s=tpot_s,
                ttft_s=ttft_s,
                relative_interval=self._interval(decode, prefill, margins_s[0] / costs[0]),
            ),
            costs,
            margins_s,
        )

    def _interval(self, decode: PartRun, prefill: PartRun, relative: float) -> float | None:
        """The interval of the first cost where the samples it rests on are enough to tell one."""
        needed = (decode,) if self._workload.name == "chat" else (decode, prefill)
        return None if any(run.relative_interval is None for run in needed) else relative


def beats(costs: Sequence[float], other: Sequence[float], noise: float) -> bool:
    """Whether costs are less than others by more than the noise.

    The first cost decides; where it ties within the noise, the next.
    """
    for own_s, other_s in zip(costs, other, strict=True):
        if other_s / own_s - 1 > noise:
            return True
        if own_s / other_s - 1 > noise:
            return False
    return False


def apart(first: Standing, second: Standing, noise: float) -> bool:
    """Whether it is known which of two is better, or that they differ by no more than the noise."""
    for place, (one_s, other_s) in enumerate(zip(first.costs, second.costs, strict=True)):
        if abs(one_s / other_s - 1) > TIE:
            margin_s = math.hypot(first.margins_s[place], second.margins_s[place])
            return abs(one_s - other_s) > margin_s or margin_s <= noise * min(one_s, other_s)
    return True


def _costs(workload: Workload, sequences: int, tpot_s: float, ttft_s: float) -> tuple[float, float]:
    if workload.name == "chat":
        return tpot_s, ttft_s
    requests_s = serving_time_s(workload, sequences, tpot_s, ttft_s)
    return requests_s / (sequences * workload.output_tokens), ttft_s
