"""Runs a benchmark: one worker after another until all is timed or the budget is spent, and returns values."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from autotune.bench import disturbance
from autotune.bench.ledger import Ledger
from autotune.bench.messages import Job
from autotune.bench.plan import Task
from autotune.bench.sampler import TARGET_INTERVAL
from autotune.bench.supervisor import Supervisor
from autotune.errors import BenchmarkError
from autotune.host.cgroup import throttled_s
from autotune.host.topology import pin_order
from autotune.model.memory import model_bytes
from autotune.records import Campaign, Cpu, Host, Measurement, Model, Noise, Outcome, median
from ternary_kernels.formats import get_format

_MIN_COLD_BYTES = 64 << 20
_MAX_COLD_BYTES = 1 << 30
_UNKNOWN_CACHE_BYTES = 128 << 20

_WORKER_SHARE = 0.98
"""When the worker is to be done, as a share of the budget."""

_KILL_SHARE = 1.05
"""When it is ended if it isn't."""

_MAX_PATIENCE_S = 10.0
_PATIENCE_SHARE = 1 / 3
"""Share of the budget after which a call of unknown length counts as hung, so that others still get their turn."""

Progress = Callable[[float, int, int], None]
"""Called with the share of the budget spent (0 to 1), points with at least one sample, and all points."""


def run(
    model: Model | None,
    host: Host,
    tasks: Sequence[Task],
    *,
    budget_s: float,
    progress: Progress | None = None,
    kernel_modules: Sequence[str] = (),
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
        kernel_modules: Modules with further kernels, for the worker to import.
        seed: Of the order of sampling.

    Returns:
        An outcome per task, in the tasks' order, but of those that their kernel's other points spared.

    Raises:
        BenchmarkError: A worker could not be started or died before it came to the first task, or the memory
            doesn't allow timing.
    """
    started = time.monotonic()
    ledger = Ledger(tasks)
    cold_bytes = cold_memory_bytes(model, host, tasks)
    window = max(map(window_bytes, tasks), default=0)

    def tick() -> None:
        if progress:
            progress(min((time.monotonic() - started) / budget_s, 1.0), ledger.timed, len(tasks))

    stolen, throttled = disturbance.cpu_times(), throttled_s()
    deadline = started + _WORKER_SHARE * budget_s
    while ledger.open and time.monotonic() < deadline:
        job = Job(
            model=model,
            tasks=tuple(tasks),
            samples_s=ledger.samples_s(),
            skip=tuple(ledger.failures),
            cpus=pin_order(host.cpu.cores, host.limits.usable_threads),
            cold_bytes=cold_bytes,
            least_cold_bytes=min(cold_bytes, window + _MIN_COLD_BYTES),
            deadline=deadline,
            end=started + _KILL_SHARE * budget_s,
            kernel_modules=tuple(kernel_modules),
            seed=seed,
        )
        patience_s = min(_MAX_PATIENCE_S, _PATIENCE_SHARE * budget_s)
        Supervisor(job, ledger, patience_s, tick).run()
    tick()
    now_throttled = throttled_s()
    outcomes = ledger.outcomes()
    noise = _noise(
        outcomes,
        ledger.control_drift,
        disturbance.steal_fraction(stolen, disturbance.cpu_times()),
        now_throttled - throttled if now_throttled is not None and throttled is not None else None,
    )
    return Campaign(
        outcomes=outcomes,
        noise=noise,
        budget_s=budget_s,
        spent_s=time.monotonic() - started,
        cold_bytes=ledger.cold_bytes,
        runtime_overhead_bytes=ledger.overhead_bytes,
    )


def cold_memory_bytes(model: Model | None, host: Host, tasks: Sequence[Task]) -> int:
    """How much memory weights should rotate through: twice the last-level cache, or the model if that is smaller.

    Bounded by 1 GiB and a quarter of the usable memory. One window is added, because what is left at the end of the
    memory may be too small for the next one.

    Raises:
        BenchmarkError: The largest window takes more than half of the usable memory.
    """
    wanted = 2 * _last_level_bytes(host.cpu) if host.cpu.caches else _UNKNOWN_CACHE_BYTES
    if model is not None:
        wanted = min(wanted, model_bytes(model))
    usable = host.memory.usable_bytes
    window = max(map(window_bytes, tasks), default=0)
    if window > usable // 2:
        raise BenchmarkError(
            f"timing needs a window of {window / 2**20:.0f} MiB and this host has {usable / 2**20:.0f} MiB "
            "of usable memory: expected at least twice the window"
        )
    return min(max(wanted, _MIN_COLD_BYTES), _MAX_COLD_BYTES, usable // 4) + window


def _last_level_bytes(cpu: Cpu) -> int:
    """Size of all last-level caches together: where there are several, each keeps the share of its own threads."""
    cache = cpu.caches[-1]
    cpus = sum(len(core.cpus) for core in cpu.cores)
    return cache.size_bytes * math.ceil(cpus / (cache.shared_by_cpus or cpus))


def window_bytes(task: Task) -> int:
    """Cold memory that one call of a task reads."""
    point = task.point
    match point.op:
        case "matmul":
            return get_format(point.format).size_bytes(task.rows or point.n_out, point.k_in)
        case "attention":
            return 2 * 2 * point.k_in * (point.context + point.m)
        case "read":
            return point.k_in
        case "layer_ops" | "peak":
            return 0


def _noise(outcomes: Sequence[Outcome], control_drift: float, steal: float | None, throttled: float | None) -> Noise:
    # A beaten kernel's few samples say nothing about noise.
    measured = [outcome for outcome in outcomes if isinstance(outcome, Measurement) and outcome.stopped != "beaten"]
    intervals = [width for outcome in measured if (width := outcome.relative_interval) is not None]
    return Noise(
        median_relative_interval=median(intervals) if intervals else None,
        converged=sum(1 for width in intervals if width <= TARGET_INTERVAL),
        points=len(measured),
        disturbed_samples=sum(outcome.disturbed for outcome in measured),
        control_drift=control_drift,
        steal_fraction=steal,
        throttled_s=throttled,
    )
