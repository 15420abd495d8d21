"""Takes the samples: warm-up, interleaving in random order, a stopping rule, and repeats where it was disturbed."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from msgspec.structs import replace

from autotune.bench import disturbance
from autotune.bench.rivals import FEW_SAMPLES, is_beaten
from autotune.records import Record, median, relative_median_interval

MIN_SAMPLE_S = 1e-3
"""A sample lasts at least this long: far above the clock's resolution and the cost of reading it."""

TARGET_INTERVAL = 0.02
COARSE_INTERVAL = 0.05
"""Where it isn't known yet whether a point matters."""

_COARSE_SAMPLES = 10
"""The most that are taken where it isn't, however wide the interval: on a noisy host the time is for those that do."""

MIN_SAMPLES = 6
MAX_DRIFT = 0.03
_STABLE_AFTER = 24
_STABLE_WINDOW = 8
_BLOCK_S = 0.7
_CONTROL_SAMPLES = 5
_REPEAT_SHARE = 0.1
"""Share of the time that may go into repeating blocks: on a noisy host more of it would buy nothing."""
_MAX_RETAKES = 2
_DISTURBED_IF_SLOWER = 1.05
_SHORT_CALL_S = 0.01
_LONG_SAMPLE_S = 0.03
_CLOCK_RESOLUTION_S = 1e-7

Stop = Literal["converged", "enough", "stable"]

Stopwatch = Callable[[Callable[[], object], int], float]
"""Calls something so many times, one call after the other, and returns the seconds that took."""


class Sample(Record, frozen=True):
    """One sample that counts."""

    index: int
    """The candidate."""
    time_s: float
    """Seconds per call."""
    calls: int
    """Times the operation ran, over which it averages."""
    discarded: int
    """Disturbed samples that it replaces."""


@dataclass
class Candidate:
    """One thing to time and what is known of it so far.

    Attributes:
        call: Runs the operation ``repeats`` times.
        work: Relative amount of work, for guessing a first call's time from others of the same ``kind``.
        kind: Candidates of one kind differ only in ``work``.
        samples_s: Seconds per operation, of the samples that count.
        call_s: Seconds per operation when it last ran, whether that counted or not; None if it never ran.
        calls: Calls per sample, 0 before the warm-up.
        repeats: Operations that one call runs.
        stopwatch: How its calls are timed; None: by the sampler's clock.
        target: How narrow an interval its samples' median is to come to, relative.
        done: Whether it needs no more samples, or can't be sampled.
        failed: Whether it raised an error.
        rivals: Indices of the candidates that do the same in another way: once one of them is clearly faster, this one
            is done.
        gates: Indices of the candidates that it waits for; if these are all beaten and a rival hasn't failed, it isn't
            sampled at all.
    """

    call: Callable[[], object]
    work: float
    kind: tuple[object, ...]
    samples_s: list[float] = field(default_factory=list)
    call_s: float | None = None
    calls: int = 0
    repeats: int = 1
    stopwatch: Stopwatch | None = None
    target: float = TARGET_INTERVAL
    done: bool = False
    failed: bool = False
    rivals: Sequence[int] = ()
    gates: Sequence[int] = ()


class Observer(Protocol):
    """Told what happens, as it happens."""

    def started(self, index: int, expected_s: float | None) -> None:
        """A candidate is about to be called; ``expected_s`` is None if nothing is known about its time."""

    def failed(self, index: int, error: Exception) -> None:
        """A candidate raised an error and is out."""

    def committed(self, block: Sequence[Sample], control_drift: float) -> None:
        """A block of samples counts; how far the control has drifted so far."""


