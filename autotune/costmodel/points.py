"""The points of a campaign that the cost model is fitted to."""

from __future__ import annotations

from msgspec.structs import replace

from autotune.records import Campaign, Point
from autotune.records.measurement import Op


def fastest(campaign: Campaign, op: Op, device: str) -> dict[Point, float]:
    """Median seconds of every point of one operation that was timed; failures are left out.

    Where several kernels or ways to launch them were timed the fastest counts, so the keys name none.
    """
    times_s: dict[Point, float] = {}
    for found in campaign.measurements():
        if found.point.op == op and found.point.device == device:
            point = replace(found.point, kernel="", launch=None)
            times_s[point] = min(found.median_s, times_s.get(point, found.median_s))
    return times_s


def timed_devices(campaign: Campaign) -> dict[str, str]:
    """The CPU and every GPU that can be decided about, with the device whose points count for it.

    Of identical GPUs the first was timed; those that failed as a whole are left out.
    """
    return {"cpu": "cpu"} | {
        device: run.devices[0] for run in campaign.gpus if run.failure is None for device in run.devices
    }
