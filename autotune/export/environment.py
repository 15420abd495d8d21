"""Environment variables for runtimes that have no target of their own, and for scripts."""

from __future__ import annotations

from autotune.export.placement import placement_of
from autotune.export.shell import environment_file
from autotune.export.targets import Exported
from autotune.records import Hybrid, Result


def export(result: Result, form: str, model_path: str) -> Exported:  # noqa: ARG001 (one form, and no model's path)
    """``NAME=value`` lines: the whole configuration, and ``OMP_NUM_THREADS``.

    OpenMP's number is that of decode, which most of a request's time goes to; a runtime that can have prefill use
    another number finds it beside.
    """
    configuration, config = result.decision.chosen.configuration, result.device_config
    placement = placement_of(configuration)
    variables = {
        "AUTOTUNE_STRATEGY": "Hybrid" if isinstance(config.strategy, Hybrid) else config.strategy,
        "AUTOTUNE_CPU_LAYERS": str(placement.cpu_layers),
        "AUTOTUNE_GPU_LAYERS": str(placement.gpu_layers),
        "AUTOTUNE_DEVICE_LAYERS": ",".join(f"{name}={count}" for name, count in configuration.device_layers.items()),
        "AUTOTUNE_HEAD_DEVICE": configuration.head_device,
        "AUTOTUNE_DECODE_THREADS": str(configuration.decode_threads),
        "AUTOTUNE_PREFILL_THREADS": str(configuration.prefill_threads),
        "AUTOTUNE_BATCH_SIZE": str(configuration.batch_size),
        "AUTOTUNE_PREFILL_CHUNK": str(configuration.prefill_chunk),
        "AUTOTUNE_CONTEXT_TOKENS": str(result.workload.context_tokens),
        "OMP_NUM_THREADS": str(configuration.decode_threads),
    }
    if config.gpu_memory_fraction is not None:
        variables["AUTOTUNE_GPU_MEMORY_FRACTION"] = str(config.gpu_memory_fraction)
    return Exported(environment_file(variables))
