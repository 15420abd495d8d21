"""The decision: the best configuration, if it beats the default by more than the noise, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from autotune.costmodel.steps import StepCosts
from autotune.records import Configuration, Decision, Model, SearchReport, Workload
from autotune.search.evaluate import Evaluator, build_evaluator
from autotune.search.explain import compared, explain
from autotune.search.rank import Ranking, rank
from autotune.search.space import Point
from autotune.search.study import run_study

_BROKEN = {
    "memory": "the memory there is",
    "tpot": "the limit on the time per output token",
    "ttft": "the limit on the time to the first token",
}


def decide(
    model: Model,
    workload: Workload,
    costs: StepCosts,
    *,
    available_bytes: Mapping[str, int],
    overhead_bytes: Mapping[str, int],
    default: Configuration,
    noise: float,
    bound_by: Callable[[Configuration], str],
    trials: int | None = None,
    seed: int = 0,
) -> Decision:
    """Chooses a configuration from predicted costs alone: no hardware, no clock but its ``ranking_time_s``.

    Args:
        model: What is to run.
        workload: Objective, lengths and limits.
        costs: Step costs made for this model and these lengths.
        available_bytes: Memory that may be used per device of ``costs``.
        overhead_bytes: The runtime's own memory per device of ``costs``.
        default: What would run without tuning; a point of the space. It stays unless it is beaten by more
            than ``noise``, or breaks the memory or a limit.
        noise: Relative; below it two times are not told apart.
        bound_by: Says what limits a configuration.
        trials: Optuna trials over the same space; None: no study.
        seed: Of the study.

    Raises:
        MemoryLimitError: No configuration fits the memory.
        ConstraintError: Some fit, but none keeps the workload's limits.
        ValueError: ``costs`` belong to another model, or ``default`` isn't a point of the space.
    """
    evaluator = build_evaluator(model, workload, costs, available_bytes=available_bytes, overhead_bytes=overhead_bytes)
    start = evaluator.space.point(default)
    ranking = rank(evaluator)
    stays, verdict = _verdict(evaluator, ranking, start, noise)
    chosen, runner_up = ranking.best, ranking.runner_up
    if stays and start != ranking.best:
        chosen, runner_up = start, ranking.best
    default_fits = evaluator.at(start).excess_bytes <= 0
    return Decision(
        chosen=evaluator.candidate(chosen),
        runner_up=None if runner_up is None else evaluator.candidate(runner_up),
        default=evaluator.candidate(start) if default_fits else None,
        speedup_over_default=float(evaluator.at(start).costs[0] / evaluator.at(chosen).costs[0])
        if default_fits
        else None,
        bound_by=bound_by(evaluator.space.configuration(chosen)),
        reasons=(verdict, *explain(evaluator, ranking, chosen)),
        search=SearchReport(
            objective="tpot_s" if workload.name == "chat" else "tokens_per_s",
            points=evaluator.space.size,
            feasible=ranking.feasible,
            effective_max_tpot_s=ranking.max_tpot_s,
            ranking_time_s=ranking.time_s,
            study=None if trials is None else run_study(evaluator, ranking, start=start, trials=trials, seed=seed),
        ),
    )


def _verdict(evaluator: Evaluator, ranking: Ranking, start: Point, noise: float) -> tuple[bool, str]:
    """Whether the default stays, and why."""
    value, best = evaluator.at(start), evaluator.at(ranking.best)
    broken = [_BROKEN[name] for name, by in evaluator.violations(value, ranking.max_tpot_s).items() if by > 0]
    if broken:
        return False, f"The default would break {' and '.join(broken)}."
    if start == ranking.best:
        return True, "The default is the best configuration of all."
    margin = f"the noise of {noise * 100:.1f} %"
    # Costs in order of importance: where the first ties, as TPOT may in chat, the next can still tell them apart.
    for label, default_s, best_s in zip(("", " to the first token"), value.costs, best.costs, strict=False):
        if default_s / best_s - 1 > noise:
            return False, f"The default would be {compared(default_s, best_s)}{label}, beyond {margin}."
    times = compared(value.costs[0], best.costs[0])
    return True, f"The default would be {times}, within {margin}, so it stays."
