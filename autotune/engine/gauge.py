"""How much memory this process holds on each device, at its peak."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

from autotune.bench.gpu_monitor import GpuMonitor

_STATUS = Path("/proc/self/status")


class MemoryGauge:
    """Reads the memory of this process; to be made before it takes hold of a GPU.

    Args:
        gpus: Where torch finds each GPU: ``{"cuda:0": "cuda:0"}``.
        nvml_gpus: The same by UUID or index, as NVML knows them.
    """

    def __init__(self, gpus: Mapping[str, str], nvml_gpus: Mapping[str, str]) -> None:
        self._gpus = gpus
        self._monitors = {device: GpuMonitor(nvml_gpus.get(device)) for device in gpus}
        self._free_before = {device: monitor.free_bytes() for device, monitor in self._monitors.items()}
        self._peaks: dict[str, int] = {}

    def read(self, gpus: frozenset[str]) -> dict[str, int]:
        """Bytes per device at the peak so far: of the CPU since the process began, of a GPU over all readings.

        Args:
            gpus: Those that this process has used.
        """
        self._peaks["cpu"] = peak_resident_bytes()
        for gpu in gpus & self._monitors.keys():
            self._peaks[gpu] = max(self._gpu_bytes(gpu), self._peaks.get(gpu, 0))
        return dict(self._peaks)

    def _gpu_bytes(self, device: str) -> int:
        """What has gone from a GPU's free memory, its context included; without NVML what torch says it reserved."""
        before, now = self._free_before[device], self._monitors[device].free_bytes()
        if before is not None and now is not None:
            return max(before - now, 0)
        torch = sys.modules.get("torch")
        place = self._gpus[device]
        return int(torch.cuda.max_memory_reserved(place)) if torch and place.startswith("cuda") else 0


def peak_resident_bytes() -> int:
    """This process' largest resident set so far; where the system doesn't tell, the present one.

    Not ``getrusage``: its peak counts what the parent held when it forked.
    """
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        lines = []
    peaks = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    return peaks[0] if peaks else int(psutil.Process().memory_info().rss)
