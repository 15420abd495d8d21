"""What people run without tuning: rules that take no measurement, to seed the search and to be compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from autotune.bench.plan import alike_threads, thread_counts
from autotune.host.limits import FALLBACK_THREADS
from autotune.host.tier import Speed, classify
from autotune.model import memory
from autotune.model.memory import Room
from autotune.records import Configuration, Host, Model, Workload
from autotune.records.host import TierName
from autotune.search.workload import batch_grid, chunk_grid

Rule = Callable[[Model, Host, Workload, Room], Configuration | None]
"""A configuration, legal but not necessarily one that fits; None where the host lacks what the rule is about."""

# The guesses of the analytic rule. They are of the kind that this tool replaces by measurements, kept for comparison
# only: nothing else may use them. Scores are read rates. The request names the SIMD factors and says "memory bandwidth
# and compute capability" of GPUs; the rates are data-sheet figures of common cards of a generation.
_CORE_BYTES_PER_S = 10e9
_SIMD_FACTORS = {"avx512f": 1.8, "avx2": 1.4, "asimd": 1.3}
_GPU_BYTES_PER_S = {6: 480e9, 7: 620e9, 8: 940e9, 9: 3350e9, 10: 8000e9}
"""By the major compute capability; of others the nearest below, or the first."""
_GPU_ADVANTAGE = 1.5
_HYBRID_BYTES = 2e9
_BATCHES: dict[TierName, int] = {"Extreme": 8, "High": 4, "Medium": 2, "Low": 1}
_GPU_THREADS = 2


class Baseline(NamedTuple):
    """A way to configure a runtime without measuring.

    Attributes:
        name: For tables.
        origin: Where it comes from, in words.
        rule: What it configures. It is a point of the search space: threads and batch are rounded down to what the
            space has. It may need more memory than there is.
    """

    name: str
    origin: str
    rule: Rule


def fallback(model: Model, host: Host, workload: Workload, _: Room | None = None) -> Configuration:
    """What the loader answers where nothing was tuned, with the largest chunk; its threads are always in the space."""
    return _on_cpu(model, workload, min(FALLBACK_THREADS, host.limits.usable_threads))


def applicable(model: Model, host: Host, workload: Workload, room: Room) -> Iterator[tuple[Baseline, Configuration]]:
    """The baselines that a host has, with their configurations; several may have the same one.

    Args:
        model: What is to run.
        host: Its threads, cores, instruction sets and GPUs.
        workload: Bounds the batch and the chunk.
        room: The memory there is, on the CPU and on the GPUs that can be decided about.
    """
    for baseline in BASELINES:
        configuration = baseline.rule(model, host, workload, room)
        if configuration is not None:
            yield baseline, configuration


def _all_logical_cores(model: Model, host: Host, workload: Workload, _: Room) -> Configuration:
    return _on_cpu(model, workload, _rounded_threads(host, host.limits.usable_threads))


def _physical_cores(model: Model, host: Host, workload: Workload, _: Room) -> Configuration:
    return _on_cpu(model, workload, _rounded_threads(host, _cores(host)))


def _everything_on_the_gpu(model: Model, host: Host, workload: Workload, room: Room) -> Configuration | None:
    gpu = _largest_gpu(room)
    if gpu is None:
        return None
    return _configuration(workload, {gpu: len(model.layers)}, gpu, _rounded_threads(host, _cores(host)))


def _analytic(model: Model, host: Host, workload: Workload, room: Room) -> Configuration:
    """The rule of the request that this tool answers: guessed scores choose the strategy, fixed shares the threads."""
    gpu, layers, logical = _largest_gpu(room), len(model.layers), host.limits.usable_threads
    placement, head, threads = {"cpu": layers}, "cpu", logical
    speeds = [Speed("cpu", room.available_bytes["cpu"], _cpu_score(host), math.inf)]
    if gpu is not None:
        speeds.append(Speed(gpu, room.available_bytes[gpu], _gpu_score(host, gpu), math.inf))
        scores_higher = speeds[1].read_bytes_per_s >= _GPU_ADVANTAGE * speeds[0].read_bytes_per_s
        if scores_higher and _fits(model, _configuration(workload, {gpu: layers}, gpu, 1), workload, room):
            placement, head, threads = {gpu: layers}, gpu, _GPU_THREADS
        elif memory.model_bytes(model) > _HYBRID_BYTES and (filled := _filling(model, workload, room, gpu)):
            placement, threads = filled, max(1, logical // 2)
    batch = _BATCHES[classify(speeds).name]
    threads = _rounded_threads(host, threads)
    while batch > 1 and not _fits(model, _configuration(workload, placement, head, threads, batch), workload, room):
        batch //= 2
    return _configuration(workload, placement, head, threads, batch)


FALLBACK = Baseline(
    "fallback", f"the loader's answer where nothing was tuned: CPU only, {FALLBACK_THREADS} threads, batch 1", fallback
)
BASELINES = (
    FALLBACK,
    Baseline("all logical cores", "advice of many guides: CPU only, every usable thread, batch 1", _all_logical_cores),
    Baseline("physical cores", "llama.cpp's default: CPU only, a thread per usable core, batch 1", _physical_cores),
    Baseline(
        "everything on the GPU",
        "llama.cpp's -ngl 999: all layers and the head on the GPU with the most memory, batch 1",
        _everything_on_the_gpu,
    ),
    Baseline(
        "analytic rule",
        f"the original request's: the GPU if the model fits and its guessed score is {_GPU_ADVANTAGE} times the CPU's, "
        f"models over {_HYBRID_BYTES / 1e9:g} GB fill the GPU, else the CPU; threads and batch by fixed rules",
        _analytic,
    ),
)


def _on_cpu(model: Model, workload: Workload, threads: int) -> Configuration:
    return _configuration(workload, {"cpu": len(model.layers)}, "cpu", threads)


def _configuration(
    workload: Workload, device_layers: dict[str, int], head_device: str, threads: int, batch: int = 1
) -> Configuration:
    """A configuration with the same threads for decode and prefill, the largest chunk, and a batch size of the grid."""
    return Configuration(
        device_layers=device_layers,
        head_device=head_device,
        decode_threads=threads,
        prefill_threads=threads,
        batch_size=max(size for size in batch_grid(workload.max_batch) if size <= batch),
        prefill_chunk=chunk_grid(workload.prompt_tokens)[-1],
    )


def _rounded_threads(host: Host, wanted: int) -> int:
    """The most threads up to a wanted count that the search space has."""
    counts: set[int] = {*range(1, alike_threads(host) + 1), *thread_counts(host)}
    return max(count for count in counts if count <= wanted)


def _cores(host: Host) -> int:
    """Physical cores that can be used, but no more than threads."""
    usable = host.limits.usable_threads
    return min(len(host.cpu.cores) or usable, usable)


def _largest_gpu(room: Room) -> str | None:
    """The GPU with the most memory; None without one."""
    gpus = [device for device in room.available_bytes if device != "cpu"]
    return max(gpus, key=lambda device: room.available_bytes[device]) if gpus else None


def _cpu_score(host: Host) -> float:
    """Guessed bytes per second."""
    factor = max((by for name, by in _SIMD_FACTORS.items() if name in host.cpu.isa), default=1.0)
    return _cores(host) * factor * _CORE_BYTES_PER_S


def _gpu_score(host: Host, device: str) -> float:
    """Guessed bytes per second."""
    gpu = host.gpus.usable.get(device)
    capability = gpu.compute_capability if gpu is not None else None
    known = [major for major in _GPU_BYTES_PER_S if capability is not None and major <= capability[0]]
    return _GPU_BYTES_PER_S[max(known, default=min(_GPU_BYTES_PER_S))]


def _filling(model: Model, workload: Workload, room: Room, gpu: str) -> dict[str, int] | None:
    """The split that fills a GPU with the last layers and leaves the head to the CPU; None if it can't hold any."""
    layers = len(model.layers)
    for count in range(layers, 0, -1):
        split = {device: share for device, share in (("cpu", layers - count), (gpu, count)) if share}
        uses = memory.plan(model, _configuration(workload, split, "cpu", 1), workload.context_tokens, room)
        if all(use.total_bytes <= use.available_bytes for use in uses if use.device == gpu):
            return split
    return None


def _fits(model: Model, configuration: Configuration, workload: Workload, room: Room) -> bool:
    uses = memory.plan(model, configuration, workload.context_tokens, room)
    return all(use.total_bytes <= use.available_bytes for use in uses)
