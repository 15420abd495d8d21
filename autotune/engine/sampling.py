"""Takes a part's samples: several steps in one where steps are short, and again where something disturbed one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from autotune.bench import disturbance
from autotune.bench.sampler import MIN_SAMPLE_S, MIN_SAMPLES, TARGET_INTERVAL
from autotune.records.measurement import median, relative_median_interval

_DISTURBED_IF_SLOWER = 1.05
_MAX_RETAKES = 2
_BLOCK_S = 0.5
"""How much sampling is announced at once: the parent is not to wake up for every step."""

_CLOCK_RESOLUTION_S = 1e-7

Sample = tuple[float, dict[str, float]]
"""Seconds per step or prompt, and of these the seconds on each device."""


class Samples(NamedTuple):
    """What was taken, an entry per sample in the order taken.

    Attributes:
        total_s: Seconds per step or prompt.
        device_s: Of these, the seconds on each device.
    """

    total_s: tuple[float, ...]
    device_s: dict[str, tuple[float, ...]]


class Sampler:
    """Samples one part until its median is known or the time is up.

    Args:
        run: Runs a step or a prompt once and tells how long that took.
        earlier_s: Samples of the same part from before, which say what is usual.
        announce: Told beforehand how long the next samples should take together.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        run: Callable[[], Sample],
        earlier_s: Sequence[float],
        announce: Callable[[float], None],
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._run = run
        self._earlier_s = tuple(earlier_s)
        self._announce = announce
        self._clock = clock
        self._steps = 1
        """Steps per sample."""

    def take(self, at_least: int, at_most_s: float, expected_s: float) -> Samples:
        """Take samples.

        Args:
            at_least: How many there must be, at least 1.
            at_most_s: Time after which no more are begun than that.
            expected_s: Of a first one.
        """
        until = self._clock() + at_most_s
        announced_until = -math.inf
        taken: list[Sample] = []
        while True:
            now = self._clock()
            if taken:
                expected_s = self._steps * taken[-1][0]
                if len(taken) >= at_least and (now + expected_s > until or _is_known([total for total, _ in taken])):
                    break
            if now + expected_s > announced_until:
                block_s = max(expected_s, _BLOCK_S)
                self._announce(block_s)
                announced_until = now + block_s
            taken.append(self._take(taken, until))
        devices = taken[0][1]
        return Samples(
            tuple(total_s for total_s, _ in taken),
            {device: tuple(device_s[device] for _, device_s in taken) for device in devices},
        )

    def _take(self, taken: Sequence[Sample], until: float) -> Sample:
        """One sample; taken again, a few times at most, when it was slow and the process had been interrupted."""
        known_s = [*self._earlier_s, *(total_s for total_s, _ in taken)]
        usual_s = median(known_s) if len(known_s) >= MIN_SAMPLES else math.inf
        retakes = 0
        while True:
            preemptions = disturbance.preemptions()
            sample = self._time()
            slow = sample[0] > _DISTURBED_IF_SLOWER * usual_s
            spared = retakes == _MAX_RETAKES or self._clock() > until
            if not slow or spared or disturbance.preemptions() == preemptions:
                return sample
            retakes += 1

    def _time(self) -> Sample:
        """The mean of as many steps as make a sample long enough."""
        while True:
            runs = [self._run() for _ in range(self._steps)]
            total_s = sum(run_s for run_s, _ in runs)
            if total_s >= MIN_SAMPLE_S:
                return total_s / self._steps, {
                    device: sum(device_s[device] for _, device_s in runs) / self._steps for device in runs[0][1]
                }
            self._steps = math.ceil(self._steps * 1.2 * MIN_SAMPLE_S / max(total_s, _CLOCK_RESOLUTION_S))


def _is_known(samples_s: list[float]) -> bool:
    interval = relative_median_interval(samples_s)
    return interval is not None and interval <= TARGET_INTERVAL
