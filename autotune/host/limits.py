"""How many threads this process may use, and which limit decides."""

from __future__ import annotations

from typing import Literal

from autotune.host.cgroup import Cgroup
from autotune.records import Limits

Decider = Literal["affinity", "cpuset", "quota", "online CPUs"]

FALLBACK_THREADS = 4
"""Used at most without tuning: more can be slower on a host that nobody measured: shared cores, a quota unseen."""


def read_limits(cgroup: Cgroup, affinity: tuple[int, ...], online: int | None) -> Limits:
    """Combine affinity, cpuset and quota: ``min(affinity, cpuset, floor(quota))``, at least 1.

    A fraction of a CPU is not another thread: with a quota of 2.5 a third thread would spend most of each
    period throttled, and the other two wait for it at every barrier.

    Args:
        cgroup: The cgroups of this process.
        affinity: Logical CPUs in its affinity mask.
        online: Logical CPUs online on the machine; None if unknown.
    """
    cpuset = cgroup.cpuset_cpus()
    quota = cgroup.quota_cpus()
    cpus = usable_cpus(affinity, cpuset)
    threads = len(cpus)
    decided_by = _narrowed_by(cpus, affinity, cpuset, online)
    if quota is not None and quota < threads:
        threads, decided_by = max(1, int(quota)), "quota"
    return Limits(
        affinity_cpus=affinity,
        cpuset_cpus=cpuset,
        quota_cpus=quota,
        usable_threads=threads,
        decided_by=decided_by,
        cgroup_version=cgroup.version,
    )


def usable_cpus(affinity: tuple[int, ...], cpuset: tuple[int, ...] | None) -> tuple[int, ...]:
    """Logical CPUs that both the affinity mask and the cpuset allow.

    Where they have none in common (a cpuset of another namespace), the mask counts: the scheduler obeys it.
    """
    if cpuset is None:
        return affinity
    return tuple(cpu for cpu in affinity if cpu in cpuset) or affinity


def _narrowed_by(
    cpus: tuple[int, ...], affinity: tuple[int, ...], cpuset: tuple[int, ...] | None, online: int | None
) -> Decider:
    """Which of affinity and cpuset narrows the CPUs below those online.

    The kernel keeps an affinity mask within the cpuset, so a mask that equals the cpuset was narrowed by it.
    """
    if len(cpus) < len(affinity):
        return "cpuset"
    if len(cpus) == online:
        return "online CPUs"
    return "cpuset" if cpus == cpuset else "affinity"
