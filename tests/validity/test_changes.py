"""What is said of a host that has changed since a result was saved on it; the hosts here are made up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from autotune.host import fingerprint
from autotune.host.pseudofiles import Root
from autotune.records import Gpu, Gpus, Host, Result
from autotune.store import cache, paths
from autotune.store.entry import Key
from autotune.validity import changes
from autotune.validity.changes import describe_changes, explain_miss
from tests.builders import MODEL_DIGEST, build_host, build_result

GIB = 2**30


def write(root: Path, **files: str) -> Root:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Root(root)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """The host that `build_host` describes, as far as it is read."""
    folder = tmp_path / "root"
    return write(
        folder, proc__meminfo=f"MemTotal: {8 * GIB // 1024} kB\n", proc__cpuinfo="model name : Synthetic CPU\n"
    )


def as_now(host: Host) -> Host:
    """The same host with the software that runs this test."""
    now = fingerprint.versions_raw()
    return replace(host, versions=replace(host.versions, **now))


def differences(before: Host, root: Root, affinity: tuple[int, ...] | None = (0, 1)) -> list[str]:
    return list(describe_changes(before, root, affinity, {}))


def test_a_host_that_is_the_same_has_no_changes(root: Root) -> None:
    assert differences(as_now(build_host()), root) == []


def test_threads_memory_and_processor_are_told(root: Root, tmp_path: Path) -> None:
    write(
        tmp_path / "root",
        proc__cpuinfo="model name : Another CPU\n",
        proc__meminfo=f"MemTotal: {4 * GIB // 1024} kB\n",
        proc__self__cgroup="0::/\n",
        proc__self__mountinfo="1 0 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
    )
    (tmp_path / "root/sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "root/sys/fs/cgroup/memory.max").write_text(f"{2 * GIB}\n")
    (tmp_path / "root/sys/fs/cgroup/cpu.max").write_text("100000 100000\n")
    assert differences(as_now(build_host()), root) == [
        "CPU Synthetic CPU -> Another CPU",
        "usable threads 2 -> 1",
        "memory 8 GiB -> 4 GiB",
        "memory limit none -> 2 GiB",
    ]


def test_as_many_other_cpus_are_a_change(root: Root) -> None:
    """They may be siblings of one core, or on another node."""
    limits = replace(build_host().limits, affinity_cpus=(0, 1, 2, 5), usable_threads=4)
    before = as_now(build_host(limits=limits))
    assert differences(before, root, (3, 4, 5, 7)) == ["CPUs allowed 0-2,5 -> 3-5,7"]


def test_other_software_is_told_by_name(root: Root) -> None:
    before = as_now(build_host())
    libraries = {**before.versions.libraries, "numpy": "1.26.0", "triton": "0.1"}
    older = replace(
        before.versions, autotune="0.0.1", python="3.9.1", libraries=libraries, kernels="0" * 32, measuring_policy=0
    )
    now = fingerprint.versions_raw()
    assert differences(replace(before, versions=older), root) == [
        f"autotune 0.0.1 -> {now['autotune']}",
        f"Python 3.9.1 -> {now['python']}",
        f"numpy 1.26.0 -> {now['libraries']['numpy']}",
        f"triton 0.1 -> {now['libraries'].get('triton', 'none')}",
        "the sources of the kernels",
        f"measuring policy 0 -> {now['measuring_policy']}",
    ]


def test_what_is_not_known_is_not_said(tmp_path: Path) -> None:
    """Neither of a host that reveals nothing now, nor of one that did not then."""
    assert differences(as_now(build_host()), Root(tmp_path), None) == []
    memory = replace(build_host().memory, total_bytes=0)
    unknown = as_now(build_host(memory=memory, cpu=replace(build_host().cpu, name=None)))
    assert differences(unknown, write(tmp_path, proc__meminfo="MemTotal: 9 kB\n")) == []


def test_gpus_and_their_driver_are_told(root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By NVML, which is asked only where there is a GPU, or was one."""

    def gpus(name: str, driver: str) -> Gpus:
        gpu = Gpu(0, name, "GPU-1", 8 * GIB, 7 * GIB, (8, 9), mig=False, unusable_reason=None)
        return Gpus((gpu,), driver_version=driver, absent_reason=None)

    before = as_now(build_host(gpus=gpus("Synthetic GPU", "580.65")))
    absent = Gpus((), driver_version=None, absent_reason="no driver")
    monkeypatch.setattr("autotune.host.gpu.read_gpus", lambda *_: gpus("Larger GPU", "590.1"))
    assert differences(before, root) == ["GPUs Synthetic GPU -> Larger GPU", "NVIDIA driver 580 -> 590"]
    monkeypatch.setattr("autotune.host.gpu.read_gpus", lambda *_: gpus("Synthetic GPU", "580.99"))
    assert differences(before, root) == []
    monkeypatch.setattr("autotune.host.gpu.read_gpus", lambda *_: absent)
    assert differences(before, root) == ["GPUs Synthetic GPU -> none"]
    monkeypatch.setattr("autotune.host.gpu.read_gpus", lambda *_: gpus("Synthetic GPU", "580.65"))
    assert differences(as_now(build_host()), root) == []
    write(tmp_path / "root", proc__driver__nvidia__version="NVRM version: 580.65\n")
    assert differences(as_now(build_host()), root) == ["GPUs none -> Synthetic GPU"]


