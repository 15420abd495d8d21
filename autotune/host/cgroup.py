"""What the control groups of this process allow: CPU quota, cpuset, memory; cgroup v1, v2 and hybrid hosts.

Limits nest: a process may use what the tightest of its cgroup and all that cgroup's visible ancestors allows.
On the loader's fast path, so it imports nothing heavy.
Source: Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/; mountinfo: proc_pid_mountinfo(5).
"""

from __future__ import annotations

from autotune.host.pseudofiles import Root, as_cpu_list

TYPE_CHECKING = False
if TYPE_CHECKING:
    from os import PathLike
    from typing import Literal

    _Hierarchy = tuple[Literal[1, 2] | None, list[str]]
    """The version of the hierarchy a controller is in, and this process's cgroups there, innermost first."""

# v1 writes "no limit" as the largest multiple of the page size below 2^63, which differs between page sizes.
_UNLIMITED_BYTES = 1 << 62
# The name under which /proc/self/cgroup and this module know the unified (v2) hierarchy.
_UNIFIED = ""


class Cgroup:
    """The cgroups of this process, innermost first, per controller.

    Where a controller is mounted as v1 (also on hybrid hosts, which have an empty v2 hierarchy beside it),
    v1 counts; else v2. Inside a container the path in /proc/self/cgroup may not exist below the mount: the
    mount's root is then the only level that can be seen.

    Args:
        root: The folder that stands for ``/``.
    """

    def __init__(self, root: Root) -> None:
        self._root = root
        memberships = _memberships(root)
        mounts = _mounts(root)
        self._cpu = _locate("cpu", memberships, mounts)
        self._cpuset = _locate("cpuset", memberships, mounts)
        self._memory = _locate("memory", memberships, mounts)

    @property
    def version(self) -> Literal[1, 2] | None:
        """1 where any of the three controllers is mounted as v1, else 2; None without cgroups."""
        versions = {version for version, _ in (self._cpu, self._cpuset, self._memory)}
        if 1 in versions:
            return 1
        return 2 if 2 in versions else None

    def quota_cpus(self) -> float | None:
        """CPU seconds granted per second of wall time (the tightest quota / period); None without a quota."""
        return min((quota for _, quota in self._quotas()), default=None)

    def cpuset_cpus(self) -> tuple[int, ...] | None:
        """Logical CPUs that the cpuset allows; None without one.

        The innermost level that has the controller counts: the kernel keeps each level's effective set within
        its parent's.
        """
        version, levels = self._cpuset
        names = ("cpuset.effective_cpus", "cpuset.cpus") if version == 1 else ("cpuset.cpus.effective",)
        for level in levels:
            for name in names:
                cpus = as_cpu_list(self._root.text(f"{level}/{name}"))
                if cpus is not None:
                    return cpus
        return None

    def memory_limit_bytes(self) -> int | None:
        """The tightest memory limit; None without one.

        v2's ``memory.high`` counts like ``memory.max``: above it the kernel stalls every allocation to
        reclaim memory, so a run that crosses it is not killed but no longer does useful work. v1's soft limit
        doesn't count, nor does swap.
        """
        return min((limit for limit, _ in self._memory_limits()), default=None)

    def memory_use(self, *, active_files: bool = True) -> list[tuple[int, int | None]]:
        """Limit and use, in bytes, of every level that has a memory limit, innermost first.

        The use is what is charged less inactive file pages, which the kernel drops before it refuses memory;
        None where it isn't known.

        Args:
            active_files: Whether pages of files that are read again and again count as used: those of a model that is
                mapped are among them. The kernel drops them as well, though later.
        """
        v1 = self._memory[0] == 1
        current, prefix = ("memory.usage_in_bytes", "total_") if v1 else ("memory.current", "")
        droppable = ("inactive_file",) if active_files else ("inactive_file", "active_file")
        uses: list[tuple[int, int | None]] = []
        for limit, level in self._memory_limits():
            charged = self._root.number(f"{level}/{current}") if level else None
            if charged is None:
                uses.append((limit, None))
            else:
                statistics = _fields(self._root.text(f"{level}/memory.stat"))
                dropped = sum(statistics.get(f"{prefix}{pages}", 0) for pages in droppable)
                uses.append((limit, max(0, charged - dropped)))
        return uses

    def throttled_s(self) -> float | None:
        """Seconds for which a quota has held this cgroup or an ancestor back so far, summed over its CPUs.

        Only the difference between two readings means something. None without a quota.
        """
        key, unit_s = ("throttled_time", 1e-9) if self._cpu[0] == 1 else ("throttled_usec", 1e-6)
        total = None
        for level, _ in self._quotas():
            count = _fields(self._root.text(f"{level}/cpu.stat")).get(key)
            if count is not None:
                total = (total or 0.0) + count * unit_s
        return total

    def _quotas(self) -> list[tuple[str, float]]:
        """Levels with a quota, and the quota in CPUs."""
        version, levels = self._cpu
        quotas = []
        for level in levels:
            if version == 1:
                quota_us = self._root.number(f"{level}/cpu.cfs_quota_us")
                period_us = self._root.number(f"{level}/cpu.cfs_period_us")
            else:
                quota_us, period_us = _pair(self._root.text(f"{level}/cpu.max"))
            if quota_us and period_us:
                quotas.append((level, quota_us / period_us))
        return quotas

    def _memory_limits(self) -> list[tuple[int, str | None]]:
        """Memory limits with the level that has each, innermost first; no level where it can't be seen."""
        version, levels = self._memory
        names = ("memory.limit_in_bytes",) if version == 1 else ("memory.max", "memory.high")
        limits: list[tuple[int, str | None]] = []
        for level in levels:
            bounds = [self._root.number(f"{level}/{name}") for name in names]
            limit = min((bound for bound in bounds if bound is not None), default=_UNLIMITED_BYTES)
            if limit < _UNLIMITED_BYTES:
                limits.append((limit, level))
        if version == 1:
            # v1 also tells a container about limits of ancestors that it can't see, but not about their use.
            statistics = _fields(self._root.text(f"{levels[0]}/memory.stat"))
            inherited = statistics.get("hierarchical_memory_limit", _UNLIMITED_BYTES)
            if inherited < min((limit for limit, _ in limits), default=_UNLIMITED_BYTES):
                limits.append((inherited, None))
        return limits


