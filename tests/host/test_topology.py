"""Cores, packages, NUMA nodes, core kinds and caches on simulated hosts (synthetic trees)."""

import pytest

from autotune.host.topology import Topology, pin_order
from autotune.records import Cache, Core


def test_desktop_p_cores_come_first_each_with_its_smt_siblings(lab):
    cores = Topology(lab.desktop().root).cores(range(16))
    assert [core.cpus for core in cores] == [
        (0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11), (12,), (13,), (14,), (15,)
    ]  # fmt: skip
    assert [core.kind for core in cores] == ["performance"] * 6 + ["efficiency"] * 4
    assert {core.numa_node for core in cores} == {0}
    assert cores[0].max_frequency_hz == 5_800_000_000


def test_e_cores_alone_are_still_e_cores(lab):
    """A process confined to them is compared with the whole machine."""
    cores = Topology(lab.desktop().root).cores([12, 13])
    assert [core.kind for core in cores] == ["efficiency", "efficiency"]


def test_a_sibling_that_may_not_be_used_is_left_out_of_its_core(lab):
    cores = Topology(lab.desktop().root).cores([1, 2, 3])
    assert [core.cpus for core in cores] == [(1,), (2, 3)]


def test_server_cores_go_package_by_package(lab):
    topology = Topology(lab.server().root)
    cores = topology.cores(range(64))
    assert [core.cpus for core in cores] == [(core, core + 32) for core in range(32)]
    assert [core.package for core in cores] == [0] * 16 + [1] * 16
    assert [core.numa_node for core in cores] == [0] * 16 + [1] * 16
    assert {core.kind for core in cores} == {None}
    assert {core.max_frequency_hz for core in cores} == {None}


def test_packages_are_kept_together_where_the_kernel_numbers_cpus_across_them(lab):
    files = {"/sys/devices/system/cpu/online": "0-3"}
    for cpu in range(4):
        files |= lab.cpu_files(cpu, str(cpu), package=cpu % 2)
    cores = Topology(lab.host(files).root).cores(range(4))
    assert [core.cpus[0] for core in cores] == [0, 2, 1, 3]


def test_numa_nodes_are_those_with_cpus(lab):
    assert Topology(lab.server().root).numa_nodes == 2


def test_physical_cores_count_the_machine_not_what_is_usable(lab):
    assert Topology(lab.server().root).physical_cores() == 32
    assert Topology(lab.desktop().root).physical_cores() == 10


def test_arm_capacity_tells_big_from_little_cores(lab):
    cores = Topology(lab.board().root).cores(range(8))
    assert [core.cpus[0] for core in cores] == [4, 5, 6, 7, 0, 1, 2, 3]
    assert [core.kind for core in cores] == ["performance"] * 4 + ["efficiency"] * 4


@pytest.mark.parametrize(
    ("slow_khz", "kinds"),
    [
        (5_300_000, {None}),  # a turbo bin
        (3_300_000, {"performance", "efficiency"}),  # dense cores
    ],
)
def test_frequency_tells_core_kinds_only_where_it_differs_by_more_than_a_turbo_bin(lab, slow_khz, kinds):
    files = {"/sys/devices/system/cpu/online": "0-3"}
    for cpu in range(4):
        # All capacities equal: kernels that don't model this CPU write 1024 everywhere.
        files |= lab.cpu_files(cpu, str(cpu), max_khz=5_700_000 if cpu < 2 else slow_khz, capacity=1024)
    cores = Topology(lab.host(files).root).cores(range(4))
    assert {core.kind for core in cores} == kinds


def test_a_figure_missing_for_one_cpu_leaves_core_kinds_unknown(lab):
    files = {"/sys/devices/system/cpu/online": "0-1"}
    files |= lab.cpu_files(0, "0", max_khz=5_700_000) | lab.cpu_files(1, "1")
    assert {core.kind for core in Topology(lab.host(files).root).cores(range(2))} == {None}


def test_siblings_under_the_name_of_older_kernels(lab):
    files = {
        f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": "0,2\n" if cpu % 2 == 0 else "1,3\n"
        for cpu in range(4)
    }
    assert [core.cpus for core in Topology(lab.host(files).root).cores(range(4))] == [(0, 2), (1, 3)]


def test_nothing_readable_makes_every_cpu_a_core_of_unknown_place(lab):
    topology = Topology(lab.host().root)
    unknown = {"package": None, "numa_node": None, "kind": None, "max_frequency_hz": None}
    assert topology.cores([0, 1]) == (Core(cpus=(0,), **unknown), Core(cpus=(1,), **unknown))
    assert topology.online is None
    assert topology.physical_cores() is None
    assert topology.numa_nodes is None
    assert topology.caches(0) == ()


def test_physical_cores_are_unknown_if_one_cpu_hides_its_siblings(lab):
    files = {"/sys/devices/system/cpu/online": "0-1", **lab.cpu_files(0, "0")}
    assert Topology(lab.host(files).root).physical_cores() is None


def test_caches_hold_data_level_by_level(lab):
    assert Topology(lab.desktop().root).caches(0) == (
        Cache(level=1, size_bytes=48 << 10, shared_by_cpus=2),
        Cache(level=2, size_bytes=2 << 20, shared_by_cpus=2),
        Cache(level=3, size_bytes=32 << 20, shared_by_cpus=16),
    )


def test_a_cache_without_a_readable_size_is_left_out(lab):
    files = lab.cpu_files(0, "0", caches=[(1, "Data", "32K", ""), (2, "Unified", "big", "0")])
    assert Topology(lab.host(files).root).caches(0) == (Cache(level=1, size_bytes=32 << 10, shared_by_cpus=None),)


def test_pinning_takes_every_physical_core_before_any_smt_sibling(lab):
    cores = Topology(lab.desktop().root).cores(range(16))
    assert pin_order(cores, 1) == (0,)
    assert pin_order(cores, 8) == (0, 2, 4, 6, 8, 10, 12, 13)
    assert pin_order(cores, 16) == (0, 2, 4, 6, 8, 10, 12, 13, 14, 15, 1, 3, 5, 7, 9, 11)


@pytest.mark.parametrize("threads", [0, -1, 17])
def test_pinning_more_threads_than_cpus_or_none_is_an_error(lab, threads):
    cores = Topology(lab.desktop().root).cores(range(16))
    with pytest.raises(ValueError, match=rf"expected 1 to 16 \(usable CPUs\), got {threads}"):
        pin_order(cores, threads)


def test_pinning_without_cores_is_an_error():
    with pytest.raises(ValueError, match="expected 1 to 0"):
        pin_order((), 1)
