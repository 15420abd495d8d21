"""The grid: the parts of all configurations that fit the memory, or a bounded choice of them, run on an engine."""

from __future__ import annotations

import functools
import math
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from autotune.bench.campaign import Progress
from autotune.costmodel.steps import Seconds
from autotune.engine.interface import Engine
from autotune.records import (
    Configuration,
    Grid,
    GridPart,
    Part,
    PartRun,
    Phase,
    RunFailure,
    Workload,
    part_of,
    pooled,
)
from autotune.search.evaluate import Evaluation, Evaluator
from autotune.search.space import Point

PHASES: tuple[Phase, Phase] = ("decode", "prefill")

FEWEST_SAMPLES = 6
"""Of a part: fewer can't give a 95 % interval, see ``relative_median_interval``."""

_LIMIT_BROKEN_S = 1e6
"""Added to the predicted cost of what breaks a limit: it comes after all that keeps them."""
_TIE_SHARE = 1e-6
"""Of the second cost in the order of promise: it only breaks ties of the first."""


class Subject(NamedTuple):
    """A decision to examine.

    Attributes:
        evaluator: The space, the memory plan, and predictions that tell what is promising.
        max_tpot_s: The limit on TPOT that applied to the decision; None: no limit.
        kept: Configurations whose parts are in the grid however small it is: the chosen one, then baselines.
    """

    evaluator: Evaluator
    max_tpot_s: float | None
    kept: Sequence[Configuration]


class GridPlan(NamedTuple):
    """What to run.

    Attributes:
        tasks: Each distinct part, with a configuration and a workload that have it.
        feasible_parts: Distinct parts of all configurations that fit the memory.
    """

    tasks: dict[Part, tuple[Configuration, Workload]]
    feasible_parts: int


def shared(part: Part) -> Part:
    """The same part for all thread counts where the CPU has neither layers nor the head."""
    return part if part.head_device == "cpu" or "cpu" in dict(part.device_layers) else replace(part, threads=1)


def plan_grid(subjects: Sequence[Subject], limit: int | None = None) -> GridPlan:
    """Which parts to run: all, or so many of them.

    A bounded grid has the parts of the configurations to keep, then in equal shares the parts of the most promising
    configurations, which the best may be among, and parts evenly spread over the order of promise, which predictions
    should be right for as well. Each comes with the other half of the best configuration that has it, so that all
    belong to a configuration. Workloads take turns.

    Args:
        subjects: The decisions to examine, of one model on one host.
        limit: Most parts; what is to be kept and the other half of the last part may go beyond. None: all.
    """
    tasks: dict[Part, tuple[Configuration, Workload]] = {}

    def take(configuration: Configuration, workload: Workload) -> None:
        for phase in PHASES:
            tasks.setdefault(shared(part_of(configuration, workload, phase)), (configuration, workload))

    for subject in subjects:
        for configuration in subject.kept:
            take(configuration, subject.evaluator.workload)
    spaces = [_Candidates(subject) for subject in subjects]
    feasible_parts = len(set(chain.from_iterable(space.identities() for space in spaces)))
    most = feasible_parts if limit is None else limit
    half = len(tasks) + math.ceil((most - len(tasks)) / 2)
    for bound, orders in (
        (half, [space.by_promise() for space in spaces]),
        (most, [space.evenly_spread() for space in spaces]),
    ):
        for configuration, workload in _in_turns(orders):
            if len(tasks) >= bound:
                break
            take(configuration, workload)
    return GridPlan(tasks, feasible_parts)


