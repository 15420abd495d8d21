"""GPUs as NVML lists them. The NVML here is a fake with invented devices; the errors it raises are pynvml's own."""

import os
from types import SimpleNamespace

import pynvml
import pytest

from autotune.host.gpu import free_now_bytes, read_gpus

GIB = 1 << 30


def device(uuid, *, name="Synthetic GPU", free=70, total=80, capability=(9, 0), mode=0, mig=None, errors=None):
    """One GPU. ``mig``: its instances, None if it has no MIG mode. ``errors``: NVML error codes by property."""
    return SimpleNamespace(
        uuid=uuid, name=name, memory=SimpleNamespace(total=total * GIB, free=free * GIB, used=(total - free) * GIB),
        capability=capability, mode=mode, mig=mig, errors=errors or {},
    )  # fmt: skip


class FakeNvml:
    """As much of pynvml as is used, over invented devices; ``None`` stands for a device that can't be opened."""

    def __init__(self, *devices, init=None, count=None, version=None, shutdown=None):
        self.devices = devices
        self.errors = {"init": init, "count": count, "version": version, "shutdown": shutdown}
        self.open = 0

    def _raise(self, call):
        if self.errors[call] is not None:
            raise pynvml.NVMLError(self.errors[call])

    def nvmlInit(self):  # noqa: N802
        self._raise("init")
        self.open += 1

    def nvmlShutdown(self):  # noqa: N802
        self.open -= 1
        self._raise("shutdown")

    def nvmlSystemGetDriverVersion(self):  # noqa: N802
        self._raise("version")
        return "570.86.15"

    def nvmlDeviceGetCount(self):  # noqa: N802
        self._raise("count")
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        if self.devices[index] is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return self.devices[index]

    @staticmethod
    def _property(name):
        def read(handle):
            if name in handle.errors:
                raise pynvml.NVMLError(handle.errors[name])
            return getattr(handle, name)

        return staticmethod(read)

    nvmlDeviceGetName = _property("name")  # noqa: N815
    nvmlDeviceGetUUID = _property("uuid")  # noqa: N815
    nvmlDeviceGetMemoryInfo = _property("memory")  # noqa: N815
    nvmlDeviceGetCudaComputeCapability = _property("capability")  # noqa: N815
    nvmlDeviceGetComputeMode = _property("mode")  # noqa: N815

    def nvmlDeviceGetMigMode(self, handle):  # noqa: N802
        if handle.mig is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [pynvml.NVML_DEVICE_MIG_ENABLE if handle.mig != "off" else 0, 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle):  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle, index):  # noqa: N802
        if index >= len(handle.mig):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return handle.mig[index]

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        return next(device for device in self.devices if device is not None and device.uuid == uuid)

    nvmlDeviceGetComputeRunningProcesses = _property("processes")  # noqa: N815


def names(gpus):
    return [gpu.uuid for gpu in gpus.devices]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "no NVIDIA driver is installed (NVML library not found)"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "the NVIDIA driver is installed but not loaded"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "NVML can't be used: Insufficient Permissions"),
        (
            pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
            "NVML can't be used: RM has detected an NVML/RM version mismatch.",
        ),
    ],
)
def test_without_nvml_the_reason_is_given(code, reason):
    gpus = read_gpus({}, FakeNvml(init=code))
    assert (gpus.devices, gpus.driver_version, gpus.absent_reason) == ((), None, reason)


def test_the_real_library_never_raises():
    """On a machine without a driver it gives its reason; on one with GPUs it lists them."""
    gpus = read_gpus({}, pynvml)
    assert bool(gpus.devices) == (gpus.absent_reason is None)


def test_without_a_library_gpus_are_not_looked_for():
    assert read_gpus({}, None).absent_reason == "GPUs were not looked for"


def test_free_memory_is_reported_beside_total_memory():
    gpus = read_gpus({}, FakeNvml(device("GPU-a", free=12, total=24, capability=(8, 9))))
    (gpu,) = gpus.devices
    assert (gpu.memory_free_bytes, gpu.memory_total_bytes) == (12 * GIB, 24 * GIB)
    assert (gpu.index, gpu.name, gpu.uuid) == (0, "Synthetic GPU", "GPU-a")
    assert gpu.compute_capability == (8, 9)
    assert (gpu.mig, gpu.unusable_reason) == (False, None)
    assert gpus.driver_version == "570.86.15"


