"""The machine a benchmark runs on: CPUs in the order threads are pinned to them, memory to rotate through, a name."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil

_LARGEST_ARENA_BYTES = 1 << 30
_MEMORY_SHARE = 0.25


def usable_cpus(system: Path = Path("/sys/devices/system/cpu")) -> tuple[int, ...]:
    """Logical CPUs of this process' affinity mask: one of each core first, then their SMT siblings.

    Args:
        system: The folder in which Linux describes CPUs; where it is missing, every CPU counts as a core.
    """
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    seen: dict[str, int] = {}
    ranked = []
    for cpu in usable:
        try:
            core = (system / f"cpu{cpu}/topology/thread_siblings_list").read_text()
        except OSError:
            core = str(cpu)
        seen[core] = seen.get(core, 0) + 1
        ranked.append((seen[core], cpu))
    return tuple(cpu for _, cpu in sorted(ranked))


def thread_counts(usable: int) -> tuple[int, ...]:
    """Powers of two up to all usable threads, and all of them; ascending."""
    return tuple(sorted({1 << power for power in range(usable.bit_length())} | {usable}))


def available_bytes() -> int:
    """Memory that can be had without swapping."""
    return int(psutil.virtual_memory().available)


def arena_bytes() -> int:
    """How much memory weights should rotate through: 1 GiB, or a quarter of what is available if that is less."""
    return min(_LARGEST_ARENA_BYTES, int(_MEMORY_SHARE * available_bytes()))


def cpu_name(listing: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's model name, or the machine's architecture where it isn't told."""
    try:
        lines = listing.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
