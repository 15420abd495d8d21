"""How the CPUs are arranged: cores and SMT siblings, packages, NUMA nodes, core kinds, caches.

Source: Linux, Documentation/ABI/stable/sysfs-devices-system-cpu and testing/sysfs-devices-system-cpu.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from autotune.host.pseudofiles import Root
from autotune.records import Cache, Core
from autotune.records.host import CoreKind

_CPUS = "/sys/devices/system/cpu"
_NODES = "/sys/devices/system/node"
_SIZE_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

# Below this share of the fastest core's capacity or frequency a core counts as an efficiency core. Turbo bins
# set cores of one kind up to a tenth apart; dense cores (Zen 5c: 0.65) and little ones (Cortex-A55: 0.5 and
# less) lie well below, the middle cores of phone chips above.
_EFFICIENCY_SHARE = 0.75


class Topology:
    """The arrangement of a host's CPUs, as far as /sys shows it.

    Args:
        root: The folder that stands for ``/``.
    """

    def __init__(self, root: Root) -> None:
        self._root = root
        self.online = root.cpu_list(f"{_CPUS}/online")
        """Logical CPUs online; None if unknown."""
        nodes = [name for name in root.entries(_NODES) if re.fullmatch(r"node\d+", name)]
        cpus_by_node = {int(name[4:]): root.cpu_list(f"{_NODES}/{name}/cpulist") for name in nodes}
        self._node_of = {cpu: node for node, cpus in cpus_by_node.items() for cpu in cpus or ()}
        self.numa_nodes = len(set(self._node_of.values())) or None
        """NUMA nodes that have CPUs; None if unknown."""

    def physical_cores(self) -> int | None:
        """Physical cores online on the machine, usable or not."""
        siblings = [self._siblings(cpu) for cpu in self.online or ()]
        return None if None in siblings else len(set(siblings)) or None

    def cores(self, usable: Sequence[int]) -> tuple[Core, ...]:
        """Physical cores with those of their CPUs that are ``usable``, in the order threads should be pinned.

        Performance before efficiency cores, one package and NUMA node after the other. A CPU whose siblings
        are unknown counts as a core of its own.
        """
        kinds = self._kinds(self.online or tuple(usable))
        grouped: dict[tuple[int, ...], list[int]] = {}
        for cpu in sorted(usable):
            grouped.setdefault(self._siblings(cpu) or (cpu,), []).append(cpu)
        cores = [self._core(tuple(cpus), kinds.get(cpus[0])) for cpus in grouped.values()]
        return tuple(sorted(cores, key=_pinning_key))

    def caches(self, cpu: int) -> tuple[Cache, ...]:
        """Data and unified caches that a CPU uses, level 1 first; none where /sys doesn't show them."""
        caches = []
        for index in self._root.entries(f"{_CPUS}/cpu{cpu}/cache"):
            folder = f"{_CPUS}/cpu{cpu}/cache/{index}"
            level = self._root.number(f"{folder}/level")
            size = _size_bytes(self._root.text(f"{folder}/size"))
            kind = (self._root.text(f"{folder}/type") or "").strip()
            if level is not None and size is not None and kind in ("Data", "Unified"):
                shared = self._root.cpu_list(f"{folder}/shared_cpu_list")
                caches.append(Cache(level=level, size_bytes=size, shared_by_cpus=len(shared) if shared else None))
        return tuple(sorted(caches, key=lambda cache: cache.level))

    def _core(self, cpus: tuple[int, ...], kind: CoreKind | None) -> Core:
        frequency_khz = self._root.number(f"{_CPUS}/cpu{cpus[0]}/cpufreq/cpuinfo_max_freq")
        return Core(
            cpus=cpus,
            package=self._root.number(f"{_CPUS}/cpu{cpus[0]}/topology/physical_package_id"),
            numa_node=self._node_of.get(cpus[0]),
            kind=kind,
            max_frequency_hz=None if frequency_khz is None else frequency_khz * 1000,
        )

    def _siblings(self, cpu: int) -> tuple[int, ...] | None:
        """Logical CPUs on the same physical core. ``thread_siblings_list`` is the name before Linux 5.3."""
        folder = f"{_CPUS}/cpu{cpu}/topology"
        return self._root.cpu_list(f"{folder}/core_cpus_list") or self._root.cpu_list(f"{folder}/thread_siblings_list")

    def _kinds(self, cpus: Sequence[int]) -> dict[int, CoreKind]:
        """Core kind per CPU; empty where all are of one kind or nothing says.

        All online CPUs are compared, also those this process may not use: with efficiency cores alone
        at hand, they are still that.
        """
        # Intel hybrid CPUs have one PMU per kind of core.
        performance = self._root.cpu_list("/sys/devices/cpu_core/cpus")
        efficient = (self._root.cpu_list(f"/sys/devices/{pmu}/cpus") for pmu in ("cpu_atom", "cpu_lowpower"))
        efficiency = [cpu for cpus_of_kind in efficient for cpu in cpus_of_kind or ()]
        if performance and efficiency:
            return {**dict.fromkeys(performance, "performance"), **dict.fromkeys(efficiency, "efficiency")}
        # Elsewhere the scheduler's view (Arm: from the device tree), and failing that the highest frequency.
        for name in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
            kinds = _split({cpu: self._root.number(f"{_CPUS}/cpu{cpu}/{name}") for cpu in cpus})
            if kinds:
                return kinds
        return {}


def pin_order(cores: Sequence[Core], threads: int) -> tuple[int, ...]:
    """Logical CPUs for a number of threads: one per physical core first, SMT siblings afterwards.

    Args:
        cores: Usable cores in the order of preference.
        threads: How many threads, from 1 to the number of CPUs in ``cores``.

    Raises:
        ValueError: ``threads`` is outside that range.
    """
    rounds = max((len(core.cpus) for core in cores), default=0)
    order = [core.cpus[turn] for turn in range(rounds) for core in cores if turn < len(core.cpus)]
    if not 1 <= threads <= len(order):
        raise ValueError(f"threads to pin: expected 1 to {len(order)} (usable CPUs), got {threads}")
    return tuple(order[:threads])


def _pinning_key(core: Core) -> tuple[bool, int, int, int]:
    def unknown_first(number: int | None) -> int:
        return -1 if number is None else number

    package, node = unknown_first(core.package), unknown_first(core.numa_node)
    return core.kind == "efficiency", package, node, core.cpus[0]


def _split(speeds: dict[int, int | None]) -> dict[int, CoreKind]:
    """Core kinds from one figure per CPU; empty if a figure is missing or none is far below the highest."""
    known = {cpu: speed for cpu, speed in speeds.items() if speed is not None}
    if not known or len(known) < len(speeds):
        return {}
    bar = _EFFICIENCY_SHARE * max(known.values())
    if min(known.values()) >= bar:
        return {}
    return {cpu: "performance" if speed >= bar else "efficiency" for cpu, speed in known.items()}


def _size_bytes(text: str | None) -> int | None:
    """A cache size as /sys writes it: ``48K``, ``2048K``, ``32M``."""
    match = re.fullmatch(r"(\d+)([KMG]?)", (text or "").strip())
    return int(match[1]) * _SIZE_UNITS.get(match[2], 1) if match else None
