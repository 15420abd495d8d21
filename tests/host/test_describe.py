"""The lines a person reads about a host. All hosts are synthetic."""

import msgspec

from autotune.host.describe import describe
from autotune.records import Gpu, Gpus, Kernel, Tier

KERNELS = (
    Kernel("native", "I2_S", "avx2", None),
    Kernel("native", "F16", "avx2", None),
    Kernel("amx", "I2_S", None, "this CPU has no amx_int8"),
    Kernel("numpy", "I2_S", None, None),
)


def lines(host, tier=None):
    pairs = describe(host, tier, KERNELS)
    assert all(label and value and "\n" not in value for label, value in pairs)
    return dict(pairs)


def test_desktop(lab):
    text = lines(lab.desktop(lab.v2_files("/a")).detect())
    assert text["CPU"] == "Synthetic Desktop (GenuineIntel, x86_64, alderlake)"
    assert text["Cores"] == "10 usable of 10 physical (6 performance, 4 efficiency), up to 5.80 GHz"
    assert text["Usable threads"] == "16 of 16 CPUs, decided by online CPUs"
    assert text["Caches"] == "L1 48 KiB per 2 CPUs, L2 2 MiB per 2 CPUs, L3 32 MiB per 16 CPUs"
    assert text["Memory"] == "24 GiB usable of 32 GiB, decided by what is available"
    assert text["cgroup"] == "v2, no CPU quota, no cpuset, no memory limit"
    assert text["GPU"] == "none: GPUs were not looked for"
    assert "Not revealed" not in text
    assert "Tier" not in text


def test_container(lab):
    host = lab.server(
        lab.v2_files("/a"),
        {
            "/sys/fs/cgroup/a/cpu.max": "250000 100000",
            "/sys/fs/cgroup/a/cpuset.cpus.effective": "0",
            "/sys/fs/cgroup/a/memory.max": f"{8 * lab.GIB}",
        },
    )
    text = lines(host.detect())
    assert text["cgroup"] == "v2, quota of 2.5 CPUs, cpuset of 1 CPU, memory limit 8 GiB (unknown used)"
    assert text["Usable threads"] == "1 of 64 CPUs, decided by cpuset"
    assert text["Memory"].endswith("decided by the cgroup")
    host.write({"/sys/fs/cgroup/a/memory.current": f"{lab.GIB}"})
    assert lines(host.detect())["cgroup"].endswith("memory limit 8 GiB (1 GiB used)")


def test_server_names_its_packages_and_what_it_hides(lab):
    text = lines(lab.server(lab.v2_files()).detect())
    assert text["Cores"] == "32 usable of 32 physical, in 2 packages"
    assert text["NUMA nodes"] == "2"
    assert text["Not revealed"] == "maximum CPU frequency, cache sizes"


def test_what_is_unknown_is_called_unknown(lab):
    text = lines(lab.host().detect())
    assert text["CPU"] == "unknown (unknown)"
    assert text["Instruction sets"] == text["Caches"] == text["Memory"] == text["NUMA nodes"] == "unknown"
    assert text["Cores"] == "1 usable of unknown physical"
    assert text["cgroup"] == "none found"


def test_gpus_are_listed_with_what_is_free_or_why_they_cannot_be_used(lab):
    good = Gpu(
        index=0, name="Synthetic GPU", uuid="GPU-1", memory_total_bytes=24 * lab.GIB, memory_free_bytes=20 * lab.GIB,
        compute_capability=(8, 9), mig=False, unusable_reason=None,
    )  # fmt: skip
    lost = msgspec.structs.replace(good, index=1, unusable_reason="GPU is lost")
    terse = msgspec.structs.replace(good, index=2, memory_free_bytes=None, compute_capability=None)
    host = lab.desktop().detect()
    gpus = Gpus(devices=(good, lost, terse), driver_version=None, absent_reason=None)
    text = lines(msgspec.structs.replace(host, gpus=gpus))
    assert text["GPU 0"] == "Synthetic GPU, compute capability 8.9, 20 GiB free of 24 GiB"
    assert text["GPU 1"] == "Synthetic GPU, not usable: GPU is lost"
    assert text["GPU 2"] == "Synthetic GPU"
    assert text["NVIDIA driver"] == "unknown"


def test_versions_and_fingerprints_are_shown_whole(lab):
    host = lab.desktop().detect()
    text = lines(host)
    assert host.fingerprint.full in text["Fingerprint"]
    assert host.fingerprint.cheap in text["Fingerprint"]
    assert f"numpy {host.versions.libraries['numpy']}" in text["Versions"]
    assert host.versions.kernels in text["Kernel sources"]


def test_a_measured_tier_is_shown_with_its_reason(lab):
    tier = Tier(name="High", reason="reading 60 GB/s allows it")
    assert lines(lab.desktop().detect(), tier)["Tier"] == "High: reading 60 GB/s allows it"


def test_kernels_are_listed_by_what_they_can_run_and_why_not(lab):
    text = lines(lab.desktop(lab.v2_files("/a")).detect())
    assert text["Kernel native"] == "I2_S, F16 (avx2)"
    assert text["Kernel amx"] == "I2_S (not here: this CPU has no amx_int8)"
    assert text["Kernel numpy"] == "I2_S (runs here)"
