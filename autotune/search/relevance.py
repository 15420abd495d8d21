"""Which points can still change the decision: what a benchmark is to time next, and whether it is done."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autotune.bench.plan import Task, describe_first_missing
from autotune.bench.rivals import gates, rivals
from autotune.bench.sampler import COARSE_INTERVAL, TARGET_INTERVAL
from autotune.costmodel.model import CostModel
from autotune.costmodel.passes import Passes
from autotune.costmodel.roofline import product_of
from autotune.costmodel.steps import Seconds, StepCosts
from autotune.costmodel.uncertainty import Node, Nodes, Piece, Timing
from autotune.errors import ConstraintError, MemoryLimitError
from autotune.model.memory import Room
from autotune.records import Campaign, Model, Phase, Workload
from autotune.search.contest import Contest
from autotune.search.evaluate import Evaluation, Evaluator, build_evaluator
from autotune.search.rank import effective_max_tpot_s
from autotune.search.space import Point
from autotune.search.times import StepTimes, decode_times, prefill_times
from autotune.search.workload import batch_grid, chunk_grid

NOISE = 0.02
"""Relative; configurations that differ by less are equals, which no timing needs to tell apart."""

_GPU_WIDTH = 0.03
"""Half-width of a GPU's predicted times: all of its points were timed."""

_CHALLENGERS = 3
"""Cells whose times are made surer at once, beside the best one's: what comes of them may settle the others."""

_LEAST_EFFECT = 2e-3
"""What timing a point must be able to change a configuration's cost by, relative."""

_PHASES: tuple[Phase, ...] = ("decode", "prefill")


class Relevance:
    """Says which tasks could change what is decided: the chooser of a benchmark, and the judge of a saved one.

    The cost model is fitted to what was timed. A configuration could win if its optimistic cost beats the best
    pessimistic one by more than the noise; decode and prefill are looked at one by one, the other at its predicted
    time, so that what configurations share doesn't count. Among the points around those that could win and the best
    one, those are relevant that can move its cost.

    Args:
        models: The model in all formats that are compared.
        workload: Objective, lengths and limits.
        tasks: All that can be timed on the CPU.
        room: The memory there is on some devices, given what was timed.
        threads: The thread counts that are offered.
    """

    def __init__(
        self,
        models: Sequence[Model],
        workload: Workload,
        tasks: Sequence[Task],
        *,
        room: Callable[[Campaign, Sequence[str]], Room],
        threads: Callable[[CostModel], Sequence[int]],
    ) -> None:
        self._models = models
        self._workload = workload
        self._tasks = tasks
        self._room = room
        self._threads = threads
        points = [task.point for task in tasks]
        self._rivals, self._gates = rivals(points), gates(points)
        self._batches, self._chunks = batch_grid(workload.max_batch), chunk_grid(workload.prompt_tokens)

    def __call__(self, campaign: Campaign) -> dict[int, float]:
        """What to time next, the most important first; nothing where no point can change the decision.

        Args:
            campaign: What was timed so far.

        Returns:
            Index of each task, and how narrow an interval its samples' median is to come to, relative.
        """
        tried = {outcome.point for outcome in campaign.outcomes}
        if describe_first_missing(self._tasks, (found.point for found in campaign.measurements())) is not None:
            return {
                index: width
                for index, width in self._essential().items()
                if not any(self._tasks[rival].point in tried for rival in (index, *self._rivals[index]))
            }
        contenders = list(self._contenders(campaign))
        wanted: dict[int, float] = {}
        for phase in _PHASES:
            for index, width in _relevant(contenders, phase, self._workload):
                wanted[index] = min(width, wanted.get(index, width))
        return self._with_rivals(wanted)

    def covers(self, campaign: Campaign) -> bool:
        """Whether a campaign answers for this workload: nothing that could be timed on the CPU would change it."""
        return not self(campaign)

    def _essential(self) -> dict[int, float]:
        """What every decision needs: ceilings; each piece with one token, in between, and with as many as there are.

        One token on the most and on the fewest threads, the rest on the most.
        """
        timing = Timing(self._tasks)
        sites = dict.fromkeys(
            site
            for model in self._models
            for layer in dict.fromkeys(model.layers)
            for site in (*layer.sites, model.head)
        )
        products = dict.fromkeys(map(product_of, sites))
        counts = sorted({task.point.threads for task in self._tasks})
        chosen = {
            index: COARSE_INTERVAL
            for nodes in (
                *map(timing.of_product, products),
                timing.of_small_ops(counts),
                timing.of_decode_attention(self._workload),
                timing.of_prefill_attention(self._workload),
            )
            for node in _corners(nodes)
            for index in nodes[node]
        }
        for index, task in enumerate(self._tasks):
            if task.point.op in ("read", "peak"):
                chosen[index] = TARGET_INTERVAL
        return dict(sorted(self._with_rivals(chosen).items()))

    def _with_rivals(self, chosen: Mapping[int, float]) -> dict[int, float]:
        """Tasks with all that they compete with, and what may spare one of them."""
        whole = dict(chosen)
        for index, width in chosen.items():
            for gate in (gate for each in (index, *self._rivals[index]) for gate in self._gates[each]):
                for other in (gate, *self._rivals[gate]):
                    whole.setdefault(other, COARSE_INTERVAL)
            for rival in self._rivals[index]:
                whole.setdefault(rival, width)
        return whole

    def _contenders(self, campaign: Campaign) -> Iterator[_Contender]:
        """The model in each format that fits the memory, with what is known of its costs."""
        devices = {outcome.point.device for outcome in campaign.outcomes} | {"cpu"}
        # The form matters where nothing was timed, and so to nothing that is decided in the end.
        cost_model = CostModel(campaign, dict.fromkeys(devices, "sum"))
        threads = list(self._threads(cost_model))
        room = self._room(campaign, cost_model.devices)
        passes = Passes(self._workload, self._batches, self._chunks)
        timing = Timing(self._tasks, campaign.outcomes)
        limits, found = [], []
        for model in self._models:
            costs = cost_model.steps(model, self._workload, threads, self._batches, self._chunks)
            evaluator = build_evaluator(model, self._workload, costs, room)
            try:
                limits.append(effective_max_tpot_s(evaluator))
            except MemoryLimitError:
                continue
            except ConstraintError:
                limits.append(self._workload.max_tpot_s)
            pieces = timing.pieces(cost_model.models["cpu"], model, self._workload, passes, np.array(threads))
            found.append((evaluator, costs, pieces))
        limit_s = min((limit for limit in limits if limit is not None), default=None)
        for evaluator, costs, pieces in found:
            low, high = _bounds(costs, pieces)
            space = evaluator.space
            times: dict[Phase, tuple[StepTimes, StepTimes]] = {
                "decode": (decode_times(space, low), decode_times(space, high)),
                "prefill": (prefill_times(space, low), prefill_times(space, high)),
            }
            yield _Contender(evaluator, limit_s, pieces, times)


