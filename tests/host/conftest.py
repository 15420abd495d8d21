"""Simulated hosts: /proc and /sys trees laid out in a temporary folder, with what the running system would say.

All of it is synthetic. The layout, file names and number formats are Linux's; the hosts are made up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from autotune.host.detect import detect
from autotune.host.pseudofiles import Root
from autotune.host.system import System
from autotune.records import Host

Files = dict[str, str]

GIB = 1 << 30
V2_MOUNT = "30 23 0:26 {mounted} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "{number} 25 0:{number} {mounted} /sys/fs/cgroup/{name} rw - cgroup cgroup rw,{name}\n"
X86_FLAGS = "fpu sse2 ssse3 sse4_1 fma f16c avx avx2 avx_vnni"


def cpuinfo(name: str = "Synthetic CPU", flags: str = X86_FLAGS) -> str:
    processor = f"vendor_id\t: GenuineIntel\nmodel name\t: {name}\nflags\t\t: {flags}\n"
    return f"processor\t: 0\n{processor}\nprocessor\t: 1\nmodel name\t: must not be read\n"


def meminfo(total_gib: float, available_gib: float) -> str:
    sizes = (int(gib * GIB) // 1024 for gib in (total_gib, available_gib))
    return "MemTotal:  {:>12} kB\nMemFree:  1 kB\nMemAvailable: {:>9} kB\n".format(*sizes)


def cpu_files(
    cpu: int,
    siblings: str,
    package: int = 0,
    *,
    max_khz: int | None = None,
    capacity: int | None = None,
    caches: Iterable[tuple[int, str, str, str]] = (),
) -> Files:
    """One CPU's folder in /sys; ``caches`` are (level, type, size, CPUs that share it)."""
    folder = f"/sys/devices/system/cpu/cpu{cpu}"
    files = {
        f"{folder}/topology/core_cpus_list": f"{siblings}\n",
        f"{folder}/topology/physical_package_id": f"{package}\n",
    }
    if max_khz is not None:
        files[f"{folder}/cpufreq/cpuinfo_max_freq"] = f"{max_khz}\n"
    if capacity is not None:
        files[f"{folder}/cpu_capacity"] = f"{capacity}\n"
    for index, (level, kind, size, shared) in enumerate(caches):
        names = {"level": level, "type": kind, "size": size, "shared_cpu_list": shared}
        files |= {f"{folder}/cache/index{index}/{name}": f"{value}\n" for name, value in names.items()}
    return files


def v2_files(path: str = "/", mounted: str = "/") -> Files:
    return {"/proc/self/cgroup": f"0::{path}\n", "/proc/self/mountinfo": V2_MOUNT.format(mounted=mounted)}


def v1_files(paths: dict[str, str], mounted: dict[str, str] | None = None) -> Files:
    """v1 hierarchies, one per controller, with the empty v2 hierarchy of a hybrid host beside them."""
    memberships = "".join(f"{number}:{name}:{path}\n" for number, (name, path) in enumerate(paths.items(), 1))
    roots = mounted or {}
    mounts = "".join(
        V1_MOUNT.format(number=40 + number, mounted=roots.get(name, "/"), name=name)
        for number, name in enumerate(paths)
    )
    unified = "60 25 0:60 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    return {"/proc/self/cgroup": f"{memberships}0::/\n", "/proc/self/mountinfo": mounts + unified}


@dataclass(frozen=True)
class Simulation:
    """A simulated host."""

    folder: Path
    system: System
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def root(self) -> Root:
        return Root(self.folder)

    def write(self, files: Files) -> Simulation:
        for path, content in files.items():
            target = self.folder / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content)
        return self

    def detect(self) -> Host:
        return detect(self.folder, self.environ, self.system)


