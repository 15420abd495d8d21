"""`detect` end to end on simulated hosts (synthetic trees), and on the machine that runs the tests."""

import os
import platform

import msgspec
import psutil
import pytest

from autotune.host import fingerprint
from autotune.host.detect import detect
from autotune.host.system import System
from autotune.host.topology import pin_order
from autotune.records import Host


def pinned_to(count):
    """What the running system would say to a process whose affinity mask holds the first CPUs only."""
    return System("rack", "Linux 5.15", "x86_64", affinity=tuple(range(count)))


def test_desktop(lab):
    host = lab.desktop(lab.v2_files("/user.slice")).detect()
    assert host.cpu.name == "Synthetic Desktop"
    assert host.cpu.vendor == "GenuineIntel"
    assert (host.cpu.architecture, host.cpu.microarchitecture) == ("x86_64", "alderlake")
    assert host.cpu.isa == ("avx", "avx2", "avx_vnni", "f16c", "fma", "sse4_1", "ssse3")
    assert (host.cpu.logical_cpus, host.cpu.physical_cores) == (16, 10)
    assert (host.limits.usable_threads, host.limits.decided_by) == (16, "online CPUs")
    assert host.memory.total_bytes == 32 * lab.GIB
    assert host.memory.usable_bytes == host.memory.available_bytes == 24 * lab.GIB
    assert host.memory.decided_by == "available"
    assert host.gpus.absent_reason == "GPUs were not looked for"
    assert host.label == "desk"
    assert host.unknown == ()


def test_server_has_two_numa_nodes_and_its_matrix_extensions(lab):
    host = lab.server(lab.v2_files()).detect()
    assert host.numa_nodes == 2
    assert {"avx512_vnni", "amx_int8"} <= set(host.cpu.isa)
    assert host.unknown == ("maximum CPU frequency", "cache sizes")


def test_container_with_a_quota_of_2_of_64_cpus(lab):
    """Threads beyond the quota only take turns being throttled: 2 may be used though 64 are visible."""
    host = lab.server(
        lab.v2_files("/", mounted="/docker/abc"),
        {
            "/sys/fs/cgroup/cpu.max": "200000 100000\n",
            "/sys/fs/cgroup/memory.max": f"{8 * lab.GIB}\n",
            "/sys/fs/cgroup/memory.current": f"{3 * lab.GIB}\n",
            "/sys/fs/cgroup/memory.stat": f"inactive_file {lab.GIB}\n",
        },
    ).detect()
    limits, memory = host.limits, host.memory
    assert (limits.usable_threads, limits.decided_by, limits.quota_cpus) == (2, "quota", 2.0)
    assert len(limits.affinity_cpus) == 64
    assert pin_order(host.cpu.cores, limits.usable_threads) == (0, 1)
    assert (memory.cgroup_limit_bytes, memory.cgroup_used_bytes) == (8 * lab.GIB, 2 * lab.GIB)
    assert (memory.usable_bytes, memory.decided_by) == (6 * lab.GIB, "cgroup")


@pytest.mark.parametrize(("cpu_max", "threads"), [("50000 100000", 1), ("250000 100000", 2), ("6400000 100000", 64)])
def test_a_fraction_of_a_cpu_is_not_a_thread_but_one_always_remains(lab, cpu_max, threads):
    host = lab.server(lab.v2_files("/a"), {"/sys/fs/cgroup/a/cpu.max": cpu_max}).detect()
    assert host.limits.usable_threads == threads


def test_a_quota_as_wide_as_the_machine_decides_nothing(lab):
    host = lab.server(lab.v2_files("/a"), {"/sys/fs/cgroup/a/cpu.max": "6400000 100000"}).detect()
    assert host.limits.decided_by == "online CPUs"


def test_cpuset_narrower_than_affinity(lab):
    host = lab.server(lab.v2_files("/a"), {"/sys/fs/cgroup/a/cpuset.cpus.effective": "16-19,48-51"}).detect()
    assert (host.limits.usable_threads, host.limits.decided_by) == (8, "cpuset")
    assert [core.cpus for core in host.cpu.cores] == [(16, 48), (17, 49), (18, 50), (19, 51)]
    assert {core.package for core in host.cpu.cores} == {1}


