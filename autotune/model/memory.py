"""Memory plan: what a model needs on each device, in bytes.

Pure arithmetic over counts that may be ints or integer arrays alike, so that the search can evaluate all its
configurations at once with the same formulas that make the plan of one.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from autotune.model.sites import holds
from autotune.records import Configuration, Layer, MemoryUse, Model, Site, Workload
from ternary_kernels.formats import FORMATS, get_format

Count = TypeVar("Count", int, NDArray[np.int64])

_FLOAT_BYTES = 4  # activations are float32 between the products
_VOCABULARY_BYTES_PER_TOKEN = 65
"""A GGUF file's tokenizer, per entry: the token's text, score and type, and for BPE the merges.

Llama 3's, which 2B-4T uses too, takes 7,818,140 bytes for 128,256 entries, and 4 more each for scores. Others take
less (SentencePiece 23, GPT-2 35, Qwen2 39). Source: llama.cpp, sizes of models/ggml-vocab-*.gguf.
"""


def site_bytes(site: Site) -> int:
    """Exact size of a site's weights."""
    return get_format(site.format).size_bytes(site.n_out, site.k_in)


def weight_bytes(layer: Layer) -> int:
    """Exact size of the weights of a layer's sites; its norms count with the ends."""
    return sum(site_bytes(site) for site in layer.sites)


def layers_bytes(layers: Iterable[Layer]) -> int:
    """Exact size of the weights of some layers' sites."""
    return sum(weight_bytes(layer) for layer in layers)


def ends_bytes(model: Model, *, embedding: bool = True, head: bool = True) -> int:
    """What the ends need on a device that holds the embedding, the head or both.

    The tokenizer's vocabulary lies with the embedding, norms lie with the head. A tied matrix counts once on a device
    that holds both ends, and on either device where they are apart: each needs a copy of its own.
    """
    size_bytes = 0
    if embedding:
        size_bytes += site_bytes(model.embedding) + _VOCABULARY_BYTES_PER_TOKEN * model.vocab_size
    if head:
        size_bytes += model.norm_bytes
        if not (embedding and model.tied):
            size_bytes += site_bytes(model.head)
    return size_bytes


def model_bytes(model: Model) -> int:
    """What the whole model needs on one device before any token: as much as its GGUF file holds."""
    return layers_bytes(model.layers) + ends_bytes(model)


def kv_token_bytes(model: Model) -> int:
    """Keys and values of one token in one layer."""
    attention = model.attention
    return math.ceil(2 * attention.kv_heads * attention.head_dim * model.kv_bytes_per_element)


def kv_cache_bytes(model: Model, layers: Count, tokens: Count) -> Count:
    """Keys and values of ``tokens`` slots (sequences x context) in ``layers`` layers."""
    return layers * tokens * kv_token_bytes(model)


def activation_bytes(model: Model, rows: Count, sequences: Count, context: int) -> Count:
    """What a step needs beside weights and KV cache, at its widest point.

    Every row (token) has its residual stream, the normalised copy of it and the int8 input of a product; and then
    either attention (q, k, v, the mixed values, and a score per head and cached token, as without flash attention)
    or the feed-forward (gate and up), which share their memory. Only one row per sequence has logits.
    Floating-point values are float32.

    Args:
        model: Gives the widths.
        rows: Tokens of the largest step: the batch size or the prefill chunk.
        sequences: Sequences decoded together.
        context: Tokens in the KV cache per sequence.
    """
    heads, kv_heads, head_dim = model.attention.heads, model.attention.kv_heads, model.attention.head_dim
    attention = _FLOAT_BYTES * (2 * (heads + kv_heads) * head_dim + heads * context)
    feed_forward = _FLOAT_BYTES * 2 * model.intermediate_size
    int8_input = max(site.k_in for layer in model.layers for site in layer.sites)
    row_bytes = _FLOAT_BYTES * 2 * model.hidden_size + int8_input + max(attention, feed_forward)
    return rows * row_bytes + sequences * (_FLOAT_BYTES * model.vocab_size)


