"""Runs a benchmark: starts the worker, listens, survives its death, keeps to the budget, and returns values."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, cast

from autotune.bench import disturbance
from autotune.bench.messages import (
    Block,
    Event,
    Failed,
    Finished,
    Job,
    Ready,
    Started,
    encoder,
    event_decoder,
)
from autotune.bench.plan import Task
from autotune.bench.sampler import Stop, TARGET_INTERVAL
from autotune.errors import BenchmarkError
from autotune.host.cgroup import throttled_s
from autotune.host.topology import pin_order
from autotune.model.memory import model_bytes
from autotune.records import Campaign, Failure, Host, Measurement, Model, Noise, Outcome, median
from autotune.records.measurement import FailureKind
from ternary_kernels.formats import get_format

KERNEL_MODULES = ("ternary_kernels.numpy_cpu",)

_MAX_WORKERS = 4
_MIN_COLD_BYTES = 64 << 20
_MAX_COLD_BYTES = 1 << 30
_UNKNOWN_CACHE_BYTES = 128 << 20
_FIRST_CALL_TIMEOUT_S = 10.0
_GRACE = 0.05

Progress = Callable[[float, int, int], None]
"""Called with the share of the budget spent (0 to 1), points with at least one sample, and all points."""


def run(
    model: Model | None,
    host: Host,
    tasks: Sequence[Task],
    *,
    budget_s: float,
    progress: Progress | None = None,
    kernel_modules: Sequence[str] = KERNEL_MODULES,
    seed: int = 0,
) -> Campaign:
    """Time tasks in a child process within a budget.

    A worker that dies or hangs turns the task it was at into a ``Failure``; another one goes on with the rest.

    Args:
        model: The model whose shapes the tasks have; None for the host's ceilings alone.
        host: This host: gives CPUs to pin to, cache sizes and memory.
        tasks: What to time, most important first.
        budget_s: Wall time for all of it, the worker's start included; kept within 10 %.
        progress: Told now and then how far it is.
        kernel_modules: Modules whose kernels the worker can run.
        seed: Of the order of sampling.

    Returns:
        An outcome per task, in the tasks' order.

    Raises:
        BenchmarkError: A worker could not even be started.
    """
    started = time.monotonic()
    state = _State(tasks)
    cold_bytes = cold_memory_bytes(model, host, tasks)
    stolen, throttled = disturbance.cpu_times(), throttled_s()
    for _ in range(_MAX_WORKERS):
        if state.finished or not state.open():
            break
        deadline = started + budget_s
        if time.monotonic() >= deadline:
            break
        job = Job(
            model=model,
            tasks=tuple(tasks),
            samples_s=tuple(tuple(samples) for samples in state.samples_s),
            skip=tuple(state.failures),
            cpus=pin_order(host.cpu.cores, host.limits.usable_threads) or None,
            cold_bytes=cold_bytes,
            # Ending the worker takes a moment as well.
            deadline=deadline - 0.02 * budget_s,
            kernel_modules=tuple(kernel_modules),
            seed=seed,
        )
        _Worker(job, state, started, budget_s, progress).run()
    now_throttled = throttled_s()
    outcomes = state.outcomes()
    noise = _noise(
        outcomes,
        state,
        disturbance.steal_fraction(stolen, disturbance.cpu_times()),
        now_throttled - throttled if now_throttled is not None and throttled is not None else None,
    )
    return Campaign(
        outcomes=outcomes,
        noise=noise,
        budget_s=budget_s,
        spent_s=time.monotonic() - started,
        cold_bytes=cold_bytes,
        runtime_overhead_bytes=state.overhead_bytes,
    )


def cold_memory_bytes(model: Model | None, host: Host, tasks: Sequence[Task]) -> int:
    """How much memory weights rotate through: twice the last-level cache, or the model if that is smaller.

    Bounded by 1 GiB and a quarter of the usable memory, and large enough for any one window.

    Raises:
        BenchmarkError: Not even one window fits the usable memory.
    """
    shared = [cache.size_bytes for cache in host.cpu.caches]
    wanted = 2 * max(shared) if shared else _UNKNOWN_CACHE_BYTES
    if model is not None:
        wanted = min(wanted, model_bytes(model))
    wanted = max(wanted, _MIN_COLD_BYTES)
    bounded = min(wanted, _MAX_COLD_BYTES, host.memory.usable_bytes // 4)
    window = max((window_bytes(task) for task in tasks), default=0)
    if window > host.memory.usable_bytes // 2:
        raise BenchmarkError(
            f"timing needs a window of {window / 2**20:.0f} MiB and this host has "
            f"{host.memory.usable_bytes / 2**20:.0f} MiB of usable memory: expected at least twice the window"
        )
    return max(bounded, window)


def window_bytes(task: Task) -> int:
    """Cold memory that one call of a task reads."""
    point = task.point
    if point.op == "matmul":
        return get_format(point.format).size_bytes(task.rows or point.n_out, point.k_in)
    if point.op == "attention":
        return 2 * 2 * point.k_in * (point.context + point.m)
    return point.k_in if point.op == "read" else 0


class _State:
    """What is known of every task, across workers."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tasks
        self.samples_s: list[list[float]] = [[] for _ in tasks]
        self.failures: dict[int, Failure] = {}
        self.stops: dict[int, Stop] = {}
        self.calls: dict[int, int] = {}
        self.disturbed: dict[int, int] = {}
        self.control_drift = 0.0
        self.overhead_bytes = 0
        self.finished = False

    def open(self) -> bool:
        return len(self.failures) < len(self.tasks)

    def timed(self) -> int:
        return sum(1 for samples in self.samples_s if samples)

    def fail(self, index: int, kind: FailureKind, message: str) -> None:
        self.failures[index] = Failure(self.tasks[index].point, kind, message)

    def take(self, event: Event) -> None:
        match event:
            case Ready(overhead_bytes=overhead):
                self.overhead_bytes = self.overhead_bytes or overhead
            case Block(samples=samples):
                for index, sample in samples:
                    self.samples_s[index].append(sample)
            case Failed(index=index, kind=kind, message=message):
                self.fail(index, kind, message)
            case Finished(tasks=summaries, control_drift=drift):
                self.finished = True
                self.control_drift = max(self.control_drift, drift)
                for summary in summaries:
                    self.stops[summary.index] = cast(Stop, summary.stop)
                    self.calls[summary.index] = summary.calls
                    self.disturbed[summary.index] = summary.disturbed
            case Started():
                pass

    def outcomes(self) -> tuple[Outcome, ...]:
        return tuple(self._outcome(index, task) for index, task in enumerate(self.tasks))

    def _outcome(self, index: int, task: Task) -> Outcome:
        if index in self.failures:
            return self.failures[index]
        if not self.samples_s[index]:
            return Failure(task.point, "budget", "the time budget ended before it was timed")
        scale = task.point.n_out / task.rows if task.rows else 1.0
        return Measurement(
            point=task.point,
            samples_s=tuple(sample * scale for sample in self.samples_s[index]),
            calls_per_sample=max(self.calls.get(index, 1), 1),
            stopped=self.stops.get(index, "budget"),
            rows_timed=task.rows,
            disturbed=self.disturbed.get(index, 0),
        )


