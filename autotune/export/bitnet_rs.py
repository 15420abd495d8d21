"""BitNet-rs: the ``DeviceConfig`` that its loader decides by, and the settings that it reads from files today.

Sources: EffortlessMetrics/BitNet-rs, crates/bitnet-models/src/production_loader.rs (DeviceConfig, DeviceStrategy) and
crates/bitnet-common/src/config.rs (BitNetConfig with its table ``performance``, and the variables that override it).
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from autotune.errors import ExportError
from autotune.export.placement import placement_of
from autotune.export.shell import environment_file
from autotune.export.targets import Exported
from autotune.records import Hybrid, Result


def export(result: Result, form: str, model_path: str) -> Exported:  # noqa: ARG001 (it doesn't name the model)
    """``device-config`` as serde's plain derives read it, or ``performance-toml``, ``-json`` or ``-env``.

    Raises:
        ExportError: The layers are split between CPU and GPU, and only a ``DeviceConfig`` can say so.
    """
    config = result.device_config
    notes = tuple(_notes(result))
    if form == "device-config":
        return Exported(msgspec.json.encode(config).decode() + "\n", (*notes, *_device_notes(result)))
    if isinstance(config.strategy, Hybrid):
        split = config.strategy.split
        raise ExportError(
            f"BitNet-rs' PerformanceConfig can only say whether a GPU is used, and {split.cpu_layers} layers are on "
            f"the CPU, {split.gpu_layers} on GPUs and the head on {_head_device(result)}: take --form device-config"
        )
    settings = {
        "num_threads": config.cpu_threads,
        "use_gpu": config.strategy == "GpuOnly",
        "batch_size": config.recommended_batch_size,
    }
    # JSON, TOML and what it reads of variables write whole numbers and booleans alike; TOML has no null.
    known = {name: msgspec.json.encode(value).decode() for name, value in settings.items() if value is not None}
    if form == "performance-json":
        text = msgspec.json.encode({"performance": settings}).decode() + "\n"
    elif form == "performance-toml":
        text = "[performance]\n" + "".join(f"{name} = {value}\n" for name, value in known.items())
    else:
        text = environment_file({f"BITNET_{name.upper()}": value for name, value in known.items()})
    return Exported(text, notes)


def _head_device(result: Result) -> str:
    return "the CPU" if result.decision.chosen.configuration.head_device == "cpu" else "a GPU"


def _notes(result: Result) -> Iterator[str]:
    configuration = result.decision.chosen.configuration
    if configuration.prefill_threads != configuration.decode_threads:
        yield (
            f"BitNet-rs has one number of threads, that of decode ({configuration.decode_threads}): prefill's "
            f"{configuration.prefill_threads} have no field"
        )
    yield f"the prefill chunk of {configuration.prefill_chunk} tokens has no field"
    gpus = placement_of(configuration).gpus
    if len(gpus) > 1:
        yield f"how the layers are shared among {len(gpus)} GPUs has no field"


def _device_notes(result: Result) -> Iterator[str]:
    placement = placement_of(result.decision.chosen.configuration)
    if placement.gpus and placement.cpu_layers and placement.head_on_gpu:
        yield "the head is on the GPU, with the last layers: where it goes has no field"
    if placement.gpus and not placement.head_on_gpu:
        yield "the head is on the CPU, though the last layers are on a GPU: where it goes has no field"
