"""Both fingerprints: what changes them, what doesn't, and what the loader pays for the cheap one."""

import subprocess
import sys

import msgspec
import pytest

from autotune.host import fingerprint
from autotune.host.detect import full_fingerprint
from autotune.records import Cache, Gpu

CHEAP_MODULES = {
    "autotune", "autotune.host", "autotune.host.cgroup", "autotune.host.fingerprint", "autotune.host.policy",
    "autotune.host.pseudofiles", "hashlib", "_hashlib", "_blake2", "__future__",
}  # fmt: skip


def replace(record, **changes):
    return msgspec.structs.replace(record, **changes)


@pytest.fixture
def host(lab):
    return lab.desktop(lab.v2_files("/a"), {"/sys/fs/cgroup/a/cpu.max": "800000 100000"}).detect()


@pytest.fixture
def desktop(lab):
    return lab.desktop(
        lab.v2_files("/a"),
        {"/sys/fs/cgroup/a/cpu.max": "800000 100000", "/sys/fs/cgroup/a/memory.max": "9000000000"},
    )


def cheap(simulated, environ=None, affinity=range(16), architecture="x86_64"):
    return fingerprint.cheap(simulated.folder, environ or {}, affinity, architecture)


def test_both_are_32_hexadecimal_digits(host):
    for digits in (host.fingerprint.full, host.fingerprint.cheap):
        assert len(digits) == 32
        assert int(digits, 16) >= 0


def test_full_ignores_the_label_and_what_changes_from_minute_to_minute(host):
    gpus = replace(host.gpus, devices=(GPU,))
    other = replace(
        host,
        label="renamed",
        operating_system="Linux 9",
        memory=replace(host.memory, available_bytes=1, usable_bytes=1, cgroup_used_bytes=7),
        gpus=replace(gpus, devices=(replace(GPU, memory_free_bytes=1),)),
        fingerprint=replace(host.fingerprint, cheap="x", full="y"),
        unknown=("anything",),
    )
    assert full_fingerprint(other) == full_fingerprint(replace(host, gpus=gpus))


GPU = Gpu(
    index=0, name="Synthetic GPU", uuid="GPU-1", memory_total_bytes=1 << 34, memory_free_bytes=1 << 33,
    compute_capability=(8, 9), mig=False, unusable_reason=None,
)  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        lambda host: {"cpu": replace(host.cpu, name="another")},
        lambda host: {"cpu": replace(host.cpu, isa=host.cpu.isa[1:])},
        lambda host: {"cpu": replace(host.cpu, cores=host.cpu.cores[1:])},
        lambda host: {"cpu": replace(host.cpu, caches=(Cache(level=1, size_bytes=1, shared_by_cpus=1),))},
        lambda host: {"limits": replace(host.limits, usable_threads=3)},
        lambda host: {"memory": replace(host.memory, total_bytes=host.memory.total_bytes * 2)},
        lambda host: {"memory": replace(host.memory, cgroup_limit_bytes=12345)},
        lambda host: {"numa_nodes": 4},
        lambda host: {"gpus": replace(host.gpus, devices=(GPU,))},
        lambda host: {"gpus": replace(host.gpus, driver_version="600.1")},
        lambda host: {"versions": replace(host.versions, kernels="another")},
        lambda host: {"versions": replace(host.versions, measuring_policy=99)},
        lambda host: {"versions": replace(host.versions, libraries={"numpy": "0"})},
    ],
)
def test_full_changes_with_everything_that_changes_the_answer(host, change):
    assert full_fingerprint(replace(host, **change(host))) != host.fingerprint.full


def test_full_heeds_the_driver_s_major_version_only(host):
    def with_driver(version):
        return full_fingerprint(replace(host, gpus=replace(host.gpus, driver_version=version)))

    assert with_driver("570.1") == with_driver("570.99")
    assert with_driver("570.1") != with_driver("580.1")


def test_full_heeds_whether_a_gpu_can_be_used(host):
    def with_reason(reason):
        devices = (replace(GPU, unusable_reason=reason),)
        return full_fingerprint(replace(host, gpus=replace(host.gpus, devices=devices)))

    assert with_reason(None) != with_reason("GPU is lost")


def test_cheap_is_the_same_for_the_same_host_in_any_order_of_its_mask(desktop):
    assert cheap(desktop, affinity=[3, 1, 2]) == cheap(desktop, affinity=[1, 2, 3])


@pytest.mark.parametrize(
    "files",
    [
        {"/proc/cpuinfo": "model name: another\n"},
        {"/sys/devices/system/cpu/online": "0-7\n"},
        {"/sys/devices/system/cpu/smt/active": "0\n"},
        {"/sys/fs/cgroup/a/cpu.max": "400000 100000"},
        {"/sys/fs/cgroup/a/cpuset.cpus.effective": "0-3"},
        {"/sys/fs/cgroup/a/memory.max": "8000000000"},
        {"/proc/meminfo": "MemTotal: 67108864 kB\n"},
        {"/proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu\n"},
        {"/proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t Synthetic GPU\n"},
        {"/proc/driver/nvidia/capabilities/gpu0/mig/gi1/access": "\n"},
    ],
    ids=lambda files: next(iter(files)),
)
def test_cheap_changes_with_every_source(desktop, files):
    before = cheap(desktop)
    assert cheap(desktop.write(files)) != before


