"""One round after the other: both sides start an engine, take turns in short slices, and end it again.

Two things move times by more than a new version does. A host's other work comes and goes within seconds; so the sides
take turns every tenth of a second, in the order ABBA. And where its memory happens to lie makes one process a few per
cent faster than the next for as long as it lives; so every round has engines of its own, and the round is what counts
as one observation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from autotune.compare.program import LackOfMemoryError, Side
from autotune.compare.protocol import Run, Start
from autotune.compare.verdict import Pace
from autotune.errors import MemoryLimitError
from autotune.records import Phase, median

_SLICE_S = 0.08
"""Of sampling, before it is the other side's turn."""
_PHASE_S = 0.5
"""Of sampling of both sides together, in each phase of a round; a long prompt is run once by each."""
_PHASES: tuple[Phase, Phase] = "prefill", "decode"

Pair = tuple[Pace, Pace]


class Turns:
    """Plays rounds of two sides.

    Args:
        sides: BASE and HEAD, ready.
        starts: What each of them runs.
        seed: Of the order of sides; None: another one each time.

    Attributes:
        together: Whether the memory holds both engines at once; else they run one after the other in each round.
    """

    def __init__(self, sides: tuple[Side, Side], starts: tuple[Start, Start], seed: int | None) -> None:
        self._sides, self._starts = sides, starts
        self._orders = _orders(np.random.default_rng(seed))
        self.together = True

    def play(self) -> Pair:
        """A round of both sides.

        Raises:
            BenchmarkError: A side could not run what it was asked to, or died.
            MemoryLimitError: The memory doesn't hold even one of the engines.
        """
        order = next(self._orders)
        times = self._play_together(order) if self.together else None
        if times is None:
            self.together = False
            times = self._play_alone(order)
        base, head = (Pace(*(math.exp(times[index, phase]) for phase in ("decode", "prefill"))) for index in (0, 1))
        return base, head

    def _play_together(self, order: Sequence[int]) -> dict[tuple[int, Phase], float] | None:
        """Logarithms of seconds by side and phase; None: the memory doesn't hold both."""
        try:
            for index in order:
                self._sides[index].start(self._starts[index])
        except LackOfMemoryError:
            self._stop(order)
            return None
        times = {key: time for phase in _PHASES for key, time in self._alternate(order, phase).items()}
        self._stop(order)
        return times

    def _play_alone(self, order: Sequence[int]) -> dict[tuple[int, Phase], float]:
        times: dict[tuple[int, Phase], float] = {}
        for index in order:
            try:
                self._sides[index].start(self._starts[index])
            except LackOfMemoryError as error:
                raise MemoryLimitError(str(error)) from None
            for phase in _PHASES:
                times |= self._alternate((index,), phase)
            self._stop((index,))
        return times

    def _alternate(self, order: Sequence[int], phase: Phase) -> dict[tuple[int, Phase], float]:
        """The mean over slices of the logarithms of their medians."""
        slices: dict[int, list[float]] = {index: [] for index in order}
        taken_s, turns = 0.0, 0
        # An even number of turns, so that each side is first as often as last.
        while taken_s < _PHASE_S or turns not in (1, 2 * (turns // 2)):
            for index in order if turns % 2 == 0 else reversed(order):
                samples_s = self._sides[index].run(Run(phase, _SLICE_S))
                slices[index].append(math.log(median(samples_s)))
                taken_s += sum(samples_s)
            turns += 1
        return {(index, phase): math.fsum(logs) / len(logs) for index, logs in slices.items()}

    def _stop(self, order: Sequence[int]) -> None:
        for index in order:
            self._sides[index].stop()


def _orders(rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Which side is first: in every two rounds each one once, by lot."""
    while True:
        first = int(rng.integers(2))
        yield first, 1 - first
        yield 1 - first, first
