"""What has changed where a host no longer has the result that was saved on it: found in results for other fingerprints.

It runs only where a loader is about to warn, reads a bounded number of files, and never raises: it explains a miss.
"""

# pathlib takes longer to import than all of this takes.
# ruff: noqa: PTH116, PTH208

from __future__ import annotations

import os

import msgspec

from autotune.host.cgroup import Cgroup
from autotune.host.fingerprint import rounded_memory_bytes, versions_raw
from autotune.host.limits import read_limits
from autotune.host.pseudofiles import Root
from autotune.records.host import Host
from autotune.store import paths
from autotune.store.cache import read_file
from autotune.store.entry import parse
from autotune.store.seal import BadEntry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from autotune.store.entry import Key

_MOST_HOSTS = 1000
"""Folders of other fingerprints that are looked into, and"""
_MOST_RESULTS = 8
"""results that are read, the newest first: a cache that a fleet shares may hold many."""


class _Saved(msgspec.Struct, frozen=True):
    host: Host


def explain_miss(key: Key, layers: Sequence[str]) -> str | None:
    """What differs from the host that a result for the same model and workload was saved on, in words.

    Of several such results that of a host with this one's name counts, else the newest. None where there is none.

    Args:
        key: What was not found.
        layers: The folders that it was looked for in.
    """
    found = [host for path in _others(key, layers) for host in [_host_in(path)] if host is not None]
    if not found:
        return None
    name = os.uname().nodename if hasattr(os, "uname") else None
    before = next((host for host in found if host.label == name), found[0])
    affinity = tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else None
    differences = "; ".join(describe_changes(before, Root(), affinity, os.environ)) or "a detail that has no name here"
    if before.label == name:
        return f"which has changed since it was measured: {differences}"
    return f"the newest result is of {before.label}, which differs: {differences}"


def describe_changes(
    before: Host, root: Root, affinity: tuple[int, ...] | None, environ: Mapping[str, str]
) -> Iterator[str]:
    """What of a host's decisive properties is other now: ``usable threads 4 -> 2``; what can't be read is left out.

    Args:
        before: The host as it was.
        root: The folder that stands for ``/``.
        affinity: Logical CPUs in the affinity mask now; None: unknown.
        environ: The environment variables of this process.
    """
    cgroup, total_bytes = Cgroup(root), root.meminfo_bytes("MemTotal")
    yield from _changed("CPU", before.cpu.name, root.first_processor().get("model name"))
    if affinity is not None:
        threads = read_limits(cgroup, affinity, os.cpu_count()).usable_threads
        yield from _changed("usable threads", before.limits.usable_threads, threads)
        if threads == before.limits.usable_threads:
            yield from _changed("CPUs allowed", _list(before.limits.affinity_cpus), _list(affinity))
    yield from _changed("memory", _size(before.memory.total_bytes), _size(total_bytes))
    limits = before.memory.cgroup_limit_bytes, cgroup.memory_limit_bytes()
    yield from _changed("memory limit", *(_size(limit) or "none" for limit in limits))
    yield from _gpu_changes(before, root, environ)
    old, now = before.versions, versions_raw()
    yield from _changed("autotune", old.autotune, now["autotune"])
    yield from _changed("Python", old.python, now["python"])
    for library in sorted({*old.libraries, *now["libraries"]}):
        yield from _changed(library, old.libraries.get(library, "none"), now["libraries"].get(library, "none"))
    if old.kernels != now["kernels"]:
        yield "the sources of the kernels"
    yield from _changed("measuring policy", old.measuring_policy, now["measuring_policy"])


def _gpu_changes(before: Host, root: Root, environ: Mapping[str, str]) -> Iterator[str]:
    if not before.gpus.devices and root.text("/proc/driver/nvidia/version") is None:
        return  # NVML takes long to start where it would be for nothing
    import pynvml

    from autotune.host.gpu import read_gpus

    now = read_gpus(environ, pynvml)
    yield from _changed("GPUs", *(", ".join(gpu.name for gpu in gpus.devices) or "none" for gpus in (before.gpus, now)))
    drivers = [gpus.driver_version for gpus in (before.gpus, now)]
    yield from _changed("NVIDIA driver", *(driver and driver.partition(".")[0] for driver in drivers))


def _changed(name: str, before: object, now: object) -> Iterator[str]:
    if before != now and before is not None and now is not None:
        yield f"{name} {before} -> {now}"


def _size(size_bytes: int | None) -> str | None:
    """In the steps in which the fingerprint tells memory apart; None where it is unknown."""
    return f"{rounded_memory_bytes(size_bytes) / 2**30:g} GiB" if size_bytes else None


def _list(cpus: Sequence[int]) -> str:
    """CPUs as the kernel lists them: ``0-3,8``."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and cpu == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], cpu]
        else:
            runs.append([cpu])
    return ",".join("-".join(map(str, run)) for run in runs)


def _others(key: Key, layers: Sequence[str]) -> list[str]:
    """Files of results for the same model and workload under other fingerprints, the newest first."""
    found: list[tuple[float, str]] = []
    for layer in layers:
        try:
            hosts = os.listdir(f"{layer}/{paths.LAYOUT}")[:_MOST_HOSTS]
        except OSError:
            continue
        for host in hosts:
            path = paths.entry_path(layer, host, key.model, key.workload)
            try:
                found.append((os.stat(path).st_mtime, path))
            except OSError:
                continue
    return [path for _, path in sorted(found, reverse=True)[:_MOST_RESULTS]]


def _host_in(path: str) -> Host | None:
    """The host that a saved result was measured on; None where the file can't be read."""
    try:
        return msgspec.json.decode(parse(read_file(path), path).result_json, type=_Saved).host
    except (BadEntry, OSError, msgspec.MsgspecError):
        return None
