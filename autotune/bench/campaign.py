"""Runs a benchmark: one worker after another until all is timed that matters or the budget is spent; returns values."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from msgspec.structs import replace

from autotune.bench import disturbance
from autotune.bench.cold_memory import MIN_COLD_BYTES, cold_memory_bytes, window_bytes
from autotune.bench.gpu_plan import GpuTasks
from autotune.bench.gpu_run import describe_run, visible_gpu
from autotune.bench.ledger import Ledger
from autotune.bench.messages import Job
from autotune.bench.plan import Task
from autotune.bench.sampler import TARGET_INTERVAL
from autotune.bench.supervisor import Supervisor
from autotune.errors import BenchmarkError
from autotune.host.cgroup import throttled_s
from autotune.host.topology import pin_order
from autotune.records import Campaign, GpuRun, Host, Measurement, Model, Noise, Outcome, median

_WORKER_SHARE = 0.98
"""When a device's worker is to be done, as a share of its time."""

_KILL_SHARE = 1.05
"""When it is ended if it isn't."""

_GPU_SHARE = 0.5
"""Of the budget, for all GPUs together; what they don't need is the CPU's."""

_MAX_PATIENCE_S = 10.0
_PATIENCE_SHARE = 1 / 3
"""Share of a device's time after which a call of unknown length counts as hung, so that others still get their turn."""

Progress = Callable[[float, int, int], None]
"""Called with the share of the budget spent (0 to 1), points with at least one sample, and all asked for so far."""

Choose = Callable[[Campaign], Mapping[int, float]]
"""Given what was measured so far, the CPU's tasks to time next by index, the most important first, and how narrow an
interval the median of each is to come to, relative. Nothing new: the benchmark is done."""


def run(
    model: Model | None,
    host: Host,
    tasks: Sequence[Task],
    *,
    budget_s: float,
    gpus: Sequence[GpuTasks] = (),
    choose: Choose | None = None,
    progress: Progress | None = None,
    kernel_modules: Sequence[str] = (),
    seed: int = 0,
    torch_device: str = "cuda:0",
) -> Campaign:
    """Time tasks in child processes within a budget: GPUs first, each kind in a process of its own, then the CPU.

    A worker that dies or hangs turns the task it was at into a ``Failure``; another one goes on with the rest. A GPU
    that fails as a whole becomes a ``GpuRun`` that says why.

    Args:
        model: The model whose shapes the tasks have; None for the host's ceilings alone.
        host: This host: gives CPUs to pin to, cache sizes and memory.
        tasks: What can be timed on the CPU, most important first.
        budget_s: Wall time for all of it, the workers' start included; kept within 10 %.
        gpus: What to time on each kind of GPU: all of it.
        choose: Says which of the CPU's tasks to time, again and again; None: all.
        progress: Told now and then how far it is.
        kernel_modules: Modules with further kernels, for the worker to import.
        seed: Of the order of sampling.
        torch_device: Where a GPU's worker finds it; tests without a GPU use ``cpu``.

    Returns:
        An outcome per task that was chosen, the CPU's first and in the tasks' order, but of those that their kernel's
        other points spared.

    Raises:
        BenchmarkError: The CPU's worker could not be started or died before it came to the first task, or the memory
            doesn't allow timing.
    """
    started, measured_at = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    cold_bytes = cold_memory_bytes(model, host, tasks)
    of_gpus = sum(len(gpu.tasks) for gpu in gpus)
    done = 0

    def tick(timed: int, of_cpu: int) -> None:
        if progress:
            progress(min((time.monotonic() - started) / budget_s, 1.0), done + timed, of_gpus + of_cpu)

    job = Job(
        model=model,
        tasks=tuple(tasks),
        samples_s=(),
        skip=(),
        cpus=pin_order(host.cpu.cores, host.limits.usable_threads),
        cold_bytes=cold_bytes,
        least_cold_bytes=min(cold_bytes, max(map(window_bytes, tasks), default=0) + MIN_COLD_BYTES),
        deadline=0.0,
        end=0.0,
        kernel_modules=tuple(kernel_modules),
        seed=seed,
        torch_device=torch_device,
    )
    gpu_outcomes: list[Outcome] = []
    gpu_runs: list[GpuRun] = []
    for index, gpu in enumerate(gpus):
        if gpu.failure is not None:
            gpu_runs.append(GpuRun(gpu.devices, gpu.failure))
            continue
        left_s = started + _GPU_SHARE * budget_s - time.monotonic()
        share_s = left_s / sum(later.failure is None for later in gpus[index:])
        its = replace(job, tasks=gpu.tasks, device=gpu.devices[0], visible_gpu=visible_gpu(gpu.gpu))
        timed = _time(its, share_s, lambda ledger: tick(ledger.timed, len(tasks) if choose is None else 0))
        gpu_outcomes += timed.ledger.outcomes()
        failure = None if timed.failure is None else str(timed.failure)
        gpu_runs.append(
            describe_run(gpu, timed.ledger, timed.noise, spent_s=timed.spent_s, share_s=share_s, failure=failure)
        )
        done += timed.ledger.timed

    def campaign(ledger: Ledger, noise: Noise) -> Campaign:
        return Campaign(
            outcomes=(*ledger.outcomes(), *gpu_outcomes),
            noise=noise,
            budget_s=budget_s,
            spent_s=time.monotonic() - started,
            cold_bytes=ledger.cold_bytes,
            runtime_overhead_bytes=ledger.overhead_bytes,
            spared=len(tasks) - ledger.asked,
            gpus=tuple(gpu_runs),
            measured_at=measured_at,
        )

    def chosen(ledger: Ledger) -> Mapping[int, float]:
        assert choose is not None
        return choose(campaign(ledger, _noise(ledger.outcomes(), ledger.control_drift, None, None)))

    share_s = started + budget_s - time.monotonic()
    timed = _time(job, share_s, lambda ledger: tick(ledger.timed, ledger.asked), chosen if choose else None)
    if timed.failure is not None:
        raise timed.failure
    tick(timed.ledger.timed, timed.ledger.asked)
    return campaign(timed.ledger, timed.noise)


