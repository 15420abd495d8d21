"""Takes the samples: all candidates in turn, in random order, until the time is spent."""

from __future__ import annotations

import gc
import math
import random
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

MIN_SAMPLE_S = 1e-3
"""A sample lasts at least this long: far above the clock's resolution and the cost of reading it."""

_SHORT_CALL_S = 0.01
_LONG_SAMPLE_S = 0.03
_CLOCK_RESOLUTION_S = 1e-7
_MOST_RETAKES = 2


@dataclass
class Candidate:
    """One thing to time and what is known of it so far.

    Attributes:
        call: Runs it once.
        cold: Whether each call finds its data in memory, not in cache.
        after: Called after each sample, outside of the time.
        samples_s: Seconds per call.
        calls: Calls per sample; 0: none was taken.
        disturbed: Samples among them during which another process took a CPU away.
        error: Why it takes no more part; None: it does.
    """

    call: Callable[[], object]
    cold: bool
    after: Callable[[], object] | None = None
    samples_s: list[float] = field(default_factory=list)
    calls: int = 0
    disturbed: int = 0
    error: str | None = None

    @property
    def expected_s(self) -> float:
        """How long its next sample should take; 0 if nothing is known."""
        return self.samples_s[-1] * self.calls if self.samples_s else 0.0


def preemptions() -> int:
    """How often another process took a CPU away from a thread of this one, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def sample(
    candidates: Sequence[Candidate],
    seconds: float,
    *,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    preempted: Callable[[], int] = preemptions,
) -> None:
    """Sample all candidates within a time.

    The first round goes through them in their order; every later one in random order, so that slow drift hits all
    alike. Long samples average over more of the noise themselves: they take part in fewer rounds, by lot. A short
    sample during which another process took a CPU away is taken again, a few times at most.

    Args:
        candidates: What to time; their ``samples_s`` grow.
        seconds: Nothing starts that isn't expected to end within them.
        seed: Of the random order.
        clock: Seconds, monotonic.
        preempted: How often the process lost a CPU so far.
    """
    order = random.Random(seed)  # noqa: S311 (an order of sampling, not a secret)
    deadline = clock() + seconds
    # Garbage collection would stop the threads in the middle of a sample.
    gc.collect()
    gc.disable()
    try:
        chosen = list(candidates)
        while chosen:
            for candidate in chosen:
                if clock() + candidate.expected_s < deadline:
                    _take(candidate, clock, preempted)
            left = [
                candidate
                for candidate in candidates
                if candidate.error is None and clock() + candidate.expected_s < deadline
            ]
            chosen = [candidate for candidate in left if order.random() * candidate.expected_s < _LONG_SAMPLE_S]
            chosen = chosen or left[:1]
            order.shuffle(chosen)
    finally:
        gc.enable()


def _take(candidate: Candidate, clock: Callable[[], float], preempted: Callable[[], int]) -> None:
    try:
        retakes, disturbed = _MOST_RETAKES, True
        while disturbed and retakes >= 0:
            before = preempted()
            elapsed = _sample(candidate, clock)
            disturbed = preempted() > before
            retakes = retakes - 1 if elapsed <= _LONG_SAMPLE_S else -1
        candidate.samples_s.append(elapsed / candidate.calls)
        candidate.disturbed += disturbed
    except Exception as error:
        # Whatever a kernel raises, the others can still be timed.
        candidate.error = f"{type(error).__name__}: {error}"
    if candidate.after is not None:
        candidate.after()


def _sample(candidate: Candidate, clock: Callable[[], float]) -> float:
    """Seconds that ``candidate.calls`` calls took, of which there are enough for the clock."""
    if not candidate.cold or not candidate.samples_s or candidate.samples_s[-1] < _SHORT_CALL_S:
        # Code, page tables and branch predictors are cold at first, and warm weights must be in cache. A long call
        # on cold weights loses nothing by it.
        candidate.call()
    candidate.calls = candidate.calls or 1
    while True:
        start = clock()
        for _ in range(candidate.calls):
            candidate.call()
        elapsed = clock() - start
        if elapsed >= MIN_SAMPLE_S:
            return elapsed
        longer = 1.2 * MIN_SAMPLE_S / max(elapsed, _CLOCK_RESOLUTION_S)
        candidate.calls = math.ceil(candidate.calls * longer)
