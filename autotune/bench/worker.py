"""The child process that does the timing: a crash, a hang or an out-of-memory kill in it is just a value to its parent.

Started as ``python -m autotune.bench.worker``; reads a ``Job`` and ``Select`` lines from standard input, writes
``Event`` lines to standard output, and exits when standard input closes, so that it never outlives its parent.
"""

from __future__ import annotations

import gc
import importlib
import time
from collections.abc import Mapping, Sequence

import psutil
from msgspec.structs import replace

from autotune.bench.messages import (
    Block,
    Event,
    Failed,
    Finished,
    Idle,
    Job,
    Ready,
    Started,
    Unusable,
    job_decoder,
    select_decoder,
)
from autotune.bench.parent import Parent
from autotune.bench.plan import Task
from autotune.bench.rig import DeviceLostError, DeviceUnusableError, Rig, Send
from autotune.bench.rivals import gates, rivals
from autotune.bench.sampler import Candidate, Sample, Sampler, stopping

_BUILDING_SHARE = 0.6
"""Share of the time there is after the check in which calls may be built: graphs are captured, code is compiled."""


class Channel:
    """Sends events to the parent, and remembers what is at stake."""

    def __init__(self, parent: Parent) -> None:
        self._parent = parent
        self._at_stake: tuple[int, ...] = ()

    def send(self, event: Event) -> None:
        """Send an event."""
        if isinstance(event, Started):
            self._at_stake = event.at_stake
        self._parent.send(event)

    def give_up(self, reason: str) -> None:
        """The device is lost: what was at stake takes the blame; if nothing was, it can't be used at all."""
        for index in self._at_stake:
            self.send(Failed(index, "crashed", reason))
        if not self._at_stake:
            self.send(Unusable(reason))


class Reporter:
    """Turns what the sampler tells about candidates into events about tasks.

    Args:
        rig: Tells what an error means.
        send: Takes the events.
        tasks: Index of the task that each candidate stands for.
    """

    def __init__(self, rig: Rig, send: Send, tasks: Sequence[int]) -> None:
        self._rig = rig
        self._send = send
        self._tasks = tasks

    def started(self, index: int, expected_s: float | None) -> None:
        """A candidate is about to be called."""
        self._send(Started((self._tasks[index],), expected_s))

    def failed(self, index: int, error: Exception) -> None:
        """A candidate raised an error."""
        self._send(Failed(self._tasks[index], *self._rig.failure_of(error)))

    def committed(self, block: Sequence[Sample], control_drift: float) -> None:
        """Samples count."""
        samples = tuple(replace(sample, index=self._tasks[sample.index]) for sample in block)
        self._send(Block(samples, control_drift))
        self._rig.between_blocks()


def main() -> None:
    """Work off the job and the selections that standard input holds."""
    parent = Parent()
    channel = Channel(parent)
    job = parent.hear(job_decoder)
    if job is None:
        return
    parent.expect(max(job.end - time.monotonic(), 0.0))
    try:
        _work_off(job, parent, channel.send)
    except DeviceLostError as error:
        channel.give_up(str(error))
    except DeviceUnusableError as error:
        channel.send(Unusable(str(error)))


def _work_off(job: Job, parent: Parent, send: Send) -> None:
    rig = _rig(job, send)
    for module in job.kernel_modules:
        importlib.import_module(module)
    rig.load(job.tasks)
    send(Ready(psutil.Process().memory_info().rss))
    with rig:
        bench = Bench(job, rig, send)
        while (selected := parent.hear(select_decoder)) is not None and selected.intervals:
            bench.time(selected.intervals)
            send(Idle())
    send(Finished())


def _rig(job: Job, send: Send) -> Rig:
    if job.device == "cpu":
        from autotune.bench.cpu_rig import CpuRig

        return CpuRig(job, send)
    from autotune.bench.gpu_rig import GpuRig  # imports torch

    return GpuRig(job, send)


