"""transformers with accelerate: ``device_map`` and ``max_memory`` of ``from_pretrained``.

Sources: huggingface/transformers, models/llama/modeling_llama.py (module names, which BitNet's and Falcon3's models
share) and quantizers/quantizer_bitnet.py; huggingface/accelerate, big_modeling.py (``dispatch_model``).
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from autotune.export.placement import Placement, formats_of, gpu_number, gpu_order_note, placement_of
from autotune.export.targets import Exported
from autotune.records import Configuration, MemoryUse, Model, Result

Device = int | str
"""A GPU's number, or ``"cpu"``, as accelerate has them."""


def export(result: Result, form: str, model_path: str) -> Exported:  # noqa: ARG001 (one form, and no model's path)
    """One JSON object with ``device_map`` and ``max_memory``.

    JSON has strings for keys: whoever reads it makes the numbers of GPUs in ``max_memory`` whole numbers again.
    """
    chosen = result.decision.chosen
    document = {
        "device_map": device_map(chosen.configuration, result.model),
        "max_memory": {str(_device(use.device)): _room_bytes(use) for use in chosen.predicted.memory},
    }
    return Exported(msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n", tuple(_notes(result)))


def device_map(configuration: Configuration, model: Model) -> dict[str, Device]:
    """Where each module goes. A model on the CPU alone is one module, ``""``.

    The embedding goes where the memory plan has it, with the first layer, unless it is one matrix with the head.
    """
    if not placement_of(configuration).gpus:
        return {"": "cpu"}
    devices = [_device(device) for device, count in configuration.device_layers.items() for _ in range(count)]
    head = _device(configuration.head_device)
    embedding = head if model.tied or head == "cpu" else devices[0]
    layers = {f"model.layers.{index}": device for index, device in enumerate(devices)}
    # Rotary embeddings are computed once, for the first layer, and handed on from there.
    return {
        "model.embed_tokens": embedding,
        "model.rotary_emb": devices[0],
        **layers,
        "model.norm": head,
        "lm_head": head,
    }


def _device(device: str) -> Device:
    return "cpu" if device == "cpu" else gpu_number(device)


def _room_bytes(use: MemoryUse) -> int:
    """What weights may take of a device: what is there, less what the plan has beside them."""
    return max(0, use.available_bytes - use.kv_cache_bytes - use.activations_bytes - use.overhead_bytes)


def _notes(result: Result) -> Iterator[str]:
    configuration = result.decision.chosen.configuration
    placement = placement_of(configuration)
    yield (
        f"threads, batch and prefill chunk have no place in a device_map: call torch.set_num_threads("
        f"{configuration.decode_threads}), and give generate() {configuration.batch_size} "
        f"sequence{'s' if configuration.batch_size > 1 else ''} at a time"
    )
    yield (
        f"memory was planned with {formats_of(result.model)[0]} weights: transformers' own packed ones take 2 bits "
        f"each, and unpacked (bf16) ones 16"
    )
    if not placement.gpus:
        return
    yield from gpu_order_note(result)
    if placement.cpu_layers or not placement.head_on_gpu:
        yield (
            f"accelerate copies what is on the CPU ({_on_cpu(placement)}) to the GPU for each pass and multiplies "
            f"there, so the predicted speed doesn't hold"
        )
        yield (
            "transformers refuses a device_map with CPU and GPU for a packed ternary checkpoint: load an unpacked "
            "(bf16) one"
        )
    if result.model.tied and placement.cpu_layers and placement.head_on_gpu:
        yield "embedding and head are one matrix and must be on one device: the embedding is on the GPU with the head"


def _on_cpu(placement: Placement) -> str:
    parts = []
    if placement.cpu_layers:
        parts.append(f"{placement.cpu_layers} layer{'s' if placement.cpu_layers > 1 else ''}")
    if not placement.head_on_gpu:
        parts.append("the head")
    return " and ".join(parts)
