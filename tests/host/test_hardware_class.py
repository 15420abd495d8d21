"""The hardware class: the same for equal hosts, another one where hardware or a limit differs."""

import re
import subprocess
import sys

import msgspec
import pytest

from autotune.host.hardware_class import hardware_class, rounded_gib, slug
from autotune.records import Cache, Gpu, Gpus
from tests.builders import build_host
from tests.hosts.synthetic.machines import MACHINES

GIB = 1 << 30
GPU = Gpu(0, "Synthetic GPU 24GB", "GPU-1", 24 * GIB, 20 * GIB, (8, 9), mig=False, unusable_reason=None)


def replace(record, **changes):
    return msgspec.structs.replace(record, **changes)


def with_gpus(host, *gpus, driver="570.86.15"):
    return replace(host, gpus=Gpus(tuple(gpus), driver, None))


@pytest.fixture
def host(lab):
    return with_gpus(lab.server(lab.v2_files()).detect(), GPU)


def test_it_can_be_read_and_is_fit_for_a_file_name(lab, host):
    assert re.fullmatch(r"genuineintel-64t-512g-synthetic-gpu-24gb-[0-9a-f]{8}", hardware_class(host))
    assert re.fullmatch(r"alderlake-16t-32g-cpu-[0-9a-f]{8}", hardware_class(lab.desktop().detect()))
    odd = replace(host, cpu=replace(host.cpu, microarchitecture="../µ arch/"))
    names = [replace(GPU, name=f"GPU {name} " + 20 * "Very Long Name ") for name in ("A", "B", "C")]
    assert re.fullmatch(r"[a-z0-9._-]{1,100}", hardware_class(with_gpus(odd, *names)))
    assert slug("BitNet/b1.58 2B_4T ") == "bitnet-b1.58-2b_4t"


def test_detecting_a_host_records_its_class(lab):
    host = lab.desktop().detect()
    assert host.fingerprint.hardware_class == hardware_class(host)


def test_a_recorded_host_s_own_class_is_no_part_of_it(host):
    """A result saved before there were classes gets the same as one saved now."""
    older = replace(host, fingerprint=replace(host.fingerprint, hardware_class=""))
    newer = replace(host, fingerprint=replace(host.fingerprint, hardware_class="another"))
    assert hardware_class(older) == hardware_class(newer)


@pytest.mark.parametrize(
    "change",
    [
        lambda host: {"label": "renamed", "operating_system": "Linux 9"},
        lambda host: {"versions": replace(host.versions, kernels="another", libraries={"numpy": "0"}, python="3.99")},
        lambda host: {"memory": replace(host.memory, available_bytes=1, usable_bytes=1, cgroup_used_bytes=7)},
        lambda host: {"memory": replace(host.memory, total_bytes=host.memory.total_bytes - 6 * GIB)},
        lambda host: {"memory": replace(host.memory, cgroup_limit_bytes=10**6 * GIB)},
        lambda host: {"gpus": replace(host.gpus, driver_version="570.124.6")},
        lambda host: {"gpus": replace(host.gpus, devices=(replace(GPU, index=3, uuid="GPU-2", memory_free_bytes=1),))},
        lambda host: {"gpus": replace(host.gpus, devices=(replace(GPU, memory_total_bytes=24 * GIB - 12 * 2**20),))},
        lambda host: {"gpus": replace(host.gpus, devices=(GPU, replace(GPU, index=1, unusable_reason="it is lost")))},
        lambda host: {"limits": replace(host.limits, quota_cpus=float(host.limits.usable_threads))},
        lambda host: {"fingerprint": replace(host.fingerprint, cheap="x", full="y"), "unknown": ("anything",)},
        lambda host: {"cpu": replace(host.cpu, cores=renumbered(host.cpu.cores))},
    ],
)
def test_equal_hosts_have_the_same(host, change):
    assert hardware_class(replace(host, **change(host))) == hardware_class(host)