def measure_grid(
    engine: Engine,
    plan: GridPlan,
    *,
    repeats: int = 3,
    at_most_s: float = 0.5,
    seed: int = 0,
    progress: Progress | None = None,
) -> Grid:
    """Run every part in several rounds, each in another random order, so that drift hits all alike.

    Within a round the parts of a placement follow each other: weights move once for all of them. A part that fails
    isn't run again.

    Args:
        engine: Runs them.
        plan: What to run.
        repeats: Rounds; the fewer, the more samples of each part a round takes, so that there are enough for intervals.
        at_most_s: When to stop sampling beyond those.
        seed: Of the order.
        progress: Told how far it is: the share done, the parts that were run, all parts.
    """
    started, order = time.monotonic(), random.Random(seed)  # noqa: S311 (an order, no secret)
    at_least = math.ceil(FEWEST_SAMPLES / repeats)
    found: dict[Part, GridPart] = {}
    turns = [part for _ in range(repeats) for part in _shuffled(plan.tasks, order)]
    for turn, part in enumerate(turns, start=1):
        earlier = found.get(part)
        if earlier is None or isinstance(earlier.outcome, PartRun):
            found[part] = _run(engine, part, *plan.tasks[part], earlier, at_least, at_most_s)
        if progress is not None:
            done = sum(1 for other in found.values() if isinstance(other.outcome, PartRun))
            progress(turn / len(turns), done, len(plan.tasks))
    return Grid(
        engine=engine.name,
        parts=tuple(found[part] for part in plan.tasks),
        feasible_parts=plan.feasible_parts,
        rounds=repeats,
        spent_s=time.monotonic() - started,
        reused_layers=engine.reused_layers,
    )


def measure_memory(engine: Engine, configuration: Configuration, workload: Workload) -> dict[str, int] | RunFailure:
    """Bytes per device that a configuration takes at its peak, both phases run and its KV cache full to the last slot.

    Args:
        engine: One that has run nothing else, whose peak it would be as well.
        configuration: What to run.
        workload: Its lengths.
    """
    # A decode step at the last slot of the context that is reserved.
    full = replace(workload, prompt_tokens=workload.context_tokens - 1, output_tokens=1)
    for phase, lengths in zip(PHASES, (full, workload), strict=True):
        outcome = engine.measure(configuration, lengths, phase, at_least=1, at_most_s=0.0)
        if isinstance(outcome, RunFailure):
            return outcome
    return engine.memory_used()


