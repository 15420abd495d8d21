"""What is known of every task so far, across the workers that a campaign may need."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from autotune.bench.messages import (
    Block,
    Clocks,
    Event,
    Failed,
    Finished,
    GpuFacts,
    Prepared,
    Ready,
    Unusable,
)
from autotune.bench.plan import Task
from autotune.bench.rivals import gates, is_beaten, rivals
from autotune.bench.sampler import TARGET_INTERVAL, Sample, stopping
from autotune.records import Failure, Measurement, Outcome
from autotune.records.measurement import FailureKind


class Ledger:
    """Books what is asked of workers, and what they report.

    Args:
        tasks: What can be timed.

    Attributes:
        failures: By the index of the task.
        control_drift: Largest that a worker reported.
        overhead_bytes: What the first worker took before it allocated anything; 0 before one was ready.
        cold_bytes: Least memory through which a worker's weights rotated; 0 before one had it.
        gpu: What the first worker found of the GPU; None on the CPU, and before one had.
        clocks: A GPU's, as they were read.
        unusable: Why the device can't be used; None: it can.
        finished: Whether a worker came to its end, or none can.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = tasks
        points = [task.point for task in tasks]
        self._rivals, self._gates = rivals(points), gates(points)
        self._intervals: dict[int, float] = {}
        self._samples: list[list[Sample]] = [[] for _ in tasks]
        self.failures: dict[int, Failure] = {}
        self.control_drift = 0.0
        self.overhead_bytes = 0
        self.cold_bytes = 0
        self.gpu: GpuFacts | None = None
        self.clocks: list[Clocks] = []
        self.unusable: str | None = None
        self.finished = False

    def select(self, intervals: Mapping[int, float]) -> dict[int, float]:
        """Ask for tasks to be timed, or to be timed better.

        Args:
            intervals: Index of each task, the most important first, and how narrow an interval its median is to come
                to, relative.

        Returns:
            Those of which that was not asked before, and that have not failed.
        """
        new = {
            index: width
            for index, width in intervals.items()
            if index not in self.failures and width < self._intervals.get(index, math.inf)
        }
        self._intervals |= new
        return new

    @property
    def selected(self) -> dict[int, float]:
        """All that was asked for, as it was, but what failed."""
        return {index: width for index, width in self._intervals.items() if index not in self.failures}

    @property
    def asked(self) -> int:
        """How many tasks were asked for."""
        return len(self._intervals)

    def take(self, event: Event) -> None:
        """Book an event."""
        match event:
            case Ready():
                self.overhead_bytes = self.overhead_bytes or event.overhead_bytes
            case Prepared():
                self.cold_bytes = min(self.cold_bytes or event.cold_bytes, event.cold_bytes)
                self.gpu = self.gpu or event.gpu
            case Block():
                self.control_drift = max(self.control_drift, event.control_drift)
                for sample in event.samples:
                    self._samples[sample.index].append(sample)
            case Clocks():
                self.clocks.append(event)
            case Failed():
                self.fail([event.index], event.kind, event.message)
            case Unusable():
                self.unusable = event.reason
                self.finished = True
            case Finished():
                self.finished = True

    def fail(self, indices: Iterable[int], kind: FailureKind, message: str) -> None:
        """Put tasks out. What failed before keeps its reason."""
        for index in indices:
            self.failures.setdefault(index, Failure(self._tasks[index].point, kind, message))

    @property
    def open(self) -> bool:
        """Whether something of what was asked for may be left to time."""
        return not self.finished and bool(self.selected)

    @property
    def timed(self) -> int:
        """Tasks with at least one sample, or that need none."""
        return sum(1 for index, samples in enumerate(self._samples) if samples or self._is_spared(index))

    def samples_s(self) -> tuple[tuple[float, ...], ...]:
        """Per task, seconds per call as they were taken."""
        return tuple(tuple(sample.time_s for sample in samples) for samples in self._samples)

    def outcomes(self) -> tuple[Outcome, ...]:
        """What came of each task, in their order; nothing of those that weren't asked for or were spared."""
        return tuple(
            self._outcome(index, task)
            for index, task in enumerate(self._tasks)
            if (index in self._intervals or index in self.failures) and not self._is_spared(index)
        )

    def _is_spared(self, index: int) -> bool:
        """Whether a task was left alone: its kernel lost all points that spare it, and a rival does the same."""
        if self._samples[index] or index in self.failures or not self._gates[index] or index not in self._intervals:
            return False
        if all(rival in self.failures for rival in self._rivals[index]):
            return False
        return all(map(self._is_beaten, self._gates[index]))

    def _is_beaten(self, index: int) -> bool:
        """Whether a rival that didn't fail was clearly faster."""
        sound = [rival for rival in self._rivals[index] if rival not in self.failures]
        own, *others = ([sample.time_s for sample in self._samples[which]] for which in (index, *sound))
        return is_beaten(own, others)

    def _outcome(self, index: int, task: Task) -> Outcome:
        if index in self.failures:
            return self.failures[index]
        samples = self._samples[index]
        if not samples:
            return Failure(task.point, "budget", "the time budget ended before it was timed")
        scale = task.point.n_out / task.rows if task.rows else 1.0
        return Measurement(
            point=task.point,
            samples_s=tuple(sample.time_s * scale for sample in samples),
            calls_per_sample=samples[-1].calls,
            stopped=stopping([sample.time_s for sample in samples], self._intervals.get(index, TARGET_INTERVAL))
            or ("beaten" if self._is_beaten(index) else "budget"),
            rows_timed=task.rows,
            disturbed=sum(sample.discarded for sample in samples),
        )
