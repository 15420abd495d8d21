"""How many runs a search needs: ``python tests/benchmarks/search_trials.py [RESULT VERIFICATION]``.

Counts the configurations that are run until one within 2 % of the best was: by this package's sampler, by Optuna's
TPE, and at random. Each has the same space, constraints and samples, and no seeds. Without arguments on synthetic hosts
whose cost models are off by made-up laws; with a result and the document of ``autotune verify`` for its model and host
on what was measured there, once per workload that was examined.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import optuna

from autotune.costmodel.model import CostModel
from autotune.evidence import thread_counts
from autotune.model.memory import Room
from autotune.records import Model, Part, PartRun, Result, RunFailure, Verification, Workload
from autotune.room import room_on
from autotune.search.belief import Belief
from autotune.search.figures import Runs
from autotune.search.parameters import axes, point_at, silenced
from autotune.search.sampler import BoundSampler
from autotune.search.space import Point
from autotune.search.workload import batch_grid, chunk_grid
from tests.builders import build_workload
from tests.search.synthetic_engine import Problem

WITHIN = 0.02
MOST_TRIALS = 300
PHASES = ("decode", "prefill")
SEEDS = 20
NOISE = 0.01
SAMPLES = 6

Sample = Callable[[Part, random.Random], PartRun | None]
"""Some samples of a part; None: it can't be run."""


class Case(NamedTuple):
    """A space, a cost model that predicts it, and what running it gives."""

    name: str
    cost_model: CostModel
    model: Model
    workload: Workload
    room: Room
    threads: Sequence[int]
    sample: Sample

    def belief(self) -> tuple[Belief, Runs]:
        """With nothing run yet, and without what can't be."""
        runs = Runs(self.workload, NOISE)
        belief = Belief(
            self.cost_model,
            self.model,
            self.workload,
            self.room,
            threads=self.threads,
            batches=batch_grid(self.workload.max_batch),
            chunks=chunk_grid(self.workload.prompt_tokens),
            runs=runs,
            noise=NOISE,
        )
        for point in self.points(belief):
            for part in runs.halves(belief.space.configuration(point)):
                if self.sample(part, random.Random(0)) is None:
                    belief.bar(point, RunFailure(part, "unsupported", "it was not measured"))
        belief.learn()
        return belief, runs

    def points(self, belief: Belief) -> Iterator[Point]:
        """All that fit the memory."""
        space = belief.space
        fits = belief.expected.excess_bytes <= 0
        for placement, decode, prefill, batch, chunk in np.ndindex(*space.shape):
            point = Point(placement, decode, prefill, batch, chunk)
            if fits[placement, batch, chunk] and point == space.plain(point):
                yield point


def synthetic(name: str, seed: int) -> Case:
    """A host on which offset and slopes of both phases are off by some per cent, drawn at random."""
    limits = {"max_tpot_s": None, "relaxed_tpot_ratio": None}
    workload = build_workload(name=name, prompt_tokens=256, output_tokens=128, max_batch=32, **limits)
    problem, drawn = Problem(workload=workload), random.Random(seed)
    offset, by_threads, by_size = ({phase: drawn.gauss(0, sd) for phase in PHASES} for sd in (0.15, 0.1, 0.06))

    def bias(part: Part) -> float:
        bends = by_threads[part.phase] * math.log2(part.threads) + by_size[part.phase] * math.log2(part.size)
        return math.exp(offset[part.phase] + bends)

    truth = problem.truth(bias)

    def sample(part: Part, noise: random.Random) -> PartRun:
        times, factors = truth(part), [1 + abs(noise.gauss(0, NOISE / 2)) for _ in range(SAMPLES)]
        shares = {device: tuple(time_s * factor for factor in factors) for device, time_s in times.items()}
        return PartRun(part, tuple(sum(times.values()) * factor for factor in factors), shares)

    return Case(f"synthetic {name}", problem.cost_model, problem.model, workload, problem.room, problem.threads, sample)


def recorded(result: Result, verification: Verification) -> Iterator[Case]:
    """What was measured of a grid, per workload that was examined."""
    measured = {run.part: run for run in verification.grid.runs()}
    reports = (result.cost_model, *result.gpu_cost_models)
    cost_model = CostModel(result.campaign, {report.device: report.roofline for report in reports})
    for exam in verification.exams:
        yield Case(
            f"{verification.model} {exam.workload.name} on {verification.host}",
            cost_model,
            result.model,
            exam.workload,
            room_on(result.host, result.campaign, cost_model.devices),
            thread_counts(result.host, cost_model),
            lambda part, _: measured.get(part),
        )


def trials_needed(case: Case, sampler: str, seed: int) -> int:
    """Configurations run until one was within 2 % of the best, by medians; ``MOST_TRIALS`` where none was."""
    belief, runs = case.belief()
    space, noise = belief.space, random.Random(seed)
    standings, truth = {}, Runs(case.workload, NOISE)
    for point in case.points(belief):
        configuration = space.configuration(point)
        for part in truth.halves(configuration):
            if truth.of(part) is None and (run := case.sample(part, random.Random(0))) is not None:
                truth.add(run)
        standing = truth.standing(configuration)
        if standing is not None and belief.feasible(standing):
            standings[point] = standing
    goal_s = min(standing.costs[0] for standing in standings.values()) * (1 + WITHIN)
    samplers: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "bound": lambda: BoundSampler(space, lambda: belief.promising(None) or Point(0, 0, 0, 0, 0)),
        "TPE": lambda: optuna.samplers.TPESampler(seed=seed),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
    }
    study = optuna.create_study(sampler=samplers[sampler]())
    tried: set[Point] = set()
    while len(tried) < MOST_TRIALS:
        trial = study.ask()
        point = space.plain(
            point_at(space, {axis: trial.suggest_int(axis, 0, last) for axis, last in axes(space).items()})
        )
        standing = standings.get(point)
        trial.set_constraint("feasible", -1.0 if standing is not None else 1.0)
        tried.add(point)
        if standing is None:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            continue
        for part in runs.halves(standing.configuration):
            if runs.of(part) is None and (run := case.sample(part, noise)) is not None:
                runs.add(run)
                belief.settle(part)
        belief.learn()
        own = runs.standing(standing.configuration)
        assert own is not None, "both parts were run"
        study.tell(trial, own.costs[0])
        if standing.costs[0] <= goal_s:
            return len(tried)
        if len(study.trials) > 2 * MOST_TRIALS:
            break  # it proposes what was tried before
    return MOST_TRIALS


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("documents", nargs="*", type=Path, metavar="RESULT VERIFICATION")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    arguments = parser.parse_args()
    cases: dict[str, Callable[[int], Case]] = {
        f"synthetic {name}": lambda seed, name=name: synthetic(name, seed) for name in ("chat", "offline")
    }
    if arguments.documents:
        result, verification = (path.read_bytes() for path in arguments.documents)
        found = recorded(msgspec.json.decode(result, type=Result), msgspec.json.decode(verification, type=Verification))
        cases = {case.name: lambda _, case=case: case for case in found}
    print("| case | sampler | median trials | p90 | most |\n| --- | --- | --- | --- | --- |")
    with silenced():
        for name, build in cases.items():
            for sampler in ("bound", "TPE", "random"):
                needed = sorted(trials_needed(build(seed), sampler, seed) for seed in range(arguments.seeds))
                median, p90 = (needed[min(int(len(needed) * share), len(needed) - 1)] for share in (0.5, 0.9))
                print(f"| {name} | {sampler} | {median} | {p90} | {needed[-1]} |")


if __name__ == "__main__":
    main()
