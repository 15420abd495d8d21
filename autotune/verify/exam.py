"""How a decision did in a grid: its regret, that of baselines, and how right the predictions were. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from autotune.costmodel.steps import Seconds
from autotune.errors import ConstraintError
from autotune.model import memory
from autotune.records import (
    BaselineExam,
    Configuration,
    Errors,
    Exam,
    Grid,
    GridPart,
    Measured,
    MemoryExam,
    Phase,
    PredictionExam,
    Result,
    RunFailure,
)
from autotune.records.exam import Interval, Stage
from autotune.search.baselines import Baseline
from autotune.search.contest import Contest
from autotune.search.evaluate import Evaluator
from autotune.search.rank import effective_max_tpot_s
from autotune.search.space import Point
from autotune.verify.grid import FEWEST_SAMPLES, PHASES, Subject
from autotune.verify.measured import Cell, MeasuredSpace, locate

_STAGES: tuple[Stage, Stage] = ("before correction", "after correction")
"""As the fields of :class:`Predictions`."""
_FOLDS = 3
_LIMITS = {"tpot": "breaks the limit on the time per output token", "ttft": "breaks the limit on the first token"}


class Predictions(NamedTuple):
    """What was predicted of every configuration.

    Attributes:
        before: By the cost model fitted to the benchmark alone.
        after: By the model corrected by what was run; None: nothing was run.
    """

    before: Evaluator
    after: Evaluator | None = None


def subject(result: Result, predictions: Predictions, baselines: Sequence[tuple[Baseline, Configuration]]) -> Subject:
    """A result as a subject of the grid: the chosen configuration and the baselines that fit are kept."""
    evaluator = predictions.after or predictions.before
    chosen = result.decision.chosen.configuration
    rivals = (configuration for _, configuration in baselines if _fits(evaluator, configuration))
    return Subject(evaluator, result.decision.search.effective_max_tpot_s, (chosen, *rivals))


def examine(
    result: Result,
    grid: Grid,
    predictions: Predictions,
    baselines: Sequence[tuple[Baseline, Configuration]],
    *,
    memory_used: Mapping[str, int] | RunFailure | None = None,
    seed: int = 0,
) -> Exam:
    """Compare what was chosen with all that was measured.

    Args:
        result: The decision.
        grid: What was measured.
        predictions: For the result's model, workload and memory.
        baselines: Ways to configure without measuring, with their configurations for the same.
        memory_used: Bytes per device of the chosen configuration's own process, or why it could not be run; None: it
            wasn't measured.
        seed: Of the resampling.
    """
    space = MeasuredSpace(predictions.before, grid, seed)
    chosen = result.decision.chosen.configuration
    judge = _Judge(space, chosen)
    points = space.configurations()
    return Exam(
        workload=result.workload,
        confirmed=result.confirmed,
        chosen=chosen,
        measured=judge.measured(judge.chosen),
        kept_limits=None if judge.chosen is None else not judge.broken(judge.chosen),
        max_tpot_s=judge.max_tpot_s,
        best=None if judge.best is None else space.evaluator.space.configuration(judge.best),
        best_measured=judge.measured(judge.best),
        regret=judge.regret(judge.chosen),
        regret_interval=judge.regret_interval(judge.chosen),
        configurations=len(points),
        feasible_configurations=_count_feasible(space.evaluator),
        baselines=tuple(judge.baseline(*rival) for rival in baselines),
        predictions=tuple(_predictions(result, space, points, predictions)),
        tune_time_s=result.tune_time_s,
        exhaustive_time_s=_exhaustive_time_s(space, points),
        memory=() if memory_used is None or isinstance(memory_used, RunFailure) else _memory(result, memory_used),
        notes=tuple(_notes(judge, chosen, grid, memory_used)),
        cross_fitted_regret=_cross_fitted_regret(predictions.before, grid, judge.chosen),
    )


class _Judge:
    """Compares configurations with the chosen and the best one, by the workload's first cost.

    Attributes:
        space: What was measured.
        max_tpot_s: The limit on TPOT as it applies to that; None: no limit.
        best: The best that keeps all limits; None: none does.
        chosen: The chosen configuration; None: it has no figures.
    """

    def __init__(self, space: MeasuredSpace, chosen: Configuration) -> None:
        self.space = space
        self.max_tpot_s, self.best = _best(space.evaluator)
        self.chosen = self.standing(chosen)

    def standing(self, configuration: Configuration) -> Point | None:
        """Where a configuration lies that fits and was measured; None: it has no figures."""
        point = self.space.point(configuration)
        return None if point is None or self._why_not(point) else point

    def obstacle(self, configuration: Configuration) -> str | None:
        """What speaks against a configuration, in words; None: nothing."""
        point = self.space.point(configuration)
        if point is None:
            return "is no point of the search space"
        return self._why_not(point) or " and ".join(self.broken(point)) or None

    def broken(self, point: Point) -> list[str]:
        """The limits that a measured point breaks, in words."""
        evaluator = self.space.evaluator
        violations = evaluator.violations(evaluator.at(point), self.max_tpot_s)
        return [words for limit, words in _LIMITS.items() if violations.get(limit, 0) > 0]

    def close_to_limit(self, point: Point) -> bool:
        """Whether resampling can't tell on which side of the limit on TPOT a measured point is."""
        times_s = self.space.resampled_s(point)
        if self.max_tpot_s is None or times_s is None:
            return False
        low_s, high_s = _interval(times_s[0])
        return low_s <= self.max_tpot_s < high_s

    def measured(self, point: Point | None) -> Measured | None:
        """The figures of a measured point."""
        if point is None:
            return None
        value, costs_s = self.space.evaluator.at(point), self._resampled_costs_s(point)
        width = None
        if costs_s is not None:
            low_s, high_s = _interval(costs_s)
            width = float((high_s - low_s) / 2 / value.costs[0])
        return Measured(float(value.tokens_per_s), float(value.tpot_s), float(value.ttft_s), width)

    def ratio(self, point: Point | None, other: Point | None) -> float | None:
        """How many times the other's cost a point's is."""
        if point is None or other is None:
            return None
        evaluator = self.space.evaluator
        return float(evaluator.at(point).costs[0] / evaluator.at(other).costs[0])

    def ratio_interval(self, point: Point | None, other: Point | None) -> Interval | None:
        """The same, from resampled samples."""
        if point is None or other is None:
            return None
        costs_s, others_s = self._resampled_costs_s(point), self._resampled_costs_s(other)
        return None if costs_s is None or others_s is None else _interval(costs_s / others_s)

    def regret(self, point: Point | None) -> float | None:
        """By how much more a point costs than the best."""
        ratio = self.ratio(point, self.best)
        return None if ratio is None else ratio - 1

    def regret_interval(self, point: Point | None) -> Interval | None:
        """The same, from resampled samples."""
        interval = self.ratio_interval(point, self.best)
        return None if interval is None else (interval[0] - 1, interval[1] - 1)

    def baseline(self, baseline: Baseline, configuration: Configuration) -> BaselineExam:
        """How a baseline did."""
        point = self.standing(configuration)
        return BaselineExam(
            name=baseline.name,
            origin=baseline.origin,
            configuration=configuration,
            obstacle=self.obstacle(configuration),
            measured=self.measured(point),
            regret=self.regret(point),
            regret_interval=self.regret_interval(point),
            speedup=self.ratio(point, self.chosen),
            speedup_interval=self.ratio_interval(point, self.chosen),
        )

    def _why_not(self, point: Point) -> str | None:
        """Why a point has no figures; None: it has."""
        if self.space.evaluator.at(point).excess_bytes > 0:
            return "does not fit the memory"
        halves = self.space.halves(point)
        for half in halves:
            if half is not None and isinstance(half.outcome, RunFailure):
                return f"could not be run: {half.outcome.message}"
        return "is not in the grid" if None in halves else None

    def _resampled_costs_s(self, point: Point) -> Seconds | None:
        times_s = self.space.resampled_s(point)
        return None if times_s is None else self.space.evaluator.taking(point, *times_s).costs[0]


