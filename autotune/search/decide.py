"""The decision: the best configuration, if it beats the default by more than the noise, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import msgspec

from autotune.costmodel.steps import StepCosts
from autotune.model.memory import Room
from autotune.records import Candidate, Configuration, Decision, FormatCandidate, Model, SearchReport, Workload
from autotune.search.contest import TIE
from autotune.search.evaluate import Evaluation, Evaluator, build_evaluator
from autotune.search.explain import explain, explain_format
from autotune.search.rank import Ranking, rank
from autotune.search.smaller import smaller
from autotune.search.space import Point
from autotune.search.splits import split_curve
from autotune.search.study import run_study
from autotune.search.wording import compared

_BROKEN = {
    "memory": "the memory there is",
    "tpot": "the limit on the time per output token",
    "ttft": "the limit on the time to the first token",
}


@dataclass(frozen=True)
class Alternative:
    """The model in one weight format.

    Attributes:
        format: Name of the format.
        model: What is to run.
        costs: Step costs made for this model and the workload's lengths.
        bound_by: Says what limits a configuration.
    """

    format: str
    model: Model
    costs: StepCosts
    bound_by: Callable[[Configuration], str]


class Choice(NamedTuple):
    """What was decided.

    Attributes:
        alternative: The weight format.
        decision: The configuration in it, beside those it was compared with.
        smaller: What to fall back on where the memory has become less; see :func:`smaller`.
    """

    alternative: Alternative
    decision: Decision
    smaller: tuple[Candidate, ...]


class Proven(NamedTuple):
    """What running configurations found.

    Attributes:
        format: The weight format that they were run in.
        winner: The configuration that is the answer.
        runner_up: The best of the others that were run; None where there is none.
        verdict: Why, in a sentence.
        speedup: Over the default, in the workload's own objective; None where that was not run.
    """

    format: str
    winner: Configuration
    runner_up: Configuration | None
    verdict: str
    speedup: float | None


def decide(
    alternatives: Sequence[Alternative],
    workload: Workload,
    *,
    room: Room,
    default: Configuration,
    noise: float,
    trials: int | None = None,
    seed: int = 0,
    proven: Proven | None = None,
) -> Choice:
    """Chooses weight format and configuration from predicted costs alone: no hardware, no clock but that of ranking.

    What was proven by running is the choice, and the costs say how it compares with what was not run.

    Args:
        alternatives: The formats to choose from; the first is what would run without tuning.
        workload: Objective, lengths and limits.
        room: The memory there is on each device of the costs.
        default: What would run without tuning; a point of the space. It stays unless it is beaten by more
            than ``noise``, or breaks the memory or a limit.
        noise: Relative; below it two times are not told apart.
        trials: Optuna trials over the chosen format's space; None: no study.
        seed: Of the study.
        proven: What running configurations found; None: none was run.

    Raises:
        MemoryLimitError: No configuration fits the memory.
        ConstraintError: Some fit, but none keeps the workload's limits.
        ValueError: Costs belong to another model, or ``default`` isn't a point of the space.
    """
    found = () if proven is None else (proven.winner, proven.runner_up)
    kept = [each for each in found if each is not None]
    evaluators = [build_evaluator(each.model, workload, each.costs, room, including=kept) for each in alternatives]
    start = evaluators[0].space.point(default)
    start_value = evaluators[0].at(start)
    if proven is not None:
        evaluators = [_allowing(evaluators, alternatives, proven, evaluator) for evaluator in evaluators]
    rankings = rank(evaluators)
    winner = _winner(evaluators, rankings)
    stays, verdict = _verdict(evaluators, rankings, winner, start, noise)
    if proven is not None:
        stays, verdict = False, proven.verdict
        winner = [alternative.format for alternative in alternatives].index(proven.format)
    elif stays:
        winner = 0
    evaluator, ranking = evaluators[winner], rankings[winner]
    assert ranking is not None, "what wins or stays is feasible"
    chosen, runner_up = ranking.best, ranking.runner_up
    if proven is not None:
        chosen = evaluator.space.point(proven.winner)
        runner_up = None if proven.runner_up is None else evaluator.space.point(proven.runner_up)
    elif stays and start != ranking.best:
        chosen, runner_up = start, ranking.best
    default_fits = start_value.excess_bytes <= 0
    chosen_s = evaluator.at(chosen).costs[0]
    speedup = float(start_value.costs[0] / chosen_s) if default_fits else None
    if proven is not None and proven.speedup is not None:
        speedup = proven.speedup
    others = [index for index in range(len(alternatives)) if index != winner]
    decision = Decision(
        chosen=evaluator.candidate(chosen),
        runner_up=None if runner_up is None else evaluator.candidate(runner_up),
        default=evaluators[0].candidate(start) if default_fits else None,
        speedup_over_default=speedup,
        bound_by=alternatives[winner].bound_by(evaluator.space.configuration(chosen)),
        reasons=tuple(
            sentence
            for sentence in (
                verdict,
                explain_format(
                    alternatives[winner].format,
                    [
                        (alternatives[index].format, None if value is None else value.costs[0])
                        for index in others
                        for value in [_best(evaluators[index], rankings[index])]
                    ],
                    chosen_s,
                ),
                *explain(ranking, chosen),
            )
            if sentence
        ),
        search=SearchReport(
            objective="tpot_s" if workload.name == "chat" else "tokens_per_s",
            points=sum(each.space.size for each in evaluators),
            feasible=sum(each.feasible for each in rankings if each is not None),
            effective_max_tpot_s=ranking.max_tpot_s,
            ranking_time_s=sum(each.time_s for each in rankings if each is not None),
            study=None if trials is None else run_study(evaluator, ranking, start=start, trials=trials, seed=seed),
        ),
        other_formats=tuple(
            FormatCandidate(alternatives[index].format, _best_candidate(evaluators[index], rankings[index]))
            for index in others
        ),
        split_curve=split_curve(ranking.contest),
    )
    return Choice(alternatives[winner], decision, smaller(ranking.contest, chosen))


def _allowing(
    evaluators: Sequence[Evaluator], alternatives: Sequence[Alternative], proven: Proven, evaluator: Evaluator
) -> Evaluator:
    """The same under limits that the proven winner is predicted to keep: that it keeps them was measured."""
    (own,) = (one for one, its in zip(evaluators, alternatives, strict=True) if its.format == proven.format)
    value, limits = own.at(own.space.point(proven.winner)), evaluator.workload
    return replace(
        evaluator,
        workload=msgspec.structs.replace(
            limits,
            max_tpot_s=None if limits.max_tpot_s is None else max(limits.max_tpot_s, float(value.tpot_s)),
            max_ttft_s=None if limits.max_ttft_s is None else max(limits.max_ttft_s, float(value.ttft_s)),
        ),
    )


def _winner(evaluators: Sequence[Evaluator], rankings: Sequence[Ranking | None]) -> int:
    """The alternative with the best configuration; ties go to the first."""
    best: tuple[int, Evaluation] | None = None
    for index, (evaluator, ranking) in enumerate(zip(evaluators, rankings, strict=True)):
        value = _best(evaluator, ranking)
        if value is not None and (best is None or _beats(value, best[1])):
            best = index, value
    assert best is not None, "a ranking raises an error where nothing is feasible"
    return best[0]


def _beats(value: Evaluation, other: Evaluation) -> bool:
    for own_s, other_s in zip(value.costs, other.costs, strict=True):
        if abs(own_s / other_s - 1) > TIE:
            return bool(own_s < other_s)
    return False


def _best(evaluator: Evaluator, ranking: Ranking | None) -> Evaluation | None:
    return None if ranking is None else evaluator.at(ranking.best)


def _best_candidate(evaluator: Evaluator, ranking: Ranking | None) -> Candidate | None:
    return None if ranking is None else evaluator.candidate(ranking.best)


def _verdict(
    evaluators: Sequence[Evaluator],
    rankings: Sequence[Ranking | None],
    winner: int,
    start: Point,
    noise: float,
) -> tuple[bool, str]:
    """Whether the default stays, and why."""
    ranking = rankings[winner]
    assert ranking is not None, "what wins is feasible"
    value, best = evaluators[0].at(start), evaluators[winner].at(ranking.best)
    broken = [_BROKEN[name] for name, by in evaluators[0].violations(value, ranking.max_tpot_s).items() if by > 0]
    if broken:
        return False, f"The default would break {' and '.join(broken)}."
    if winner == 0 and start == ranking.best:
        return True, "The default is the best configuration of all."
    margin = f"the noise of {noise * 100:.1f} %"
    # Costs in order of importance: where the first ties, as TPOT may in chat, the next can still tell them apart.
    for label, default_s, best_s in zip(("", " to the first token"), value.costs, best.costs, strict=False):
        if default_s / best_s - 1 > noise:
            return False, f"The default would be {compared(default_s, best_s)}{label}, beyond {margin}."
    times = compared(value.costs[0], best.costs[0])
    return True, f"The default would be {times}, within {margin}, so it stays."
