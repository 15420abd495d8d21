"""How much memory this process may use: what the system has available, and what its cgroups leave.

On the loader's fast path, so it imports nothing heavy.
"""

from __future__ import annotations

from autotune.host.cgroup import Cgroup
from autotune.host.pseudofiles import Root
from autotune.records import Memory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from autotune.host.system import System

USABLE_SHARE = 0.9
"""Share of the usable memory that a configuration may plan with: the rest is for what else runs and grows."""


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
    left = _left_bytes(levels, available)
    return Memory(
        total_bytes=total,
        available_bytes=available,
        cgroup_limit_bytes=limit,
        cgroup_used_bytes=used,
        usable_bytes=min(available, left),
        decided_by="cgroup" if left < available else "available",
    )


def usable_now_bytes(root: Root) -> int | None:
    """What this process may use now, with what it holds already; None where the system doesn't tell.

    What it holds is its anonymous and shared memory: pages of files count as available anyway, to its cgroups as to the
    system. So a model that is mapped already takes nothing from itself.
    """
    available = root.meminfo_bytes("MemAvailable")
    if available is None:
        return None
    left = min(available, _left_bytes(Cgroup(root).memory_use(active_files=False), available))
    return left + sum(root.status_bytes(field) or 0 for field in ("RssAnon", "RssShmem"))


def _left_bytes(levels: Iterable[tuple[int, int | None]], available: int) -> int:
    """What the tightest cgroup leaves; what is available where none has a limit."""
    return min((max(0, bound - (charged or 0)) for bound, charged in levels), default=available)
