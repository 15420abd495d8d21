"""Where a running model can go from where it is: a few moves per configuration, all worked out beforehand.

From a configuration at most four moves lead on, each of one kind:

- ``less``: needs less memory. Half of the batch; with one sequence a smaller chunk, or layers elsewhere.
- ``more``: twice the batch.
- ``back``: the same batch, and faster; or as fast, and the first token comes sooner.
- ``split``: from GPUs alone to GPUs and CPU, with the same batch.

Observations only say which kinds may be taken (see ``rules``), never where they lead. That is why a tuner settles:
under constant metrics it comes to a configuration that it doesn't leave, and to none twice.

Proof. Where the memory is pressed only ``less`` is allowed, and every such move lowers the pair (batch, fullest
memory's share) in lexicographic order, of the memories that hold the model: it halves the batch, or it keeps the batch
and lowers that share by at least the lesser of ``RELIEFS``. Where the memory isn't pressed ``less`` is not allowed, and
the others never lower the batch. ``more`` raises it. With the batch unchanged either only ``back`` is taken, and each
of these lowers the pair (cost that the workload minimises, TTFT) in lexicographic order, or ``split`` is, after which
no move of the same batch is left: the tuner allows only one of the two kinds until the batch changes or memory is
pressed again. Each of these is a strict order on finitely many configurations. What is learnt on the way (the ratio of
observed to expected throughput, how often a move was asked for) can delay or prevent a move, but not reverse one.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autotune.conclusion import noise_of
from autotune.costmodel.steps import Seconds
from autotune.device_config import device_config
from autotune.outlook import Outlook
from autotune.records import Configuration, DeviceConfig, Host, Result
from autotune.search.evaluate import device_bytes
from autotune.search.space import Index, Point
from autotune.search.times import BARRED_S

Kind = Literal["less", "more", "back", "split"]

RELIEFS = (0.05, 0.01)
"""Shares of a memory: where the batch can't be halved as much as the first is freed if anything does, else the second.
Giving up speed to free less is no relief."""


class Move(NamedTuple):
    """A way to another configuration.

    Attributes:
        kind: See the module.
        to: Where it leads.
        batch_size: The batch there.
        tokens_per_s: What is expected there: measured where it was run, else predicted.
        speedup: Predicted, in what the workload is after: 1.25 is 25 % faster. Of what was run, measured.
        ttft_speedup: The same of the time to the first token.
        added_share: Memory that it takes more, as a share of what may be planned with, on the device where that is
            most; negative where it frees memory on all devices.
        freed_share: Memory that it frees on the fullest device, likewise.
    """

    kind: Kind
    to: Point
    batch_size: int
    tokens_per_s: float
    speedup: float
    ttft_speedup: float
    added_share: float
    freed_share: float


class Stop(NamedTuple):
    """A configuration, and where it can go from there.

    Attributes:
        configuration: What it is.
        device_config: As loaders take it.
        tokens_per_s: What is expected of it: measured where it was run, else predicted.
        fullest: Of the devices that hold the model, the one whose memory the plan fills most.
        on_gpus: Whether a GPU has layers.
        on_gpus_alone: Whether the CPU has neither layers nor the head.
        own_cpu_share: Share of the usable CPUs' time that its decode threads take, or the one that drives GPUs alone.
        noise: Relative; what differs by less is not told apart.
        moves: By kind; without those that lead nowhere.
        why_not: Why there is no move of a kind, in words.
    """

    configuration: Configuration
    device_config: DeviceConfig
    tokens_per_s: float
    fullest: str
    on_gpus: bool
    on_gpus_alone: bool
    own_cpu_share: float
    noise: float
    moves: dict[Kind, Move]
    why_not: dict[Kind, str]


class _Here(NamedTuple):
    """A point as the search for moves sees it.

    ``needed`` is what it needs of each memory, shape (D,), and ``share`` of the fullest of those that hold the model.
    """

    point: Point
    cost_s: float
    ttft_s: float
    needed: NDArray[np.int64]
    fullest: int
    share: float
    tokens_per_s: float


class _Rows(NamedTuple):
    """What moves choose from, as arrays of shape (rows,): where it is, and what it costs with its fastest threads.

    ``cost_s`` is what the workload minimises; TTFT comes next. ``rank_s`` is the cost, and more than all costs where a
    limit or the memory is broken. ``needed`` has the shape (rows, D); ``share`` is what is needed of the fullest memory
    of those that hold the model.
    """

    placement: NDArray[np.intp]
    batch: NDArray[np.intp]
    chunk: NDArray[np.intp]
    rank_s: NDArray[np.float64]
    cost_s: NDArray[np.float64]
    ttft_s: NDArray[np.float64]
    feasible: NDArray[np.bool_]
    fits: NDArray[np.bool_]
    needed: NDArray[np.int64]
    share: NDArray[np.float64]

    def only(self, kept: NDArray[np.bool_]) -> _Rows:
        return _Rows._make(column[kept] for column in self)


class Moves:
    """All configurations that can be reached from a result's own, with their moves.

    Args:
        result: Its cost model and its runs are what predictions come from.
        host: The host whose memory counts; None: the result's as it was then.

    Attributes:
        start: The result's own configuration.
        stops: All that can be reached, and that.
        noise: Relative; what differs by less is not told apart.
    """

    def __init__(self, result: Result, host: Host | None = None) -> None:
        batch = result.decision.chosen.configuration.batch_size
        self._max_batch = max(batch, result.workload.max_batch)
        self._host = host or result.host
        self._outlook = Outlook(result, host, batches={*_halvings(batch), *_halvings(self._max_batch)})
        self.noise = noise_of(result.campaign)
        self._price()
        self.stops: dict[Point, Stop] = {}
        self.start = self.reach(result.decision.chosen.configuration)

    def reach(self, configuration: Configuration) -> Point:
        """Works out a configuration's moves, and those of all that they lead to.

        Raises:
            ValueError: It isn't a point of the space.
        """
        start = self._space.plain(self._space.point(configuration))
        to_do = [start]
        while to_do:
            point = to_do.pop()
            if point not in self.stops:
                self.stops[point] = self._stop(point)
                to_do += [move.to for move in self.stops[point].moves.values()]
        return start

    def _price(self) -> None:
        """Prices all there is with its fastest threads, and picks what moves choose from.

        That is the fastest of each number of layers on GPUs, place of the head, batch and chunk.
        """
        self._contest = self._outlook.contest
        self._evaluator = evaluator = self._outlook.evaluator
        self._space = space = evaluator.space
        value, shape = evaluator.fastest, evaluator.excess_bytes.shape
        self._cost_s, self._ttft_s = (np.broadcast_to(time_s, shape) for time_s in (value.costs[0], value.ttft_s))
        self._feasible = np.broadcast_to(evaluator.feasible(value, self._contest.max_tpot_s), shape)
        possible = np.broadcast_to((value.tpot_s < BARRED_S) & (value.ttft_s < BARRED_S), shape)
        # What breaks a limit or the memory is worse than all that doesn't.
        worst_s = self._cost_s.max(where=possible, initial=0.0)
        self._rank_s = np.where(possible, self._cost_s + np.where(self._feasible, 0.0, worst_s), np.inf)
        needed = device_bytes(evaluator.model, evaluator.workload, space, evaluator.room)
        self._device_bytes = np.stack(list(needed), axis=-1)
        available = [max(1, evaluator.room.available_bytes[device]) for device in space.devices]
        self._available = np.array(available, np.float64)
        self._both = (space.gpu_layers > 0) & ((space.layers[:, 0] > 0) | (space.heads == 0))
        groups = space.gpu_layers * 2 + (space.heads > 0)
        members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
        placement = np.stack([alike[self._rank_s[alike].argmin(axis=0)] for alike in members])
        batch, chunk = np.indices(placement.shape)[1:]
        self._table = self._rows(placement.ravel(), batch.ravel(), chunk.ravel())

    def _rows(self, placement: NDArray[np.intp], batch: NDArray[np.intp], chunk: NDArray[np.intp]) -> _Rows:
        kept = self._rank_s[placement, batch, chunk] < np.inf
        at = placement[kept], batch[kept], chunk[kept]
        return _Rows(
            *at,
            self._rank_s[at],
            self._cost_s[at],
            self._ttft_s[at],
            self._feasible[at],
            self._evaluator.excess_bytes[at] <= 0,
            self._device_bytes[at],
            self._shares(at).max(axis=1),
        )

    def _shares(self, at: tuple[Index, Index, Index]) -> NDArray[np.float64]:
        """What is needed of each memory that holds the model, as a share of what may be planned with; (..., D)."""
        return np.where(self._space.works[at[0]], self._device_bytes[at] / self._available, 0.0)

    def _choices(self, here: Point) -> _Rows:
        """What moves from a point choose from: the table, and whatever can be had without moving layers."""
        batch, chunk = (index.ravel() for index in np.indices(self._rank_s.shape[1:]))
        unmoved = self._rows(np.full(batch.shape, here.placement, np.intp), batch, chunk)
        return _Rows._make(np.concatenate(both) for both in zip(self._table, unmoved, strict=True))

    def _here(self, point: Point) -> _Here:
        prospect = self._outlook.at(self._space.configuration(point))
        value, tokens_per_s = self._evaluator.at(point), prospect.predicted.tokens_per_s
        if prospect.measured is not None:
            measured = prospect.measured
            value = self._evaluator.taking(point, measured.tpot_s, measured.ttft_s)
            tokens_per_s = measured.tokens_per_s
        at = point.placement, point.batch, point.chunk
        shares = self._shares(at)
        fullest = int(shares.argmax())
        return _Here(
            point,
            float(value.costs[0]),
            float(value.ttft_s),
            self._device_bytes[at],
            fullest,
            float(shares[fullest]),
            tokens_per_s,
        )

    def _stop(self, point: Point) -> Stop:
        here, space = self._here(point), self._space
        configuration = space.configuration(point)
        on_gpus = bool(space.gpu_layers[point.placement])
        alone = on_gpus and not self._both[point.placement]
        choices = self._choices(point)
        same = choices.only(choices.batch == point.batch)
        found: dict[Kind, Move | str] = {
            "less": self._less(here, choices, same),
            "more": self._more(here, choices),
            "back": self._back(here, same),
            "split": self._split(here, same) if alone else "layers are on the CPU already",
        }
        threads = configuration.decode_threads if space.works[point.placement, 0] else 1
        return Stop(
            configuration,
            device_config(self._evaluator.candidate(point), self._host.gpus),
            here.tokens_per_s,
            space.devices[here.fullest],
            on_gpus,
            alone,
            min(1.0, threads / self._host.limits.usable_threads),
            self.noise,
            {kind: move for kind, move in found.items() if isinstance(move, Move)},
            {kind: why for kind, why in found.items() if isinstance(why, str)},
        )

    def _less(self, here: _Here, choices: _Rows, same: _Rows) -> Move | str:
        batch = int(self._space.batches[here.point.batch])
        if batch > 1:
            less = (choices.needed <= here.needed).all(axis=1) & (choices.share < here.share)
            # There is always what it is without moving layers.
            return self._move("less", here, choices.only(less & (choices.batch == self._index_of(batch // 2))))
        for least in RELIEFS:
            relief = same.share <= here.share - least
            if relief.any():
                return self._move("less", here, same.only(relief))
        return (
            f"nothing is left to give: no other way to run a batch of {batch} "
            f"frees {RELIEFS[-1] * 100:.0f} % of the memory on {self._space.devices[here.fullest]}"
        )

    def _more(self, here: _Here, choices: _Rows) -> Move | str:
        batch = int(self._space.batches[here.point.batch])
        if batch >= self._max_batch:
            return f"a batch of {batch} is the largest that the workload allows"
        larger = min(2 * batch, self._max_batch)
        choices = choices.only(choices.batch == self._index_of(larger))
        if not choices.feasible.any():
            broken = "keeps the workload's limits" if choices.fits.any() else "fits the memory"
            return f"no configuration with a batch of {larger} {broken}"
        return self._faster("more", here, choices) or (
            f"a batch of {larger} is not predicted to be faster beyond the noise of {self.noise * 100:.1f} %"
        )

    def _back(self, here: _Here, same: _Rows) -> Move | str:
        return self._faster("back", here, same) or "no other with the same batch is faster beyond the noise"

    def _split(self, here: _Here, same: _Rows) -> Move | str:
        splits = same.only(same.feasible & self._both[same.placement])
        if not len(splits.placement):
            batch = self._space.batches[here.point.batch]
            return f"no split with a batch of {batch} fits the memory and keeps the limits"
        return self._move("split", here, splits)

    def _faster(self, kind: Kind, here: _Here, choices: _Rows) -> Move | None:
        """A move to a feasible one that is faster beyond the noise; what was run counts as it ran."""
        faster = choices.only(choices.feasible & self._beats(kind, choices.cost_s, choices.ttft_s, here))
        if not len(faster.placement):
            return None
        found = (self._here(point) for point in self._calmest(faster, here.point))
        there = next((one for one in found if self._beats(kind, one.cost_s, one.ttft_s, here)), None)
        return None if there is None else self._move_to(kind, here, there)

    def _beats(self, kind: Kind, cost_s: Seconds | float, ttft_s: Seconds | float, here: _Here) -> NDArray[np.bool_]:
        """Whether that is faster beyond the noise; with the same batch also if it only gives the first token sooner."""
        cost_s, ttft_s, least = np.asarray(cost_s), np.asarray(ttft_s), 1 + self.noise
        sooner = (cost_s <= here.cost_s) & (ttft_s * least < here.ttft_s)
        return np.asarray((cost_s * least < here.cost_s) | (sooner if kind == "back" else False))

    def _calmest(self, rivals: _Rows, here: Point) -> tuple[Point, ...]:
        """The best of some rows, or what is within the noise of it and changes less: what needn't change stays.

        First with the threads as they are, if that is within the noise, then with its fastest ones.
        """
        least = 1 + self.noise
        rivals = rivals.only(rivals.rank_s <= rivals.rank_s.min() * least)
        unmoved = rivals.placement == here.placement
        rivals = rivals.only(unmoved if unmoved.any() else rivals.placement == rivals.placement[rivals.rank_s.argmin()])
        rivals = rivals.only(rivals.ttft_s <= rivals.ttft_s.min() * least)
        row = np.lexsort((rivals.rank_s, rivals.chunk != here.chunk))[0]
        placement, batch, chunk = (int(index[row]) for index in rivals[:3])
        fastest = Point(
            placement,
            int(self._evaluator.decode.fastest_threads[placement, batch]),
            int(self._evaluator.prefill.fastest_threads[placement, chunk]),
            batch,
            chunk,
        )
        calm = fastest._replace(decode_threads=here.decode_threads, prefill_threads=here.prefill_threads)
        value = self._evaluator.at(calm)
        keeps = bool(self._evaluator.feasible(value, self._contest.max_tpot_s)) or not rivals.feasible[row]
        as_fast = value.costs[0] <= rivals.cost_s[row] * least and value.ttft_s <= rivals.ttft_s[row] * least
        found = (calm, fastest) if keeps and as_fast else (fastest,)
        return tuple(map(self._space.plain, found))

    def _move(self, kind: Kind, here: _Here, choices: _Rows) -> Move:
        return self._move_to(kind, here, self._here(self._calmest(choices, here.point)[0]))

    def _move_to(self, kind: Kind, here: _Here, there: _Here) -> Move:
        added = (there.needed - here.needed) / self._available
        return Move(
            kind,
            there.point,
            int(self._space.batches[there.point.batch]),
            there.tokens_per_s,
            here.cost_s / there.cost_s,
            here.ttft_s / there.ttft_s,
            float(added.max()),
            float(-added[here.fullest]),
        )

    def _index_of(self, batch: int) -> int:
        return list(self._space.batches).index(batch)


def _halvings(batch: int) -> list[int]:
    found = []
    while batch:
        found.append(batch)
        batch //= 2
    return found
