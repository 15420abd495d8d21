"""The memory that a configuration may plan with, per device."""

from __future__ import annotations

from collections.abc import Sequence

from autotune.errors import MemoryLimitError
from autotune.host.memory import USABLE_SHARE
from autotune.model import memory
from autotune.model.memory import Room
from autotune.records import Campaign, Host, Model, Workload
from autotune.search.workload import chunk_grid


def check_fits(models: Sequence[Model], workload: Workload, host: Host) -> None:
    """Before anything is timed: the smallest configuration in the smallest format must fit the memory of all devices.

    Raises:
        MemoryLimitError: It doesn't.
    """
    model = min(models, key=memory.model_bytes)
    available = {"cpu": _plannable_bytes(host.memory.usable_bytes)}
    available |= {device: _plannable_bytes(gpu.memory_free_bytes or 0) for device, gpu in host.gpus.usable.items()}
    room = Room(available, dict.fromkeys(available, 0))
    chunk = chunk_grid(workload.prompt_tokens)[0]
    if not memory.fits(model, workload, room, prefill_chunk=chunk):
        raise MemoryLimitError(memory.what_would_fit(model, workload, room, prefill_chunk=chunk))


def room_on(host: Host, campaign: Campaign, devices: Sequence[str]) -> Room:
    """What a configuration may plan with on the devices that can be decided about."""
    runs = {device: run for run in campaign.gpus for device in run.devices}
    usable_bytes = {"cpu": host.memory.usable_bytes, **gpu_bytes(host, campaign)}
    gpus = [device for device in devices if device != "cpu"]
    return Room(
        available_bytes={device: _plannable_bytes(usable_bytes[device]) for device in devices},
        overhead_bytes={
            "cpu": campaign.runtime_overhead_bytes,
            **{device: runs[device].context_bytes for device in gpus},
        },
        gpu_host_bytes=max((runs[device].host_bytes for device in gpus), default=0),
    )


def gpu_bytes(host: Host, campaign: Campaign) -> dict[str, int]:
    """Memory free on each GPU that was timed: as the host tells now, or where it doesn't, as the worker found it."""
    free = {}
    for run in campaign.gpus:
        for device in run.devices:
            gpu = host.gpus.usable.get(device)
            told = 0 if gpu is None else gpu.memory_free_bytes
            free[device] = (run.free_bytes or 0) if told is None else told
    return free


def _plannable_bytes(usable_bytes: int) -> int:
    return int(usable_bytes * USABLE_SHARE)
