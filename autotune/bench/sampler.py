"""Takes the samples: warm-up, interleaving in random order, a stopping rule, and repeats where it was disturbed."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from autotune.bench import disturbance
from autotune.records import median, relative_median_interval

MIN_SAMPLE_S = 1e-3
"""A sample lasts at least this long: far above the clock's resolution and the cost of reading it."""

TARGET_INTERVAL = 0.02
MIN_SAMPLES = 6
MAX_DRIFT = 0.03
_STABLE_AFTER = 24
_STABLE_WINDOW = 8
_BLOCK_S = 0.7
_CONTROL_CALLS = 5
_MAX_REPEATED_BLOCKS = 6
_DISTURBED_IF_SLOWER = 1.05
_LONG_SAMPLE_S = 0.03

Stop = Literal["converged", "stable", "budget"]


@dataclass
class Candidate:
    """One thing to time and what is known of it so far.

    Attributes:
        call: Runs the operation once.
        work: Relative amount of work, for guessing a first call's time from others of the same ``kind``.
        kind: Candidates of one kind differ only in ``work``.
        samples_s: Seconds per call.
        calls: Calls per sample, 0 before the warm-up.
        disturbed: Samples thrown away.
        stop: Why sampling ended, or None while it goes on.
    """

    call: Callable[[], object]
    work: float
    kind: tuple[object, ...]
    samples_s: list[float] = field(default_factory=list)
    calls: int = 0
    disturbed: int = 0
    stop: Stop | None = None


class Observer(Protocol):
    """Told what happens, as it happens."""

    def started(self, index: int, expected_s: float | None) -> None:
        """A candidate is about to be called; ``expected_s`` is None if nothing is known about its time."""

    def failed(self, index: int, error: Exception) -> None:
        """A candidate raised an error and is out."""

    def committed(self, samples: Sequence[tuple[int, float]]) -> None:
        """A block of samples (candidate, seconds per call) passed the control."""


