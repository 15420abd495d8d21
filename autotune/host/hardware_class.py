"""The hardware class: what equal hosts of a fleet share, so that a result measured on one serves the others.

It holds what hardware there is and how much of it a process may use. It doesn't hold which one it is: no hostname, CPU
numbers, package numbers or GPU's UUID; nor software, apart from the GPU driver's major version. Light: importing it
costs a loader nothing beside `autotune.host.fingerprint`.
"""

from __future__ import annotations

from autotune.host.fingerprint import digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from autotune.records.host import Core, Host

_GIB = 1 << 30
_LEAST_STEPS = 8
"""Steps of rounding into which memory beyond as many GiB is cut, at least."""
_DIGEST_DIGITS = 8
_GPU_NAMES_LENGTH = 60
"""Longest description of GPUs in a class, which is the beginning of file names."""


def hardware_class(host: Host) -> str:
    """The class of a host, ``icelake-2t-24g-cpu-3f2a91c0``.

    That is its microarchitecture (or vendor, or architecture), usable threads, memory, GPUs (or ``cpu``), and digits of
    a digest over all that makes the class. It has only ``a`` to ``z``, digits, dot, hyphen and underscore, so it is fit
    for a file name.

    GPUs count in the order in which a configuration numbers them, and only those that can be used. The CPU's caches
    count as well: they tell processors apart whose hypervisor hides the name.
    """
    cpu, limits, gpus = host.cpu, host.limits, host.gpus.usable.values()
    quota = limits.quota_cpus
    memory_gib = rounded_gib(memory_limit_bytes(host))
    driver = host.gpus.driver_version if gpus else None
    decisive = (
        cpu.architecture,
        cpu.vendor,
        cpu.microarchitecture,
        cpu.name,
        cpu.isa,
        tuple((cache.level, cache.size_bytes, cache.shared_by_cpus) for cache in cpu.caches),
        cpu.logical_cpus,
        cpu.physical_cores,
        host.numa_nodes,
        # A single thread may have less than a CPU: half of one is half as fast.
        limits.usable_threads if quota is None else min(limits.usable_threads, quota),
        _arrangement(cpu.cores),
        memory_gib,
        tuple((gpu.name, _gpu_gib(gpu.memory_total_bytes), gpu.compute_capability, gpu.mig) for gpu in gpus),
        None if driver is None else driver.partition(".")[0],
    )
    parts = (
        slug(cpu.microarchitecture or cpu.vendor or cpu.architecture) or "cpu",
        f"{limits.usable_threads}t",
        f"{memory_gib}g",
        _gpu_names([gpu.name for gpu in gpus]) or "cpu",
        digest(repr(decisive).encode())[:_DIGEST_DIGITS],
    )
    return "-".join(parts)


def memory_limit_bytes(host: Host) -> int:
    """What a process may use at most: the physical memory, or less where a cgroup limits it."""
    limit = host.memory.cgroup_limit_bytes
    total = host.memory.total_bytes
    return total if limit is None or limit > total > 0 else limit


def rounded_gib(size_bytes: int) -> int:
    """Memory in GiB, rounded up to steps of a whole GiB, or of a 16th to an 8th where that is more.

    What a system reports lies below what is built in, by what firmware and kernel keep; that share, a few per cent,
    differs a little between equal hosts, their firmware and kernels. The steps end where built-in sizes lie (4, 16, 24,
    64, 96, 512 GiB), so those differences stay within one. Rounded to the nearest GiB a host of 16 GiB, which reports
    about 15.5, would be one thing today and another after an update. Limits set by hand are exact, and the same on
    every host.
    """
    size_gib = -(-size_bytes // _GIB)
    step_gib = 1
    while 2 * step_gib * _LEAST_STEPS < size_gib:
        step_gib *= 2
    return -(-size_gib // step_gib) * step_gib


def slug(name: str) -> str:
    """A name in what is safe in a file's: ``NVIDIA H100 80GB`` is ``nvidia-h100-80gb``; dots and underscores stay."""
    safe = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._") else "-" for letter in name)
    return "-".join(part for part in safe.lower().split("-") if part)


def _arrangement(cores: Iterable[Core]) -> tuple[object, ...]:
    """How many usable cores of each kind, and of how many threads, each package and NUMA node has; nothing's number."""
    nodes: dict[tuple[int | None, int | None], list[tuple[str, int]]] = {}
    for core in cores:
        nodes.setdefault((core.package, core.numa_node), []).append((core.kind or "", len(core.cpus)))
    packages: dict[int | None, list[tuple[tuple[str, int, int], ...]]] = {}
    for (package, _), alike in nodes.items():
        counts = tuple(sorted((*each, alike.count(each)) for each in set(alike)))
        packages.setdefault(package, []).append(counts)
    return tuple(sorted(tuple(sorted(node)) for node in packages.values()))


def _gpu_gib(size_bytes: int | None) -> int | None:
    return None if size_bytes is None else rounded_gib(size_bytes)


def _gpu_names(names: list[str]) -> str:
    """``2x-nvidia-l4`` and the like; empty without GPUs."""
    counted = (
        f"{names.count(name)}x-{slug(name)}" if names.count(name) > 1 else slug(name) for name in dict.fromkeys(names)
    )
    return "-".join(counted)[:_GPU_NAMES_LENGTH].rstrip("-")
