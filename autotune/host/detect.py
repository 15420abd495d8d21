"""`detect`: everything about the host that bears on the answer, without timing anything."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from autotune.host import fingerprint
from autotune.host.cgroup import Cgroup
from autotune.host.cpu import read_cpu
from autotune.host.gpu import read_gpus
from autotune.host.hardware_class import hardware_class
from autotune.host.limits import read_limits, usable_cpus
from autotune.host.memory import read_memory
from autotune.host.pseudofiles import Root
from autotune.host.system import System
from autotune.host.topology import Topology
from autotune.records import Fingerprint, Host, Versions

_LIVE_ROOT = Path("/")


def detect(root: Path = _LIVE_ROOT, environ: Mapping[str, str] = os.environ, system: System | None = None) -> Host:
    """Find out what this process may use of this host.

    Never raises for what a host lacks or hides: that is None in the record, and in words in ``unknown``.

    Args:
        root: The folder that stands for ``/``; another one holds the /proc and /sys of a simulated host.
        environ: The environment variables of this process.
        system: What is no file. None: ask the running system, or under another root, unknown.
    """
    if system is None:
        system = System.live() if root == _LIVE_ROOT else System()
    files = Root(root)
    cgroup = Cgroup(files)
    topology = Topology(files)
    online = len(topology.online) if topology.online else system.online_cpus
    affinity = system.affinity or topology.online or tuple(range(online or 1))
    limits = read_limits(cgroup, affinity, online)
    host = Host(
        label=system.hostname,
        operating_system=system.operating_system,
        cpu=read_cpu(files, system, topology, usable_cpus(affinity, limits.cpuset_cpus)),
        limits=limits,
        memory=read_memory(files, cgroup, system),
        numa_nodes=topology.numa_nodes,
        gpus=read_gpus(environ, system.nvml),
        versions=msgspec.convert(fingerprint.versions_raw(), Versions),
        fingerprint=Fingerprint(full="", cheap=fingerprint.cheap(root, environ, affinity, system.architecture)),
    )
    return msgspec.structs.replace(
        host,
        fingerprint=Fingerprint(full_fingerprint(host), host.fingerprint.cheap, hardware_class(host)),
        unknown=_unknown(host),
    )


def full_fingerprint(host: Host) -> str:
    """Digest what changes the answer on a host: 32 hexadecimal digits.

    That is the CPU and its topology, thread and memory limits, the GPUs, their driver's major version, and
    the software's versions. The hostname, the kernel's version, memory that happens to be free and the
    existing fingerprint are no part of it.
    """
    gpus = host.gpus
    decisive = {
        "cpu": host.cpu,
        "limits": host.limits,
        "numa_nodes": host.numa_nodes,
        "memory_bytes": fingerprint.rounded_memory_bytes(host.memory.total_bytes),
        "memory_limit_bytes": host.memory.cgroup_limit_bytes,
        "gpus": [
            (gpu.name, gpu.uuid, gpu.memory_total_bytes, gpu.compute_capability, gpu.unusable_reason is None)
            for gpu in gpus.devices
        ],
        "driver": gpus.driver_version.partition(".")[0] if gpus.driver_version else None,
        "versions": host.versions,
    }
    return fingerprint.digest(msgspec.json.encode(decisive, order="sorted"))


def _unknown(host: Host) -> tuple[str, ...]:
    """What the host doesn't reveal, in words."""
    cpu = host.cpu
    cores = cpu.cores
    gaps = (
        (cpu.name is None, "CPU name"),
        (not cpu.isa, "instruction sets"),
        (cpu.logical_cpus is None, "number of CPUs online"),
        (cpu.physical_cores is None, "physical cores and SMT siblings"),
        (any(core.package is None for core in cores), "CPU packages"),
        (any(core.max_frequency_hz is None for core in cores), "maximum CPU frequency"),
        (not cpu.caches, "cache sizes"),
        (host.numa_nodes is None, "NUMA nodes"),
        (host.limits.cgroup_version is None, "cgroup limits on CPU time and memory"),
        (host.memory.total_bytes == 0, "size of memory"),
        (host.versions.kernels == "unknown", "version of the kernels"),
    )
    return tuple(words for missing, words in gaps if missing)
