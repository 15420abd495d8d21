"""The memory that a process may use now, on simulated hosts."""

import sys

import pytest

from autotune.host.memory import usable_now_bytes
from autotune.host.pseudofiles import Root


def status(anonymous_gib, shared_gib=0):
    fields = {"VmRSS": 99, "RssAnon": anonymous_gib, "RssFile": 50, "RssShmem": shared_gib}
    return {"/proc/self/status": "".join(f"{name}:\t{size * 2**20} kB\n" for name, size in fields.items())}


def test_it_is_what_is_available_and_what_this_process_holds(lab):
    """Anonymous and shared memory: pages of files, as of a model that is mapped, are available anyway."""
    host = lab.host({"/proc/meminfo": lab.meminfo(32, 10)}, status(3, 1))
    assert usable_now_bytes(host.root) == 14 * lab.GIB


def test_a_cgroup_that_leaves_less_counts(lab):
    files = {
        "/sys/fs/cgroup/memory.max": f"{8 * lab.GIB}\n",
        "/sys/fs/cgroup/memory.current": f"{6 * lab.GIB}\n",
        "/sys/fs/cgroup/memory.stat": f"inactive_file {lab.GIB}\n",
    }
    host = lab.host({"/proc/meminfo": lab.meminfo(32, 10)}, lab.v2_files(), files)
    assert usable_now_bytes(host.root) == 3 * lab.GIB
    assert usable_now_bytes(host.write(status(2)).root) == 5 * lab.GIB


@pytest.mark.parametrize(
    ("version", "folder", "current", "limit", "prefix"),
    [
        (2, "/sys/fs/cgroup", "memory.current", "memory.max", ""),
        (1, "/sys/fs/cgroup/memory", "memory.usage_in_bytes", "memory.limit_in_bytes", "total_"),
    ],
)
def test_a_model_that_is_mapped_takes_nothing_from_itself(lab, version, folder, current, limit, prefix):
    """Its pages are charged to the cgroup and active, but they are a file's."""
    in_cgroup = {
        f"{folder}/{limit}": f"{8 * lab.GIB}\n",
        f"{folder}/{current}": f"{6 * lab.GIB}\n",
        f"{folder}/memory.stat": f"{prefix}inactive_file {lab.GIB}\n{prefix}active_file {3 * lab.GIB}\n",
    }
    files = lab.v2_files() if version == 2 else lab.v1_files({"memory": "/"})
    host = lab.host({"/proc/meminfo": lab.meminfo(32, 10)}, files, in_cgroup)
    assert usable_now_bytes(host.root) == 6 * lab.GIB


def test_without_meminfo_it_is_unknown(lab):
    assert usable_now_bytes(lab.host(status(2)).root) is None


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_what_this_process_takes_shows_in_its_status():
    """On this very machine."""
    before = Root().status_bytes("RssAnon")
    block = bytearray(64 << 20)
    block[::1024] = bytes(len(block) // 1024)  # every page is written to
    assert Root().status_bytes("RssAnon") - before > 48 << 20


def test_a_file_that_says_something_else_is_unknown(tmp_path):
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "status").write_text("RssAnon: much\nName: x\n")
    assert Root(tmp_path).status_bytes("RssAnon") is None
    assert Root(tmp_path).status_bytes("RssShmem") is None
