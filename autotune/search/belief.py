"""What is known of every configuration: what was measured where it was run, and elsewhere corrected predictions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autotune.costmodel.model import CostModel
from autotune.errors import ConstraintError, MemoryLimitError
from autotune.model.memory import Room
from autotune.records import Configuration, Model, Part, PartRun, Phase, RunFailure, Workload
from autotune.search.contest import Contest
from autotune.search.evaluate import Evaluation, Evaluator, build_evaluator
from autotune.search.figures import Runs, Standing, beats
from autotune.search.rank import effective_max_tpot_s
from autotune.search.space import Place, Point
from autotune.search.times import BARRED_S, decode_times, prefill_times

_SIGMAS = 2.0
"""How far below its expected time a configuration that was not run is reckoned with: of forty one is better still."""
_PRIOR_SURPRISES = 2
"""Runs that are taken to have come out as expected before any did: one odd run alone doesn't widen all bounds."""
_LARGEST_SURPRISE = 4.0
"""Standard deviations; what lies further off counts as this much."""


class Belief:
    """Times of all configurations, as expected and as they could be at best.

    Args:
        cost_model: Predicts; it is corrected by the runs.
        model: What is run.
        workload: What for.
        room: The memory there is.
        threads: CPU thread counts, ascending.
        batches: Batch sizes, ascending.
        chunks: Prefill chunks, ascending.
        runs: What was measured; it is empty at first, and grows.
        noise: Relative; below it two times are not told apart.

    Attributes:
        cost_model: Corrected by the runs of the last :meth:`learn`.
        expected: Evaluates what is likely.
        hoped: What could be at best: of what wasn't run the lower confidence bound. Where runs come out further from
            what was expected than the correction's deviation says, bounds are as much wider.
        max_tpot_s: The limit on TPOT, relaxed where the workload allows and what is expected demands it.
    """

    def __init__(
        self,
        cost_model: CostModel,
        model: Model,
        workload: Workload,
        room: Room,
        *,
        threads: Sequence[int],
        batches: Sequence[int],
        chunks: Sequence[int],
        runs: Runs,
        noise: float,
    ) -> None:
        # Without the runs that it was corrected by before: taken in again, they show how surprising each was.
        self._first_model = cost_model.corrected_by((), model)
        self._model, self._workload = model, workload
        self._axes = threads, batches, chunks
        self._runs, self._noise = runs, noise
        self._settled: set[Part] = set()
        self._barred: dict[Phase, set[Place]] = {"decode": set(), "prefill": set()}
        self._surprises: dict[Part, float | None] = {}
        costs = cost_model.steps(model, workload, *self._axes)
        self._bare = build_evaluator(model, workload, costs, room)
        self.space = self._bare.space
        self.learn()

    def learn(self) -> None:
        """Take in what was run since the last time."""
        runs = self._runs.all()
        for run in runs:
            if run.part not in self._surprises:
                self._surprises[run.part] = self._surprise(run)
        self.cost_model = self._first_model.corrected_by(runs, self._model) if runs else self._first_model
        surprises = [surprise for surprise in self._surprises.values() if surprise is not None]
        squares = _PRIOR_SURPRISES + math.fsum(surprise**2 for surprise in surprises)
        self._sigmas = _SIGMAS * max(1.0, math.sqrt(squares / (_PRIOR_SURPRISES + len(surprises))))
        self.expected = self._evaluator(0.0)
        self.hoped = self._evaluator(-self._sigmas)
        self.max_tpot_s = self._limit()
        self._contest = Contest(self.hoped, self.max_tpot_s)

    def settle(self, part: Part) -> None:
        """Take a part's median for its time from now on, and not the lower end of its interval."""
        self._settled.add(part)

    def settled(self, part: Part) -> bool:
        """Whether a part was run long enough."""
        return part in self._settled

    def bar(self, point: Point, failure: RunFailure) -> None:
        """Leave out what can't be run.

        That is the part that failed; or where memory was short, all on that placement with as large a batch or chunk.
        """
        decode = failure.part.phase == "decode"
        if failure.kind == "out_of_memory":
            excess = self._bare.excess_bytes.copy()
            larger = np.s_[point.placement, point.batch :] if decode else np.s_[point.placement, :, point.chunk :]
            excess[larger] = np.maximum(excess[larger], 1)
            self._bare = dataclasses.replace(self._bare, excess_bytes=excess)
        else:
            place = self.space.place(failure.part)
            assert place is not None, "what was asked for is in the space"
            self._barred[failure.part.phase].add(place)

    def bound(self, point: Point) -> tuple[float, ...]:
        """The costs that a configuration could have at best, in seconds."""
        return tuple(float(cost_s) for cost_s in self.hoped.at(point).costs)

    def broken(self, point: Point) -> dict[str, float]:
        """By how much a configuration breaks memory and limits even at best, relative; kept where not positive."""
        return _floats(self.hoped.violations(self.hoped.at(point), self.max_tpot_s))

    def feasible(self, standing: Standing) -> bool:
        """Whether what was measured of a configuration keeps the limits."""
        return all(by <= 0 for by in self.violations(standing).values())

    def violations(self, standing: Standing) -> dict[str, float]:
        """By how much a configuration breaks the limits as measured, and the memory as planned."""
        point, measured = self.space.point(standing.configuration), standing.measured
        value = dataclasses.replace(
            self._bare.at(point), tpot_s=np.array(measured.tpot_s), ttft_s=np.array(measured.ttft_s)
        )
        return _floats(self._bare.violations(value, self.max_tpot_s))

    def promising(self, incumbent: Standing | None) -> Point | None:
        """The configuration that could be the best, if that is better than the incumbent beyond the noise.

        Args:
            incumbent: The best that was run; None: nothing that is feasible.

        Returns:
            None: nothing that was not run could win.
        """
        best = self._contest.best()
        if best is None or incumbent is None or beats(self.bound(best), incumbent.costs, self._noise):
            return best
        # What is best by so little could hide what decodes like the incumbent and has its first token much sooner.
        place = self.space.point(incumbent.configuration)
        groups = np.where(np.arange(len(self.space.layers)) == place.placement, 0, -1)
        other = self._contest.best_of_each(groups, batch=int(place.batch)).get(0, place)
        sooner = place._replace(prefill_threads=other.prefill_threads, chunk=other.chunk)
        kept = self.hoped.feasible(self.hoped.at(sooner), self.max_tpot_s)
        return sooner if kept and beats(self.bound(sooner), incumbent.costs, self._noise) else None

    def surpassed(self, standing: Standing) -> bool:
        """Whether something that was not run to its end is better beyond the noise, however badly it may turn out."""
        feared = self._evaluator(self._sigmas)
        best = Contest(feared, self.max_tpot_s).best()
        return best is not None and beats(tuple(map(float, feared.at(best).costs)), standing.costs, self._noise)

    def plainest(self) -> Point | None:
        """Of those expected to be the best within the noise, the one with the fewest devices, threads, bytes."""
        return Contest(self.expected, self.max_tpot_s, tie=self._noise).best()

    def at(self, configuration: Configuration) -> Evaluation:
        """What a configuration is expected to do."""
        return self.expected.at(self.space.point(configuration))

    def plainness(self, configuration: Configuration) -> tuple[int, ...]:
        """What ties are decided by, the least first: devices, threads, planned memory, batch size."""
        return (
            len({*configuration.device_layers, configuration.head_device}),
            configuration.decode_threads,
            configuration.prefill_threads,
            int(self.at(configuration).total_bytes),
            configuration.batch_size,
        )

    def _evaluator(self, sigmas: float) -> Evaluator:
        costs = self.cost_model.steps(self._model, self._workload, *self._axes, sigmas=sigmas)
        known: dict[Phase, dict[Place, float]] = {"decode": {}, "prefill": {}}
        for run in self._runs.all():
            place = self._place(run.part)
            if place is not None:
                margin = 0.0 if self.settled(run.part) else min(self._runs.margin(run), 0.5)
                known[run.part.phase][place] = run.median_s * (1 + float(np.sign(sigmas)) * margin)
        for phase, places in self._barred.items():
            known[phase] |= dict.fromkeys(places, BARRED_S)
        return dataclasses.replace(
            self._bare,
            decode=decode_times(self.space, costs).knowing(known["decode"]),
            prefill=prefill_times(self.space, costs).knowing(known["prefill"]),
        )

    def _place(self, part: Part) -> Place | None:
        """Where a part lies; None: it isn't of this space or workload."""
        workload = self._workload
        context = workload.decode_context if part.phase == "decode" else workload.prompt_tokens
        return self.space.place(part) if part.context == context else None

    def _surprise(self, run: PartRun) -> float | None:
        """By how many standard deviations a part came out otherwise than was expected of it before it was run."""
        place = self._place(run.part)
        if place is None:
            return None
        placement, threads, column = place
        expected_s, hoped_s = (
            float((known.decode if run.part.phase == "decode" else known.prefill).at(placement, threads or 0, column))
            for known in (self.expected, self.hoped)
        )
        deviation = math.log(expected_s / hoped_s) / self._sigmas
        surprise = math.log(run.median_s / expected_s) / math.hypot(deviation, self._runs.margin(run) / 2)
        return max(-_LARGEST_SURPRISE, min(surprise, _LARGEST_SURPRISE))

    def _limit(self) -> float | None:
        try:
            return effective_max_tpot_s(self.expected)
        except (ConstraintError, MemoryLimitError):
            # Nothing is expected to keep the limits, but what wasn't run still could.
            return self._workload.max_tpot_s


def _floats(violations: dict[str, NDArray[np.float64]]) -> dict[str, float]:
    return {name: float(by) for name, by in violations.items()}