def desktop() -> tuple[Files, System]:
    """Six P-cores with SMT (CPUs 0-11) and four E-cores (12-15); two P-cores have a higher turbo bin."""
    files = {
        "/proc/cpuinfo": cpuinfo("Synthetic Desktop"),
        "/proc/meminfo": meminfo(32, 24),
        "/sys/devices/system/cpu/online": "0-15\n",
        "/sys/devices/cpu_core/cpus": "0-11\n",
        "/sys/devices/cpu_atom/cpus": "12-15\n",
        "/sys/devices/system/node/node0/cpulist": "0-15\n",
    }
    caches = [(1, "Data", "48K", "0-1"), (1, "Instruction", "32K", "0-1"), (2, "Unified", "2048K", "0-1")]
    for cpu in range(12):
        first = cpu // 2 * 2
        files |= cpu_files(
            cpu,
            f"{first}-{first + 1}",
            max_khz=5_800_000 if cpu < 4 else 5_500_000,
            caches=[*caches, (3, "Unified", "32M", "0-15")] if cpu == 0 else (),
        )
    for cpu in range(12, 16):
        files |= cpu_files(cpu, str(cpu), max_khz=4_300_000)
    return files, System("desk", "Linux 6.12", "x86_64", affinity=tuple(range(16)), microarchitecture="alderlake")


def server() -> tuple[Files, System]:
    """Two packages of 16 cores with SMT, siblings 32 apart, one NUMA node each; no cpufreq, as in many VMs."""
    files = {
        "/proc/cpuinfo": cpuinfo("Synthetic Server", f"{X86_FLAGS} avx512f avx512_vnni amx_int8"),
        "/proc/meminfo": meminfo(512, 500),
        "/sys/devices/system/cpu/online": "0-63\n",
        "/sys/devices/system/node/node0/cpulist": "0-15,32-47\n",
        "/sys/devices/system/node/node1/cpulist": "16-31,48-63\n",
        # Memory without CPUs (CXL): nothing can be pinned there.
        "/sys/devices/system/node/node2/cpulist": "\n",
    }
    for cpu in range(64):
        core = cpu % 32
        files |= cpu_files(cpu, f"{core},{core + 32}", package=core // 16)
    return files, System("rack", "Linux 5.15", "x86_64", affinity=tuple(range(64)))


def board() -> tuple[Files, System]:
    """An Arm board: four little cores (CPUs 0-3) and four big ones (4-7), as the device tree describes them."""
    features = "fp asimd evtstrm aes crc32 atomics fphp asimdhp asimddp"
    files = {
        "/proc/cpuinfo": f"processor\t: 0\nBogoMIPS\t: 48.00\nFeatures\t: {features}\n"
        "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd05\n\nprocessor\t: 1\n",
        "/proc/device-tree/model": "Synthetic Arm Board\0",
        "/proc/meminfo": meminfo(8, 6),
        "/sys/devices/system/cpu/online": "0-7\n",
    }
    for cpu in range(8):
        files |= cpu_files(
            cpu, str(cpu), max_khz=1_800_000 if cpu < 4 else 2_400_000, capacity=530 if cpu < 4 else 1024
        )
    return files, System("board", "Linux 6.1", "aarch64", affinity=tuple(range(8)), microarchitecture="aarch64")


class Lab:
    """Lays out simulated hosts, and hands test modules the parts to make them of."""

    GIB = GIB
    cpuinfo = staticmethod(cpuinfo)
    meminfo = staticmethod(meminfo)
    cpu_files = staticmethod(cpu_files)
    v1_files = staticmethod(v1_files)
    v2_files = staticmethod(v2_files)

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def host(self, *parts: Files, system: System | None = None, environ: dict[str, str] | None = None) -> Simulation:
        self.folder.mkdir(exist_ok=True)
        simulation = Simulation(self.folder, system or System(), environ or {})
        for files in parts:
            simulation.write(files)
        return simulation

    def desktop(self, *parts: Files) -> Simulation:
        files, system = desktop()
        return self.host(files, *parts, system=system)

    def server(self, *parts: Files) -> Simulation:
        files, system = server()
        return self.host(files, *parts, system=system)

    def board(self, *parts: Files) -> Simulation:
        files, system = board()
        return self.host(files, *parts, system=system)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "host")
