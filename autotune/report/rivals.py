"""The chosen configuration beside what people run without tuning."""

from __future__ import annotations

from typing import NamedTuple

from autotune.outlook import Outlook, Prospect
from autotune.records import Workload
from autotune.report.measured import Rate, Rates
from autotune.search.baselines import applicable

CHOSEN = "chosen"


class Rival(NamedTuple):
    """A way to configure, and what comes of it.

    Attributes:
        names: ``CHOSEN``, or the baseline's; of those that agree all.
        origin: Where it comes from, in words.
        prospect: Its predicted figures, and what keeps it from being feasible.
        rate: As measured; None: it was not run.
        slowdown: How many times the chosen one's time per output token its own is: for ``chat`` TPOT, else over whole
            requests. Both as measured where both were, else both as predicted.
    """

    names: tuple[str, ...]
    origin: str
    prospect: Prospect
    rate: Rate | None
    slowdown: float

    @property
    def tokens_per_s(self) -> float:
        """As measured, or else as predicted."""
        return self.prospect.predicted.tokens_per_s if self.rate is None else self.rate.measured.tokens_per_s


def rivals_of(outlook: Outlook, rates: Rates) -> tuple[Rival, ...]:
    """The chosen configuration, then every baseline that the host has."""
    result, evaluator = outlook.result, outlook.evaluator
    first, its_rate = outlook.chosen, rates.of(outlook.chosen.configuration)
    rivals = [Rival((CHOSEN,), "what this report is about", first, its_rate, 1.0)]
    for baseline, configuration in applicable(evaluator.model, result.host, result.workload, evaluator.room):
        same = next((at for at, each in enumerate(rivals) if each.prospect.configuration == configuration), None)
        if same is not None:
            known = rivals[same]
            origin = f"{known.origin}; {baseline.origin}"
            rivals[same] = known._replace(names=(*known.names, baseline.name), origin=origin)
            continue
        prospect, rate = outlook.at(configuration), rates.of(configuration)
        slowdown = _slowdown(result.workload, (first, its_rate), (prospect, rate))
        rivals.append(Rival((baseline.name,), baseline.origin, prospect, rate, slowdown))
    return tuple(rivals)


def _slowdown(workload: Workload, chosen: tuple[Prospect, Rate | None], other: tuple[Prospect, Rate | None]) -> float:
    (first, first_rate), (second, second_rate) = chosen, other
    if first_rate is not None and second_rate is not None:
        ours, theirs = first_rate.measured, second_rate.measured
        return theirs.tpot_s / ours.tpot_s if workload.name == "chat" else ours.tokens_per_s / theirs.tokens_per_s
    return (
        second.predicted.tpot_s / first.predicted.tpot_s
        if workload.name == "chat"
        else first.predicted.tokens_per_s / second.predicted.tokens_per_s
    )
