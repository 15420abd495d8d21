"""Which move metrics ask for: the rules, and what keeps them from asking for one thing now and its opposite later.

1. Memory pressure above 90 %: less memory. At once, whatever it costs: a process that is killed is the slowest of all.
   The batch is halved each time; where layers must move, as many as are predicted to be enough.
2. Below 50 %: twice the batch, if that is faster; or back to what memory was short for. A batch of 8 is no end to
   that: how far it pays is what the cost model knows, and its predictions keep the workload's limits.
3. A GPU that is busy for less than 30 % of the time, in a configuration on GPUs alone: layers on the CPU as well, if
   that is faster than what is expected here; or, where what is observed stays far behind that and the CPU has time to
   spare, than what is observed.

Between the first two lies a wide gap, and rule 2 doesn't act where the pressure that would follow comes near rule 1's.
What would follow is today's pressure and what the plan adds; where a step was taken back before, also as much as the
pressure fell by then, if that is believable: others use the memory too. Each time that memory had to be given up, going
there again takes twice as many observations in a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, NamedTuple

import msgspec

from autotune.adapt.metrics import PerformanceMetrics
from autotune.adapt.moves import Kind, Move, Stop
from autotune.records.base import Record
from autotune.search.space import Point

PRESSED = 0.9
ROOMY = 0.5
"""Memory pressure above and below which the plan's own memory becomes less or more."""

CLEAR = 0.05
"""How far below ``PRESSED`` the pressure must stay that a move is predicted to cause."""

IDLE_GPU = 0.3
"""Utilisation below which a GPU counts as idle."""

_FAR_BEHIND = 0.7
"""Ratio of observed to expected throughput below which something else than the prediction's error is at work: that is
15 % where it is large."""

_BUSY_CPU = 0.7
"""Utilisation above which a CPU has no time for layers that it doesn't run already."""

_BELIEVABLE = 2.0
"""By how much a plan may be short of what is really used, as a factor; the rest of a fall in pressure was others'."""

_MOST_DOUBLINGS = 16


class GivenUp(Record, frozen=True):
    """A batch size that memory was short for."""

    batch_size: Annotated[int, msgspec.Meta(ge=1)]
    pressure: Annotated[float, msgspec.Meta(ge=0, le=1)]
    """At that time."""
    fell_by: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    """What the pressure fell by then; None: that wasn't observed yet."""


class History(Record, frozen=True):
    """What rules remember."""

    given_up: tuple[GivenUp, ...] = ()
    """One per batch size, the latest."""
    times: Annotated[int, msgspec.Meta(ge=0)] = 0
    """How often memory was given up after it had been taken."""
    grown: bool = False
    """Whether memory was taken since it was given up last."""
    last_here: Kind | None = None
    """``back`` or ``split``: what was done with the batch as it is; the other one would undo it."""

    def after(self, move: Move, here: Stop, pressure: float) -> History:
        """What is remembered once a move is made."""
        batch = here.configuration.batch_size
        if move.kind == "less":
            others = tuple(one for one in self.given_up if one.batch_size != batch)
            return History((*others, GivenUp(batch, pressure)), self.times + self.grown, grown=False)
        if move.kind == "split":
            return msgspec.structs.replace(self, last_here="split")
        return History(self.given_up, self.times, grown=True, last_here="back" if move.kind == "back" else None)

    def seeing(self, pressure: float) -> History:
        """What is remembered with the first pressure after memory was given up."""
        if not self.given_up or self.given_up[-1].fell_by is not None:
            return self
        *others, last = self.given_up
        fell_by = max(0.0, last.pressure - pressure)
        return msgspec.structs.replace(self, given_up=(*others, msgspec.structs.replace(last, fell_by=fell_by)))

    def short_for(self, batch: int) -> GivenUp | None:
        """The largest batch up to a size that memory was short for."""
        return max((one for one in self.given_up if one.batch_size <= batch), key=_batch_size, default=None)


class Verdict(NamedTuple):
    """What metrics ask for.

    Attributes:
        move: None: nothing.
        patience: Observations in a row that must ask for it, as a multiple of the usual.
        why: In words; without a move, why not.
    """

    move: Move | None
    patience: int
    why: str


def judge(
    stops: Mapping[Point, Stop], at: Point, metrics: PerformanceMetrics, ratio: float | None, history: History
) -> Verdict:
    """What to do where a model runs.

    Args:
        stops: All configurations, with their moves.
        at: The one that runs.
        metrics: What was observed.
        ratio: Observed over expected throughput, as learnt; None: unknown.
        history: What was done before; it has seen the metrics' pressure.
    """
    stop, pressure = stops[at], metrics.memory_pressure
    if pressure > PRESSED:
        return _less(stops, stop, pressure)
    more = _more(stop, pressure, history)
    if more.move is not None or not stop.on_gpus_alone:
        return more
    split = _split(stop, metrics, ratio, history)
    return split if split.move is not None else Verdict(None, 1, f"{more.why}; {split.why}")


def _less(stops: Mapping[Point, Stop], stop: Stop, pressure: float) -> Verdict:
    above = f"{_of(pressure)} is above {percent(PRESSED)}"
    move = stop.moves.get("less")
    if move is None:
        return Verdict(None, 1, f"{above}, but {stop.why_not['less']}")
    if move.batch_size == stop.configuration.batch_size:
        move = _far_enough(stops, move, pressure)
    frees = f"{percent(move.freed_share, 1)} of the memory on {stop.fullest}, {_cost(move)}"
    doubt = ""
    if not _can_be_relieved(stops, move, pressure):
        doubt = "; all that this model can free won't be enough, so something else fills the memory"
    return Verdict(move, 0, f"{above}, and this frees {frees}{doubt}")


