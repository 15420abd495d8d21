"""Memory plan: what a model needs on each device, in bytes.

Pure arithmetic over counts that may be ints or integer arrays alike, so that the search can evaluate all its
configurations at once with the same formulas that make the plan of one.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from autotune.model.sites import holds, on_gpu
from autotune.model.sizes import readable_bytes
from autotune.records import Configuration, Layer, MemoryUse, Model, Site, Workload
from ternary_kernels.formats import FORMATS, get_format

Count = TypeVar("Count", int, NDArray[np.int64])

ACTIVATION_BYTES = 4
"""An element of the activations between the products: float32."""
TOKEN_ID_BYTES = 8
_VOCABULARY_BYTES_PER_TOKEN = 65
"""A GGUF file's tokenizer, per entry: the token's text, score and type, and for BPE the merges.

Llama 3's, which 2B-4T uses too, takes 7,818,140 bytes for 128,256 entries, and 4 more each for scores. Others take
less (SentencePiece 23, GPT-2 35, Qwen2 39). Source: llama.cpp, sizes of models/ggml-vocab-*.gguf.
"""


class Room(NamedTuple):
    """The memory that a plan may use.

    Attributes:
        available_bytes: Memory that may be used per device, ``"cpu"`` first, then the GPUs in the order data flows.
        overhead_bytes: The runtime's own memory per device, as measured; on a GPU its context.
        gpu_host_bytes: What the runtime takes of the CPU's memory where it drives a GPU, as measured.
    """

    available_bytes: Mapping[str, int]
    overhead_bytes: Mapping[str, int]
    gpu_host_bytes: int = 0

    def overhead_on(self, device: str, *, gpus: bool) -> int:
        """The runtime's own memory on a device, in a plan with or without GPUs."""
        own_bytes = self.overhead_bytes[device]
        return max(own_bytes, self.gpu_host_bytes) if gpus and device == "cpu" else own_bytes


def site_bytes(site: Site) -> int:
    """Exact size of a site's weights."""
    return get_format(site.format).size_bytes(site.n_out, site.k_in)


@lru_cache(maxsize=1024)
def weight_bytes(layer: Layer) -> int:
    """Exact size of the weights of a layer's sites; its norms count with the ends."""
    return sum(site_bytes(site) for site in layer.sites)


def layers_bytes(layers: Iterable[Layer]) -> int:
    """Exact size of the weights of some layers' sites."""
    return sum(weight_bytes(layer) for layer in layers)


def ends_bytes(model: Model, *, embedding: bool = True, head: bool = True) -> int:
    """What the ends need on a device that holds the embedding, the head, both or neither.

    Norms lie with the head. A tied matrix counts once on a device that holds both ends, and on either device where
    they are apart: each needs a copy of its own.
    """
    size_bytes = site_bytes(model.embedding) if embedding else 0
    if head:
        size_bytes += model.norm_bytes
        if not (embedding and model.tied):
            size_bytes += site_bytes(model.head)
    return size_bytes


def vocabulary_bytes(model: Model) -> int:
    """The tokenizer's vocabulary, which is on the CPU wherever the model is: tokens come from there and go back."""
    return _VOCABULARY_BYTES_PER_TOKEN * model.vocab_size


def model_bytes(model: Model) -> int:
    """What the whole model needs on the CPU before any token: as much as its GGUF file holds."""
    return layers_bytes(model.layers) + ends_bytes(model) + vocabulary_bytes(model)


def kv_token_bytes(model: Model) -> int:
    """Keys and values of one token in one layer."""
    attention = model.attention
    return math.ceil(2 * attention.kv_heads * attention.head_dim * model.kv_bytes_per_element)


def kv_cache_bytes(model: Model, layers: Count, tokens: Count) -> Count:
    """Keys and values of ``tokens`` slots (sequences x context) in ``layers`` layers."""
    return layers * tokens * kv_token_bytes(model)


