"""The child process that does the timing: a crash, a hang or an out-of-memory kill in it is just a value to its parent.

Started as ``python -m autotune.bench.worker``; reads a ``Job`` from standard input, writes ``Event`` lines to standard
output, and exits at once when standard input closes, so that it never outlives its parent.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import os
import sys
import threading
import time
from collections.abc import Collection, Sequence
from typing import IO

import psutil
from msgspec.structs import replace

from autotune.bench.messages import (
    Block,
    Event,
    Failed,
    Finished,
    Job,
    Ready,
    Started,
    Unusable,
    encoder,
    job_decoder,
)
from autotune.bench.plan import Task
from autotune.bench.rig import DeviceLostError, DeviceUnusableError, Rig, Send
from autotune.bench.rivals import gates, rivals
from autotune.bench.sampler import Candidate, Sample, Sampler, stopping

_OVERTIME_S = 1.0
_BUILDING_SHARE = 0.6
"""Share of the time there is after the check in which calls may be built: graphs are captured, code is compiled."""


class Channel:
    """Sends events to the parent, and remembers what is at stake.

    Args:
        stream: Where they are written, a line each.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._at_stake: tuple[int, ...] = ()

    def send(self, event: Event) -> None:
        """Send an event."""
        if isinstance(event, Started):
            self._at_stake = event.at_stake
        self._stream.write(encoder.encode(event) + b"\n")
        self._stream.flush()

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
    """Run the job that standard input holds."""
    channel = Channel(_take_standard_output())
    job = job_decoder.decode(sys.stdin.buffer.readline())
    _end_with_parent(job.end)
    try:
        _work_off(job, channel.send)
    except DeviceLostError as error:
        channel.give_up(str(error))
    except DeviceUnusableError as error:
        channel.send(Unusable(str(error)))


def _work_off(job: Job, send: Send) -> None:
    rig = _rig(job, send)
    for module in job.kernel_modules:
        importlib.import_module(module)
    rig.load(job.tasks)
    send(Ready(psutil.Process().memory_info().rss))
    with rig:
        out = rig.check(job.tasks, job.skip) | set(job.skip)
        _sample(job, rig, out, send)
    send(Finished())


def _rig(job: Job, send: Send) -> Rig:
    if job.device == "cpu":
        from autotune.bench.cpu_rig import CpuRig

        return CpuRig(job, send)
    from autotune.bench.gpu_rig import GpuRig  # imports torch

    return GpuRig(job, send)


def _sample(job: Job, rig: Rig, out: Collection[int], send: Send) -> None:
    """Build the calls of all tasks that aren't out, and sample them."""
    send(Started((), None))
    send(rig.prepare())
    tasks: list[int] = []
    candidates: list[Candidate] = []
    latest = _BUILDING_SHARE * job.deadline + (1 - _BUILDING_SHARE) * time.monotonic()
    for index, task in enumerate(job.tasks):
        if index in out:
            continue
        if candidates and time.monotonic() > latest:
            break  # what comes last matters least, and what is there must be timed
        send(Started((index,), None, compiles=True))
        try:
            subject = rig.build(task)
        except Exception as error:
            send(Failed(index, *rig.failure_of(error)))
            continue
        samples = list(job.samples_s[index])
        candidate = Candidate(subject.call, *_work(task), samples, samples[-1] if samples else None)
        candidate.repeats, candidate.stopwatch = subject.repeats, subject.stopwatch
        candidate.done = stopping(samples) is not None
        tasks.append(index)
        candidates.append(candidate)
    _introduce(job.tasks, tasks, candidates)
    reporter = Reporter(rig, send, tasks)
    control = _choose_control([job.tasks[index] for index in tasks], candidates, reporter)
    if control is None:
        return
    # Both clocks are CLOCK_MONOTONIC on Linux; elsewhere they may differ by a constant.
    deadline = job.deadline - time.monotonic() + time.perf_counter()
    # Garbage collection would stop the threads in the middle of a sample.
    gc.collect()
    gc.disable()
    try:
        Sampler(candidates, control, deadline, reporter, seed=job.seed).run()
    except Exception as error:
        rig.failure_of(error)  # a lost device says so itself
        raise


def _introduce(all_tasks: Sequence[Task], tasks: Sequence[int], candidates: Sequence[Candidate]) -> None:
    """Tell candidates whom they compete with; ``tasks`` are their tasks' indices. Who isn't there doesn't compete."""
    places = {task: place for place, task in enumerate(tasks)}
    points = [task.point for task in all_tasks]
    opposed, spared_by = rivals(points), gates(points)
    for task, candidate in zip(tasks, candidates, strict=True):
        candidate.rivals = [places[rival] for rival in opposed[task] if rival in places]
        candidate.gates = [places[gate] for gate in spared_by[task] if gate in places]


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
            candidates[index].done = True
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


def _take_standard_output() -> IO[bytes]:
    """Standard output for events alone: what a kernel prints goes to standard error."""
    events = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return events


def _end_with_parent(end: float) -> None:
    """Exit when standard input closes; and if a kernel never lets go of the interpreter, a little after the end."""

    def wait() -> None:
        # Not sys.stdin: a thread that waits in there makes the interpreter abort at its end.
        while os.read(0, 1024):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
    faulthandler.dump_traceback_later(max(end - time.monotonic(), 0.0) + _OVERTIME_S, exit=True)


if __name__ == "__main__":
    main()
