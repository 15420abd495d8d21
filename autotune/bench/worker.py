"""The child process that does the timing: a crash, a hang or an out-of-memory kill in it is just a value to its parent.

Started as ``python -m autotune.bench.worker``; reads a ``Job`` from standard input, writes ``Event`` lines to standard
output, and exits at once when standard input closes, so that it never outlives its parent.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import psutil

from autotune.bench.messages import (
    Block,
    Event,
    Failed,
    Finished,
    Job,
    Ready,
    Started,
    TaskSummary,
    encoder,
    job_decoder,
)
from autotune.bench.plan import Task
from autotune.bench.sampler import Candidate, Sampler, stopping
from autotune.bench.subjects import Arena, Subjects, disagreement
from ternary_kernels.team import Team


class _Reporter:
    """Writes events; the sampler's observer."""

    def __init__(self, index_of: Sequence[int]) -> None:
        self._index_of = index_of

    def started(self, index: int, expected_s: float | None) -> None:
        _send(Started(self._index_of[index], expected_s))

    def failed(self, index: int, error: Exception) -> None:
        _send(_failed(self._index_of[index], error))

    def committed(self, samples: Sequence[tuple[int, float]]) -> None:
        _send(Block(tuple((self._index_of[index], sample) for index, sample in samples)))


def main() -> None:
    """Run one job."""
    job = job_decoder.decode(sys.stdin.buffer.readline())
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    for module in job.kernel_modules:
        importlib.import_module(module)
    _send(Ready(psutil.Process().memory_info().rss))
    with ExitStack() as stack:
        counts = sorted({task.point.threads for task in job.tasks})
        teams = {count: stack.enter_context(Team(count, job.cpus)) for count in counts}
        wrong = _check_numerics(job, teams)
        subjects = Subjects(job.model, Arena(job.cold_bytes), teams)
        # Garbage collection would stop the threads in the middle of a sample.
        gc.collect()
        gc.disable()
        _sample(job, subjects, wrong)


def _sample(job: Job, subjects: Subjects, wrong: set[int]) -> None:
    index_of: list[int] = []
    candidates: list[Candidate] = []
    for index, task in enumerate(job.tasks):
        if index in job.skip or index in wrong:
            continue
        try:
            call = subjects.build(task)
        except (ValueError, MemoryError) as error:
            _send(_failed(index, error))
            continue
        candidate = Candidate(call, *_work(task), samples_s=list(job.samples_s[index]))
        candidate.stop = stopping(candidate.samples_s)
        index_of.append(index)
        candidates.append(candidate)
    control = _control(job, index_of, candidates)
    if control is None:
        _send(Finished((), 0.0))
        return
    # Both clocks are CLOCK_MONOTONIC on Linux; elsewhere they may differ by a constant.
    deadline = job.deadline - time.monotonic() + time.perf_counter()
    sampler = Sampler(candidates, control, deadline, _Reporter(index_of), seed=job.seed)
    sampler.run()
    summaries = tuple(
        TaskSummary(index, candidate.stop or "budget", candidate.calls, candidate.disturbed)
        for index, candidate in zip(index_of, candidates, strict=True)
    )
    _send(Finished(summaries, sampler.control_drift))


def _control(job: Job, index_of: Sequence[int], candidates: Sequence[Candidate]) -> Callable[[], object] | None:
    """The yardstick: the largest product at m = 1 on one thread, which jitters least; else whatever there is.

    None if there is nothing to time.
    """

    def suits(index: int) -> tuple[bool, int]:
        task = job.tasks[index_of[index]]
        point = task.point
        single = point.op == "matmul" and point.m == 1 and point.threads == 1 and task.rows is None
        return single, point.n_out * point.k_in if single else 0

    return candidates[max(range(len(candidates)), key=suits)].call if candidates else None


def _work(task: Task) -> tuple[float, tuple[object, ...]]:
    """Amount of work of a task and what it shares with those that differ in nothing else."""
    point = task.point
    kind = (point.op, point.format, point.n_out, point.k_in, point.threads)
    return max(point.m, 1) * (1.0 + point.context), kind


def _check_numerics(job: Job, teams: dict[int, Team]) -> set[int]:
    """Numerics first: report products whose kernel disagrees with the oracle, which are then not timed."""
    verdicts: dict[tuple[object, ...], str | None] = {}
    wrong = set()
    for index, task in enumerate(job.tasks):
        point = task.point
        if point.op != "matmul" or index in job.skip:
            continue
        key = (point.kernel, point.format, point.k_in, min(point.m, 33), point.threads)
        if key not in verdicts:
            _send(Started(index, None))
            try:
                verdicts[key] = disagreement(task, teams[point.threads])
            except ValueError as error:
                verdicts[key] = str(error)
        message = verdicts[key]
        if message is not None:
            wrong.add(index)
            _send(Failed(index, "wrong_result", message))
    return wrong


def _failed(index: int, error: Exception) -> Failed:
    if isinstance(error, MemoryError):
        return Failed(index, "out_of_memory", f"not enough memory: {error}")
    return Failed(index, "unsupported" if isinstance(error, ValueError) else "crashed", f"{type(error).__name__}: {error}")


def _send(event: Event) -> None:
    sys.stdout.buffer.write(encoder.encode(event) + b"\n")
    sys.stdout.buffer.flush()


def _exit_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