class Sampler:
    """Samples all candidates until each is done or the deadline comes.

    The first round goes through them in the order given; every later one in random order, so that slow drift hits
    all alike. Long samples average over more of the noise themselves, so they take part in fewer rounds. One
    candidate, the control, is timed again between blocks of samples. If it moved by more than 3 % meanwhile, the
    block is repeated, as long as all repeats together keep to a tenth of the time.

    Args:
        candidates: What to time; more may be added between two runs.
        control: Index of the candidate that serves as the control; it must be known to run.
        deadline: On ``clock``'s scale; nothing starts that isn't expected to end before it.
        observer: Told about progress.
        clock: Seconds, monotonic.
        seed: Of the random order.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        control: int,
        deadline: float,
        observer: Observer,
        *,
        clock: Callable[[], float] = time.perf_counter,
        seed: int = 0,
    ) -> None:
        self._candidates = candidates
        self._control = control
        self._deadline = deadline
        self._observer = observer
        self._clock = clock
        self._random = random.Random(seed)  # noqa: S311 (an order of sampling, not a secret)
        self._readings_s: list[float] = []
        self._spare_s = _REPEAT_SHARE * (deadline - clock())

    def run(self) -> None:
        """Sample until all candidates are done, or there is no time for the rest."""
        for index in range(len(self._candidates)):
            self._judge(index)
        self._read_control()
        # Where some were begun before, in this process or another, the new ones go first.
        order = sorted(self._open(), key=lambda index: bool(self._candidates[index].samples_s))
        while order:
            self._round(order)
            order = self._draw()

    def _open(self) -> list[int]:
        """Candidates that aren't done and have time for another sample."""
        return [
            index
            for index, candidate in enumerate(self._candidates)
            if not candidate.done and self._is_due(candidate) and self._fits(self._expected(candidate))
        ]

    def _is_due(self, candidate: Candidate) -> bool:
        """Whether the candidate's gates are known and not all lost, or nobody is left to do the same."""
        if candidate.gates and not any(map(self._is_alive, candidate.rivals)):
            return True
        known = all(
            self._candidates[gate].done or len(self._candidates[gate].samples_s) >= FEW_SAMPLES
            for gate in candidate.gates
        )
        return known and not (candidate.gates and all(map(self._is_beaten, candidate.gates)))

    def _is_alive(self, index: int) -> bool:
        return bool(self._candidates[index].samples_s) or not self._candidates[index].done

    def _is_beaten(self, index: int) -> bool:
        candidate = self._candidates[index]
        return is_beaten(candidate.samples_s, [self._candidates[rival].samples_s for rival in candidate.rivals])

    def _judge(self, index: int) -> None:
        """Put a candidate out if it is beaten."""
        if self._is_beaten(index):
            self._candidates[index].done = True

    def _draw(self) -> list[int]:
        """Who is in the next round, in random order; nobody if nothing is left to do."""
        drawn: list[int] = []
        left = self._open()
        while left and not drawn:
            drawn = [index for index in left if self._takes_part(index)]
        self._random.shuffle(drawn)
        return drawn

    def _takes_part(self, index: int) -> bool:
        """Whether a candidate is sampled in this round: always, if its samples are short; else by lot."""
        expected = self._expected(self._candidates[index])
        return expected is None or self._random.random() * expected < _LONG_SAMPLE_S

    def _round(self, order: Sequence[int]) -> None:
        """Sample each candidate once, in blocks between two looks at the control."""
        block: list[Sample] = []
        started = self._clock()
        for index in order:
            if not self._fits(self._expected(self._candidates[index])):
                continue
            sample = self._take(index)
            if sample:
                block.append(sample)
            if block and self._clock() - started >= _BLOCK_S:
                self._close(block)
                block, started = [], self._clock()
        if block:
            self._close(block)

    def _close(self, block: list[Sample]) -> None:
        """Commit a block if the control held still, else repeat it."""
        while self._read_control() > MAX_DRIFT and block:
            cost = sum(sample.time_s * sample.calls for sample in block)
            if cost + self._control_cost_s() > self._spare_s or not self._fits(cost):
                break
            self._spare_s -= cost + self._control_cost_s()
            repeated = ((sample, self._take(sample.index)) for sample in block)
            block = [replace(new, discarded=new.discarded + old.discarded + 1) for old, new in repeated if new]
        for sample in block:
            candidate = self._candidates[sample.index]
            candidate.samples_s.append(sample.time_s)
            candidate.done = stopping(candidate.samples_s, candidate.target) is not None
            for index in (sample.index, *candidate.rivals):
                self._judge(index)
        usual = median(self._readings_s)
        self._observer.committed(block, max(abs(reading / usual - 1) for reading in self._readings_s))

    def _take(self, index: int) -> Sample | None:
        """One sample; None if the candidate raised an error, which puts it out."""
        self._observer.started(index, self._expected(self._candidates[index]))
        try:
            return self._sample(index)
        except Exception as error:
            # Whatever a kernel raises, the other candidates can still be timed, and those that it had beaten as well.
            failed = self._candidates[index]
            failed.failed = failed.done = True
            failed.samples_s.clear()
            for rival in map(self._candidates.__getitem__, failed.rivals):
                rival.done = rival.done and (not rival.samples_s or stopping(rival.samples_s, rival.target) is not None)
            self._observer.failed(index, error)
            return None

    def _read_control(self) -> float:
        """Time the control; how far it moved since it was last timed, relative."""
        self._observer.started(self._control, self._control_cost_s())
        reading = median([self._sample(self._control).time_s for _ in range(_CONTROL_SAMPLES)])
        self._readings_s.append(reading)
        return abs(reading / self._readings_s[-2] - 1) if len(self._readings_s) > 1 else 0.0

    def _sample(self, index: int) -> Sample:
        """One sample; taken again, a few times at most, when it was slow and the process had been interrupted."""
        candidate = self._candidates[index]
        if not candidate.calls or (candidate.call_s or 0.0) * candidate.repeats < _SHORT_CALL_S:
            # Caches, page tables and branch predictors are cold at first. And in a step the product before leaves its
            # scratch memory and code in cache, if not the weights; here it was any other candidate, and a short call
            # would pay for fetching them again.
            candidate.call()
        candidate.calls = candidate.calls or 1
        usual = median(candidate.samples_s) if len(candidate.samples_s) >= MIN_SAMPLES else math.inf
        discarded = 0
        while True:
            preemptions = disturbance.preemptions()
            elapsed = (candidate.stopwatch or self._time)(candidate.call, candidate.calls)
            if elapsed < MIN_SAMPLE_S:
                longer = 1.2 * MIN_SAMPLE_S / max(elapsed, _CLOCK_RESOLUTION_S)
                candidate.calls = math.ceil(candidate.calls * longer)
                continue
            operations = candidate.calls * candidate.repeats
            candidate.call_s = elapsed / operations
            slow = candidate.call_s > _DISTURBED_IF_SLOWER * usual
            if not slow or discarded == _MAX_RETAKES or disturbance.preemptions() == preemptions:
                return Sample(index, candidate.call_s, operations, discarded)
            discarded += 1

    def _time(self, call: Callable[[], object], calls: int) -> float:
        """The stopwatch of what is over when it returns: the clock."""
        start = self._clock()
        for _ in range(calls):
            call()
        return self._clock() - start

    def _fits(self, expected_s: float | None) -> bool:
        """Whether that much more, and the control after it, is expected to end before the deadline."""
        return self._clock() + (expected_s or 0.0) + self._control_cost_s() < self._deadline

    def _control_cost_s(self) -> float:
        return _CONTROL_SAMPLES * (self._expected(self._candidates[self._control]) or MIN_SAMPLE_S)

    def _expected(self, candidate: Candidate) -> float | None:
        """Seconds the next sample will take: as its last one, or scaled up from less work of its kind; None: unknown.

        A first sample is preceded by a warm-up call, so it takes twice as long.
        """
        call_s = candidate.call_s
        if call_s is not None and candidate.calls:
            return call_s * candidate.calls * candidate.repeats
        if call_s is None:
            timed = [(other.work, other.call_s) for other in self._candidates if other.kind == candidate.kind]
            known = [(abs(math.log(work / candidate.work)), work, time_s) for work, time_s in timed if time_s]
            if not known:
                return None
            _, work, time_s = min(known)
            call_s = time_s * max(1.0, candidate.work / work)
        return 2 * max(MIN_SAMPLE_S, call_s * candidate.repeats)


def stopping(samples_s: Sequence[float], target: float = TARGET_INTERVAL) -> Stop | None:
    """Whether a candidate has been sampled enough, and why; None: go on.

    Args:
        samples_s: Its samples.
        target: How narrow an interval their median is to come to, relative.
    """
    interval = relative_median_interval(list(samples_s))
    if interval is None:
        return None
    if interval <= TARGET_INTERVAL:
        return "converged"
    if interval <= target or (target > TARGET_INTERVAL and len(samples_s) >= _COARSE_SAMPLES):
        return "enough"
    if len(samples_s) >= _STABLE_AFTER:
        # The noise has a floor of its own: more samples no longer narrow the interval as 1 / sqrt(n) would.
        earlier = relative_median_interval(list(samples_s[:-_STABLE_WINDOW]))
        if earlier is not None and interval > 0.95 * earlier:
            return "stable"
    return None
