"""Signs that something else disturbed a sample: preemption, a hypervisor's steal time, a cgroup's throttling."""

from __future__ import annotations

from pathlib import Path

try:
    import resource
except ImportError:  # Windows has no getrusage; samples then count as undisturbed
    resource = None  # type: ignore[assignment]

_STAT = Path("/proc/stat")


def preemptions() -> int:
    """Involuntary context switches of this process so far, all threads; 0 where the system doesn't count them."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource else 0


def cpu_times() -> tuple[int, int] | None:
    """(stolen, total) jiffies of all CPUs since boot; None where the system doesn't say."""
    try:
        fields = [int(field) for field in _STAT.read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    return (fields[7], sum(fields)) if len(fields) == 8 else None


def steal_fraction(before: tuple[int, int] | None, after: tuple[int, int] | None) -> float | None:
    """Share of all CPUs' time that the hypervisor took between two readings of ``cpu_times``."""
    if before is None or after is None or after[1] <= before[1]:
        return None
    return (after[0] - before[0]) / (after[1] - before[1])