def plan(
    model: Model,
    configuration: Configuration,
    context_tokens: int,
    available_bytes: Mapping[str, int],
    overhead_bytes: Mapping[str, int],
) -> tuple[MemoryUse, ...]:
    """What a configuration needs on each device that it uses.

    The embedding lies where the first layer is, the head on the configuration's head device, and each layer's KV
    cache with the layer. Every device has activations of its own, as a step passes through all of them.

    Args:
        model: The model.
        configuration: Layers per device in the order data flows, batch size and prefill chunk.
        context_tokens: KV-cache slots per sequence.
        available_bytes: Memory that may be used per device.
        overhead_bytes: The runtime's own memory per device, as measured.

    Returns:
        One entry per device with layers, in the order data flows, then the head's if it has none.
    """
    devices = tuple(dict.fromkeys([*configuration.device_layers, configuration.head_device]))
    sequences = configuration.batch_size
    activations = activation_bytes(model, max(sequences, configuration.prefill_chunk), sequences, context_tokens)
    remaining = iter(model.layers)
    uses = []
    for device in devices:
        layers = tuple(itertools.islice(remaining, configuration.device_layers.get(device, 0)))
        ends = ends_bytes(model, embedding=device == devices[0], head=device == configuration.head_device)
        uses.append(
            MemoryUse(
                device=device,
                weights_bytes=layers_bytes(layers) + ends,
                kv_cache_bytes=kv_cache_bytes(model, len(layers), sequences * context_tokens),
                activations_bytes=activations,
                overhead_bytes=overhead_bytes[device],
                available_bytes=available_bytes[device],
            )
        )
    return tuple(uses)


def what_would_fit(
    model: Model,
    workload: Workload,
    available_bytes: Mapping[str, int],
    overhead_bytes: Mapping[str, int],
    *,
    prefill_chunk: int = 32,
) -> str:
    """For a model that fits no memory: how much it needs, and what would fit, in one sentence.

    Args:
        model: The model.
        workload: Its context is what doesn't fit; its ``max_batch`` bounds the advice.
        available_bytes: Memory that may be used per device.
        overhead_bytes: The runtime's own memory per device.
        prefill_chunk: The smallest number of prompt tokens processed at once.
    """
    usable = {device: max(0, size - overhead_bytes[device]) for device, size in available_bytes.items()}
    context = workload.context_tokens
    # The need grows with batch and context, so the largest that fits is found by bisection.
    batch = bisect.bisect_left(
        range(1, workload.max_batch + 1),
        True,
        key=lambda batch: not _fits(model, batch, max(batch, prefill_chunk), context, usable),
    )
    advice = [f"a batch of at most {batch}"] if batch else []
    if not batch:
        tokens = bisect.bisect_left(
            range(1, context + 1), True, key=lambda tokens: not _fits(model, 1, prefill_chunk, tokens, usable)
        )
        if tokens:
            advice.append(f"a context of at most {tokens:,} tokens")
        for name, other in _in_other_formats(model):
            if _fits(other, 1, prefill_chunk, context, usable):
                advice.append(f"the weight format {name} (model {readable_bytes(model_bytes(other))})")
    parts = {
        "model": model_bytes(model),
        "KV cache": kv_cache_bytes(model, len(model.layers), context),
        "activations": activation_bytes(model, prefill_chunk, 1, context),
    }
    shares = ", ".join(f"{part} {readable_bytes(size)}" for part, size in parts.items())
    room = " and ".join(f"{readable_bytes(size)} on {device}" for device, size in usable.items())
    return (
        f"{model.name} needs {readable_bytes(sum(parts.values()))} for one sequence of {context:,} tokens "
        f"({shares}), but beside the runtime itself there is room for {room}: "
        f"{' or '.join(advice) or 'no shorter context and no other format'} would fit"
    )


def readable_bytes(size_bytes: float) -> str:
    """A size for people, in decimal units: ``1.19 GB``."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size_bytes >= factor:
            value = size_bytes / factor
            return f"{round(value, 2 if value < 10 else 1 if value < 100 else 0):g} {unit}"
    return f"{size_bytes:.0f} B"


def _fits(model: Model, sequences: int, rows: int, context: int, usable_bytes: Mapping[str, int]) -> bool:
    """Whether layers can be laid on successive devices, each filled before the next one is begun."""
    activations = activation_bytes(model, rows, sequences, context)
    cache = kv_cache_bytes(model, 1, sequences * context)
    needed = [weight_bytes(layer) + cache for layer in model.layers]
    devices = list(usable_bytes)
    for first, last in itertools.combinations_with_replacement(range(len(devices)), 2):
        placed = 0
        for index in range(first, last + 1):
            room = usable_bytes[devices[index]] - activations
            room -= ends_bytes(model, embedding=index == first, head=index == last)
            while placed < len(needed) and needed[placed] <= room:
                room -= needed[placed]
                placed += 1
            if room < 0:
                break
        else:
            if placed == len(needed):
                return True
    return False


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
