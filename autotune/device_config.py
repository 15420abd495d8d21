"""From a configuration to what a loader needs of it. Light: the cached answer's path runs through here."""

from __future__ import annotations

import math

from autotune.records.configuration import DeviceConfig, Hybrid, HybridSplit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    from autotune.records.host import Gpus
    from autotune.records.result import Candidate


def device_config(chosen: Candidate, gpus: Gpus) -> DeviceConfig:
    """What a loader needs of a configuration.

    Args:
        chosen: The configuration, with its memory plan.
        gpus: The host's.
    """
    configuration = chosen.configuration
    cpu_layers = configuration.device_layers.get("cpu", 0)
    gpu_layers = sum(configuration.device_layers.values()) - cpu_layers
    strategy: Literal["CpuOnly", "GpuOnly"] | Hybrid
    if not gpu_layers:
        strategy = "CpuOnly"
    elif not cpu_layers and configuration.head_device != "cpu":
        strategy = "GpuOnly"
    else:
        strategy = Hybrid(HybridSplit(cpu_layers=cpu_layers, gpu_layers=gpu_layers))
    return DeviceConfig(
        strategy=strategy,
        cpu_threads=configuration.decode_threads,
        gpu_memory_fraction=_gpu_memory_fraction(chosen, gpus),
        recommended_batch_size=configuration.batch_size,
    )


def _gpu_memory_fraction(chosen: Candidate, gpus: Gpus) -> float | None:
    """The largest share of a GPU's memory that the plan takes, rounded up to a thousandth; None without a GPU.

    Of a GPU that doesn't tell its size, the share of what may be planned with.
    """
    shares = []
    for use in chosen.predicted.memory:
        if use.device != "cpu":
            gpu = gpus.usable.get(use.device)
            total_bytes = (gpu.memory_total_bytes if gpu is not None else None) or use.available_bytes
            shares.append(use.total_bytes / total_bytes)
    return min(1.0, math.ceil(max(shares) * 1000) / 1000) if shares else None
