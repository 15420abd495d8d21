"""The whole exam on this host: tune, measure the grid, measure the memory, compare."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from autotune.bench.campaign import Progress
from autotune.confirmation import open_engine
from autotune.costmodel.model import CostModel
from autotune.errors import UsageError
from autotune.evidence import Evidence, axes_of, recall
from autotune.options import Options
from autotune.pipeline import measure
from autotune.records import Configuration, Result, RunFailure, Verification, part_of
from autotune.room import room_on
from autotune.search.baselines import Baseline, applicable
from autotune.search.evaluate import Evaluator, build_evaluator
from autotune.search.measured import Running
from autotune.search.variants import format_of
from autotune.verify.exam import Predictions, examine, subject
from autotune.verify.grid import PHASES, measure_grid, measure_memory, plan_grid, shared

REPEATS = 3


class Candidate(NamedTuple):
    """A result that sits the exam.

    Attributes:
        result: The decision.
        evidence: What it rests on.
        predictions: Of every configuration.
        baselines: What this host would be configured as without measuring.
    """

    result: Result
    evidence: Evidence
    predictions: Predictions
    baselines: tuple[tuple[Baseline, Configuration], ...]


def verify(
    model: str | os.PathLike[str],
    options: Options,
    *,
    budget_s: float | None = None,
    limit: int | None = None,
    repeats: int = REPEATS,
    seed: int = 0,
    progress: Progress | None = None,
    running: Running | None = None,
    measuring: Progress | None = None,
) -> Verification:
    """Tune this host, whatever is saved, and examine the result; nothing is saved.

    Args:
        model: As for ``pipeline.tune``.
        options: As for ``pipeline.tune``.
        budget_s: Of the tune.
        limit: Most parts of configurations to run; None: all.
        repeats: Rounds in which the grid is run.
        seed: Of the tune and of the grid's order.
        progress: Told how far the benchmark is.
        running: Told how far the tune's own runs are.
        measuring: Told how far the grid is.

    Raises:
        UsageError: A bound that no grid could have.
        AutotuneError: As for ``pipeline.tune``.
    """
    for option, count in (("grid", limit), ("repeats", repeats)):
        if count is not None and count < 1:
            raise UsageError(f"--{option} must be a whole number of at least 1, got {count}")
    result = measure(model, options, budget_s=budget_s, seed=seed, progress=progress, running=running)
    return examine_results([result], limit=limit, repeats=repeats, seed=seed, measuring=measuring)


def examine_results(
    results: Sequence[Result],
    *,
    limit: int | None = None,
    repeats: int = REPEATS,
    seed: int = 0,
    measuring: Progress | None = None,
) -> Verification:
    """Measure one grid on this host and examine several decisions for a model with it.

    Args:
        results: Of this host for one model in one format; of several workloads, or of several tunes for the same. The
            grid runs the kernels that were the fastest for the first.
        limit: Most parts to run; None: all.
        repeats: Rounds.
        seed: Of the order.
        measuring: Told how far the grid is.

    Raises:
        BenchmarkError: The engine can't be started.
        ValueError: There are no results, or they are for different models.
    """
    names = {(result.model.name, result.model.source_digest, format_of(result.model)) for result in results}
    if len(names) != 1:
        raise ValueError(f"expected results for one model in one format, got {len(names)} of them")
    candidates = [_candidate(result) for result in results]
    first = candidates[0]
    subjects = [subject(each.result, each.predictions, each.baselines) for each in candidates]
    with open_engine(first.evidence, first.result.model) as engine:
        grid = measure_grid(engine, plan_grid(subjects, limit), repeats=repeats, seed=seed, progress=measuring)
    used: dict[Hashable, dict[str, int] | RunFailure] = {}
    exams = []
    for each in candidates:
        chosen, workload = each.result.decision.chosen.configuration, each.result.workload
        parts = *(shared(part_of(chosen, workload, phase)) for phase in PHASES), workload
        if parts not in used:
            with open_engine(each.evidence, each.result.model) as engine:
                used[parts] = measure_memory(engine, chosen, workload)
        exams.append(examine(each.result, grid, each.predictions, each.baselines, memory_used=used[parts], seed=seed))
    host = first.result.host
    return Verification(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        host=host.label,
        fingerprint=host.fingerprint,
        model=first.result.model.name,
        format=format_of(first.result.model),
        grid=grid,
        exams=tuple(exams),
    )


def _candidate(result: Result) -> Candidate:
    host, model, workload = result.host, result.model, result.workload
    evidence = recall(result, host)
    cost_model = evidence.cost_model
    after = None if result.confirmation is None else _evaluator(evidence, result, cost_model)
    predictions = Predictions(_evaluator(evidence, result, cost_model.corrected_by((), model)), after)
    baselines = applicable(model, host, workload, predictions.before.room)
    return Candidate(result, evidence, predictions, tuple(baselines))


def _evaluator(evidence: Evidence, result: Result, cost_model: CostModel) -> Evaluator:
    """The space of a result's model and workload under a cost model's predictions."""
    host, model, workload = evidence.host, result.model, result.workload
    costs = cost_model.steps(model, workload, *axes_of(host, cost_model, workload))
    return build_evaluator(model, workload, costs, room_on(host, evidence.campaign, cost_model.devices))
