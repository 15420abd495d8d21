"""How much memory this process may use: what the system has available, and what its cgroups leave."""

from __future__ import annotations

from autotune.host.cgroup import Cgroup
from autotune.host.pseudofiles import Root
from autotune.host.system import System
from autotune.records import Memory


def read_memory(root: Root, cgroup: Cgroup, system: System) -> Memory:
    """Read /proc/meminfo (elsewhere than on Linux: what psutil says) and the cgroups' memory limits.

    Where several nested cgroups have a limit, the record names the tightest limit and its use. An ancestor
    with a wider limit may still leave less, because siblings use it too: ``usable_bytes`` heeds all of them.

    Returns:
        The record; sizes are 0 where neither source knows the memory.
    """
    total = root.meminfo_bytes("MemTotal") or system.memory_total_bytes or 0
    available = root.meminfo_bytes("MemAvailable") or system.memory_available_bytes or 0
    levels = cgroup.memory_use()
    limit, used = min(levels, key=lambda level: level[0], default=(None, None))
    left = min((max(0, bound - (charged or 0)) for bound, charged in levels), default=available)
    return Memory(
        total_bytes=total,
        available_bytes=available,
        cgroup_limit_bytes=limit,
        cgroup_used_bytes=used,
        usable_bytes=min(available, left),
        decided_by="cgroup" if left < available else "available",
    )