class _Worker:
    """One child process, from its start to its end."""

    def __init__(
        self, job: Job, state: _State, started: float, budget_s: float, progress: Progress | None
    ) -> None:
        self._job = job
        self._state = state
        self._started = started
        self._budget_s = budget_s
        self._progress = progress
        self._current: int | None = None
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()

    def run(self) -> None:
        with tempfile.TemporaryFile() as errors:
            process = self._start(errors)
            try:
                self._listen(process)
            finally:
                # Also on Ctrl-C: nothing of the worker may stay behind.
                killed = process.poll() is None and not self._state.finished
                if killed:
                    process.kill()
                process.stdin.close()  # type: ignore[union-attr]
                process.wait()
            if not self._state.finished and not killed:
                self._blame(process.returncode, errors)

    def _start(self, errors: IO[bytes]) -> subprocess.Popen[bytes]:
        paths = [path or str(Path.cwd()) for path in sys.path]
        single = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "autotune.bench.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **single, "PYTHONPATH": os.pathsep.join(paths)},
                start_new_session=True,  # Ctrl-C reaches the parent alone, which then ends the worker
            )
        except OSError as error:
            raise BenchmarkError(f"could not start the benchmark's worker process {sys.executable}: {error}") from error
        assert process.stdin is not None
        try:
            process.stdin.write(encoder.encode(self._job) + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it died at once; its exit status and last words are looked at below
        threading.Thread(target=self._read, args=(process.stdout,), daemon=True).start()
        return process

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                self._events.put(event_decoder.decode(line))
        self._events.put(None)

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        end = self._started + self._budget_s * (1 + _GRACE)
        quiet_until = time.monotonic() + _FIRST_CALL_TIMEOUT_S
        while True:
            now = time.monotonic()
            if self._progress:
                share = min((now - self._started) / self._budget_s, 1.0)
                self._progress(share, self._state.timed(), len(self._state.tasks))
            try:
                event = self._events.get(timeout=max(min(0.1, end - now), 0.0))
            except queue.Empty:
                if now >= end or now >= quiet_until:
                    self._end_hung(process, timed_out=now >= quiet_until)
                    return
                continue
            if event is None:
                process.wait()
                return
            self._state.take(event)
            if isinstance(event, Started):
                self._current = event.index
                allowed = _FIRST_CALL_TIMEOUT_S if event.expected_s is None else 1.0 + 20 * event.expected_s
                quiet_until = now + allowed

    def _end_hung(self, process: subprocess.Popen[bytes], *, timed_out: bool) -> None:
        process.kill()
        if self._current is not None and (timed_out or not self._state.samples_s[self._current]):
            self._state.fail(self._current, "hung", "no sample came back in time; the worker was ended")

    def _blame(self, returncode: int, errors: IO[bytes]) -> None:
        """The worker died by itself: the task it was at takes the blame."""
        errors.seek(0)
        words = errors.read().decode(errors="replace").strip().splitlines()
        last = words[-1] if words else "it said nothing"
        if self._current is None:
            raise BenchmarkError(f"the benchmark's worker ended before it timed anything (status {returncode}): {last}")
        if returncode == -signal.SIGKILL:
            self._state.fail(self._current, "out_of_memory", "the worker was killed (SIGKILL), as the kernel does when memory runs out")
        elif returncode < 0:
            self._state.fail(self._current, "crashed", f"the worker died of {signal.Signals(-returncode).name}")
        else:
            self._state.fail(self._current, "crashed", f"the worker exited with status {returncode}: {last}")


def _noise(outcomes: Sequence[Outcome], state: _State, steal: float | None, throttled: float | None) -> Noise:
    measured = [outcome for outcome in outcomes if isinstance(outcome, Measurement)]
    intervals = [width for outcome in measured if (width := outcome.relative_interval) is not None]
    return Noise(
        median_relative_interval=median(intervals) if intervals else None,
        converged=sum(1 for width in intervals if width <= TARGET_INTERVAL),
        points=len(measured),
        disturbed_samples=sum(outcome.disturbed for outcome in measured),
        control_drift=state.control_drift,
        steal_fraction=steal,
        throttled_s=throttled,
    )