class _Timed(NamedTuple):
    """What came of a device's tasks; ``failure`` says why there was no worker in the end, None: there was one."""

    ledger: Ledger
    noise: Noise
    spent_s: float
    failure: BenchmarkError | None


def _time(
    job: Job,
    share_s: float,
    tick: Callable[[Ledger], None],
    choose: Callable[[Ledger], Mapping[int, float]] | None = None,
) -> _Timed:
    """Time a job's tasks on its device within so much time: one worker after another until nothing is left to do.

    Args:
        job: All that there is to do.
        share_s: The time.
        tick: Told now and then how far it is.
        choose: Says which tasks to time, again and again; None: all.
    """
    started = time.monotonic()
    job = replace(job, deadline=started + _WORKER_SHARE * share_s, end=started + _KILL_SHARE * share_s)
    ledger = Ledger(job.tasks)
    stolen, throttled = disturbance.cpu_times(), throttled_s()
    patience_s = min(_MAX_PATIENCE_S, _PATIENCE_SHARE * share_s)
    failure: BenchmarkError | None = None

    def select() -> dict[int, float]:
        if time.monotonic() >= job.deadline:
            return {}  # what there is no time for isn't missed either
        return ledger.select(_all_of(job) if choose is None else choose(ledger))

    def is_open() -> bool:
        return ledger.open or (not ledger.finished and bool(select()))

    while failure is None and time.monotonic() < job.deadline and is_open():
        now = replace(job, samples_s=ledger.samples_s(), skip=tuple(ledger.failures))
        try:
            Supervisor(now, ledger, select, patience_s, lambda: tick(ledger)).run()
        except BenchmarkError as error:
            failure = error
    now_throttled = throttled_s()
    noise = _noise(
        ledger.outcomes(),
        ledger.control_drift,
        disturbance.steal_fraction(stolen, disturbance.cpu_times()),
        now_throttled - throttled if now_throttled is not None and throttled is not None else None,
    )
    return _Timed(ledger, noise, time.monotonic() - started, failure)


def _all_of(job: Job) -> dict[int, float]:
    return dict.fromkeys(range(len(job.tasks)), TARGET_INTERVAL)


def _noise(outcomes: Sequence[Outcome], control_drift: float, steal: float | None, throttled: float | None) -> Noise:
    # Points that were sampled no further, as it didn't matter, say nothing about noise.
    measured = [
        outcome
        for outcome in outcomes
        if isinstance(outcome, Measurement) and outcome.stopped not in ("beaten", "enough")
    ]
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