def _can_be_relieved(stops: Mapping[Point, Stop], move: Move | None, pressure: float) -> bool:
    """Whether a move, and those that can follow it, are predicted to bring the pressure down to where it may be."""
    while move is not None and pressure > PRESSED:
        pressure -= move.freed_share
        move = stops[move.to].moves.get("less")
    return pressure <= PRESSED


def _far_enough(stops: Mapping[Point, Stop], move: Move, pressure: float) -> Move:
    """As many moves at once as are predicted to bring the pressure down: each would load layers again."""
    while pressure - move.freed_share > PRESSED - CLEAR:
        further = stops[move.to].moves.get("less")
        if further is None:
            break
        move = further._replace(
            speedup=move.speedup * further.speedup,
            added_share=move.added_share + further.added_share,
            freed_share=move.freed_share + further.freed_share,
        )
    return move


def _more(stop: Stop, pressure: float, history: History) -> Verdict:
    if pressure >= ROOMY:
        return Verdict(
            None,
            1,
            f"{_of(pressure)} is between {percent(ROOMY)} and {percent(PRESSED)}, where nothing has to change",
        )
    below = f"{_of(pressure)} is below {percent(ROOMY)}"
    move = stop.moves.get("more")
    back = stop.moves.get("back") if history.given_up and history.last_here != "split" else None
    if move is None and back is None:
        return Verdict(None, 1, f"{below}, but {stop.why_not['more']}")
    refusal = ""
    for allowed in (move, back):
        if allowed is None:
            continue
        given_up = history.short_for(allowed.batch_size)
        added = max(0.0, allowed.added_share)
        if given_up is not None and given_up.fell_by is not None:
            added = max(added, min(given_up.fell_by, _BELIEVABLE * added))
        if pressure + added <= PRESSED - CLEAR:
            patience = 1 if given_up is None else 2 ** min(1 + history.times, _MOST_DOUBLINGS)
            return Verdict(allowed, patience, f"{below}, and it is predicted to {_gain(allowed, stop.noise)}")
        refusal = refusal or (
            f"{below}, but the next step would bring it to {percent(min(1.0, pressure + added))}, "
            f"too near the {percent(PRESSED)} at which memory is given up"
        )
    return Verdict(None, 1, refusal)


def _split(stop: Stop, metrics: PerformanceMetrics, ratio: float | None, history: History) -> Verdict:
    utilization = metrics.gpu_utilization
    if utilization is None:
        return Verdict(None, 1, "the GPU's utilisation is unknown")
    if utilization >= IDLE_GPU:
        return Verdict(None, 1, f"the GPU is busy for {percent(utilization)} of the time")
    idle = f"the GPU is busy for only {percent(utilization)} of the time"
    move = stop.moves.get("split")
    if move is None:
        return Verdict(None, 1, f"{idle}, but {stop.why_not['split']}")
    if history.last_here == "back":
        return Verdict(None, 1, f"{idle}, but layers have just been moved back to it")
    if metrics.memory_pressure + max(0.0, move.added_share) > PRESSED - CLEAR:
        return Verdict(None, 1, f"{idle}, but layers on the CPU would bring memory pressure near {percent(PRESSED)}")
    if move.speedup > 1 + stop.noise:
        return Verdict(move, 1, f"{idle}, and layers on the CPU as well are predicted to {_gain(move, stop.noise)}")
    predicted = f"{idle}, but layers on the CPU as well are not predicted to be faster"
    if ratio is None or ratio >= _FAR_BEHIND:
        return Verdict(None, 1, predicted)
    behind = f"only {percent(ratio)} of the expected throughput is observed"
    if move.tokens_per_s <= ratio * stop.tokens_per_s * (1 + stop.noise):
        return Verdict(None, 1, f"{predicted}, not even than what is observed")
    if metrics.cpu_utilization > _BUSY_CPU:
        return Verdict(
            None, 1, f"{predicted}: {behind}, but the CPU is busy for {percent(metrics.cpu_utilization)} of the time"
        )
    return Verdict(
        move,
        1,
        f"{idle} and {behind}: layers on the CPU as well are predicted to give {move.tokens_per_s:.4g} tokens/s, if it "
        "is the GPU that is slow and not requests that are missing",
    )


def percent(share: float, digits: int = 0) -> str:
    """A share for people: ``12 %``."""
    return f"{share * 100:.{digits}f} %"


def _of(pressure: float) -> str:
    """With a digit more than other shares where it has one: it may lie just above a limit."""
    return f"memory pressure of {pressure * 100:.3g} %"


def _cost(move: Move) -> str:
    if move.speedup >= 1:
        return "at no cost in speed"
    return f"for {percent(1 - move.speedup, 1)} of the speed"


def _gain(move: Move, noise: float) -> str:
    if move.speedup > 1 + noise:
        return f"be {percent(move.speedup - 1, 1)} faster"
    return f"be as fast and to give the first token {percent(1 - 1 / move.ttft_speedup, 1)} sooner"


def _batch_size(given_up: GivenUp) -> int:
    return given_up.batch_size
