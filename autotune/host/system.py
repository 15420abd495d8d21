"""What only the running system can say: the part of a host that is not a file under its root."""

from __future__ import annotations

import os
import platform
import socket
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import archspec.cpu
import psutil
import pynvml


@dataclass(frozen=True)
class System:
    """Answers of the running system, unknown by default; `live` asks it, a simulated host gives its own.

    Attributes:
        hostname: A label.
        operating_system: Name and release.
        architecture: ``x86_64``, ``aarch64``.
        affinity: Logical CPUs in the affinity mask; None where the system has no such thing.
        online_cpus: Logical CPUs online, for systems without /sys.
        physical_cores: Physical cores online, for systems without /sys.
        cpu_name: Brand string, for systems without /proc/cpuinfo.
        cpu_vendor: Vendor, for systems without /proc/cpuinfo.
        microarchitecture: archspec's name.
        cpu_features: archspec's features, for systems without /proc/cpuinfo.
        memory_total_bytes: For systems without /proc/meminfo.
        memory_available_bytes: For systems without /proc/meminfo.
        nvml: The module ``pynvml`` or one like it; None: GPUs are not looked for.
    """

    hostname: str = "unknown"
    operating_system: str = "unknown"
    architecture: str = "unknown"
    affinity: tuple[int, ...] | None = None
    online_cpus: int | None = None
    physical_cores: int | None = None
    cpu_name: str | None = None
    cpu_vendor: str | None = None
    microarchitecture: str | None = None
    cpu_features: frozenset[str] = frozenset()
    memory_total_bytes: int | None = None
    memory_available_bytes: int | None = None
    nvml: Any = None

    @classmethod
    def live(cls) -> System:
        """Ask the running system; what it can't answer stays unknown."""
        memory = _or_none(psutil.virtual_memory)
        return cls(
            hostname=socket.gethostname(),
            operating_system=f"{platform.system()} {platform.release()}".strip(),
            architecture=platform.machine(),
            affinity=tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else None,
            online_cpus=os.cpu_count(),
            physical_cores=_or_none(lambda: psutil.cpu_count(logical=False)),
            memory_total_bytes=None if memory is None else memory.total,
            memory_available_bytes=None if memory is None else memory.available,
            nvml=pynvml,
            **_archspec(),
        )


def _or_none(query: Callable[[], Any]) -> Any:
    """What psutil answers; None where it has none (no /proc mounted, a platform without such a thing)."""
    try:
        return query()
    except (OSError, RuntimeError):
        return None


def _archspec() -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            # It warns where it falls back to the generic microarchitecture, which its answer says as well.
            warnings.simplefilter("ignore")
            target = archspec.cpu.host()
            # This executes CPUID from a writable page, which hardened kernels forbid; Linux has /proc/cpuinfo.
            brand = None if sys.platform == "linux" else archspec.cpu.brand_string()
    except Exception:  # a processor newer than archspec's table ends in whatever its parser raises
        return {}
    return {
        "cpu_name": brand,
        "cpu_vendor": target.vendor,
        "microarchitecture": target.name,
        "cpu_features": frozenset(target.features),
    }