@pytest.mark.parametrize("shutdown", [None, pynvml.NVML_ERROR_UNKNOWN])
def test_nvml_is_always_shut_down(shutdown):
    for nvml in (
        FakeNvml(device("GPU-a"), shutdown=shutdown),
        FakeNvml(None, shutdown=shutdown),
        FakeNvml(count=pynvml.NVML_ERROR_UNKNOWN, shutdown=shutdown),
    ):
        read_gpus({}, nvml)
        assert nvml.open == 0


def test_a_count_that_fails_is_a_reason():
    gpus = read_gpus({}, FakeNvml(count=pynvml.NVML_ERROR_NO_PERMISSION))
    assert gpus.absent_reason == "NVML can't list GPUs: Insufficient Permissions"
    assert gpus.driver_version == "570.86.15"


def test_a_driver_without_devices_is_a_reason():
    assert read_gpus({}, FakeNvml()).absent_reason == "the NVIDIA driver lists no GPU"


def test_an_unreadable_driver_version_is_unknown():
    gpus = read_gpus({}, FakeNvml(device("GPU-a"), version=pynvml.NVML_ERROR_UNKNOWN))
    assert gpus.driver_version is None
    assert names(gpus) == ["GPU-a"]


def test_a_lost_gpu_is_listed_with_its_reason_beside_the_good_one():
    gpus = read_gpus({}, FakeNvml(None, device("GPU-b")))
    assert [gpu.unusable_reason for gpu in gpus.devices] == ["GPU is lost", None]
    assert [gpu.index for gpu in gpus.devices] == [0, 1]
    assert gpus.absent_reason is None


def test_a_gpu_that_fails_while_it_is_read_is_unusable():
    gpus = read_gpus({}, FakeNvml(device("GPU-a", errors={"memory": pynvml.NVML_ERROR_RESET_REQUIRED})))
    assert gpus.devices[0].unusable_reason == "GPU requires restart"
    assert gpus.devices[0].memory_free_bytes is None


def test_a_property_that_a_gpu_does_not_have_is_unknown_not_a_fault():
    """GPUs that share the host's memory, for example, don't report any of their own."""
    code = pynvml.NVML_ERROR_NOT_SUPPORTED
    broken = {"name": code, "memory": code, "capability": code, "mode": code}
    gpu = read_gpus({}, FakeNvml(device("GPU-a", errors=broken))).devices[0]
    assert (gpu.name, gpu.memory_total_bytes, gpu.compute_capability) == ("NVIDIA GPU", None, None)
    assert gpu.unusable_reason is None


def test_a_prohibited_compute_mode_makes_a_gpu_unusable():
    gpus = read_gpus({}, FakeNvml(device("GPU-a", mode=pynvml.NVML_COMPUTEMODE_PROHIBITED)))
    assert "compute mode" in gpus.devices[0].unusable_reason


def test_mig_instances_are_the_devices_of_a_gpu_in_mig_mode():
    instances = [device("MIG-1", name="Synthetic 1g.10gb", free=9, total=10), device("MIG-2", free=19, total=20)]
    gpus = read_gpus({}, FakeNvml(device("GPU-a", mig="off"), device("GPU-b", mig=instances)))
    assert names(gpus) == ["GPU-a", "MIG-1", "MIG-2"]
    assert [gpu.mig for gpu in gpus.devices] == [False, True, True]
    assert [gpu.index for gpu in gpus.devices] == [0, 1, 1]
    assert gpus.devices[1].memory_total_bytes == 10 * GIB
    assert gpus.devices[1].compute_capability == (9, 0)


