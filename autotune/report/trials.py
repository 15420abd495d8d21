"""The measured search as it went: trial by trial, with the best so far."""

from __future__ import annotations

from typing import NamedTuple

from autotune.records import Confirmation, Result, Trial


class Step(NamedTuple):
    """One trial.

    Attributes:
        number: From 1, in the order taken up.
        trial: What became of it.
        value: What the workload is after, as measured: tokens/s, for ``chat`` TPOT in seconds; None: not measured.
        incumbent: The best value until then that keeps the limits; None: there is none yet.
        leads: Whether this trial is that best.
        chosen: Whether it is the configuration that was chosen in the end.
    """

    number: int
    trial: Trial
    value: float | None
    incumbent: float | None
    leads: bool
    chosen: bool


def steps_of(result: Result, confirmation: Confirmation) -> tuple[Step, ...]:
    """The trials of a search in order."""
    workload, limit_s = confirmation.workload, result.decision.search.effective_max_tpot_s
    if workload != result.workload:
        limit_s = workload.max_tpot_s
    chosen = result.decision.chosen.configuration
    steps: list[Step] = []
    incumbent = None
    for number, trial in enumerate(confirmation.trials, 1):
        measured, value, leads = trial.measured, None, False
        if measured is not None:
            chat = workload.name == "chat"
            value = measured.tpot_s if chat else measured.tokens_per_s
            keeps = (limit_s is None or measured.tpot_s <= limit_s) and (
                workload.max_ttft_s is None or measured.ttft_s <= workload.max_ttft_s
            )
            better = incumbent is None or (value < incumbent if chat else value > incumbent)
            leads = keeps and better and trial.state == "complete"
            incumbent = value if leads else incumbent
        steps.append(Step(number, trial, value, incumbent, leads, trial.configuration == chosen))
    return tuple(steps)