class Bench:
    """Times the tasks of a job, those that are selected at a time.

    Args:
        job: What there is to time, and until when.
        rig: The device.
        send: Takes the events.
    """

    def __init__(self, job: Job, rig: Rig, send: Send) -> None:
        self._job = job
        self._rig = rig
        self._send = send
        points = [task.point for task in job.tasks]
        self._rivals, self._gates = rivals(points), gates(points)
        self._prepared = False
        self._tasks: list[int] = []
        self._candidates: list[Candidate] = []
        """One per task that was built."""
        self._reporter = Reporter(rig, send, self._tasks)
        self._sampler: Sampler | None = None

    def time(self, intervals: Mapping[int, float]) -> None:
        """Check, build and sample tasks, and sample those further that were before.

        Args:
            intervals: Index of each task, and how narrow an interval its median is to come to, relative.
        """
        new = [index for index in intervals if index not in self._tasks and index not in self._job.skip]
        failed = self._rig.check(self._job.tasks, set(range(len(self._job.tasks))) - set(new))
        if not self._prepared:
            self._send(Started((), None))
            self._send(self._rig.prepare())
            self._prepared = True
        self._build([index for index in new if index not in failed])
        for index, candidate in zip(self._tasks, self._candidates, strict=True):
            candidate.target = intervals.get(index, candidate.target)
            candidate.done = candidate.failed or stopping(candidate.samples_s, candidate.target) is not None
        self._introduce()
        self._sample()

    def _build(self, new: Sequence[int]) -> None:
        """Build the calls of tasks."""
        latest = _BUILDING_SHARE * self._job.deadline + (1 - _BUILDING_SHARE) * time.monotonic()
        for index in new:
            if self._candidates and time.monotonic() > latest:
                break  # what comes last matters least, and what is there must be timed
            task = self._job.tasks[index]
            self._send(Started((index,), None, compiles=True))
            try:
                subject = self._rig.build(task)
            except Exception as error:
                self._send(Failed(index, *self._rig.failure_of(error)))
                continue
            samples = list(self._job.samples_s[index])
            candidate = Candidate(subject.call, *_work(task), samples, samples[-1] if samples else None)
            candidate.repeats, candidate.stopwatch = subject.repeats, subject.stopwatch
            self._tasks.append(index)
            self._candidates.append(candidate)

    def _introduce(self) -> None:
        """Tell candidates whom they compete with; who isn't there doesn't compete."""
        places = {task: place for place, task in enumerate(self._tasks)}
        for task, candidate in zip(self._tasks, self._candidates, strict=True):
            candidate.rivals = [places[rival] for rival in self._rivals[task] if rival in places]
            candidate.gates = [places[gate] for gate in self._gates[task] if gate in places]

    def _sample(self) -> None:
        """Sample what was built."""
        job = self._job
        if self._sampler is None:
            tasks = [job.tasks[index] for index in self._tasks]
            control = _choose_control(tasks, self._candidates, self._reporter)
            if control is None:
                return
            # Both clocks are CLOCK_MONOTONIC on Linux; elsewhere they may differ by a constant.
            deadline = job.deadline - time.monotonic() + time.perf_counter()
            self._sampler = Sampler(self._candidates, control, deadline, self._reporter, seed=job.seed)
        # Garbage collection would stop the threads in the middle of a sample.
        gc.collect()
        gc.disable()
        try:
            self._sampler.run()
        except Exception as error:
            self._rig.failure_of(error)  # a lost device says so itself
            raise
        finally:
            gc.enable()


def _choose_control(tasks: Sequence[Task], candidates: Sequence[Candidate], reporter: Reporter) -> int | None:
    """The yardstick: the largest product at m = 1 on one thread, which jitters least; else whatever runs.

    None if nothing does.
    """

    def suits(index: int) -> tuple[bool, int]:
        task, point = tasks[index], tasks[index].point
        single = point.op == "matmul" and point.m == 1 and point.threads == 1 and task.rows is None
        return single, point.n_out * point.k_in if single else 0

    for index in sorted(range(len(candidates)), key=suits, reverse=True):
        reporter.started(index, None)
        try:
            candidates[index].call()
        except Exception as error:
            candidates[index].failed = candidates[index].done = True
            reporter.failed(index, error)
        else:
            return index
    return None


def _work(task: Task) -> tuple[float, tuple[object, ...]]:
    """Amount of work of a task and what it shares with those that differ in nothing else."""
    point = task.point
    tokens = max(point.m, 1)
    kind = (point.op, point.kernel, point.format, point.n_out, point.k_in, point.threads, point.launch)
    work = point.sequences * tokens
    return work * (point.context + tokens) if point.op == "attention" else work, kind


if __name__ == "__main__":
    main()