# Finding the result to compare with


@pytest.fixture
def layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AUTOTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return str(tmp_path / "cache")


KEY = Key("f" * 32, MODEL_DIGEST, "server")


def save(result: Result, age_s: float = 0.0) -> Path:
    path = Path(cache.write(result, {}))
    when = path.stat().st_mtime - age_s
    os.utime(path, (when, when))
    return path


def saved_on(label: str, fingerprint_digit: str, cpu: str, age_s: float = 0.0) -> Path:
    host = as_now(build_host(fingerprint_digit * 32, label=label))
    return save(build_result(host=replace(host, cpu=replace(host.cpu, name=cpu))), age_s)


def test_without_another_result_there_is_nothing_to_say(layer: str) -> None:
    assert explain_miss(KEY, (layer, "/nowhere")) is None
    save(build_result(model_digest="1" * 32))
    save(build_result(workload="chat"))
    assert explain_miss(KEY, (layer,)) is None


def test_the_newest_result_is_compared_with(layer: str) -> None:
    """Its host is named; here it is another one."""
    saved_on("older", "1", "Older CPU", age_s=60)
    saved_on("newer", "2", "Newer CPU")
    told = explain_miss(KEY, (layer,))
    assert told is not None
    assert told.startswith("the newest result is of newer, which differs: CPU Newer CPU -> ")


def test_a_result_of_a_host_of_this_name_goes_before_newer_ones(layer: str) -> None:
    saved_on(os.uname().nodename, "1", "Own CPU", age_s=60)
    saved_on("newer", "2", "Newer CPU")
    told = explain_miss(KEY, (layer,))
    assert told is not None
    assert told.startswith("which has changed since it was measured: CPU Own CPU -> ")


def test_a_change_that_no_field_tells_is_still_one(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    saved_on("other", "1", "CPU")
    monkeypatch.setattr(changes, "describe_changes", lambda *_: iter(()))
    told = explain_miss(KEY, (layer,))
    assert told == "the newest result is of other, which differs: a detail that has no name here"


def test_files_that_can_not_be_read_are_passed_over(layer: str) -> None:
    """Torn, no file at all, or without a host: what explains a miss must not be another one."""
    saved_on("good", "1", "Good CPU", age_s=60)
    torn = saved_on("torn", "2", "Torn CPU")
    torn.write_bytes(torn.read_bytes()[:-100])
    Path(paths.entry_path(layer, "3" * 32, KEY.model, KEY.workload)).mkdir(parents=True)
    strange = saved_on("strange", "4", "Strange CPU")
    strange.write_bytes(b"{}")
    told = explain_miss(KEY, (layer,))
    assert told is not None
    assert "Good CPU" in told
    assert torn.exists()  # setting it aside is for those who look for it


def test_of_very_many_results_a_few_are_read(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache on a network drive must not keep a program from starting."""
    for digit in "0123456789abc":
        saved_on("other", digit, "CPU")
    read = []
    monkeypatch.setattr(changes, "_host_in", lambda path: read.append(path))
    assert explain_miss(KEY, (layer,)) is None
    assert len(read) == 8


def test_a_system_without_affinity_or_names_is_no_error(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    saved_on("other", "1", "Other CPU")
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.delattr(os, "uname")
    told = explain_miss(KEY, (layer,))
    assert told is not None
    assert "usable threads" not in told
