"""Synthetic models and step costs: made up, so that the right answer is known; no host was timed."""

from __future__ import annotations

import numpy as np
import pytest

from autotune.costmodel.steps import StepCosts
from autotune.model import memory
from autotune.model.memory import Room
from autotune.records import Attention, Configuration, Layer, Model, Site

DECODE_LAYER_S = 8e-3
PREFILL_TOKEN_S = 1e-3


def build_model(
    layers=8,
    *,
    hidden=256,
    intermediate=512,
    vocab=1000,
    max_context=4096,
    wide_first=False,
    weight_format="I2_S",
    tied=True,
):
    """A small BitNet-shaped model; ``wide_first`` makes its first layer larger than the rest."""

    def layer(width):
        return Layer(
            sites=tuple(
                Site(name=name, n_out=n_out, k_in=k_in, format=weight_format)
                for name, n_out, k_in in [
                    ("q", hidden, hidden),
                    ("k", hidden // 2, hidden),
                    ("v", hidden // 2, hidden),
                    ("o", hidden, hidden),
                    ("gate", width, hidden),
                    ("up", width, hidden),
                    ("down", hidden, width),
                ]
            )
        )

    widths = [intermediate * (2 if wide_first and index == 0 else 1) for index in range(layers)]
    return Model(
        name="synthetic",
        architecture="bitnet",
        hidden_size=hidden,
        intermediate_size=intermediate,
        vocab_size=vocab,
        max_context=max_context,
        activation="relu2",
        attention=Attention(heads=4, kv_heads=2, head_dim=hidden // 4),
        layers=tuple(layer(width) for width in widths),
        embedding=Site(name="embedding", n_out=vocab, k_in=hidden, format="F16"),
        head=Site(name="head", n_out=vocab, k_in=hidden, format="F16"),
        tied=tied,
        norm_bytes=4 * hidden * (2 * layers + 1),
        source_digest="synthetic",
    )


def build_costs(
    layers=8,
    *,
    devices=("cpu",),
    threads=(1, 2),
    batches=(1, 2, 4, 8),
    chunks=(32, 64, 128, 256, 512),
    prompt=512,
    saturates_at=None,
    row_share=0.05,
    gpu_speedup=20.0,
    crossing_s=1e-4,
    token_s=5e-5,
):
    """Step costs by a simple law, so that the best can be worked out by hand.

    A layer's decode step takes 8 ms over min(threads, saturates_at), and ``row_share`` more for each further
    sequence. Prefill takes 1 ms per token and layer, and more in shorter chunks. A GPU is ``gpu_speedup`` times
    faster than one thread. The ends cost as much as one layer. Handing a sequence's activations over takes
    ``crossing_s``, token ids ``token_s``.
    """
    used = np.minimum(threads, saturates_at or max(threads))
    speed = np.stack([used] + [np.full(len(threads), gpu_speedup)] * (len(devices) - 1))[:, None, :, None]
    rows = 1 + row_share * (np.asarray(batches) - 1)
    per_chunk = 1 + 8 / np.asarray(chunks)
    decode_layer_s = DECODE_LAYER_S * rows / speed
    prefill_layer_s = PREFILL_TOKEN_S * prompt * per_chunk / speed
    on_gpu = (np.arange(len(devices)) > 0)[:, None]
    return StepCosts(
        devices=tuple(devices),
        layer_kinds=np.zeros(layers, dtype=np.int64),
        threads=np.asarray(threads),
        batches=np.asarray(batches),
        chunks=np.asarray(chunks),
        decode_layer_s=decode_layer_s,
        decode_ends_s=decode_layer_s[:, 0].copy(),
        prefill_layer_s=prefill_layer_s,
        prefill_ends_s=prefill_layer_s[:, 0].copy(),
        decode_crossing_s=np.where(on_gpu, crossing_s * np.asarray(batches), 0.0),
        prefill_crossing_s=np.where(on_gpu, crossing_s * prompt * np.ones(len(chunks)), 0.0),
        decode_token_s=np.where(on_gpu[:, 0], token_s, 0.0),
        prefill_token_s=np.where(on_gpu, token_s * np.ceil(prompt / np.asarray(chunks)), 0.0),
    )


def build_random_costs(seed, layers, *, devices, threads, batches, chunks, kinds=2):
    """Step costs without any pattern, in eighths of a second: sums are exact and ties are common."""
    random = np.random.default_rng(seed)
    d, t, b, c = len(devices), len(threads), len(batches), len(chunks)

    def eighths(*shape):
        return random.integers(1, 4, shape) / 8

    costs = {
        "decode_layer_s": eighths(d, kinds, t, b),
        "decode_ends_s": eighths(d, t, b),
        "prefill_layer_s": eighths(d, kinds, t, c),
        "prefill_ends_s": eighths(d, t, c),
        "decode_crossing_s": eighths(d, b),
        "prefill_crossing_s": eighths(d, c),
        "decode_token_s": eighths(d),
        "prefill_token_s": eighths(d, c),
    }
    for name, values in costs.items():
        if "crossing" in name or "token" in name:
            values[0] = 0
        else:
            values[1:] = values[1:, ..., :1, :]  # a GPU's times don't depend on CPU threads
    return StepCosts(
        devices=tuple(devices),
        layer_kinds=random.integers(0, kinds, layers),
        threads=np.asarray(threads),
        batches=np.asarray(batches),
        chunks=np.asarray(chunks),
        **costs,
    )


def needed_bytes(model, device_layers, *, batch, chunk, context, head=None):
    """Bytes that the memory plan gives each device for a placement, a megabyte of overhead included."""
    configuration = Configuration(
        device_layers=device_layers,
        head_device=head or list(device_layers)[-1],
        decode_threads=1,
        prefill_threads=1,
        batch_size=batch,
        prefill_chunk=chunk,
    )
    room = roomy(dict.fromkeys(["cpu", *device_layers], 0))
    return {use.device: use.total_bytes for use in memory.plan(model, configuration, context, room)}


def roomy(available_bytes, overhead_bytes=10**6):
    """Room of so many bytes per device, with a megabyte of overhead on each."""
    return Room(available_bytes, dict.fromkeys(available_bytes, overhead_bytes))


@pytest.fixture(scope="session")
def room_of():
    """See :func:`roomy`."""
    return roomy


@pytest.fixture(scope="session")
def needs():
    """See :func:`needed_bytes`."""
    return needed_bytes


@pytest.fixture(scope="session")
def make_model():
    """See :func:`build_model`."""
    return build_model


@pytest.fixture(scope="session")
def make_costs():
    """See :func:`build_costs`."""
    return build_costs


@pytest.fixture(scope="session")
def make_random_costs():
    """See :func:`build_random_costs`."""
    return build_random_costs