class Sampler:
    """Samples all candidates until each has stopped or the deadline comes.

    The first round goes through them in the order given; every later one in random order, so that slow drift hits
    all alike. Long samples average over more of the noise themselves, so they take part in fewer rounds. A block of samples counts only if the control, timed before and after, stayed within 3 %; otherwise it is
    repeated, a bounded number of times.

    Args:
        candidates: What to time.
        control: A product timed again and again as a yardstick.
        deadline: On ``clock``'s scale; nothing starts that isn't expected to end before it.
        observer: Told about progress.
        clock: Seconds, monotonic.
        seed: Of the random order.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        control: Callable[[], object],
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
        self._control_s: list[float] = []
        self._repeats_left = _MAX_REPEATED_BLOCKS
        self.control_drift = 0.0

    def run(self) -> None:
        """Sample until done."""
        self._control()
        self._time_control()
        order = list(range(len(self._candidates)))
        while True:
            for block in self._blocks(order):
                self._close(block)
            left = [index for index, candidate in enumerate(self._candidates) if candidate.stop is None]
            if not any(self._fits(self._candidates[index]) for index in left):
                break
            order = [index for index in left if self._takes_part(self._candidates[index])]
            self._random.shuffle(order)
        for candidate in self._candidates:
            candidate.stop = candidate.stop or "budget"

    def _takes_part(self, candidate: Candidate) -> bool:
        """Whether a candidate is sampled in this round: always, if its samples are short; else by lot."""
        expected = self._expected(candidate)
        return expected is None or self._random.random() * expected < _LONG_SAMPLE_S

    def _blocks(self, order: Sequence[int]) -> Iterator[list[tuple[int, float]]]:
        """One round, cut into blocks of samples between two looks at the control."""
        block: list[tuple[int, float]] = []
        started = self._clock()
        for index in order:
            candidate = self._candidates[index]
            if not self._fits(candidate):
                continue
            self._observer.started(index, self._expected(candidate))
            try:
                block.append((index, self._sample(candidate)))
            except Exception as error:
                # Whatever a kernel raises, the other candidates can still be timed.
                candidate.stop = "budget"
                self._observer.failed(index, error)
                continue
            if self._clock() - started >= _BLOCK_S:
                yield block
                block, started = [], self._clock()
        if block:
            yield block

    def _close(self, block: list[tuple[int, float]]) -> None:
        """Commit a block if the control held still, else repeat it."""
        while True:
            drift = self._time_control()
            if drift <= MAX_DRIFT or not self._repeats_left or not self._all_fit(block):
                break
            self._repeats_left -= 1
            for index, _ in block:
                self._candidates[index].disturbed += 1
            block = [(index, self._again(index)) for index, _ in block]
        self.control_drift = max(self.control_drift, drift)
        for index, sample in block:
            candidate = self._candidates[index]
            candidate.samples_s.append(sample)
            candidate.stop = stopping(candidate.samples_s)
        self._observer.committed(block)

    def _again(self, index: int) -> float:
        self._observer.started(index, self._expected(self._candidates[index]))
        return self._sample(self._candidates[index])

    def _time_control(self) -> float:
        """Time the control; how far it now lies from its median so far, relative."""
        readings = []
        for _ in range(_CONTROL_CALLS):
            start = self._clock()
            self._control()
            readings.append(self._clock() - start)
        self._control_s.append(median(readings))
        return abs(self._control_s[-1] / median(self._control_s) - 1)

    def _sample(self, candidate: Candidate) -> float:
        """One sample; taken again, at most twice, when it was slow and the process had been interrupted."""
        if not candidate.calls:
            start = self._clock()
            candidate.call()
            # The warm-up itself is a first, too high estimate: caches, page faults and branch predictors were cold.
            candidate.calls = max(1, math.ceil(MIN_SAMPLE_S / max(self._clock() - start, 1e-7)))
        usual = median(candidate.samples_s) if len(candidate.samples_s) >= MIN_SAMPLES else None
        for attempt in range(3):
            before = disturbance.preemptions()
            start = self._clock()
            for _ in range(candidate.calls):
                candidate.call()
            elapsed = self._clock() - start
            sample = elapsed / candidate.calls
            interrupted = disturbance.preemptions() > before
            if usual is None or not interrupted or sample <= _DISTURBED_IF_SLOWER * usual or attempt == 2:
                break
            candidate.disturbed += 1
        if elapsed < MIN_SAMPLE_S:
            candidate.calls = math.ceil(candidate.calls * MIN_SAMPLE_S / max(elapsed, 1e-7))
        return sample

    def _fits(self, candidate: Candidate) -> bool:
        """Whether another sample is expected to end before the deadline."""
        expected = self._expected(candidate) or 0.0
        return self._clock() + expected < self._deadline

    def _all_fit(self, block: Sequence[tuple[int, float]]) -> bool:
        total = sum(sample * self._candidates[index].calls for index, sample in block)
        return self._clock() + total < self._deadline

    def _expected(self, candidate: Candidate) -> float | None:
        """Seconds the next sample will take: its own last one, or what less work of its kind took, scaled up.

        A first sample is preceded by a warm-up call, so it takes twice as long.
        """
        if candidate.samples_s:
            return candidate.samples_s[-1] * candidate.calls
        known = [other for other in self._candidates if other.kind == candidate.kind and other.samples_s]
        if not known:
            return None
        nearest = min(known, key=lambda other: abs(math.log(other.work / candidate.work)))
        return 2 * max(MIN_SAMPLE_S, nearest.samples_s[-1] * max(1.0, candidate.work / nearest.work))


def stopping(samples_s: Sequence[float]) -> Stop | None:
    """Whether a candidate has been sampled enough, and why; None: go on."""
    if len(samples_s) < MIN_SAMPLES:
        return None
    interval = relative_median_interval(list(samples_s))
    if interval is not None and interval <= TARGET_INTERVAL:
        return "converged"
    if len(samples_s) >= _STABLE_AFTER:
        # The noise has a floor of its own: more samples no longer narrow the interval as 1 / sqrt(n) would.
        earlier = relative_median_interval(list(samples_s[:-_STABLE_WINDOW]))
        if interval is not None and earlier is not None and interval > 0.95 * earlier:
            return "stable"
    return None
