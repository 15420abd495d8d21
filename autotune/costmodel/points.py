"""The points of a campaign that the cost model is fitted to."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from autotune.records import Campaign, Measurement, Point
from autotune.records.measurement import Op


def counted(campaign: Campaign, op: Op, device: str) -> Iterator[Measurement]:
    """The measurements of one operation on a device that predictions are of.

    Not those of work that a GPU was handed call by call: predictions are of CUDA graphs, and the lesser of two noisy
    times would be nearer to neither.
    """
    for found in campaign.measurements():
        if found.point.op == op and found.point.device == device and found.point.launch != "eager":
            yield found


def fastest(campaign: Campaign, op: Op, device: str) -> dict[Point, float]:
    """Median seconds of every point of one operation that was timed; failures are left out.

    Where several kernels were timed the fastest counts, so the keys name neither kernel nor launch.
    """
    times_s: dict[Point, float] = {}
    for found in counted(campaign, op, device):
        point = replace(found.point, kernel="", launch=None)
        times_s[point] = min(found.median_s, times_s.get(point, found.median_s))
    return times_s


def timed_devices(campaign: Campaign) -> dict[str, str]:
    """The CPU and every GPU that can be decided about, in CUDA's order, with the device whose points count for it.

    Of identical GPUs one was timed; those that failed as a whole are left out.
    """
    gpus = {device: run.devices[0] for run in campaign.gpus if run.failure is None for device in run.devices}
    return {"cpu": "cpu"} | {device: gpus[device] for device in sorted(gpus, key=_index)}


def _index(device: str) -> int:
    """Layers go to GPUs in this order, as loaders take them: not in that of who was timed."""
    return int(device.removeprefix("cuda:"))
