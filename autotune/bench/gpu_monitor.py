"""What NVML says of one GPU while a worker uses it: free memory, how busy it is, its clocks. None where it doesn't."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pynvml

from autotune.bench.messages import Clocks

_T = TypeVar("_T")

_REASONS = {
    pynvml.nvmlClocksThrottleReasonApplicationsClocksSetting: "applications_clocks_setting",
    pynvml.nvmlClocksThrottleReasonSwPowerCap: "sw_power_cap",
    pynvml.nvmlClocksThrottleReasonHwSlowdown: "hw_slowdown",
    pynvml.nvmlClocksThrottleReasonSyncBoost: "sync_boost",
    pynvml.nvmlClocksThrottleReasonSwThermalSlowdown: "sw_thermal_slowdown",
    pynvml.nvmlClocksThrottleReasonHwThermalSlowdown: "hw_thermal_slowdown",
    pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown: "hw_power_brake_slowdown",
    pynvml.nvmlClocksThrottleReasonDisplayClockSetting: "display_clock_setting",
}
"""Bits that say why clocks are below what they could be; not that the GPU is idle. Source: nvml.h."""


class GpuMonitor:
    """Asks NVML about a GPU or a MIG instance; what it has no answer to is None, never an error.

    Args:
        visible: The GPU, by UUID or by its index in PCI order; None: nothing is known of it.
        nvml: The module ``pynvml``, or one with its functions.
    """

    def __init__(self, visible: str | None, nvml: Any = pynvml) -> None:
        self._nvml = nvml
        self._handle: Any = None
        self._board: Any = None
        """The physical GPU, which alone has clocks."""
        self._open = visible is not None and self._succeeds("nvmlInit")
        if visible is not None and self._open:
            by_uuid = not visible.isdigit()
            self._handle = (
                self._ask("nvmlDeviceGetHandleByUUID", visible)
                if by_uuid
                else self._ask("nvmlDeviceGetHandleByIndex", int(visible))
            )
            self._board = self._handle
            if visible.startswith("MIG-") and self._handle is not None:
                self._board = self._ask("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", self._handle)

    def close(self) -> None:
        """Let go of NVML."""
        if self._open:
            self._ask("nvmlShutdown")
            self._open = False

    def free_bytes(self) -> int | None:
        """Memory that is free now."""
        return self._of(self._handle, "nvmlDeviceGetMemoryInfo", lambda memory: int(memory.free))

    def busy(self) -> float | None:
        """Share of the last second or less in which it was at work, 0 to 1; a MIG instance's isn't known."""
        return self._of(self._handle, "nvmlDeviceGetUtilizationRates", lambda rates: rates.gpu / 100)

    def clocks(self) -> Clocks:
        """Clocks now, and why they aren't higher."""
        reasons = self._of(self._board, "nvmlDeviceGetCurrentClocksEventReasons", int)
        if reasons is None:  # its name before driver 535
            reasons = self._of(self._board, "nvmlDeviceGetCurrentClocksThrottleReasons", int)
        return Clocks(
            sm_hz=self._clock_hz(pynvml.NVML_CLOCK_SM),
            memory_hz=self._clock_hz(pynvml.NVML_CLOCK_MEM),
            throttle_reasons=tuple(name for bit, name in _REASONS.items() if (reasons or 0) & bit),
        )

    def _clock_hz(self, kind: int) -> float | None:
        return self._of(self._board, "nvmlDeviceGetClockInfo", lambda megahertz: megahertz * 1e6, kind)

    def _of(self, handle: Any, function: str, read: Callable[[Any], _T], *arguments: Any) -> _T | None:
        """What is read from a function's answer about a device."""
        answer = None if handle is None else self._ask(function, handle, *arguments)
        return None if answer is None else read(answer)

    def _succeeds(self, function: str) -> bool:
        try:
            getattr(self._nvml, function)()
        except pynvml.NVMLError:
            return False
        return True

    def _ask(self, function: str, *arguments: Any) -> Any:
        """A function's answer; None where this version of NVML or this GPU has none."""
        try:
            return getattr(self._nvml, function)(*arguments)
        except (pynvml.NVMLError, AttributeError):
            return None
