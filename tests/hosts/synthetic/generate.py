"""Writes the recordings of all synthetic hosts: ``python -m tests.hosts.synthetic.generate [FOLDER]``.

A recording holds the points that a benchmark would time for each model, each with the time that the host's law gives
it: on the CPU the points of a quick one, to keep the files small, on GPUs, whose arithmetic sets in at some m, all.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from autotune.bench.gpu_plan import plan_gpus
from autotune.bench.plan import Task, plan
from autotune.bench.rivals import FEW_SAMPLES, choose_kernels, gates, is_beaten, rivals
from autotune.model.analyse import analyse
from autotune.model.memory import model_bytes
from autotune.options import QUICK_BUDGET_S
from autotune.records import Campaign, GpuClocks, GpuRun, Host, Kernel, Measurement, Model, Noise, median
from autotune.search.workload import make_workload
from autotune.store import recording
from autotune.store.recording import Recording
from ternary_kernels.native.isa import runnable
from tests.hosts.synthetic.hosts import MIB
from tests.hosts.synthetic.law import CpuLaw, GpuLaw, samples_s
from tests.hosts.synthetic.machines import CONTEXT_BYTES, CPU_OVERHEAD_BYTES, GPU_HOST_BYTES, MACHINES, Machine

FOLDER = Path(__file__).parent
RECORDED_AT = "2026-01-01T00:00:00+00:00"


def record(machine: Machine) -> Recording:
    """What `autotune host --record` would write on a machine, if it were there."""
    return Recording(
        recorded_at=RECORDED_AT,
        synthetic=True,
        note=f"SYNTHETIC, no such host was measured. {machine.note} Laws: tests/hosts/synthetic/law.py.",
        host=machine.host,
        campaigns=tuple(
            campaign(machine, analyse(model, machine=machine.host.cpu.architecture)) for model in machine.models
        ),
    )


def campaign(machine: Machine, model: Model) -> Campaign:
    """All points of a model on a machine, at the times of its laws."""
    host, found = machine.host, kernels_of(machine, model)
    formats = tuple(dict.fromkeys(site.format for layer in set(model.layers) for site in (*layer.sites, model.head)))
    kernels = choose_kernels(found, sorted(formats), None)
    # Of the largest batches, as `pipeline.record` does, so that a replay can answer for the other workloads as well.
    workload = make_workload("offline", model, gpu=bool(host.gpus.usable))
    outcomes = _measured(plan([model], host, workload, kernels, quick=True), {"cpu": machine.cpu})
    of_cpu = tuple(outcomes)
    runs = []
    for gpu in plan_gpus([model], host, workload, kernels):
        failure = gpu.failure or machine.gpu_failure
        timed = [] if failure else _measured(gpu.tasks, machine.gpus)
        outcomes += timed
        runs.append(_run(host, gpu.devices, failure, timed))
    return Campaign(
        outcomes=tuple(outcomes),
        noise=_noise(of_cpu),
        budget_s=QUICK_BUDGET_S,
        spent_s=QUICK_BUDGET_S,
        cold_bytes=min(model_bytes(model), 1 << 30),
        runtime_overhead_bytes=CPU_OVERHEAD_BYTES,
        kernels=found,
        quick=True,
        gpus=tuple(runs),
    )


def kernels_of(machine: Machine, model: Model) -> tuple[Kernel, ...]:
    """The kernels that would be rivals there; it depends on nothing that is installed here."""
    cpu = machine.host.cpu
    path = runnable(cpu.architecture, cpu.isa)[0].name
    names = dict.fromkeys(site.format for layer in dict.fromkeys(model.layers) for site in (*layer.sites, model.head))
    found = [Kernel("native", name, path, None) for name in names]
    found += [Kernel("numpy", name, None, None) for name in names]
    gpus = tuple(machine.host.gpus.usable.values())
    if gpus and gpus[0].compute_capability:
        major, minor = gpus[0].compute_capability
        reason = None if major >= 8 else f"triton needs a GPU of compute capability 8.0, this one's is {major}.{minor}"
        able = None if reason else f"sm_{major}{minor}"
        found += [Kernel("triton", name, able, reason, "gpu") for name in names]
        found += [Kernel("torch", name, f"sm_{major}{minor}", None, "gpu") for name in names]
    return tuple(found)


def _measured(tasks: Iterable[Task], laws: Mapping[str, CpuLaw | GpuLaw]) -> list[Measurement]:
    """Each task once, with few samples where a rival is clearly faster, and without those that a gate spares."""
    unique = tuple(dict.fromkeys(tasks))
    points = [task.point for task in unique]
    samples = [samples_s(point, laws[point.device].time_s(point)) for point in points]
    beaten = [
        is_beaten(own, [samples[other] for other in others])
        for own, others in zip(samples, rivals(points), strict=True)
    ]
    return [
        Measurement(
            task.point,
            samples[index][: FEW_SAMPLES if beaten[index] else None],
            calls_per_sample=1,
            stopped="beaten" if beaten[index] else "converged",
            rows_timed=task.rows,
        )
        for index, (task, spares) in enumerate(zip(unique, gates(points), strict=True))
        if not spares or not all(beaten[gate] for gate in spares)
    ]


def _run(host: Host, devices: Sequence[str], failure: str | None, timed: Sequence[Measurement]) -> GpuRun:
    if failure:
        return GpuRun(tuple(devices), failure)
    gpu = host.gpus.usable[devices[0]]
    return GpuRun(
        devices=tuple(devices),
        failure=None,
        noise=_noise(timed),
        spent_s=QUICK_BUDGET_S / 3,
        cold_bytes=256 * MIB,
        context_bytes=CONTEXT_BYTES,
        host_bytes=GPU_HOST_BYTES,
        free_bytes=gpu.memory_free_bytes,
        l2_bytes=32 * MIB,
        multiprocessors=24,
        clocks=GpuClocks(None, None, None, (), 0.0),
        libraries={"torch": "2.13.0", "triton": "3.9.0", "cuda": "13.0"},
    )


def _noise(measured: Sequence[Measurement]) -> Noise:
    widths = [width for outcome in measured if (width := outcome.relative_interval) is not None]
    return Noise(
        median_relative_interval=float(f"{median(widths):.4g}"),
        converged=len(widths),
        points=len(widths),
        disturbed_samples=0,
        control_drift=0.01,
        steal_fraction=0.0,
        throttled_s=None,
    )


def main(folder: Path = FOLDER) -> None:
    """Write a file per host."""
    for machine in MACHINES:
        path = folder / f"{machine.host.label}.json"
        recording.write(path, record(machine))
        print(path, path.stat().st_size)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