class _Contender(NamedTuple):
    """The model in one format.

    Attributes:
        evaluator: Its predicted figures.
        max_tpot_s: The limit on TPOT that applies.
        pieces: What its steps take time for on the CPU.
        times: Optimistic and pessimistic step times.
    """

    evaluator: Evaluator
    max_tpot_s: float | None
    pieces: Sequence[Piece]
    times: Mapping[Phase, tuple[StepTimes, StepTimes]]

    def best(self) -> Point | None:
        """The best predicted configuration; None if none is feasible."""
        return Contest(self.evaluator, self.max_tpot_s).best()

    def with_times(self, phase: Phase, times: StepTimes) -> Evaluator:
        """The figures with other times in one phase."""
        if phase == "decode":
            return dataclasses.replace(self.evaluator, decode=times)
        return dataclasses.replace(self.evaluator, prefill=times)


class _Cell(NamedTuple):
    """A phase's work on so many CPU threads with so much at once.

    Attributes:
        cost_s: The lowest optimistic cost of a configuration that does it.
        contender: Which model.
        point: That configuration.
    """

    cost_s: float
    contender: _Contender
    point: Point

    def place(self, phase: Phase) -> tuple[int, int]:
        """Indices of threads and of batch or chunk."""
        point = self.point
        at = (point.decode_threads, point.batch) if phase == "decode" else (point.prefill_threads, point.chunk)
        return int(at[0]), int(at[1])