def test_a_mask_that_the_kernel_cut_to_the_cpuset_was_decided_by_the_cpuset(lab):
    simulated = lab.server(lab.v2_files("/a"), {"/sys/fs/cgroup/a/cpuset.cpus.effective": "0-3"})
    host = detect(simulated.folder, {}, pinned_to(4))
    assert (host.limits.usable_threads, host.limits.decided_by) == (4, "cpuset")


def test_affinity_narrower_than_the_machine(lab):
    simulated = lab.server(lab.v2_files("/a"))
    host = detect(simulated.folder, {}, pinned_to(3))
    assert (host.limits.usable_threads, host.limits.decided_by) == (3, "affinity")
    assert host.limits.cpuset_cpus is None


def test_a_cpuset_that_shares_no_cpu_with_the_mask_is_not_obeyed(lab):
    simulated = lab.server(lab.v2_files("/a"), {"/sys/fs/cgroup/a/cpuset.cpus.effective": "40-43"})
    host = detect(simulated.folder, {}, pinned_to(2))
    assert (host.limits.usable_threads, host.limits.decided_by) == (2, "affinity")


def test_v1_nested(lab):
    host = lab.server(
        lab.v1_files({"cpu": "/lxc/c", "cpuset": "/lxc/c", "memory": "/lxc/c"}),
        {
            "/sys/fs/cgroup/cpu/lxc/cpu.cfs_quota_us": "1200000\n",
            "/sys/fs/cgroup/cpu/lxc/cpu.cfs_period_us": "100000\n",
            "/sys/fs/cgroup/cpuset/lxc/c/cpuset.cpus": "0-7\n",
            "/sys/fs/cgroup/memory/lxc/memory.limit_in_bytes": f"{2 * lab.GIB}\n",
            "/sys/fs/cgroup/memory/lxc/memory.usage_in_bytes": f"{lab.GIB}\n",
        },
    ).detect()
    assert host.limits.cgroup_version == 1
    assert (host.limits.usable_threads, host.limits.quota_cpus) == (8, 12.0)
    assert host.memory.usable_bytes == lab.GIB


def test_an_ancestor_with_a_wider_limit_may_leave_less_memory(lab):
    """The record names the tightest limit, which is stable; what may be used heeds every level."""
    host = lab.server(
        lab.v2_files("/pod/c"),
        {
            "/sys/fs/cgroup/pod/c/memory.max": f"{4 * lab.GIB}",
            "/sys/fs/cgroup/pod/c/memory.current": "0",
            "/sys/fs/cgroup/pod/memory.max": f"{8 * lab.GIB}",
            "/sys/fs/cgroup/pod/memory.current": f"{7 * lab.GIB}",
        },
    ).detect()
    assert (host.memory.cgroup_limit_bytes, host.memory.cgroup_used_bytes) == (4 * lab.GIB, 0)
    assert host.memory.usable_bytes == lab.GIB


def test_a_cgroup_over_its_limit_leaves_no_memory(lab):
    host = lab.server(
        lab.v2_files("/c"),
        {"/sys/fs/cgroup/c/memory.high": "1000", "/sys/fs/cgroup/c/memory.current": "5000"},
    ).detect()
    assert host.memory.usable_bytes == 0


def test_arm_board(lab):
    host = lab.board(lab.v2_files()).detect()
    assert host.cpu.name == "Synthetic Arm Board"
    assert host.cpu.vendor == "ARM"
    assert host.cpu.isa == ("asimd", "asimddp", "asimdhp")
    assert pin_order(host.cpu.cores, 4) == (4, 5, 6, 7)
    assert "NUMA nodes" in host.unknown


@pytest.mark.parametrize(
    ("cpuinfo", "name", "vendor"),
    [
        ("processor: 0\nCPU implementer: 0xc0\nCPU part: 0xac3\n", "Ampere part 0xac3", "Ampere"),
        ("processor: 0\nCPU implementer: 0xfe\nCPU part: 0x001\n", "0xfe part 0x001", "0xfe"),
        ("processor: 0\nCPU part: 0x001\n", "Arm part 0x001", None),
        ("\nprocessor: 0\nhart: 1\n", None, None),
    ],
)
def test_an_arm_processor_without_a_name_is_called_by_its_part(lab, cpuinfo, name, vendor):
    host = lab.host({"/proc/cpuinfo": cpuinfo}).detect()
    assert (host.cpu.name, host.cpu.vendor) == (name, vendor)


