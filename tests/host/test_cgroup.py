"""cgroup limits on simulated hosts (synthetic trees in Linux's formats)."""

import pytest

from autotune.host.cgroup import Cgroup, throttled_s

V1_UNLIMITED = "9223372036854771712\n"


def test_without_cgroups_nothing_is_limited_and_the_version_is_unknown(lab):
    cgroup = Cgroup(lab.host().root)
    assert cgroup.version is None
    assert cgroup.quota_cpus() is None
    assert cgroup.cpuset_cpus() is None
    assert cgroup.memory_limit_bytes() is None
    assert cgroup.memory_use() == []
    assert cgroup.throttled_s() is None


def test_v2_the_tightest_quota_of_all_ancestors_counts(lab):
    host = lab.host(
        lab.v2_files("/machine.slice/vm.scope/job"),
        {
            "/sys/fs/cgroup/machine.slice/vm.scope/job/cpu.max": "800000 100000\n",
            "/sys/fs/cgroup/machine.slice/vm.scope/cpu.max": "300000 100000\n",
            "/sys/fs/cgroup/machine.slice/cpu.max": "max 100000\n",
        },
    )
    cgroup = Cgroup(host.root)
    assert cgroup.version == 2
    assert cgroup.quota_cpus() == 3.0


def test_v2_a_quota_of_max_is_no_quota(lab):
    host = lab.host(lab.v2_files("/a"), {"/sys/fs/cgroup/a/cpu.max": "max 100000\n"})
    assert Cgroup(host.root).quota_cpus() is None


def test_v2_cpuset_of_the_innermost_level_that_has_the_controller(lab):
    host = lab.host(
        lab.v2_files("/a/b"),
        {
            "/sys/fs/cgroup/cpuset.cpus.effective": "0-63\n",
            "/sys/fs/cgroup/a/cpuset.cpus.effective": "4-7,12\n",
        },
    )
    assert Cgroup(host.root).cpuset_cpus() == (4, 5, 6, 7, 12)


def test_v2_memory_limits_and_uses_of_every_level_less_droppable_file_pages(lab):
    host = lab.host(
        lab.v2_files("/pod/container"),
        {
            "/sys/fs/cgroup/pod/container/memory.max": "4000\n",
            "/sys/fs/cgroup/pod/container/memory.current": "1000\n",
            "/sys/fs/cgroup/pod/container/memory.stat": "anon 600\ninactive_file 300\nactive_file 100\n",
            "/sys/fs/cgroup/pod/memory.max": "5000\n",
            "/sys/fs/cgroup/pod/memory.current": "4500\n",
        },
    )
    cgroup = Cgroup(host.root)
    assert cgroup.memory_use() == [(4000, 700), (5000, 4500)]
    assert cgroup.memory_limit_bytes() == 4000


def test_v2_memory_high_counts_as_a_limit(lab):
    """Above it the kernel stalls every allocation: nothing useful runs there."""
    host = lab.host(
        lab.v2_files("/a"),
        {"/sys/fs/cgroup/a/memory.max": "9000\n", "/sys/fs/cgroup/a/memory.high": "7000\n"},
    )
    assert Cgroup(host.root).memory_use() == [(7000, None)]


def test_more_droppable_than_charged_is_no_negative_use(lab):
    """The two files are read one after the other, so they may disagree."""
    host = lab.host(
        lab.v2_files("/a"),
        {
            "/sys/fs/cgroup/a/memory.max": "9000\n",
            "/sys/fs/cgroup/a/memory.current": "100\n",
            "/sys/fs/cgroup/a/memory.stat": "inactive_file 400\n",
        },
    )
    assert Cgroup(host.root).memory_use() == [(9000, 0)]