def test_cheap_heeds_the_driver_s_major_version_only(desktop):
    line = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build\n"

    def with_driver(version):
        return cheap(desktop.write({"/proc/driver/nvidia/version": line.format(version)}))

    first = with_driver("570.86.15")
    assert with_driver("570.99.1") == first
    assert with_driver("580.1") != first


def test_cheap_ignores_what_the_driver_learns_about_a_gpu_when_it_is_first_used(desktop):
    path = "/proc/driver/nvidia/gpus/0000:01:00.0/information"
    before = cheap(desktop.write({path: "Model: Synthetic GPU\nGPU UUID: GPU-????????\n"}))
    assert cheap(desktop.write({path: "Model: Synthetic GPU\nGPU UUID: GPU-12345678\n"})) == before


def test_cheap_ignores_memory_that_a_new_kernel_reserves(desktop):
    before = cheap(desktop)
    assert cheap(desktop.write({"/proc/meminfo": "MemTotal: 33550000 kB\nMemAvailable: 1 kB\n"})) == before


def test_cheap_ignores_use_of_memory(desktop):
    before = cheap(desktop)
    assert cheap(desktop.write({"/sys/fs/cgroup/a/memory.current": "5000000\n"})) == before


def test_cheap_tells_an_empty_cuda_visible_devices_from_none(desktop):
    values = [{}, {"CUDA_VISIBLE_DEVICES": ""}, {"CUDA_VISIBLE_DEVICES": "0"}]
    assert len({cheap(desktop, environ) for environ in values}) == 3


def test_cheap_changes_with_mask_and_architecture(desktop):
    assert len({cheap(desktop), cheap(desktop, affinity=range(4)), cheap(desktop, architecture="aarch64")}) == 3


def test_cheap_of_the_running_system_is_stable():
    assert fingerprint.cheap() == fingerprint.cheap()


def test_cheap_without_masks_and_uname_falls_back(monkeypatch, lab):
    """As on Windows, which has neither."""
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.delattr("os.uname")
    assert len(fingerprint.cheap(lab.host().folder, {})) == 32


def test_the_running_interpreter_s_libraries_are_found_by_their_metadata_folders():
    import importlib.metadata

    libraries = fingerprint.versions_raw()["libraries"]
    assert {"numpy", "optuna", "threadpoolctl"} <= set(libraries)
    for library, version in libraries.items():
        assert importlib.metadata.version(library) == version


def test_the_first_folder_on_the_search_path_wins_as_it_does_for_imports(tmp_path, monkeypatch):
    for folder, version in (("one", "2.5"), ("two", "1.0")):
        (tmp_path / folder / "site-packages" / f"numpy-{version}.dist-info").mkdir(parents=True)
    (tmp_path / "one" / "site-packages" / "numpydoc-9.dist-info").mkdir()
    paths = [str(tmp_path / name / "site-packages") for name in ("one", "two", "missing")]
    monkeypatch.setattr(sys, "path", [*paths, str(tmp_path)])
    assert fingerprint.versions_raw()["libraries"] == {"numpy": "2.5"}


class Finder:
    """Finds an invented kernel package in a folder."""

    def __init__(self, folder):
        self.folder = folder

    def find_spec(self, name, path, target=None):
        import importlib.machinery

        specification = importlib.machinery.ModuleSpec(name, None, is_package=True)
        specification.submodule_search_locations = [str(self.folder)]
        return specification


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    folder = tmp_path / "ternary_kernels"
    (folder / "cpu").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "cpu" / "native.py").write_text("one")
    monkeypatch.setattr(sys, "meta_path", [Finder(folder)])
    return folder


def test_any_change_to_a_kernel_source_changes_the_digest(kernels):
    digests = {fingerprint.versions_raw()["kernels"]}
    (kernels / "cpu" / "native.py").write_text("two")
    digests.add(fingerprint.versions_raw()["kernels"])
    (kernels / "cpu" / "native.py").rename(kernels / "cpu" / "other.py")
    digests.add(fingerprint.versions_raw()["kernels"])
    (kernels / "kernel.cu").write_text("")
    digests.add(fingerprint.versions_raw()["kernels"])
    assert len(digests) == 4


def test_compiled_and_hidden_files_do_not_change_the_digest(kernels):
    before = fingerprint.versions_raw()["kernels"]
    (kernels / "__pycache__").mkdir()
    (kernels / "__pycache__" / "native.pyc").write_bytes(b"compiled")
    (kernels / ".native.py.swp").write_bytes(b"an editor's")
    assert fingerprint.versions_raw()["kernels"] == before


def test_kernels_that_cannot_be_read_or_found_are_unknown(monkeypatch, tmp_path):
    for finders in ([Finder(tmp_path / "archive.zip")], []):
        monkeypatch.setattr(sys, "meta_path", finders)
        assert fingerprint.versions_raw()["kernels"] == "unknown"


def test_the_loader_pays_for_no_heavy_module():
    """No typing, pathlib, msgspec, psutil, numpy or importlib.metadata on the loader's path."""
    program = (
        "import os, sys; before = set(sys.modules)\n"
        "from autotune.host import fingerprint; fingerprint.cheap()\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    # -S and -I: what a site-packages' .pth files import is not this module's doing.
    paths = [path for path in sys.path if path]
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = {paths!r}\n{program}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert set(run.stdout.split()) <= CHEAP_MODULES
