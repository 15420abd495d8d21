"""A recorded benchmark told point by point, as a chooser asks for them: what it would have had timed."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

from msgspec.structs import replace

from autotune.bench.campaign import Choose
from autotune.bench.plan import Task, plan
from autotune.bench.rivals import choose_kernels
from autotune.bench.sampler import TARGET_INTERVAL, stopping
from autotune.costmodel.heldout import fit
from autotune.evidence import Evidence, alternatives, thread_counts
from autotune.records import Campaign, Configuration, Host, Measurement, Model, Outcome, Workload
from autotune.room import room_on
from autotune.search.evaluate import Evaluator, build_evaluator
from autotune.search.rank import rank
from autotune.search.relevance import Relevance
from autotune.search.space import Point


class Revealed(NamedTuple):
    """What the order came to.

    Attributes:
        campaign: What it had timed when it was done.
        rounds: Tasks that were new in each round.
    """

    campaign: Campaign
    rounds: tuple[int, ...]


class Regret(NamedTuple):
    """The configuration that the order decides for, under the cost model of all that was recorded.

    Attributes:
        chosen: The configuration.
        best: The best one.
        costs: By how much each of its costs is higher, relative, the most important first.
        feasible: Whether it keeps all limits.
    """

    chosen: Configuration
    best: Configuration
    costs: tuple[float, ...]
    feasible: bool


def tasks_of(campaign: Campaign, models: Sequence[Model], host: Host, workload: Workload) -> tuple[Task, ...]:
    """What a benchmark could time on the CPU, of the values of m that were recorded."""
    formats = {site.format for model in models for layer in set(model.layers) for site in (*layer.sites, model.head)}
    tasks = plan(models, host, workload, choose_kernels(campaign.kernels, sorted(formats), None), quick=False)
    recorded = {outcome.point.m for outcome in campaign.outcomes if outcome.point.device == "cpu"}
    return tuple(task for task in tasks if task.point.m in recorded)


def relevance_of(models: Sequence[Model], host: Host, workload: Workload, tasks: Sequence[Task]) -> Relevance:
    """The chooser that a tune would have."""
    return Relevance(
        models,
        workload,
        tasks,
        room=functools.partial(room_on, host),
        threads=functools.partial(thread_counts, host),
    )


def reveal(campaign: Campaign, tasks: Sequence[Task], choose: Choose) -> Revealed:
    """Answer a chooser from a recording until it asks for nothing new; GPUs are known from the start.

    What wasn't recorded, as the reference where it was spared, is not answered.
    """
    recorded = {outcome.point: outcome for outcome in campaign.outcomes}
    of_gpus = tuple(outcome for outcome in campaign.outcomes if outcome.point.device != "cpu")
    intervals: dict[int, float] = {}
    rounds = []
    now = replace(campaign, outcomes=of_gpus)
    while new := {i: width for i, width in choose(now).items() if width < intervals.get(i, 1.0)}:
        rounds.append(len(new))
        intervals |= new
        told = [_told(recorded[tasks[i].point], intervals[i]) for i in sorted(intervals) if tasks[i].point in recorded]
        now = replace(campaign, outcomes=(*told, *of_gpus))
    return Revealed(now, tuple(rounds))


def regret(full: Campaign, part: Campaign, model: Model, host: Host, workload: Workload) -> Regret:
    """What it costs to decide from a part of a campaign instead of from all of it.

    Raises:
        AutotuneError: Nothing can be decided.
    """
    (judge, best, limit_s), (own, chosen, _) = (decided(found, model, host, workload) for found in (full, part))
    configuration = own.space.configuration(chosen)
    found, least = judge.at(judge.space.point(configuration)), judge.at(best)
    return Regret(
        chosen=configuration,
        best=judge.space.configuration(best),
        costs=tuple(float(a / b - 1) for a, b in zip(found.costs, least.costs, strict=True)),
        feasible=bool(judge.feasible(found, limit_s)),
    )


def decided(campaign: Campaign, model: Model, host: Host, workload: Workload) -> tuple[Evaluator, Point, float | None]:
    """The evaluator of a campaign, the best point, and the limit on TPOT that applied."""
    evidence = Evidence((model,), host, campaign, *fit(campaign))
    (alternative,) = alternatives(evidence, workload)
    room = room_on(host, campaign, evidence.cost_model.devices)
    evaluator = build_evaluator(model, workload, alternative.costs, room)
    (ranking,) = rank([evaluator])
    assert ranking is not None
    return evaluator, ranking.best, ranking.max_tpot_s


def _told(outcome: Outcome, interval: float) -> Outcome:
    """An outcome with no more samples than an interval needs."""
    if not isinstance(outcome, Measurement) or outcome.stopped == "beaten" or interval <= TARGET_INTERVAL:
        return outcome
    for count in range(1, len(outcome.samples_s)):
        why = stopping(outcome.samples_s[:count], interval)
        if why == "enough":
            return replace(outcome, samples_s=outcome.samples_s[:count], stopped=why)
    return outcome