def _bounds(costs: StepCosts, pieces: Sequence[Piece]) -> tuple[StepCosts, StepCosts]:
    """Step costs at the lower and at the upper end of what they may be."""

    def widths(phase: Phase, *, of_head: bool) -> NDArray[np.float64]:
        """Of each device, shape (D, threads, sizes)."""
        sizes = costs.batches if phase == "decode" else costs.chunks
        held = [piece for piece in pieces if piece.of_head == of_head]
        on_cpu = _mean_width(held, phase, costs.threads.tolist(), sizes.tolist())
        return np.stack([on_cpu, *[np.full_like(on_cpu, _GPU_WIDTH)] * (len(costs.devices) - 1)])

    decode_layer, decode_ends = (widths("decode", of_head=of_head) for of_head in (False, True))
    prefill_layer, prefill_ends = (widths("prefill", of_head=of_head) for of_head in (False, True))

    def moved(sign: int) -> StepCosts:
        return dataclasses.replace(
            costs,
            decode_layer_s=costs.decode_layer_s * np.exp(sign * decode_layer)[:, None],
            decode_ends_s=costs.decode_ends_s * np.exp(sign * decode_ends),
            prefill_layer_s=costs.prefill_layer_s * np.exp(sign * prefill_layer)[:, None],
            prefill_ends_s=costs.prefill_ends_s * np.exp(sign * prefill_ends),
        )

    return moved(-1), moved(1)


def _mean_width(
    pieces: Sequence[Piece], phase: Phase, threads: Sequence[int], sizes: Sequence[int]
) -> NDArray[np.float64]:
    """Half-width of the sum of pieces, relative, shape (threads, sizes): errors of what is timed alike add up."""
    total_s = np.sum([piece.times_s[phase] for piece in pieces], axis=0)
    error_s = np.sum(
        [
            piece.times_s[phase] * [[piece.error(phase, count, size) for size in sizes] for count in threads]
            for piece in pieces
        ],
        axis=0,
    )
    return np.asarray(error_s / total_s)


def _relevant(contenders: Sequence[_Contender], phase: Phase, workload: Workload) -> Iterator[tuple[int, float]]:
    """The tasks that could change which cell of a phase wins, and how narrow their intervals are to be."""
    incumbents = [(contender, best) for contender in contenders if (best := contender.best()) is not None]
    first = min(incumbents, key=lambda held: _cost_s(held[0].evaluator.at(held[1]), 0), default=None)
    # In chat, prefill only decides among configurations that decode alike.
    cost = 1 if phase == "prefill" and workload.name == "chat" else 0
    alike = first if cost else None
    challengers = _contested(contenders, phase, cost, alike)
    if first is not None:
        contender, best = first
        own = _Cell(_cost_s(contender.evaluator.at(best), cost), contender, best)
        challengers = [
            cell for cell in challengers if cell.contender is not contender or cell.place(phase) != own.place(phase)
        ]
        if contender.evaluator.space.works[best.placement, 0]:
            # Where nothing challenges it it needn't be surer, but no winner rests on what was timed elsewhere.
            yield from (
                (index, width)
                for index, width in _tasks(own, phase, cost, workload)
                if challengers or width == COARSE_INTERVAL
            )
    helped = 0
    for cell in challengers:
        found = list(_tasks(cell, phase, cost, workload))
        yield from found
        helped += bool(found)
        if helped == _CHALLENGERS:
            return


def _contested(
    contenders: Sequence[_Contender], phase: Phase, cost: int, alike: tuple[_Contender, Point] | None
) -> list[_Cell]:
    """The cells of the CPU that could win, the most promising first.

    Args:
        contenders: The model in all formats.
        phase: Decode or prefill.
        cost: Which of the costs decides.
        alike: The only contender and the placement that may win; None: all.
    """
    fields = [contender for contender in contenders if alike is None or contender is alike[0]]
    placement = None if alike is None else int(alike[1].placement)
    pessimistic = [_costs(held, held.with_times(phase, held.times[phase][1]), cost, placement) for held in fields]
    threshold_s = (1 - NOISE) * min((float(costs_s.min()) for costs_s in pessimistic), default=math.inf)
    best: dict[tuple[int, int, int], _Cell] = {}
    for number, held in enumerate(fields):
        for cell in _cells(held, phase, cost, placement, threshold_s):
            key = number, *cell.place(phase)
            if key not in best or cell.cost_s < best[key].cost_s:
                best[key] = cell
    return sorted(best.values(), key=lambda cell: cell.cost_s)


