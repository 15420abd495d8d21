"""A team of threads that lives as long as the benchmark.

Starting threads for every product would cost more than many a product does.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from ternary_kernels.memory import aligned

if TYPE_CHECKING:
    from ternary_kernels.native.crew import Crew

Task = Callable[[int], None]
Order = Task | Literal["serve"] | None
"""To a member: call this; wait in compiled code; end."""

_HUGE_BYTES = 4 << 20
"""From this size on numpy asks for huge pages: on small ones prompts in chunks of 128 were a sixth slower."""


class Team:
    """Runs a task on N threads at once, each pinned to its own logical CPU, and lends them scratch memory.

    The calling thread is member 0. While the team lives, BLAS is held to one thread per caller: the team
    splits the work itself, and nested threads would compete for the same cores. A team lives within a ``with``
    block; leaving it ends the threads and puts back the caller's affinity and the BLAS limit.

    Args:
        threads: Number of members, the calling thread included.
        cpus: Logical CPUs to pin members to, member i to ``cpus[i]``; None leaves placement to the system.

    Raises:
        ValueError: Fewer than 1 thread, or fewer CPUs than threads; on entering, a CPU that can't be used.
    """

    def __init__(self, threads: int, cpus: Sequence[int] | None = None) -> None:
        if threads < 1:
            raise ValueError(f"team: expected at least 1 thread, got {threads}")
        if cpus is not None and len(cpus) < threads:
            raise ValueError(f"team: expected a CPU for each of {threads} threads, got {len(cpus)}")
        self.threads = threads
        self._cpus = cpus
        self._tasks: list[SimpleQueue[Order]] = []
        self._done: SimpleQueue[BaseException | None] = SimpleQueue()
        self._members: list[Thread] = []
        self._scratch: dict[int | None, NDArray[np.float32]] = {}
        self._crew: Crew | None = None

    def scratch(self, member: int | None, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Uninitialised float32 memory of that shape, valid until the same member asks again.

        All products of a team share it: they run one after the other. ``None`` names memory that the members
        of one product share; it must be asked for before ``run``. It starts at a cache line.
        """
        size = math.prod(shape)
        held = self._scratch.get(member)
        if held is None or held.size < size:
            held = self._scratch[member] = aligned(max(4 * size, _HUGE_BYTES)).view(np.float32)
        return held[:size].reshape(shape)

    def __enter__(self) -> Self:
        self._blas = threadpool_limits(1, user_api="blas")
        self._caller_cpus = _affinity()
        for index in range(1, self.threads):
            tasks: SimpleQueue[Order] = SimpleQueue()
            member = Thread(target=self._serve, args=(index, tasks), name=f"team-{index}", daemon=True)
            member.start()
            self._tasks.append(tasks)
            self._members.append(member)
        try:
            self.run(self._pin)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._crew is not None:
            self._crew.release()
        for tasks in self._tasks:
            tasks.put(None)
        for member in self._members:
            member.join()
        self._tasks.clear()
        self._members.clear()
        self._scratch.clear()
        if self._cpus is not None and self._caller_cpus is not None:
            os.sched_setaffinity(0, self._caller_cpus)
        self._blas.restore_original_limits()

    def run(self, task: Task) -> None:
        """Call ``task(i)`` for every member i at once and return when all have returned.

        Raises:
            RuntimeError: The team has not been entered, or was left.
            BaseException: An error that a member's task raised, after all have returned: the caller's if it has
                one, else the first.
        """
        self._check_entered()
        if self._crew is not None:
            self._crew.release()
        for tasks in self._tasks:
            tasks.put(task)
        errors: list[BaseException] = []
        try:
            task(0)
        except BaseException as error:
            errors.append(error)
        for _ in self._tasks:
            outcome = self._done.get()
            if outcome is not None:
                errors.append(outcome)
        if errors:
            raise errors[0]

    def _check_entered(self) -> None:
        # Without its threads the team would do the caller's part of the work and return as if all were done.
        if len(self._members) != self.threads - 1:
            raise RuntimeError(
                f"team: expected a call within its with block, got {len(self._members) + 1} of {self.threads} members"
            )

    def run_compiled(self, kernel: int, arguments: int) -> None:
        """Call a compiled kernel ``void (i64 *arguments, i64 member, i64 members)`` on all members at once.

        Between such calls that follow each other the members stay in compiled code, so a call costs no more than a
        microsecond or two.

        Args:
            kernel: Its address.
            arguments: Address of its arguments, which must stay valid until it returns.

        Raises:
            RuntimeError: The team has not been entered, or was left.
        """
        self._check_entered()
        if self._crew is None:
            # Needs llvmlite, which a team of numpy's kernels does without.
            from ternary_kernels.native.crew import Crew

            self._crew = Crew(self.threads, self._wake)
        self._crew.run(kernel, arguments)

    def _wake(self, index: int) -> None:
        self._tasks[index - 1].put("serve")

    def _serve(self, index: int, tasks: SimpleQueue[Order]) -> None:
        while (task := tasks.get()) is not None:
            if task == "serve":
                assert self._crew is not None
                self._crew.serve(index)
                continue
            try:
                task(index)
            except BaseException as error:
                self._done.put(error)
            else:
                self._done.put(None)

    def _pin(self, index: int) -> None:
        if self._cpus is not None and _affinity() is not None:
            cpu = self._cpus[index]
            try:
                os.sched_setaffinity(0, {cpu})  # Linux: 0 is the calling thread, not the process
            except OSError as error:
                raise ValueError(f"team: expected CPUs that can be used, got CPU {cpu}") from error


def _affinity() -> set[int] | None:
    """The calling thread's CPU mask; None where the system has no such thing (macOS, Windows)."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


def share(total: int, members: int, index: int, multiple: int = 1) -> tuple[int, int]:
    """Rows ``[first, last)`` of ``total`` for member ``index`` of ``members``, cut at multiples of ``multiple``.

    The members' shares follow each other, cover all rows and differ by at most one ``multiple``; with fewer rows
    than members some are empty.
    """
    units = -(-total // multiple)
    first, last = units * index // members, units * (index + 1) // members
    return min(first * multiple, total), min(last * multiple, total)
