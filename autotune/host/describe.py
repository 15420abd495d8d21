"""A host in words: label and value lines for a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from autotune.host.kernels import describe_kernels
from autotune.records import Cache, Cpu, Gpu, Host, Kernel, Limits, Memory, Tier

_UNKNOWN = "unknown"


def describe(host: Host, tier: Tier | None, kernels: Sequence[Kernel]) -> list[tuple[str, str]]:
    """Lines of a label and a value each, in the order to print them; the tier only where one was measured."""
    cpu = host.cpu
    lines = [
        ("Host", f"{host.label} ({host.operating_system})"),
        ("CPU", _processor(cpu)),
        ("Instruction sets", ", ".join(cpu.isa) or _UNKNOWN),
        ("Cores", _cores(cpu)),
        ("Usable threads", _threads(host.limits, cpu)),
        ("Caches", ", ".join(_cache(cache) for cache in cpu.caches) or _UNKNOWN),
        ("Memory", _memory(host.memory)),
        ("NUMA nodes", _number(host.numa_nodes)),
        ("cgroup", _cgroup(host)),
    ]
    if host.gpus.devices:
        lines += [(f"GPU {gpu.index}", _gpu(gpu)) for gpu in host.gpus.devices]
        lines.append(("NVIDIA driver", host.gpus.driver_version or _UNKNOWN))
    else:
        lines.append(("GPU", f"none: {host.gpus.absent_reason}"))
    if tier is not None:
        lines.append(("Tier", f"{tier.name}: {tier.reason}"))
    lines += describe_kernels(kernels)
    libraries = [f"{library} {version}" for library, version in host.versions.libraries.items()]
    lines += [
        (
            "Versions",
            ", ".join([f"autotune {host.versions.autotune}", f"Python {host.versions.python}", *libraries]),
        ),
        ("Kernel sources", f"{host.versions.kernels} (measuring policy {host.versions.measuring_policy})"),
        ("Fingerprint", f"{host.fingerprint.full} (cache key {host.fingerprint.cheap})"),
    ]
    if host.unknown:
        lines.append(("Not revealed", ", ".join(host.unknown)))
    return lines


def _processor(cpu: Cpu) -> str:
    details = [detail for detail in (cpu.vendor, cpu.architecture, cpu.microarchitecture) if detail]
    return f"{cpu.name or _UNKNOWN} ({', '.join(details)})"


def _cores(cpu: Cpu) -> str:
    """For example "8 usable of 24 physical (6 performance, 2 efficiency), up to 5.20 GHz, packages 0, 1"."""
    usable = f"{len(cpu.cores)} usable of {_number(cpu.physical_cores)} physical"
    kinds = Counter(core.kind for core in cpu.cores if core.kind)
    if kinds:
        usable += f" ({', '.join(f'{count} {kind}' for kind, count in kinds.items())})"
    parts = [usable]
    frequencies = [core.max_frequency_hz for core in cpu.cores if core.max_frequency_hz is not None]
    if frequencies:
        parts.append(f"up to {max(frequencies) / 1e9:.2f} GHz")
    packages = {core.package for core in cpu.cores if core.package is not None}
    if len(packages) > 1:
        parts.append(f"in {len(packages)} packages")
    return ", ".join(parts)


def _threads(limits: Limits, cpu: Cpu) -> str:
    return f"{limits.usable_threads} of {_number(cpu.logical_cpus)} CPUs, decided by {limits.decided_by}"


def _cache(cache: Cache) -> str:
    shared = "" if cache.shared_by_cpus is None else f" per {_cpus(cache.shared_by_cpus)}"
    return f"L{cache.level} {_binary(cache.size_bytes)}{shared}"


def _memory(memory: Memory) -> str:
    if not memory.total_bytes:
        return _UNKNOWN
    return (
        f"{_binary(memory.usable_bytes)} usable of {_binary(memory.total_bytes)}, "
        f"decided by {'the cgroup' if memory.decided_by == 'cgroup' else 'what is available'}"
    )


def _cgroup(host: Host) -> str:
    limits, memory = host.limits, host.memory
    if limits.cgroup_version is None:
        return "none found"
    quota = "no CPU quota" if limits.quota_cpus is None else f"quota of {limits.quota_cpus:g} CPUs"
    cpuset = "no cpuset" if limits.cpuset_cpus is None else f"cpuset of {_cpus(len(limits.cpuset_cpus))}"
    if memory.cgroup_limit_bytes is None:
        bound = "no memory limit"
    else:
        used = _UNKNOWN if memory.cgroup_used_bytes is None else _binary(memory.cgroup_used_bytes)
        bound = f"memory limit {_binary(memory.cgroup_limit_bytes)} ({used} used)"
    return f"v{limits.cgroup_version}, {quota}, {cpuset}, {bound}"


def _gpu(gpu: Gpu) -> str:
    if gpu.unusable_reason is not None:
        return f"{gpu.name}, not usable: {gpu.unusable_reason}"
    parts = [gpu.name]
    if gpu.compute_capability is not None:
        major, minor = gpu.compute_capability
        parts.append(f"compute capability {major}.{minor}")
    if gpu.memory_free_bytes is not None and gpu.memory_total_bytes is not None:
        parts.append(f"{_binary(gpu.memory_free_bytes)} free of {_binary(gpu.memory_total_bytes)}")
    return ", ".join(parts)


def _cpus(count: int) -> str:
    return "1 CPU" if count == 1 else f"{count} CPUs"


def _number(number: int | None) -> str:
    return _UNKNOWN if number is None else str(number)


def _binary(size_bytes: int) -> str:
    """A size in KiB, MiB or GiB."""
    for unit, exponent in (("GiB", 30), ("MiB", 20)):
        if size_bytes >= 1 << exponent:
            return f"{size_bytes / (1 << exponent):.4g} {unit}"
    return f"{size_bytes / 1024:.4g} KiB"