def test_v1_nested_on_a_hybrid_host(lab):
    """v1 controllers beside an empty v2 hierarchy: v1 counts, each controller with its own path."""
    host = lab.host(
        lab.v1_files({"cpu": "/docker/c1/job", "cpuset": "/docker/c1", "memory": "/docker/c1"}),
        {
            "/sys/fs/cgroup/cpu/docker/c1/job/cpu.cfs_quota_us": "-1\n",
            "/sys/fs/cgroup/cpu/docker/c1/job/cpu.cfs_period_us": "100000\n",
            "/sys/fs/cgroup/cpu/docker/c1/cpu.cfs_quota_us": "250000\n",
            "/sys/fs/cgroup/cpu/docker/c1/cpu.cfs_period_us": "100000\n",
            "/sys/fs/cgroup/cpuset/docker/c1/cpuset.effective_cpus": "2-3\n",
            "/sys/fs/cgroup/cpuset/docker/c1/cpuset.cpus": "0-3\n",
            "/sys/fs/cgroup/memory/docker/c1/memory.limit_in_bytes": "6000\n",
            "/sys/fs/cgroup/memory/docker/c1/memory.usage_in_bytes": "2000\n",
            "/sys/fs/cgroup/memory/docker/c1/memory.stat": "inactive_file 1\ntotal_inactive_file 500\n",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes": V1_UNLIMITED,
        },
    )
    cgroup = Cgroup(host.root)
    assert cgroup.version == 1
    assert cgroup.quota_cpus() == 2.5
    assert cgroup.cpuset_cpus() == (2, 3)
    assert cgroup.memory_use() == [(6000, 1500)]


def test_v1_cpuset_of_kernels_without_an_effective_file(lab):
    host = lab.host(lab.v1_files({"cpuset": "/"}), {"/sys/fs/cgroup/cpuset/cpuset.cpus": "1,3\n"})
    assert Cgroup(host.root).cpuset_cpus() == (1, 3)


@pytest.mark.parametrize("unlimited", [V1_UNLIMITED, "9223372036854710272\n"], ids=["4K pages", "64K pages"])
def test_v1_the_largest_number_means_no_limit(lab, unlimited):
    host = lab.host(
        lab.v1_files({"memory": "/a"}),
        {
            "/sys/fs/cgroup/memory/a/memory.limit_in_bytes": unlimited,
            "/sys/fs/cgroup/memory/a/memory.stat": f"hierarchical_memory_limit {unlimited}",
        },
    )
    assert Cgroup(host.root).memory_limit_bytes() is None


def test_v1_a_limit_of_an_ancestor_outside_of_the_container_counts(lab):
    """memory.stat tells of it; its use can't be known."""
    host = lab.host(
        lab.v1_files({"memory": "/kubepods/pod/c"}, mounted={"memory": "/kubepods/pod/c"}),
        {
            "/sys/fs/cgroup/memory/memory.limit_in_bytes": V1_UNLIMITED,
            "/sys/fs/cgroup/memory/memory.stat": "hierarchical_memory_limit 5000\n",
        },
    )
    assert Cgroup(host.root).memory_use() == [(5000, None)]


@pytest.mark.parametrize(
    ("path", "mounted"),
    [
        ("/docker/abc", "/docker/abc"),  # the container's own cgroup is mounted
        ("/docker/abc", "/docker/other"),  # the path isn't below what is mounted
        ("/", "/"),  # a cgroup namespace
        ("/../../outside", "/"),  # a process moved out of its cgroup namespace
        ("/docker/abc", "/"),  # the host's path, but the mount shows only the container's level
    ],
)
def test_in_a_container_the_mount_root_is_read(lab, path, mounted):
    host = lab.host(lab.v2_files(path, mounted), {"/sys/fs/cgroup/cpu.max": "150000 100000\n"})
    assert Cgroup(host.root).quota_cpus() == 1.5


def test_a_mount_that_shows_the_cgroup_is_preferred_to_one_that_does_not(lab):
    host = lab.host(
        {
            "/proc/self/cgroup": "0::/a/b\n",
            "/proc/self/mountinfo": "30 1 0:26 /x /mnt/elsewhere rw - cgroup2 cgroup2 rw\n"
            "31 1 0:26 /a /mnt/with\\040blank rw shared:4 - cgroup2 cgroup2 rw\n",
            "/mnt/with blank/b/cpu.max": "400000 100000\n",
            "/mnt/elsewhere/cpu.max": "100000 100000\n",
        }
    )
    assert Cgroup(host.root).quota_cpus() == 4.0


