"""Host records as detection would describe machines that nobody has here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from autotune.records import Cache, Core, Cpu, Fingerprint, Gpu, Gpus, Host, Limits, Memory, Versions
from autotune.records.host import CoreKind

MIB = 2**20
NO_GPU = Gpus(devices=(), driver_version=None, absent_reason="no NVIDIA driver is installed (NVML library not found)")


def make_cores(
    counts: Mapping[CoreKind | None, int], *, smt: Sequence[CoreKind | None] = (), packages: int = 1
) -> tuple[Core, ...]:
    """Cores of each kind, in pinning order.

    SMT siblings are numbered after all first threads of a kind that has them, as Linux does on servers.

    Args:
        counts: Cores by kind, in all packages together.
        smt: Kinds whose cores have two threads.
        packages: Packages, a NUMA node each, with as many cores each.
    """
    cores: list[Core] = []
    first = 0
    for kind, count in counts.items():
        siblings = 2 if kind in smt else 1
        for index in range(count):
            cpus = tuple(first + index + count * turn for turn in range(siblings))
            package = index * packages // count
            cores.append(Core(cpus=cpus, package=package, numa_node=package, kind=kind, max_frequency_hz=None))
        first += siblings * count
    return tuple(cores)


def make_host(
    label: str,
    cpu_name: str,
    cores: tuple[Core, ...],
    *,
    caches: tuple[tuple[int, int, int], ...],
    memory_bytes: tuple[int, int],
    vendor: str = "GenuineIntel",
    microarchitecture: str | None = None,
    architecture: str = "x86_64",
    isa: tuple[str, ...] = ("avx2", "avx_vnni", "bmi2", "f16c", "fma"),
    gpus: Gpus = NO_GPU,
    quota: tuple[float, int] | None = None,
) -> Host:
    """A host as detection would describe it.

    Args:
        label: Its name; the fingerprint is a digest of it.
        cpu_name: As the CPU calls itself.
        cores: All cores, all of which may be used.
        caches: Level, size in bytes, and how many logical CPUs share one.
        memory_bytes: Total and available.
        vendor: The CPU's.
        microarchitecture: archspec's name.
        architecture: Machine name.
        isa: Instruction sets that kernels use.
        gpus: As NVML lists them.
        quota: CPUs and bytes that a container's limits leave; None: no container.
    """
    cpus = tuple(sorted(cpu for core in cores for cpu in core.cpus))
    total_bytes, available_bytes = memory_bytes
    quota_cpus, limit_bytes = quota or (None, None)
    used_bytes = None if limit_bytes is None else 60 * MIB
    left_bytes = available_bytes if limit_bytes is None else limit_bytes - 60 * MIB
    return Host(
        label=label,
        operating_system="Linux 6.8.0",
        cpu=Cpu(
            name=cpu_name,
            vendor=vendor,
            architecture=architecture,
            microarchitecture=microarchitecture,
            isa=isa,
            logical_cpus=len(cpus),
            physical_cores=len(cores),
            cores=cores,
            caches=tuple(Cache(level=level, size_bytes=size, shared_by_cpus=shared) for level, size, shared in caches),
        ),
        limits=Limits(
            affinity_cpus=cpus,
            cpuset_cpus=None,
            quota_cpus=quota_cpus,
            usable_threads=len(cpus) if quota_cpus is None else int(quota_cpus),
            decided_by="online CPUs" if quota_cpus is None else "quota",
            cgroup_version=2,
        ),
        memory=Memory(
            total_bytes=total_bytes,
            available_bytes=available_bytes,
            cgroup_limit_bytes=limit_bytes,
            cgroup_used_bytes=used_bytes,
            usable_bytes=min(available_bytes, left_bytes),
            decided_by="available" if limit_bytes is None else "cgroup",
        ),
        numa_nodes=len({core.numa_node for core in cores}),
        gpus=gpus,
        versions=Versions(
            autotune="0.1.0",
            python="3.12.3",
            libraries={"llvmlite": "0.50.0", "numpy": "2.4.6", "optuna": "5.0.0", "threadpoolctl": "3.8.0"},
            kernels="0" * 32,
            measuring_policy=1,
        ),
        fingerprint=Fingerprint(full=_digest(f"full {label}"), cheap=_digest(f"cheap {label}")),
    )


def make_gpus(*devices: tuple[str, tuple[int, int], int, int]) -> Gpus:
    """GPUs by name, compute capability, total and free MiB."""
    return Gpus(
        devices=tuple(
            Gpu(
                index=index,
                name=name,
                uuid=f"GPU-00000000-0000-0000-0000-{index:012d}",
                memory_total_bytes=total * MIB,
                memory_free_bytes=free * MIB,
                compute_capability=capability,
                mig=False,
                unusable_reason=None,
            )
            for index, (name, capability, total, free) in enumerate(devices)
        ),
        driver_version="580.65.06",
        absent_reason=None,
    )


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