def test_nothing_readable_leaves_what_the_system_says(lab):
    """A host without /proc and /sys: limits are unknown, and every gap is named."""
    system = System(
        "mac", "Darwin 24.0", "arm64", online_cpus=8, physical_cores=8, cpu_name="Synthetic M", cpu_vendor="Apple",
        microarchitecture="m1", cpu_features=frozenset({"asimd", "asimddp", "irrelevant"}),
        memory_total_bytes=16 << 30, memory_available_bytes=9 << 30,
    )  # fmt: skip
    host = lab.host(system=system).detect()
    assert (host.cpu.name, host.cpu.vendor, host.cpu.isa) == ("Synthetic M", "Apple", ("asimd", "asimddp"))
    assert (host.cpu.logical_cpus, host.cpu.physical_cores, len(host.cpu.cores)) == (8, 8, 8)
    assert (host.limits.usable_threads, host.limits.decided_by) == (8, "online CPUs")
    assert host.limits.cgroup_version is None
    assert host.memory.usable_bytes == 9 << 30
    assert set(host.unknown) >= {
        "CPU packages", "maximum CPU frequency", "cache sizes", "NUMA nodes", "cgroup limits on CPU time and memory"
    }  # fmt: skip


def test_a_host_that_says_nothing_at_all_still_gets_one_thread(lab):
    host = lab.host().detect()
    assert (host.limits.usable_threads, host.limits.affinity_cpus) == (1, (0,))
    assert host.memory.usable_bytes == 0
    assert {"CPU name", "instruction sets", "number of CPUs online", "size of memory"} <= set(host.unknown)


def test_without_a_mask_the_online_cpus_count(lab):
    host = lab.host({"/sys/devices/system/cpu/online": "0-2"}).detect()
    assert host.limits.affinity_cpus == (0, 1, 2)


def test_nothing_of_the_running_system_leaks_into_a_simulated_host(lab):
    host = lab.host().detect()
    assert (host.label, host.operating_system, host.cpu.architecture) == ("unknown",) * 3
    assert host.cpu.microarchitecture is None


def test_unreadable_and_binary_files_are_no_error(lab):
    """A folder in a file's place, bytes that are no text, numbers that are none."""
    simulated = lab.desktop(lab.v2_files("/a"))
    (simulated.folder / "sys/fs/cgroup/a/cpu.max").mkdir(parents=True)
    (simulated.folder / "proc/cpuinfo").write_bytes(b"\xff\xfe\x00model name: \xff\n")
    (simulated.folder / "proc/meminfo").write_text("MemTotal: much\nMemAvailable 5\n")
    host = simulated.detect()
    assert host.limits.quota_cpus is None
    assert host.memory.total_bytes == 0


def test_a_host_survives_its_json_form(lab):
    host = lab.desktop(lab.v2_files()).detect()
    assert msgspec.json.decode(msgspec.json.encode(host), type=Host) == host


def test_this_machine():
    host = detect()
    assert host.label
    assert host.operating_system.startswith(platform.system())
    assert host.cpu.architecture == platform.machine()
    assert set(host.limits.affinity_cpus) == os.sched_getaffinity(0)
    assert 1 <= host.limits.usable_threads <= len(host.limits.affinity_cpus)
    assert sum(len(core.cpus) for core in host.cpu.cores) >= host.limits.usable_threads
    assert host.memory.total_bytes == psutil.virtual_memory().total
    assert 0 < host.memory.usable_bytes <= host.memory.available_bytes <= host.memory.total_bytes
    assert host.versions.libraries["numpy"] == __import__("numpy").__version__
    assert host.fingerprint.cheap == fingerprint.cheap()


def test_what_psutil_and_archspec_cannot_say_is_unknown(monkeypatch):
    def fail(*arguments, **options):
        raise OSError("no such file: /proc")

    monkeypatch.setattr("autotune.host.system.psutil.virtual_memory", fail)
    monkeypatch.setattr("autotune.host.system.archspec.cpu.host", fail)
    system = System.live()
    assert (system.memory_total_bytes, system.memory_available_bytes) == (None, None)
    assert (system.microarchitecture, system.cpu_features) == (None, frozenset())
