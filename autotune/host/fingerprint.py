"""The cheap fingerprint: a digest of the raw sources that determine what `detect` finds, in under 1 ms.

It is the key under which a result is cached, so a loader computes it on every start. That is why this module
and what it imports avoid ``pathlib``, ``importlib.metadata``, ``platform`` and ``typing``: each of these costs
more time than all of the reading here.
"""

# ruff: noqa: PTH123, PTH208

from __future__ import annotations

import hashlib
import os
import sys

from autotune import __version__
from autotune.host.cgroup import Cgroup
from autotune.host.policy import MEASURING_POLICY
from autotune.host.pseudofiles import Root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike
    from typing import Any

# Libraries whose version may change a measurement or a search.
_LIBRARIES = frozenset({"llvmlite", "numpy", "optuna", "threadpoolctl", "torch", "triton"})
# What identifies a processor in /proc/cpuinfo, on x86 and on Arm.
_X86_FIELDS = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags")
_ARM_FIELDS = ("CPU implementer", "CPU part", "CPU variant", "CPU revision", "Features")
_MEMORY_STEP_BYTES = 256 << 20
_DIGEST_BYTES = 16


def cheap(
    root: str | PathLike[str] = "/",
    environ: Mapping[str, str] = os.environ,
    affinity: Sequence[int] | None = None,
    architecture: str | None = None,
) -> str:
    """Digest what determines the full fingerprint, without detecting anything.

    The hostname is no part of it, nor is anything that changes from minute to minute (free memory).

    Args:
        root: The folder that stands for ``/``.
        environ: The environment variables of this process.
        affinity: Logical CPUs in the affinity mask; None: ask the running system.
        architecture: ``x86_64``, ``aarch64``; None: ask the running system.

    Returns:
        32 hexadecimal digits.
    """
    files = Root(root)
    cgroup = Cgroup(files)
    processor = files.first_processor()
    if affinity is None:
        affinity = _affinity()
    memory = files.meminfo_bytes("MemTotal")
    sources = (
        architecture or _architecture(),
        [processor.get(field) for field in _X86_FIELDS + _ARM_FIELDS],
        sorted(affinity),
        files.text("/sys/devices/system/cpu/online"),
        files.text("/sys/devices/system/cpu/smt/active"),
        cgroup.quota_cpus(),
        cgroup.cpuset_cpus(),
        cgroup.memory_limit_bytes(),
        None if memory is None else rounded_memory_bytes(memory),
        _gpu_sources(files),
        environ.get("CUDA_VISIBLE_DEVICES"),
        sorted(versions_raw().items()),
    )
    return digest(repr(sources).encode())


def digest(content: bytes) -> str:
    """32 hexadecimal digits of BLAKE2b."""
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()


def rounded_memory_bytes(size_bytes: int) -> int:
    """Physical memory to the nearest 256 MiB: what a kernel reserves of it differs a little from boot to boot."""
    return round(size_bytes / _MEMORY_STEP_BYTES) * _MEMORY_STEP_BYTES


def versions_raw() -> dict[str, Any]:
    """Software that changes what is measured, in the shape of `autotune.records.Versions`."""
    return {
        "autotune": __version__,
        "python": ".".join(str(part) for part in sys.version_info[:3]),
        "libraries": _library_versions(sys.path),
        "kernels": _kernels_digest(),
        "measuring_policy": MEASURING_POLICY,
    }


def _library_versions(search_path: Sequence[str]) -> dict[str, str]:
    """Versions of the libraries that matter, from the names of their ``.dist-info`` folders.

    Where two folders hold the same library, the first on the search path counts, as it does for imports.
    """
    versions: dict[str, str] = {}
    for folder in search_path:
        if not folder.endswith("-packages"):  # site-packages; Debian's dist-packages
            continue
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue
        for name in names:
            if name.endswith(".dist-info"):
                library, _, version = name.removesuffix(".dist-info").partition("-")
                if library in _LIBRARIES:
                    versions.setdefault(library, version)
    return dict(sorted(versions.items()))


def _kernels_digest() -> str:
    """Digest of the kernel package's files, found without importing it; "unknown" if they can't be read."""
    for finder in sys.meta_path:
        specification = finder.find_spec("ternary_kernels", None)
        if specification is not None:
            folders = specification.submodule_search_locations or ()
            try:
                return digest(repr([_file_digests(folder) for folder in folders]).encode())
            except OSError:  # in a zip archive, for example
                break
    return "unknown"


def _file_digests(folder: str) -> list[tuple[str, str]]:
    """Name and digest of every file in a folder and those below it; nothing of what is compiled from them."""
    digests = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name == "__pycache__" or entry.name.startswith("."):
                continue
            if entry.is_dir():
                digests += [(f"{entry.name}/{name}", content) for name, content in _file_digests(entry.path)]
            else:
                with open(entry.path, "rb") as file:
                    digests.append((entry.name, digest(file.read())))
    return digests


def _gpu_sources(files: Root) -> tuple[Any, ...]:
    """The NVIDIA driver's major version, and model and MIG instances of each GPU, as /proc shows them."""
    words = (files.text("/proc/driver/nvidia/version") or "").split()
    numbers = [word for word in words if word[0].isdigit() and "." in word]
    gpus = [
        (bus, [line for line in _information(files, bus) if line.startswith("Model:")])
        for bus in files.entries("/proc/driver/nvidia/gpus")
    ]
    capabilities = "/proc/driver/nvidia/capabilities"
    mig = [files.entries(f"{capabilities}/{gpu}/mig") for gpu in files.entries(capabilities)]
    return numbers[0].partition(".")[0] if numbers else None, gpus, mig


def _information(files: Root, bus: str) -> list[str]:
    return (files.text(f"/proc/driver/nvidia/gpus/{bus}/information") or "").splitlines()


def _affinity() -> Sequence[int]:
    if hasattr(os, "sched_getaffinity"):
        return tuple(os.sched_getaffinity(0))
    return range(os.cpu_count() or 1)


def _architecture() -> str:
    return os.uname().machine if hasattr(os, "uname") else os.environ.get("PROCESSOR_ARCHITECTURE", "")