@pytest.mark.parametrize(
    ("visible", "usable"),
    [
        ("0,1", {"cuda:0": "GPU-a"}),
        ("1,0", {"cuda:0": "MIG-1"}),
        ("MIG-2,MIG-1", {"cuda:0": "MIG-2"}),
        ("1", {"cuda:0": "MIG-1"}),
        ("0,2", {"cuda:0": "GPU-a", "cuda:1": "GPU-c"}),
    ],
)
def test_a_process_uses_whole_gpus_or_one_mig_instance(visible, usable):
    """The others are listed with the reason."""
    nvml = FakeNvml(device("GPU-a"), device("GPU-b", mig=[device("MIG-1"), device("MIG-2")]), device("GPU-c"))
    gpus = read_gpus({"CUDA_VISIBLE_DEVICES": visible}, nvml)
    assert {name: gpu.uuid for name, gpu in gpus.usable.items()} == usable
    for gpu in gpus.devices:
        assert (gpu.uuid in usable.values()) != ("CUDA shows a process" in (gpu.unusable_reason or ""))


def test_mig_mode_without_instances_makes_a_gpu_unusable():
    gpus = read_gpus({}, FakeNvml(device("GPU-a", mig=[])))
    assert gpus.devices[0].unusable_reason == "in MIG mode, but has no MIG instance"


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("0", ["GPU-aa1"]),
        ("1,0", ["MIG-x1", "MIG-x2", "GPU-aa1"]),
        (" 2 , 0", ["GPU-ab3", "GPU-aa1"]),
        ("0,0", ["GPU-aa1"]),
        ("0,2,-1,1", ["GPU-aa1", "GPU-ab3"]),
        ("0,9,2", ["GPU-aa1"]),
        ("GPU-ab", ["GPU-ab3"]),
        ("GPU-aa2", ["MIG-x1", "MIG-x2"]),
        ("MIG-x2,GPU-aa1", ["MIG-x2", "GPU-aa1"]),
    ],
)
def test_cuda_visible_devices_selects_and_orders(visible, expected):
    """Indices, unambiguous UUID prefixes and MIG UUIDs; the first invalid entry ends the list."""
    nvml = FakeNvml(device("GPU-aa1"), device("GPU-aa2", mig=[device("MIG-x1"), device("MIG-x2")]), device("GPU-ab3"))
    gpus = read_gpus({"CUDA_VISIBLE_DEVICES": visible}, nvml)
    assert names(gpus) == expected
    assert gpus.absent_reason is None


@pytest.mark.parametrize("visible", ["", "-1", "7", "GPU-zz", "GPU-aa", "MIG-", "NoDevFiles", "²"])
def test_a_value_that_names_no_device_hides_all(visible):
    nvml = FakeNvml(device("GPU-aa1"), device("GPU-aa2"))
    gpus = read_gpus({"CUDA_VISIBLE_DEVICES": visible}, nvml)
    assert gpus.devices == ()
    assert gpus.absent_reason == f"hidden by CUDA_VISIBLE_DEVICES={visible!r}"


# The memory that is free now


def process(pid, gib):
    return SimpleNamespace(pid=pid, usedGpuMemory=None if gib is None else gib * GIB)


def test_what_this_process_holds_on_a_gpu_is_free_for_it():
    """What others hold isn't; nor what NVML doesn't tell of, as in a container."""
    own = device("GPU-a", free=10)
    own.processes = [process(os.getpid(), 3), process(os.getpid() + 1, 20)]
    hidden = device("GPU-b", free=11)
    hidden.processes = [process(os.getpid(), None)]
    refusing = device("GPU-c", free=12, errors={"processes": pynvml.NVML_ERROR_NO_PERMISSION})
    nvml = FakeNvml(own, hidden, refusing)
    assert free_now_bytes({}, nvml) == {"cuda:0": 13 * GIB, "cuda:1": 11 * GIB, "cuda:2": 12 * GIB}
    assert nvml.open == 0


def test_gpus_that_can_not_be_read_are_left_out():
    """No driver, no such GPU, or one that doesn't tell its memory: unknown, not empty."""
    assert free_now_bytes({}, FakeNvml(init=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)) == {}
    assert free_now_bytes({}, FakeNvml(None)) == {}
    silent = device(None, errors={"memory": pynvml.NVML_ERROR_NOT_SUPPORTED})
    unnamed = device(None, free=5)
    assert free_now_bytes({}, FakeNvml(silent, unnamed)) == {"cuda:1": 5 * GIB}