class _Candidates:
    """The parts of a space in configurations that fit, each in the best that has it.

    Attributes:
        points: One configuration per part, indices as in :class:`Point`, shape (N, 5).
        decode: Whether the part is its decode steps, shape (N,).
        promise: The configurations' predicted cost, what breaks a limit behind all else, shape (N,).
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        evaluator = subject.evaluator
        space = evaluator.space
        fits = np.broadcast_to(evaluator.excess_bytes <= 0, evaluator.excess_bytes.shape)
        cost_s = np.where(fits, self._cost_s(evaluator.fastest), np.inf)
        # The best chunk with each batch and the best batch with each chunk, threads being the fastest.
        placement, batch = np.nonzero(fits.any(axis=2))
        chunk = cost_s.argmin(axis=2)[placement, batch]
        decode = self._over_threads(placement, batch, chunk, axis=1)
        placement, chunk = np.nonzero(fits.any(axis=1))
        batch = cost_s.argmin(axis=1)[placement, chunk]
        prefill = self._over_threads(placement, batch, chunk, axis=2)
        points = np.concatenate([decode, prefill])
        of_decode = np.arange(len(points)) < len(decode)
        # Where the CPU does nothing, one thread count stands for all.
        threads = np.where(of_decode, points[:, 1], points[:, 2])
        told_apart = space.works[points[:, 0], 0] | (threads == 0)
        self.points, self.decode = points[told_apart], of_decode[told_apart]
        self.promise = self._cost_s(evaluator.at(Point(*self.points.T)))

    def _cost_s(self, value: Evaluation) -> Seconds:
        kept = self._subject.evaluator.feasible(value, self._subject.max_tpot_s)
        cost_s: Seconds = value.costs[0] + _TIE_SHARE * value.costs[1] + np.where(kept, 0.0, _LIMIT_BROKEN_S)
        return cost_s

    def _over_threads(
        self, placement: NDArray[np.intp], batch: NDArray[np.intp], chunk: NDArray[np.intp], *, axis: int
    ) -> NDArray[np.intp]:
        """Points with every thread count on an axis, those of the other phase the fastest, shape (N, 5)."""
        evaluator = self._subject.evaluator
        rows = np.stack(
            [
                placement,
                evaluator.decode.fastest_threads[placement, batch],
                evaluator.prefill.fastest_threads[placement, chunk],
                batch,
                chunk,
            ],
            axis=1,
        )
        count = len(evaluator.space.threads)
        points = np.repeat(rows, count, axis=0)
        points[:, axis] = np.tile(np.arange(count), len(rows))
        return points

    def identities(self) -> Iterator[tuple[int, ...]]:
        """What tells parts apart, of whatever workload."""
        space, workload = self._subject.evaluator.space, self._subject.evaluator.workload
        placement, decode_threads, prefill_threads, batch, chunk = self.points.T
        rows = np.column_stack(
            [
                self.decode,
                space.layers[placement],
                space.heads[placement],
                space.threads[np.where(self.decode, decode_threads, prefill_threads)],
                np.where(self.decode, space.batches[batch], space.chunks[chunk]),
                np.where(self.decode, workload.decode_context, workload.prompt_tokens),
            ]
        )
        return map(tuple, rows.tolist())

    def by_promise(self) -> Iterator[tuple[Configuration, Workload]]:
        """Configurations with the parts, the most promising first."""
        return self._configurations(self._ranked)

    def evenly_spread(self) -> Iterator[tuple[Configuration, Workload]]:
        """The same in an order whose every beginning is evenly spread over that by promise."""
        return self._configurations(self._ranked[index] for index in _spread(len(self._ranked)))

    @functools.cached_property
    def _ranked(self) -> NDArray[np.intp]:
        return np.argsort(self.promise, kind="stable")

    def _configurations(self, order: Iterable[np.intp]) -> Iterator[tuple[Configuration, Workload]]:
        evaluator = self._subject.evaluator
        for index in order:
            yield evaluator.space.configuration(Point(*self.points[index].tolist())), evaluator.workload


def _spread(count: int) -> Iterator[int]:
    """0 to count - 1 by their reversed bits, so that the first few are spread evenly: van der Corput's sequence."""
    bits = (count - 1).bit_length()
    for index in range(1 << bits):
        reverse = int(f"{index:0{bits}b}"[::-1], 2) if bits else 0
        if reverse < count:
            yield reverse


def _in_turns(
    orders: Sequence[Iterator[tuple[Configuration, Workload]]],
) -> Iterator[tuple[Configuration, Workload]]:
    """One of each, then the next one of each, until all have ended."""
    left = list(orders)
    while left:
        for order in tuple(left):
            found = next(order, None)
            if found is None:
                left.remove(order)
            else:
                yield found


def _shuffled(parts: Iterable[Part], order: random.Random) -> list[Part]:
    """Parts in random order, those of a placement together, placements in random order."""

    def placement(part: Part) -> tuple[tuple[tuple[str, int], ...], str]:
        return part.device_layers, part.head_device

    groups = [list(group) for _, group in groupby(sorted(parts, key=placement), key=placement)]
    order.shuffle(groups)
    for group in groups:
        order.shuffle(group)
    return list(chain.from_iterable(groups))


def _run(
    engine: Engine,
    part: Part,
    configuration: Configuration,
    workload: Workload,
    earlier: GridPart | None,
    at_least: int,
    at_most_s: float,
) -> GridPart:
    """One turn of a part, added to the turns before."""
    outcome: PartRun | RunFailure | None = engine.prepare(configuration, workload)
    started = time.monotonic()  # the weights are there
    if outcome is None:
        outcome = engine.measure(configuration, workload, part.phase, at_least=at_least, at_most_s=at_most_s)
    spent_s = time.monotonic() - started
    outcome = replace(outcome, part=part)
    if earlier is None:
        return GridPart(outcome, spent_s)
    if isinstance(outcome, PartRun) and isinstance(earlier.outcome, PartRun):
        (outcome,) = pooled((earlier.outcome, outcome))
    return GridPart(outcome, earlier.spent_s + spent_s)
