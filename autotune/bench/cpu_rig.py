"""The CPU, set up for timing: a team of threads per thread count, cold memory, and the calls over both."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Self

from autotune.bench import numerics
from autotune.bench.messages import Job, Prepared
from autotune.bench.plan import Task
from autotune.bench.rig import Send, Subject
from autotune.bench.subjects import Subjects
from autotune.records.measurement import FailureKind
from ternary_kernels.arena import Arena
from ternary_kernels.backends import get_backend
from ternary_kernels.matmul import get_kernel
from ternary_kernels.team import Team

_PREPARATION_SHARE = 0.15
"""Share of the time that may go into filling memory, if it must."""


class CpuRig:
    """The CPU as a device to time on.

    Args:
        job: Gives CPUs, thread counts and the size of the cold memory.
        send: Takes the events.
    """

    def __init__(self, job: Job, send: Send) -> None:
        self._job = job
        self._teams: dict[int, Team] = {}
        self._stack = ExitStack()
        self._checker = numerics.Checker(self._teams, send)

    def load(self, tasks: Sequence[Task]) -> None:
        """Import what the tasks need, so that it counts as the runtime's own memory."""
        for kernel, weight_format in {
            (task.point.kernel, task.point.format) for task in tasks if task.point.op == "matmul"
        }:
            with suppress(Exception):
                get_kernel(kernel, weight_format)
        for kernel in {task.point.kernel for task in tasks if task.point.op != "matmul"}:
            with suppress(Exception):
                get_backend(kernel)

    def __enter__(self) -> Self:
        for count in sorted({task.point.threads for task in self._job.tasks}):
            self._teams[count] = self._stack.enter_context(Team(count, self._job.cpus))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def check(self, tasks: Sequence[Task], skip: Collection[int]) -> set[int]:
        """Check kernels against the oracle."""
        return self._checker.check(tasks, skip)

    def prepare(self) -> Prepared:
        """Fill as much of the cold memory as there is time for."""
        job, now = self._job, time.monotonic()
        until = now + _PREPARATION_SHARE * (job.deadline - now)
        arena = Arena(job.cold_bytes, least_bytes=job.least_cold_bytes, until=until)
        self._subjects = Subjects(job.model, arena, self._teams)
        return Prepared(arena.size_bytes)

    def build(self, task: Task) -> Subject:
        """The call that runs a task's operation once."""
        return Subject(self._subjects.build(task))

    def between_blocks(self) -> None:
        """Nothing to look at: what disturbs a CPU shows in each sample."""

    def failure_of(self, error: Exception) -> tuple[FailureKind, str]:
        """As the error says; a CPU is never lost."""
        return numerics.failure_of(error)