def test_v1_controllers_that_are_not_mounted_leave_v2(lab):
    host = lab.host(
        {
            "/proc/self/cgroup": "3:cpu,cpuacct:/legacy\n0::/a\n",
            "/proc/self/mountinfo": "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
            "/sys/fs/cgroup/a/cpu.max": "200000 100000\n",
        }
    )
    cgroup = Cgroup(host.root)
    assert (cgroup.version, cgroup.quota_cpus()) == (2, 2.0)


@pytest.mark.parametrize("content", ["", "garbage", "100000", "x 100000", "100000 0", "-5 100000", "1 2 3"])
def test_a_malformed_quota_is_no_quota(lab, content):
    host = lab.host(lab.v2_files("/a"), {"/sys/fs/cgroup/a/cpu.max": content})
    assert Cgroup(host.root).quota_cpus() is None


@pytest.mark.parametrize("content", ["", "3-", "a-b", "1,,2", "-1"])
def test_a_malformed_cpuset_is_no_cpuset(lab, content):
    host = lab.host(lab.v2_files("/"), {"/sys/fs/cgroup/cpuset.cpus.effective": content})
    assert Cgroup(host.root).cpuset_cpus() is None


def test_malformed_membership_and_mounts_are_skipped(lab):
    host = lab.host(
        {
            "/proc/self/cgroup": "nonsense\n0::/a\n",
            "/proc/self/mountinfo": "nonsense\n1 2 - cgroup2\n30 1 0:26 / /cg rw - cgroup2 cgroup2 rw\n",
            "/cg/a/cpu.max": "100000 100000\n",
        }
    )
    assert Cgroup(host.root).quota_cpus() == 1.0


def test_throttled_time_is_summed_over_the_levels_with_a_quota_in_seconds(lab):
    """A parent's quota holds the process back as much as its own."""
    stat = "usage_usec 9\nnr_periods 5\nnr_throttled 2\nthrottled_usec {}\n"
    host = lab.host(
        lab.v2_files("/pod/c/free"),
        {
            "/sys/fs/cgroup/pod/c/free/cpu.stat": stat.format(7_000_000),
            "/sys/fs/cgroup/pod/c/cpu.max": "100000 100000\n",
            "/sys/fs/cgroup/pod/c/cpu.stat": stat.format(250_000),
            "/sys/fs/cgroup/pod/cpu.max": "150000 100000\n",
            "/sys/fs/cgroup/pod/cpu.stat": stat.format(1_000_000),
        },
    )
    assert throttled_s(host.folder) == pytest.approx(1.25)


def test_v1_throttled_time_is_in_nanoseconds(lab):
    host = lab.host(
        lab.v1_files({"cpu": "/a"}),
        {
            "/sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "100000\n",
            "/sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n",
            "/sys/fs/cgroup/cpu/a/cpu.stat": "nr_periods 1\nthrottled_time 1500000000\n",
        },
    )
    assert throttled_s(host.folder) == pytest.approx(1.5)


def test_a_quota_without_counters_leaves_the_throttled_time_unknown(lab):
    host = lab.host(lab.v2_files("/a"), {"/sys/fs/cgroup/a/cpu.max": "100000 100000\n"})
    assert throttled_s(host.folder) is None


def test_the_running_system_answers_without_error():
    """Whatever this machine has, reading it is safe and the figures make sense."""
    from autotune.host.pseudofiles import Root

    cgroup = Cgroup(Root())
    quota, limit = cgroup.quota_cpus(), cgroup.memory_limit_bytes()
    assert quota is None or quota > 0
    assert limit is None or limit > 0
    assert (throttled_s() is None) or quota is not None