def throttled_s(root: str | PathLike[str] = "/") -> float | None:
    """Seconds for which a CPU quota has held this process's cgroups back so far; see `Cgroup.throttled_s`."""
    return Cgroup(Root(root)).throttled_s()


def _memberships(root: Root) -> dict[str, str]:
    """Path of this process's cgroup per v1 controller, and under ``""`` in the v2 hierarchy."""
    paths: dict[str, str] = {}
    for line in (root.text("/proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, separator, path = rest.partition(":")
        if separator:
            paths.update(dict.fromkeys(controllers.split(","), path))
    return paths


def _mounts(root: Root) -> list[tuple[set[str], str, str]]:
    """Mounted hierarchies: the controllers (``""`` for v2), the cgroup that is mounted, the mount point."""
    mounts = []
    for line in (root.text("/proc/self/mountinfo") or "").splitlines():
        mount, _, file_system = line.partition(" - ")
        fields, described = mount.split(), file_system.split()
        if len(fields) < 5 or not described or described[0] not in ("cgroup", "cgroup2"):
            continue
        controllers = {_UNIFIED} if described[0] == "cgroup2" else set(described[-1].split(","))
        mounts.append((controllers, _unescape(fields[3]), _unescape(fields[4])))
    return mounts


def _locate(controller: str, memberships: dict[str, str], mounts: list[tuple[set[str], str, str]]) -> _Hierarchy:
    """Where this process is under a controller; v1 counts before v2."""
    versions: tuple[tuple[Literal[1, 2], str], ...] = ((1, controller), (2, _UNIFIED))
    for version, key in versions:
        path = memberships.get(key)
        candidates = [mount for mount in mounts if key in mount[0]]
        if path is None or not candidates:
            continue
        for _, mounted, point in candidates:
            relative = _below(path, mounted)
            if relative is not None:
                return version, _upwards(point, relative)
        return version, [candidates[0][2]]
    return None, []


def _below(path: str, mounted: str) -> str | None:
    """The part of a cgroup's ``path`` below the ``mounted`` cgroup; None where it lies elsewhere."""
    prefix = mounted.rstrip("/")
    # A path with ".." lies outside of this process's cgroup namespace.
    if "/.." in path or not (path + "/").startswith(prefix + "/"):
        return None
    return path[len(prefix) :]


def _upwards(point: str, relative: str) -> list[str]:
    """Folders from ``point/relative`` up to ``point``."""
    parts = [part for part in relative.split("/") if part]
    return ["/".join([point.rstrip("/"), *parts[:depth]]) for depth in range(len(parts), -1, -1)]


def _unescape(field: str) -> str:
    """Undo mountinfo's octal escapes of blanks and backslashes."""
    for escaped, plain in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(escaped, plain)
    return field


def _fields(text: str | None) -> dict[str, int]:
    """The ``name number`` lines of cpu.stat and memory.stat."""
    pairs = (line.partition(" ") for line in (text or "").splitlines())
    return {name: int(value) for name, _, value in pairs if value.isdigit()}


def _pair(text: str | None) -> tuple[int | None, int | None]:
    """Quota and period of v2's cpu.max, in microseconds; a quota of "max" is None."""
    words = (text or "").split()
    if len(words) != 2 or not (words[0].isdigit() and words[1].isdigit()):
        return None, None
    return int(words[0]), int(words[1])