def renumbered(cores):
    """The same cores under other numbers, their packages and NUMA nodes exchanged."""
    return tuple(
        replace(
            core, cpus=tuple(100 + cpu for cpu in core.cpus), package=1 - core.package, numa_node=7 - core.numa_node
        )
        for core in cores
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda host: {"cpu": replace(host.cpu, name="another")},
        lambda host: {"cpu": replace(host.cpu, vendor="another")},
        lambda host: {"cpu": replace(host.cpu, microarchitecture="another")},
        lambda host: {"cpu": replace(host.cpu, architecture="aarch64")},
        lambda host: {"cpu": replace(host.cpu, isa=host.cpu.isa[1:])},
        lambda host: {"cpu": replace(host.cpu, caches=(Cache(level=3, size_bytes=1 << 25, shared_by_cpus=64),))},
        lambda host: {"cpu": replace(host.cpu, logical_cpus=128)},
        lambda host: {"cpu": replace(host.cpu, physical_cores=64)},
        lambda host: {"cpu": replace(host.cpu, cores=host.cpu.cores[:-1])},
        lambda host: {"cpu": replace(host.cpu, cores=tuple(replace(core, package=0) for core in host.cpu.cores))},
        lambda host: {
            "cpu": replace(host.cpu, cores=tuple(replace(core, numa_node=core.cpus[0] // 8) for core in host.cpu.cores))
        },
        lambda host: {"cpu": replace(host.cpu, cores=(replace(host.cpu.cores[0], cpus=(0,)), *host.cpu.cores[1:]))},
        lambda host: {
            "cpu": replace(host.cpu, cores=(replace(host.cpu.cores[0], kind="efficiency"), *host.cpu.cores[1:]))
        },
        lambda host: {"limits": replace(host.limits, usable_threads=2)},
        lambda host: {"limits": replace(host.limits, quota_cpus=0.5)},
        lambda host: {"numa_nodes": 4},
        lambda host: {"memory": replace(host.memory, total_bytes=host.memory.total_bytes // 2)},
        lambda host: {"memory": replace(host.memory, cgroup_limit_bytes=8 * GIB)},
        lambda host: {"gpus": replace(host.gpus, driver_version="580.1")},
        lambda host: {"gpus": replace(host.gpus, devices=())},
        lambda host: {"gpus": replace(host.gpus, devices=(replace(GPU, unusable_reason="it is lost"),))},
        lambda host: {"gpus": replace(host.gpus, devices=(GPU, replace(GPU, index=1)))},
        lambda host: {"gpus": replace(host.gpus, devices=(replace(GPU, name="another"),))},
        lambda host: {"gpus": replace(host.gpus, devices=(replace(GPU, memory_total_bytes=None),))},
        lambda host: {"gpus": replace(host.gpus, devices=(replace(GPU, memory_total_bytes=16 * GIB),))},
        lambda host: {"gpus": replace(host.gpus, devices=(replace(GPU, compute_capability=(9, 0)),))},
        lambda host: {"gpus": replace(host.gpus, devices=(replace(GPU, mig=True),))},
    ],
)
def test_one_thing_that_differs_makes_another(host, change):
    assert hardware_class(replace(host, **change(host))) != hardware_class(host)


def test_gpus_count_in_the_order_in_which_configurations_number_them(host):
    """A layer on cuda:0 is on another GPU where they are plugged the other way round."""
    large, small = GPU, replace(GPU, name="Small GPU", memory_total_bytes=8 * GIB)
    assert hardware_class(with_gpus(host, large, small)) != hardware_class(with_gpus(host, small, large))
    assert "-2x-synthetic-gpu-24gb-" in hardware_class(with_gpus(host, GPU, GPU))


def test_the_driver_of_gpus_that_cannot_be_used_counts_for_nothing(host):
    lost = replace(GPU, unusable_reason="it is lost")
    found = {hardware_class(with_gpus(host, *gpus, driver=driver)) for gpus in ((), (lost,)) for driver in ("1", "2")}
    assert len(found) == 1


def test_quota_and_cpuset_of_the_same_width_on_one_host_differ_by_how_the_cores_lie(lab):
    """Two threads of a quota may run anywhere; two of a cpuset on those two."""
    quota = lab.server(lab.v2_files("/a"), {"/sys/fs/cgroup/a/cpu.max": "200000 100000"}).detect()
    (lab.folder / "sys/fs/cgroup/a/cpu.max").unlink()
    cores, siblings, elsewhere = (
        lab.server({"/sys/fs/cgroup/a/cpuset.cpus.effective": cpus}).detect() for cpus in ("0-1", "0,32", "16-17")
    )
    assert {host.limits.usable_threads for host in (quota, cores, siblings, elsewhere)} == {2}
    assert len({hardware_class(host) for host in (quota, cores, siblings)}) == 3
    assert hardware_class(cores) == hardware_class(elsewhere)


@pytest.mark.parametrize(
    ("reported_gib", "built_in_gib"),
    [(0.93, 1), (3.82, 4), (7.63, 8), (15.3, 16), (15.62, 16), (16.0, 16), (23.4, 24), (30.9, 32), (31.1, 32),
     (31.4, 32), (61.4, 64),
     (62.6, 64), (94.2, 96), (125.6, 128), (251.4, 256), (503.2, 512), (503.9, 512), (504.2, 512), (1007.0, 1024)],
)  # fmt: skip
def test_memory_is_what_is_built_in_whatever_firmware_and_kernel_keep(reported_gib, built_in_gib):
    assert rounded_gib(int(reported_gib * GIB)) == built_in_gib


def test_memory_that_is_not_known_is_none(lab):
    assert "-0g-" in hardware_class(replace(build_host(), memory=replace(build_host().memory, total_bytes=0)))


def test_synthetic_hosts_are_each_of_their_own_class():
    """None is like another."""
    classes = [hardware_class(machine.host) for machine in MACHINES]
    assert len(set(classes)) == len(classes) > 5


def test_importing_it_loads_nothing_beside_what_the_fingerprint_does():
    script = (
        "import sys; import autotune.host.fingerprint; before = set(sys.modules); import autotune.host.hardware_class;"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["autotune.host.hardware_class"]
