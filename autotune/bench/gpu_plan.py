"""What to time on each kind of GPU, in the order in which a decision needs it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from autotune.bench.cold_memory import window_bytes
from autotune.bench.plan import (
    LARGEST_CHUNK,
    SLICE_BYTES,
    Task,
    attention_point,
    attention_sizes,
    last_the_reference,
    product_point,
    sliced,
    small_ops_point,
    token_counts,
)
from autotune.bench.rivals import GPU_REFERENCE, Kernels
from autotune.model.fusion import fused
from autotune.model.memory import ACTIVATION_BYTES, TOKEN_ID_BYTES
from autotune.model.sites import on_gpu
from autotune.records import Gpu, Host, Model, Point, Site, Workload
from autotune.records.measurement import Launch, Op
from ternary_kernels.cuda.support import INT8_CAPABILITY, PEAK_SIZE, TRITON_CAPABILITY

_READ_BYTES = 512 << 20
"""Read and written by a copy: so many that launching it doesn't count."""

_SEQUENCES = (1, 4, 16, 64, 256)
_CROSSING_TOKENS = (1, 16, 64, 512)

_MAX_WINDOW_BYTES = 2 << 30
_WINDOW_SHARE = 16
"""One part of so many of a GPU's memory is the most that one call reads: sites are sliced, longer caches left out."""


class GpuTasks(NamedTuple):
    """What to time on one kind of GPU.

    Attributes:
        devices: The identical GPUs that it counts for; the first is timed.
        gpu: The first.
        tasks: Most important first.
        failure: Why nothing can be timed there, in words for the user; None: nothing is known to speak against it.
    """

    devices: tuple[str, ...]
    gpu: Gpu
    tasks: tuple[Task, ...]
    failure: str | None


def plan_gpus(models: Sequence[Model], host: Host, workload: Workload, kernels: Kernels) -> tuple[GpuTasks, ...]:
    """Everything to time on the host's usable GPUs, identical ones once; a quick benchmark leaves nothing out.

    On a GPU most of the time goes into starting, and it is at the values of m that a quick one would leave out that
    arithmetic sets in.

    The order is that of the first round: the ceilings, every site at m = 1, what entering and leaving the GPU takes,
    attention, the small operations, the other values of m; last transfers by themselves, the reference where other
    kernels are timed, and what is launched eagerly, for comparison.

    Args:
        models: One model in one weight format or in several; a GPU may hold several alike.
        host: Gives the GPUs.
        workload: Its largest batch and its prompt bound m; its lengths are among the contexts.
        kernels: Its ``on_gpu`` are what can run.
    """
    stored = tuple(dict.fromkeys(map(on_gpu, models)))
    return tuple(
        _plan(devices, host.gpus.usable[devices[0]], stored, workload, kernels) for devices in _kinds(host.gpus.usable)
    )


def gpu_ceilings(host: Host, kernels: Kernels) -> tuple[GpuTasks, ...]:
    """What the host's usable GPUs themselves can do, identical ones once.

    Args:
        host: Gives the GPUs.
        kernels: Its ``on_gpu`` tell whether any can run.
    """
    found = []
    for devices in _kinds(host.gpus.usable):
        gpu = host.gpus.usable[devices[0]]
        reasons = [kernel.reason for kernel in kernels.on_gpu if kernel.kernel == GPU_REFERENCE]
        failure = reasons[0] if reasons and all(reasons) else None
        tasks = () if failure else tuple(_ceilings(devices[0], gpu, _window_bytes(gpu)))
        found.append(GpuTasks(devices, gpu, tasks, failure))
    return tuple(found)


def _kinds(gpus: dict[str, Gpu]) -> Iterator[tuple[str, ...]]:
    """The names of identical GPUs, the one with the most free memory first."""
    alike: dict[tuple[object, ...], list[str]] = {}
    for device, gpu in gpus.items():
        kind = gpu.name, gpu.memory_total_bytes, gpu.compute_capability, gpu.mig
        alike.setdefault(kind, []).append(device)

    def taken(device: str) -> int:
        """Sixteenths of the memory that are taken: what differs by less is the same, so that the order is stable."""
        total, free = gpus[device].memory_total_bytes, gpus[device].memory_free_bytes
        return 0 if not total or free is None else 16 * (total - free) // total

    for devices in alike.values():
        yield tuple(sorted(devices, key=taken))