def activation_bytes(
    model: Model, rows: Count, sequences: Count, context: int, *, layers: bool = True, head: bool = True
) -> Count:
    """What a step needs on a device beside weights and KV cache, at its widest point.

    Every row (token) has its residual stream. In layers it has the normalised copy of that as well and the int8 input
    of a product; and then either attention (q, k, v, the mixed values, and a score per head and cached token, as
    without flash attention) or the feed-forward (gate and up), which share their memory. Only one row per sequence has
    logits. Floating-point values are float32.

    Args:
        model: Gives the widths.
        rows: Tokens of the largest step: the batch size or the prefill chunk.
        sequences: Sequences decoded together.
        context: Tokens in the KV cache per sequence.
        layers: Whether the device has layers; without, rows are only handed on.
        head: Whether it has the head, and so the logits.
    """
    row_bytes = ACTIVATION_BYTES * model.hidden_size
    if layers:
        heads, kv_heads, head_dim = model.attention.heads, model.attention.kv_heads, model.attention.head_dim
        attention = ACTIVATION_BYTES * (2 * (heads + kv_heads) * head_dim + heads * context)
        feed_forward = ACTIVATION_BYTES * 2 * model.intermediate_size
        int8_input = max(site.k_in for layer in dict.fromkeys(model.layers) for site in layer.sites)
        row_bytes += ACTIVATION_BYTES * model.hidden_size + int8_input + max(attention, feed_forward)
    logits_bytes = ACTIVATION_BYTES * model.vocab_size if head else 0
    return rows * row_bytes + sequences * logits_bytes


def plan(model: Model, configuration: Configuration, context_tokens: int, room: Room) -> tuple[MemoryUse, ...]:
    """What a configuration needs on each device that it uses.

    The head lies on the configuration's head device; the embedding with the first layer, but on the CPU if the head is
    there; each layer's KV cache with the layer. A GPU holds weights as its kernels read them (``on_gpu``). Every device
    that a step passes through has activations of its own. The CPU is always among them: it drives the GPUs.

    Args:
        model: The model.
        configuration: Layers per device in the order data flows, batch size and prefill chunk.
        context_tokens: KV-cache slots per sequence.
        room: The memory there is.

    Returns:
        One entry per device, the CPU first, then GPUs in the order data flows.
    """
    head_device = configuration.head_device
    embedding_device = "cpu" if head_device == "cpu" else next(iter(configuration.device_layers))
    devices = tuple(dict.fromkeys(["cpu", *configuration.device_layers, head_device]))
    sequences, context = configuration.batch_size, context_tokens
    rows = max(sequences, configuration.prefill_chunk)
    ends = np.cumsum(list(configuration.device_layers.values())).tolist()
    last_layers = dict(zip(configuration.device_layers, ends, strict=True))
    uses = []
    for device in devices:
        count = configuration.device_layers.get(device, 0)
        end = last_layers.get(device, 0)
        held = model if device == "cpu" else on_gpu(model)
        head = device == head_device
        weights_bytes = layers_bytes(held.layers[end - count : end])
        weights_bytes += ends_bytes(held, embedding=device == embedding_device, head=head)
        if device == "cpu":
            weights_bytes += vocabulary_bytes(model)
        uses.append(
            MemoryUse(
                device=device,
                weights_bytes=weights_bytes,
                kv_cache_bytes=kv_cache_bytes(model, count, sequences * context),
                activations_bytes=activation_bytes(model, rows, sequences, context, layers=count > 0, head=head),
                overhead_bytes=room.overhead_on(device, gpus=len(devices) > 1),
                available_bytes=room.available_bytes[device],
            )
        )
    return tuple(uses)


def fits(model: Model, workload: Workload, room: Room, *, prefill_chunk: int = 32) -> bool:
    """Whether one sequence of the workload fits, with the layers on whatever devices.

    Args:
        model: The model.
        workload: Gives the context.
        room: The memory there is.
        prefill_chunk: The smallest number of prompt tokens processed at once.
    """
    return _fits(model, 1, prefill_chunk, workload.context_tokens, room)


def what_would_fit(model: Model, workload: Workload, room: Room, *, prefill_chunk: int = 32) -> str:
    """For a model that fits no memory: how much it needs, and what would fit, in one sentence.

    Args:
        model: The model.
        workload: Its context is what doesn't fit; its ``max_batch`` bounds the advice.
        room: The memory there is.
        prefill_chunk: The smallest number of prompt tokens processed at once.
    """
    context = workload.context_tokens
    # The need grows with batch and context, so the largest that fits is found by bisection.
    batch = bisect.bisect_left(
        range(1, workload.max_batch + 1),
        True,
        key=lambda batch: not _fits(model, batch, max(batch, prefill_chunk), context, room),
    )
    advice = [f"a batch of at most {batch}"] if batch else []
    if not batch:
        tokens = bisect.bisect_left(
            range(1, context + 1), True, key=lambda tokens: not _fits(model, 1, prefill_chunk, tokens, room)
        )
        if tokens:
            advice.append(f"a context of at most {tokens:,} tokens")
        for name, other in _in_other_formats(model):
            if _fits(other, 1, prefill_chunk, context, room):
                advice.append(f"the weight format {name} (model {readable_bytes(model_bytes(other))})")
    parts = {
        "model": model_bytes(model),
        "KV cache": kv_cache_bytes(model, len(model.layers), context),
        "activations": activation_bytes(model, prefill_chunk, 1, context),
    }
    needed = readable_bytes(sum(parts.values()))
    shares = ", ".join(f"{part} {readable_bytes(size)}" for part, size in parts.items())
    gpus = len(room.available_bytes) > 1
    if gpus and (stored := model_bytes(on_gpu(model))) != parts["model"]:
        shares += f"; on a GPU the model takes {readable_bytes(stored)}"
    usable = {device: max(0, size - room.overhead_bytes[device]) for device, size in room.available_bytes.items()}
    free = " and ".join(f"{readable_bytes(size)} on {device}" for device, size in usable.items())
    if gpus and (driving := room.overhead_on("cpu", gpus=True) - room.overhead_bytes["cpu"]):
        free += f", where driving a GPU takes another {readable_bytes(driving)} on cpu"
    return (
        f"{model.name} needs {needed} for one sequence of {context:,} tokens "
        f"({shares}), but beside the runtime itself there is room for {free}: "
        f"{' or '.join(advice) or 'no shorter context and no other format'} would fit"
    )