def _cross_fitted_regret(evaluator: Evaluator, grid: Grid, chosen: Point | None) -> float | None:
    """By how much more the chosen point costs than the best, which other samples say is the best."""
    if chosen is None or min(len(run.samples_s) for run in grid.runs()) < FEWEST_SAMPLES:
        return None
    regrets = []
    for fold in range(_FOLDS):
        others, own = (MeasuredSpace(evaluator, _samples(grid, fold, kept)).evaluator for kept in (False, True))
        _, best = _best(others)
        if best is None:
            return None
        regrets.append(float(own.at(chosen).costs[0] / own.at(best).costs[0]) - 1)
    return fmean(regrets)


def _samples(grid: Grid, fold: int, kept: bool) -> Grid:
    """A grid with one fold of each part's samples, or with all others; folds follow each other as rounds do."""

    def of(part: GridPart) -> GridPart:
        if isinstance(part.outcome, RunFailure):
            return part
        every = part.outcome.samples_s
        samples_s = tuple(found for at, found in enumerate(every) if (at * _FOLDS // len(every) == fold) == kept)
        return replace(part, outcome=replace(part.outcome, samples_s=samples_s))

    return replace(grid, parts=tuple(map(of, grid.parts)))


def rank_correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    """Spearman's: Pearson's correlation of ranks, those of ties being their mean.

    Args:
        first: Shape (N,).
        second: Shape (N,).

    Returns:
        -1 to 1; None below three pairs, or where all of one side tie.
    """
    if len(first) < 3:
        return None
    ranks = np.stack([_ranks(first), _ranks(second)])
    ranks -= ranks.mean(axis=1, keepdims=True)
    norms = np.sqrt((ranks**2).sum(axis=1))
    return float(np.clip(ranks[0] @ ranks[1] / norms.prod(), -1, 1)) if norms.all() else None


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[places]


def _interval(values: Seconds) -> Interval:
    """The middle 95 %."""
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def _best(evaluator: Evaluator) -> tuple[float | None, Point | None]:
    """The limit on TPOT as it applies to what was measured, and the best that keeps all limits; None: none does."""
    try:
        max_tpot_s = effective_max_tpot_s(evaluator)
    except ConstraintError:
        return evaluator.workload.max_tpot_s, None
    best = Contest(evaluator, max_tpot_s).best()
    return (evaluator.workload.max_tpot_s if best is None else max_tpot_s), best


def _fits(evaluator: Evaluator, configuration: Configuration) -> bool:
    try:
        point = evaluator.space.point(configuration)
    except ValueError:
        return False
    return bool(evaluator.at(point).excess_bytes <= 0)


def _count_feasible(evaluator: Evaluator) -> int:
    """Configurations that fit the memory; where the CPU does nothing, its thread counts are one."""
    threads = np.where(evaluator.space.works[:, 0], len(evaluator.space.threads) ** 2, 1)
    return int((threads * (evaluator.excess_bytes <= 0).sum(axis=(1, 2))).sum())


def _predictions(
    result: Result, space: MeasuredSpace, points: NDArray[np.intp], predictions: Predictions
) -> Iterator[PredictionExam]:
    seen = _seen(result, space)
    unseen = {phase: {cell: float(cell not in seen[phase]) for cell in space.medians_s(phase)} for phase in PHASES}
    part_is_unseen = np.array([is_unseen for phase in PHASES for is_unseen in unseen[phase].values()], np.bool_)
    steps, prompts = _cells(points)
    has_unseen = (
        space.table("decode", unseen["decode"])[steps] + space.table("prefill", unseen["prefill"])[prompts]
    ) > 0
    measured_s = space.evaluator.at(Point(*points.T)).costs[0]
    for stage, evaluator in zip(_STAGES, predictions, strict=True):
        if evaluator is None:
            continue
        of_parts = np.array(
            [
                float(times.at(*cell)) / median_s - 1
                for phase, times in zip(PHASES, (evaluator.decode, evaluator.prefill), strict=True)
                for cell, median_s in space.medians_s(phase).items()
            ]
        )
        predicted_s = evaluator.at(Point(*points.T)).costs[0]
        of_configurations = predicted_s / measured_s - 1
        yield PredictionExam(
            stage=stage,
            parts=_errors(of_parts),
            unseen_parts=_errors(of_parts[part_is_unseen]),
            configurations=_errors(of_configurations),
            unseen_configurations=_errors(of_configurations[has_unseen]),
            rank_correlation=rank_correlation(predicted_s, measured_s),
        )


def _seen(result: Result, space: MeasuredSpace) -> dict[Phase, set[Cell]]:
    """The cells whose parts the correction was made from."""
    seen: dict[Phase, set[Cell]] = {phase: set() for phase in PHASES}
    for run in result.confirmation.runs if result.confirmation is not None else ():
        cell = locate(space.evaluator.space, result.workload, run.part)
        if cell is not None:
            seen[run.part.phase].add(cell)
    return seen


def _errors(relative: NDArray[np.float64]) -> Errors:
    if not len(relative):
        return Errors(0, None, None, None)
    sizes = np.abs(relative)
    median, p90, worst = (float(np.quantile(sizes, share)) for share in (0.5, 0.9, 1.0))
    return Errors(len(sizes), median, p90, worst)


def _cells(points: NDArray[np.intp]) -> tuple[tuple[NDArray[np.intp], ...], tuple[NDArray[np.intp], ...]]:
    """Index arrays of the points' decode steps and prefills into tables over cells."""
    placement, decode_threads, prefill_threads, batch, chunk = points.T
    return (placement, decode_threads, batch), (placement, prefill_threads, chunk)


def _exhaustive_time_s(space: MeasuredSpace, points: NDArray[np.intp]) -> float:
    """Both halves of every configuration, each by itself."""
    return float(
        sum(
            space.table(phase, {cell: part.spent_s for cell, part in space.cells[phase].items()})[cells].sum()
            for phase, cells in zip(PHASES, _cells(points), strict=True)
        )
    )


def _memory(result: Result, used_bytes: Mapping[str, int]) -> tuple[MemoryExam, ...]:
    """Planned against used, where both are known; the tokenizer counts in the plan alone."""
    return tuple(
        MemoryExam(
            device=use.device,
            planned_bytes=use.total_bytes - (memory.vocabulary_bytes(result.model) if use.device == "cpu" else 0),
            used_bytes=used_bytes[use.device],
        )
        for use in result.decision.chosen.predicted.memory
        if use.device in used_bytes
    )


def _notes(
    judge: _Judge, chosen: Configuration, grid: Grid, memory_used: Mapping[str, int] | RunFailure | None
) -> Iterator[str]:
    """What a reader must know to judge the figures."""
    run, failed = len(grid.parts), grid.failures()
    if run < grid.feasible_parts:
        yield f"the grid has {run} of {grid.feasible_parts} parts: the best may be among the rest"
    obstacle = judge.obstacle(chosen)
    if obstacle is not None:
        as_measured = "" if judge.chosen is None else " as measured"
        if judge.chosen is not None and obstacle == _LIMITS["tpot"] and judge.close_to_limit(judge.chosen):
            as_measured += ", which is within the noise"
        yield f"the chosen configuration {obstacle}{as_measured}"
    if judge.best is None:
        yield "no configuration that was measured keeps the limits"
    elif judge.close_to_limit(judge.best):
        yield "the best configuration keeps the limit on the time per output token only within the noise"
    if failed:
        yield f"{len(failed)} of {run} parts could not be run, the first: {failed[0].message}"
    if grid.reused_layers:
        yield f"{grid.reused_layers} layers used other layers' weights: the memory doesn't hold all"
    if isinstance(memory_used, RunFailure):
        yield f"the memory used is unknown: {memory_used.message}"
