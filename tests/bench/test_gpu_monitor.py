"""What NVML says of a GPU. The NVML here is a fake with one invented device; the errors it raises are pynvml's own."""

from __future__ import annotations

from types import SimpleNamespace

import pynvml
import pytest

from autotune.bench.gpu_monitor import GpuMonitor
from autotune.bench.messages import Clocks

MEGAHERTZ = {pynvml.NVML_CLOCK_SM: 1980, pynvml.NVML_CLOCK_MEM: 2619}
THROTTLED = (
    pynvml.nvmlClocksThrottleReasonGpuIdle
    | pynvml.nvmlClocksThrottleReasonSwPowerCap
    | pynvml.nvmlClocksThrottleReasonHwThermalSlowdown
)


class FakeNvml:
    """As much of pynvml as is used; what is in ``errors`` raises its code instead."""

    def __init__(self, **errors):
        self.errors = errors
        self.open = 0

    def answer(self, name, value):
        if name in self.errors:
            raise pynvml.NVMLError(self.errors[name])
        return value

    def nvmlInit(self):  # noqa: N802
        self.answer("init", None)
        self.open += 1

    def nvmlShutdown(self):  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        if uuid not in ("GPU-a", "MIG-a"):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return uuid

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return ["GPU-a", "GPU-b"][index]

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle):  # noqa: N802
        return self.answer("board", "GPU-a")

    def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802
        return self.answer("memory", SimpleNamespace(free={"GPU-a": 70, "GPU-b": 60, "MIG-a": 9}[handle]))

    def nvmlDeviceGetUtilizationRates(self, handle):  # noqa: N802
        if handle.startswith("MIG"):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return self.answer("busy", SimpleNamespace(gpu=37, memory=5))

    def nvmlDeviceGetClockInfo(self, handle, kind):  # noqa: N802
        if handle.startswith("MIG"):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return self.answer("clock", MEGAHERTZ[kind])

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle):  # noqa: N802
        return self.answer("reasons", THROTTLED)


class OldNvml(FakeNvml):
    """As before driver 535: what throttles had another name."""

    nvmlDeviceGetCurrentClocksEventReasons = property()  # noqa: N815

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):  # noqa: N802
        return pynvml.nvmlClocksThrottleReasonHwSlowdown


UNKNOWN = Clocks(None, None, ())
CLOCKS = Clocks(1.98e9, 2.619e9, ("sw_power_cap", "hw_thermal_slowdown"))


@pytest.mark.parametrize(
    ("visible", "free_bytes", "busy", "clocks"),
    [
        ("GPU-a", 70, 0.37, CLOCKS),
        ("1", 60, 0.37, CLOCKS),
        ("MIG-a", 9, None, CLOCKS),
        ("GPU-z", None, None, UNKNOWN),
        (None, None, None, UNKNOWN),
    ],
    ids=["by UUID", "by index", "a MIG instance, with its board's clocks", "unknown to NVML", "not looked for"],
)
def test_a_gpu_tells_its_free_memory_how_busy_it_is_and_its_clocks(visible, free_bytes, busy, clocks):
    """That it is idle is no reason to worry about its clocks."""
    monitor = GpuMonitor(visible, FakeNvml())
    assert (monitor.free_bytes(), monitor.busy(), monitor.clocks()) == (free_bytes, busy, clocks)


@pytest.mark.parametrize("failing", ["memory", "busy", "clock", "reasons"])
def test_what_a_gpu_does_not_tell_is_unknown_and_the_rest_is_told(failing):
    monitor = GpuMonitor("GPU-a", FakeNvml(**{failing: pynvml.NVML_ERROR_NOT_SUPPORTED}))
    clocks = monitor.clocks()
    assert (monitor.free_bytes() is None) == (failing == "memory")
    assert (monitor.busy() is None) == (failing == "busy")
    assert (clocks.sm_hz is None) == (clocks.memory_hz is None) == (failing == "clock")
    assert (clocks.throttle_reasons == ()) == (failing == "reasons")


def test_older_drivers_are_asked_by_the_older_name():
    assert GpuMonitor("GPU-a", OldNvml()).clocks().throttle_reasons == ("hw_slowdown",)


def test_a_mig_instance_whose_board_is_hidden_has_no_clocks():
    monitor = GpuMonitor("MIG-a", FakeNvml(board=pynvml.NVML_ERROR_NO_PERMISSION))
    assert monitor.clocks() == UNKNOWN
    assert monitor.free_bytes() == 9


def test_nvml_is_shut_down_once():
    nvml = FakeNvml()
    monitor = GpuMonitor("GPU-a", nvml)
    assert nvml.open == 1
    monitor.close()
    monitor.close()
    assert nvml.open == 0


def test_without_nvml_nothing_is_known():
    nvml = FakeNvml(init=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    monitor = GpuMonitor("GPU-a", nvml)
    assert (monitor.free_bytes(), monitor.busy(), monitor.clocks()) == (None, None, UNKNOWN)
    monitor.close()
    assert nvml.open == 0


def test_the_real_library_never_raises():
    monitor = GpuMonitor("GPU-which-nobody-has")
    assert (monitor.free_bytes(), monitor.busy(), monitor.clocks()) == (None, None, UNKNOWN)
    monitor.close()