def _plan(
    devices: tuple[str, ...],
    gpu: Gpu,
    models: Sequence[Model],
    workload: Workload,
    kernels: Kernels,
) -> GpuTasks:
    sites, heads = _products(models)
    able = {site.format: _able(site.format, gpu, kernels) for site in (*sites, *heads)}
    for weight_format, names in able.items():
        if not names:
            return GpuTasks(devices, gpu, (), _why_none(weight_format, kernels))
    window = _window_bytes(gpu)
    model, device = models[0], devices[0]  # all models have the same geometry
    chunk = min(workload.prompt_tokens, LARGEST_CHUNK)
    chunks = token_counts(chunk, quick=False)
    batches = token_counts(workload.max_batch, quick=False)
    tokens = token_counts(max(chunk, workload.max_batch), quick=False)

    def products(m: int, launch: Launch) -> list[Point]:
        """Every site that m tokens go through, with each of its kernels."""
        return [
            replace(product_point(site, m, 1, kernel), device=device, launch=launch)
            for site in (*(sites if m in tokens else ()), *(heads if m in batches else ()))
            for kernel in able[site.format]
        ]

    def others(point: Point) -> Task:
        return Task(replace(point, device=device, launch="graph"))

    values = tuple(dict.fromkeys((*tokens, *batches)))
    fast, slow = last_the_reference([point for m in values for point in products(m, "graph")])
    eager = [
        point
        for m in dict.fromkeys((1, max(values)))
        for point in products(m, "eager")
        if point.kernel == able[point.format][0]
    ]
    every_kernel = dict.fromkeys(name for each in able.values() for name in each)
    attention = [
        others(replace(attention_point(model, m, context, 1, name), sequences=sequences))
        for m, context in attention_sizes(model, workload, chunks)
        for sequences in (_sequences(workload.max_batch) if m == 1 else (1,))
        # With several new tokens it is torch's in any case.
        for name in (every_kernel if m == 1 else (GPU_REFERENCE,))
    ]
    small_ops = [others(small_ops_point(model, m, 1, name)) for m in tokens for name in every_kernel]
    sizes = (TOKEN_ID_BYTES, *(m * model.hidden_size * ACTIVATION_BYTES for m in _CROSSING_TOKENS))
    handovers = [Task(Point("handover", device, "pinned", 1, k_in=size)) for size in sizes]
    directions: tuple[Op, ...] = ("upload", "download")
    transfers = [
        Task(Point(op, device, memory, 1, k_in=size))
        for op in directions
        for memory in ("pinned", "pageable")
        for size in sizes
    ]
    tasks = (
        *_ceilings(device, gpu, window),
        *(sliced(point, window) for point in fast if point.m == 1),
        *handovers,
        *(task for task in attention if window_bytes(task) <= window),
        *small_ops,
        *(sliced(point, window) for point in fast if point.m > 1),
        *transfers,
        *(sliced(point, window) for point in (*slow, *eager)),
    )
    return GpuTasks(devices, gpu, tuple(dict.fromkeys(tasks)), None)


def _products(models: Sequence[Model]) -> tuple[tuple[Site, ...], tuple[Site, ...]]:
    """The distinct sites of all layers as a GPU fuses them, and the heads; names make no difference."""
    sites = (site for model in models for layer in dict.fromkeys(model.layers) for site in fused(layer))
    heads = (model.head for model in models)
    return tuple(dict.fromkeys(map(_unnamed, sites))), tuple(dict.fromkeys(map(_unnamed, heads)))


def _unnamed(site: Site) -> Site:
    return replace(site, name="")


def _able(weight_format: str, gpu: Gpu, kernels: Kernels) -> tuple[str, ...]:
    """The kernels that can run on a GPU with a format, the one expected to be fastest first.

    What is known of kernels may come from a newer GPU of the same host.
    """
    too_old = gpu.compute_capability is not None and gpu.compute_capability < TRITON_CAPABILITY
    return tuple(
        dict.fromkeys(
            kernel.kernel
            for kernel in kernels.on_gpu
            if kernel.format == weight_format and kernel.reason is None and not (kernel.kernel == "triton" and too_old)
        )
    )


def _why_none(weight_format: str, kernels: Kernels) -> str:
    """Why no kernel can run with a format: the reason of the one that asks for least."""
    reasons = [kernel.reason for kernel in kernels.on_gpu if kernel.format == weight_format and kernel.reason]
    return reasons[-1] if reasons else f"there is no GPU kernel for {weight_format}"


def _window_bytes(gpu: Gpu) -> int:
    """The most that one call may read, by the memory there is: not by what is free, so that the plan is stable."""
    return max(SLICE_BYTES, min(_MAX_WINDOW_BYTES, (gpu.memory_total_bytes or 0) // _WINDOW_SHARE))


def _sequences(max_batch: int) -> tuple[int, ...]:
    """Numbers of sequences whose decoding is timed: up to the largest batch, which is always there."""
    return (*(count for count in _SEQUENCES if count < max_batch), max_batch)


def _ceilings(device: str, gpu: Gpu, window: int) -> Iterator[Task]:
    """What the GPU itself can do: copying memory, and arithmetic on its tensor cores."""
    m, n_out, k_in = PEAK_SIZE
    int8 = gpu.compute_capability is None or gpu.compute_capability >= INT8_CAPABILITY
    yield Task(Point("read", device, GPU_REFERENCE, 1, k_in=min(_READ_BYTES, window), launch="graph"))
    yield Task(Point("peak", device, GPU_REFERENCE, 1, m, "I8" if int8 else "F16", n_out, k_in, launch="graph"))