def _fits(model: Model, sequences: int, rows: int, context: int, room: Room) -> bool:
    """Whether all layers and both ends can be laid on the devices in some way.

    For every device that may hold the embedding and every one that may hold the head, each device is filled before the
    next one is begun: what it can take of the layers that are left doesn't depend on where the others are.
    """
    cpu, *gpus = room.available_bytes
    count, cache_bytes = len(model.layers), kv_cache_bytes(model, 1, sequences * context)
    held = {cpu: model} | dict.fromkeys(gpus, on_gpu(model))

    def spare_bytes(device: str, *, embedding: bool, head: bool, layers: bool = True, split: bool = True) -> int:
        ends = ends_bytes(held[device], embedding=embedding, head=head)
        ends += vocabulary_bytes(model) if device == cpu else 0
        activations = activation_bytes(model, rows, sequences, context, layers=layers, head=head)
        return room.available_bytes[device] - room.overhead_on(device, gpus=split) - ends - activations

    def filled(device: str, first: int, end: int, left_bytes: int) -> int:
        """The layer after the last one that goes on a device, from ``first`` and before ``end``."""
        for layer in held[device].layers[first:end]:
            left_bytes -= weight_bytes(layer) + cache_bytes
            if left_bytes < 0:
                break
            first += 1
        return first

    if filled(cpu, 0, count, spare_bytes(cpu, embedding=True, head=True, split=False)) == count:
        return True
    for embedding, head in _ends_of_splits(cpu, gpus):
        on_cpu = {"embedding": embedding == cpu, "head": head == cpu}
        placed = filled(cpu, 0, count - 1, spare_bytes(cpu, **on_cpu)) if embedding == cpu else 0
        if not placed and (embedding == cpu != head or spare_bytes(cpu, **on_cpu, layers=False) < 0):
            continue
        for gpu in gpus[gpus.index(embedding) if embedding != cpu else 0 :]:
            left_bytes = spare_bytes(gpu, embedding=gpu == embedding, head=gpu == head)
            # The head's GPU has the last layer.
            placed = filled(gpu, placed, count if head in (cpu, gpu) else count - 1, left_bytes)
            if gpu == head or (gpu == embedding and not placed):
                break
        if placed == count:
            return True
    return False


def _ends_of_splits(cpu: str, gpus: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Where embedding and head may be in a plan that uses GPUs."""
    yield cpu, cpu
    for last, head in enumerate(gpus):
        for embedding in (cpu, *gpus[: last + 1]):
            yield embedding, head


def _in_other_formats(model: Model) -> Iterator[tuple[str, Model]]:
    """The model in each smaller format that holds its sites, the largest first.

    Ternary sites go to other ternary formats. A model without any stays without: weights that were not trained to be
    ternary can't become so. None goes to a lossy format.
    """
    sites = {site for layer in model.layers for site in layer.sites}
    ternary = {site for site in sites if get_format(site.format).ternary}
    replaced = ternary or sites
    for name, other in sorted(FORMATS.items(), key=lambda item: -item[1].bits_per_weight):
        if other.ternary != bool(ternary) or other.lossy:
            continue
        if not all(holds(name, site.n_out, site.k_in) for site in replaced):
            continue
        changed = {site: msgspec.structs.replace(site, format=name) for site in replaced}
        layers = tuple(Layer(tuple(changed.get(site, site) for site in layer.sites)) for layer in model.layers)
        if layers_bytes(layers) < layers_bytes(model.layers):
            yield name, msgspec.structs.replace(model, layers=layers)
