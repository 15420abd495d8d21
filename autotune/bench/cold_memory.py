"""How much memory is enough for none of it to be in cache when its turn comes again."""

from __future__ import annotations

import math
from collections.abc import Sequence

from autotune.bench.plan import Task
from autotune.errors import BenchmarkError
from autotune.model.memory import model_bytes
from autotune.records import Cpu, Host, Model
from ternary_kernels.formats import get_format

MIN_COLD_BYTES = 64 << 20
_MAX_COLD_BYTES = 1 << 30
_UNKNOWN_CACHE_BYTES = 64 << 20


def cold_memory_bytes(model: Model | None, host: Host, tasks: Sequence[Task]) -> int:
    """How much memory weights should rotate through: twice the last-level cache, or the model if that is smaller.

    Bounded by 1 GiB and a quarter of the usable memory. One window is added, because what is left at the end of the
    memory may be too small for the next one.

    Raises:
        BenchmarkError: The largest window takes more than half of the usable memory.
    """
    wanted = 2 * last_level_bytes(host.cpu)
    if model is not None:
        wanted = min(wanted, model_bytes(model))
    usable = host.memory.usable_bytes
    window = max(map(window_bytes, tasks), default=0)
    if window > usable // 2:
        raise BenchmarkError(
            f"timing needs a window of {window / 2**20:.0f} MiB and this host has {usable / 2**20:.0f} MiB "
            "of usable memory: expected at least twice the window"
        )
    return min(max(wanted, MIN_COLD_BYTES), _MAX_COLD_BYTES, usable // 4) + window


def last_level_bytes(cpu: Cpu) -> int:
    """Size of all last-level caches together: where there are several, each keeps the share of its own threads.

    Where the host doesn't tell, more than most have.
    """
    if not cpu.caches:
        return _UNKNOWN_CACHE_BYTES
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
            return point.sequences * 2 * 2 * point.k_in * (point.context + point.m)
        case "read":
            return point.k_in
        case "layer_ops" | "peak" | "upload" | "download" | "handover":
            return 0
