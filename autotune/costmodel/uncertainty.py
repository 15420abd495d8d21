"""How sure the CPU's predicted times are before all is timed, and which points would make them surer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from autotune.bench.plan import Task
from autotune.costmodel.device import DeviceModel
from autotune.costmodel.passes import Passes
from autotune.costmodel.roofline import Product, product_of
from autotune.records import Measurement, Model, Outcome, Phase, Point, Workload

Floats = NDArray[np.float64]
Tasks = tuple[int, ...]
"""Indices of tasks."""

_LEAST = 0.01
"""Half-width of what any time may be off by, relative: from run to run, whatever its samples say."""

_UNSETTLED = 0.10
"""The same of a time with too few samples to tell."""

_OF_INTERVAL = 0.65
"""Half-widths are of about 80 %, a sample's interval of 95 %: where they matter two of them are added up."""

_BETWEEN_SIZES = 0.10
_BETWEEN_THREADS = 0.08
_BEYOND = 0.15
"""Half-width of what is interpolated half-way between two values of m, or of threads, that are four times apart; and of
what lies twice as far as the last one. It grows like the geometric mean of the distances to both: nodes left out of
recorded benchmarks were predicted 5 to 19 % off (median) at distances of 1 to 2.5 octaves."""


class Node(NamedTuple):
    """Where something is timed: CPU threads, and tokens at once."""

    threads: int
    m: int


Nodes = Mapping[Node, Tasks]
"""The tasks that time something, by where they do."""


class Piece:
    """Something that steps take time for, with what is known of it.

    Args:
        decode_s: In a decode step of the whole model, shape (T, B).
        prefill_s: In a prompt's prefill, shape (T, C).
        nodes: Where it can be timed.
        known: What was.
        of_head: Whether it is the head's; else it is the layers'.
        singly: Phase in which it takes one token after the other, whatever the batch or chunk; None: there is none.

    Attributes:
        nodes, of_head: As given.
        times_s: The times in each phase.
        timed: Nodes that were timed.
    """

    def __init__(
        self,
        decode_s: Floats,
        prefill_s: Floats,
        nodes: Nodes,
        known: Known,
        *,
        of_head: bool = False,
        singly: Phase | None = None,
    ) -> None:
        self.times_s: dict[Phase, Floats] = {"decode": decode_s, "prefill": prefill_s}
        self.nodes = nodes
        self.of_head = of_head
        self.timed = frozenset(known.widths)
        self._singly = singly
        self._open = known.open
        self._now = _Widths(known.widths)
        self._at_last = _Widths({**known.widths, **dict.fromkeys(known.open, _LEAST)})

    def error(self, phase: Phase, threads: int, size: int) -> float:
        """Relative half-width of the predicted time on so many threads with so large a batch or chunk."""
        return self._now.at(self._node(phase, threads, size))

    def least_error(self, phase: Phase, threads: int, size: int) -> float:
        """What would be left of it if all were timed that can be."""
        return self._at_last.at(self._node(phase, threads, size))

    def helpful(self, phase: Phase, threads: int, size: int) -> list[Node]:
        """The nodes whose timing would make that time surer: where it is, or around it."""
        return [found for found in self._at_last.around(self._node(phase, threads, size)) if found in self._open]

    def _node(self, phase: Phase, threads: int, size: int) -> Node:
        return Node(threads, 1 if phase == self._singly else size)


class Known(NamedTuple):
    """What a campaign tells of some nodes.

    Attributes:
        widths: Relative half-width of the time at each that was timed.
        open: Those that can be timed, or better than they were.
    """

    widths: Mapping[Node, float]
    open: frozenset[Node]