def _cells(held: _Contender, phase: Phase, cost: int, placement: int | None, threshold_s: float) -> Iterator[_Cell]:
    """The cells of one contender whose optimistic cost is below a threshold; several may be of one place."""
    evaluator = held.with_times(phase, held.times[phase][0])
    costs_s = _costs(held, evaluator, cost, placement)
    decode = phase == "decode"
    lowest_s = costs_s.min(axis=2 if decode else 1)
    placements, columns = np.nonzero((lowest_s < threshold_s) & evaluator.space.works[:, :1])
    # Placements with the same work for the CPU differ in nothing that timing it could tell.
    times = evaluator.decode if decode else evaluator.prefill
    order = np.argsort(lowest_s[placements, columns], kind="stable")
    work = times.work[placements] * lowest_s.shape[1] + columns
    _, firsts = np.unique(work[order], return_index=True)
    placements, columns = placements[order[firsts]], columns[order[firsts]]
    others = costs_s[placements, columns] if decode else costs_s[placements, :, columns]
    other = others.argmin(axis=1)
    counts = np.arange(len(evaluator.space.threads))
    if decode:
        fixed = evaluator.prefill.fastest_threads[placements, other]
        points = Point(placements[:, None], counts, fixed[:, None], columns[:, None], other[:, None])
    else:
        fixed = evaluator.decode.fastest_threads[placements, other]
        points = Point(placements[:, None], fixed[:, None], counts, other[:, None], columns[:, None])
    value = evaluator.at(points)
    feasible_s = np.where(evaluator.feasible(value, held.max_tpot_s), value.costs[cost], np.inf)
    spread = np.broadcast_arrays(*points)
    for row, column in zip(*np.nonzero(feasible_s < threshold_s), strict=True):
        yield _Cell(float(feasible_s[row, column]), held, Point(*(int(index[row, column]) for index in spread)))


def _costs(held: _Contender, evaluator: Evaluator, cost: int, placement: int | None) -> Seconds:
    """Costs with the fastest threads, shape (P, B, C); infinite where not feasible or at another placement."""
    value = evaluator.fastest
    costs_s = np.where(evaluator.feasible(value, held.max_tpot_s), value.costs[cost], np.inf)
    if placement is not None:
        costs_s[np.arange(len(costs_s)) != placement] = np.inf
    return costs_s


def _tasks(cell: _Cell, phase: Phase, cost: int, workload: Workload) -> Iterator[tuple[int, float]]:
    """What would make a cell's cost surer, and how narrow the intervals are to be; what could change it most first."""
    space, point = cell.contender.evaluator.space, cell.point
    thread, column = cell.place(phase)
    sizes = space.batches if phase == "decode" else space.chunks
    at = phase, int(space.threads[thread]), int(sizes[column])
    layers_share = float(space.layers[point.placement, 0] / space.layers[0, 0])
    head_share = float(space.heads[point.placement] == 0)
    weight = _weight(phase, cost, int(space.batches[point.batch]), workload) / cell.cost_s
    effects = []
    for piece in cell.contender.pieces:
        relative = (
            weight * (head_share if piece.of_head else layers_share) * float(piece.times_s[phase][thread, column])
        )
        effect = relative * (piece.error(*at) - piece.least_error(*at))
        if effect >= _LEAST_EFFECT:
            effects.append((effect, piece))
    for _, piece in sorted(effects, key=lambda found: -found[0]):
        for node in piece.helpful(*at):
            width = TARGET_INTERVAL if node in piece.timed else COARSE_INTERVAL
            for index in piece.nodes[node]:
                yield index, width


def _weight(phase: Phase, cost: int, batch: int, workload: Workload) -> float:
    """Seconds of cost per second of a decode step or of a prompt's prefill."""
    if workload.name == "chat":
        return 1.0 if (phase == "prefill") == bool(cost) else 0.0
    if phase == "decode":
        return (workload.output_tokens - 1) / (batch * workload.output_tokens)
    return 1 / workload.output_tokens


def _cost_s(value: Evaluation, cost: int) -> float:
    return float(value.costs[cost])


def _corners(nodes: Nodes) -> Iterable[Node]:
    """One token on the most and the fewest threads; on the most as many as there are, and a number in between."""
    if not nodes:
        return ()
    counts, sizes = {node.threads for node in nodes}, sorted({node.m for node in nodes})
    middle = min(sizes, key=lambda m: abs(2 * math.log2(m) - math.log2(sizes[0] * sizes[-1])))
    wanted = {Node(count, sizes[0]) for count in (min(counts), max(counts))}
    wanted |= {Node(max(counts), m) for m in (middle, sizes[-1])}
    return [node for node in nodes if node in wanted]