class Timing:
    """Where the CPU's tasks time what steps are made of, and what a campaign tells of that.

    Args:
        tasks: All that can be timed.
        outcomes: What came of those that were tried.
    """

    def __init__(self, tasks: Sequence[Task], outcomes: Sequence[Outcome] = ()) -> None:
        self._tasks = tasks
        self._outcomes = {outcome.point: outcome for outcome in outcomes}

    def pieces(
        self, held: DeviceModel, model: Model, workload: Workload, passes: Passes, threads: NDArray[np.int64]
    ) -> list[Piece]:
        """What decode steps and prefills of a model take time for on the CPU.

        Args:
            held: The CPU's model, fitted to the campaign.
            model: The model.
            workload: Its lengths.
            passes: Its batches and chunks.
            threads: Thread counts, shape (T,).
        """
        layers = len(model.layers)
        products = Counter(product_of(site) for layer in model.layers for site in layer.sites)
        passes_s = [
            (count * held.products.time_s(product, passes.tokens, threads), self.of_product(product))
            for product, count in products.items()
        ]
        passes_s.append((layers * held.small_ops.time_s(passes.tokens, threads), self.of_small_ops(threads.tolist())))
        found = [
            Piece(pass_s[:, passes.per_batch], pass_s @ passes.per_prompt, nodes, self.known(nodes))
            for pass_s, nodes in passes_s
        ]
        decode_s = layers * held.attention.decode_s(passes.batches, passes.decode_context, threads)
        prefill_s = layers * held.prefill_attention_s(passes, threads)
        decode, prefill = self.of_decode_attention(workload), self.of_prefill_attention(workload)
        # A CPU takes sequences in turn, so the one that is timed tells of all.
        found.append(Piece(decode_s, np.zeros_like(prefill_s), decode, self.known(decode), singly="decode"))
        found.append(Piece(np.zeros_like(decode_s), prefill_s, prefill, self.known(prefill)))
        head = product_of(model.head)
        pass_s, nodes = held.products.time_s(head, passes.tokens, threads), self.of_product(head)
        # Of a prompt, only the last token goes through the head.
        once_s = np.repeat(pass_s[:, [passes.one]], len(passes.chunks), axis=1)
        known = self.known(nodes)
        found.append(Piece(pass_s[:, passes.per_batch], once_s, nodes, known, of_head=True, singly="prefill"))
        return found

    def of_product(self, product: Product) -> Nodes:
        """Where a product is timed."""
        return _by_node(
            (index, Node(point.threads, point.m))
            for index, point in self._points("matmul")
            if (point.format, point.n_out, point.k_in) == product
        )

    def of_small_ops(self, threads: Iterable[int]) -> Nodes:
        """Where the small operations are; one token's are not shared among threads, so one thread tells of all."""
        return _by_node(
            (index, Node(count, point.m))
            for index, point in self._points("layer_ops")
            for count in ((point.threads,) if point.m > 1 else threads)
        )

    def of_decode_attention(self, workload: Workload) -> Nodes:
        """Where a token's attention is, over the contexts around that of a decode step."""
        points = [(index, point) for index, point in self._points("attention") if point.m == 1]
        needed = _around(workload.decode_context, {point.context for _, point in points})
        return _by_node((index, Node(point.threads, 1)) for index, point in points if point.context in needed)

    def of_prefill_attention(self, workload: Workload) -> Nodes:
        """Where a chunk's attention is, over the contexts that the prompt's pieces see, up to the first long enough."""
        points = [(index, point) for index, point in self._points("attention") if point.m > 1]
        found = []
        for index, point in points:
            last = (math.ceil(workload.prompt_tokens / point.m) - 1) * point.m
            shorter = [other.context for _, other in points if other.m == point.m and other.context < point.context]
            if max(shorter, default=-1) < last:
                found.append((index, Node(point.threads, point.m)))
        return _by_node(found)

    def known(self, nodes: Nodes) -> Known:
        """What was timed of some nodes: one is when all of its points are, with whichever kernel."""
        widths, can_be_timed = {}, set()
        for node, indices in nodes.items():
            tried: dict[Point, list[Outcome]] = {}
            for point in (self._tasks[index].point for index in indices):
                rivals = tried.setdefault(replace(point, kernel=""), [])
                if point in self._outcomes:
                    rivals.append(self._outcomes[point])
            fastest = [_fastest(rivals) for rivals in tried.values()]
            if None not in fastest:
                widths[node] = max(_half_width(found) for found in fastest if found is not None)
            untried = len(tried) != sum(map(bool, tried.values()))
            if untried or any(found is not None and found.stopped == "enough" for found in fastest):
                can_be_timed.add(node)
        return Known(widths, frozenset(can_be_timed))

    def _points(self, op: str) -> list[tuple[int, Point]]:
        return [(index, task.point) for index, task in enumerate(self._tasks) if task.point.op == op]


class _Widths:
    """Half-widths at the timed nodes, and so everywhere."""

    def __init__(self, widths: Mapping[Node, float]) -> None:
        self._curves: dict[int, dict[int, float]] = {}
        for node, width in widths.items():
            self._curves.setdefault(node.threads, {})[node.m] = width

    def at(self, node: Node) -> float:
        """Relative half-width at a node; 0 where nothing was timed, which then is no part of a prediction."""
        if not self._curves:
            return 0.0
        telling = self._telling(node.m)
        along = {count: _between(node.m, telling[count], _BETWEEN_SIZES) for count in _around(node.threads, telling)}
        return _between(node.threads, along, _BETWEEN_THREADS)

    def around(self, node: Node) -> list[Node]:
        """The timed nodes that tell of one."""
        telling = self._telling(node.m)
        return [Node(count, m) for count in _around(node.threads, telling) for m in _around(node.m, telling[count])]

    def _telling(self, m: int) -> dict[int, dict[int, float]]:
        """The thread counts that were timed on both sides of an m, or at it; all where none was."""
        return {count: curve for count, curve in self._curves.items() if min(curve) <= m <= max(curve)} or self._curves


def _by_node(found: Iterable[tuple[int, Node]]) -> Nodes:
    nodes: dict[Node, Tasks] = {}
    for index, node in found:
        nodes[node] = (*nodes.get(node, ()), index)
    return nodes


def _fastest(rivals: Sequence[Outcome]) -> Measurement | None:
    timed = [outcome for outcome in rivals if isinstance(outcome, Measurement)]
    return min(timed, key=lambda found: found.median_s, default=None)


def _half_width(found: Measurement) -> float:
    width = found.relative_interval
    return _UNSETTLED if width is None else max(_LEAST, _OF_INTERVAL * width)


def _between(value: int, widths: Mapping[int, float], scale: float) -> float:
    """Half-width at a value of an axis, from those at the timed ones."""
    around = _around(value, widths)
    widest = max(widths[other] for other in around)
    octaves = [abs(math.log2(value / other)) for other in around]
    return widest + (scale * math.sqrt(octaves[0] * octaves[1]) if len(octaves) > 1 else _BEYOND * octaves[0])


def _around(value: int, nodes: Iterable[int]) -> tuple[int, ...]:
    """The node at a value, or the nearest on each side of it."""
    ordered = sorted(nodes)
    if value in ordered:
        return (value,)
    return (*[node for node in ordered if node < value][-1:], *[node for node in ordered if node > value][:1])
