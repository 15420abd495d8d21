"""The memory plan: what a configuration needs on each device, and what would fit if nothing does."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from autotune.model.analyse import analyse
from autotune.model.memory import (
    activation_bytes,
    ends_bytes,
    kv_cache_bytes,
    model_bytes,
    plan,
    readable_bytes,
    site_bytes,
    weight_bytes,
    what_would_fit,
)
from autotune.records import Configuration, Model, Workload


@pytest.fixture(scope="module")
def tied() -> Model:
    return analyse("bitnet-b1.58-2B-4T", machine="x86_64")


@pytest.fixture(scope="module")
def untied() -> Model:
    return analyse("Falcon3-1B-Instruct-1.58bit", machine="x86_64")


def configuration(layers: dict[str, int], head: str, batch: int = 4, chunk: int = 128) -> Configuration:
    return Configuration(
        device_layers=layers,
        head_device=head,
        decode_threads=2,
        prefill_threads=2,
        batch_size=batch,
        prefill_chunk=chunk,
    )


def server(context: int = 2048, max_batch: int = 16) -> Workload:
    return Workload("server", 512, 128, context, max_batch, max_tpot_s=None, max_ttft_s=None)


def test_one_device_holds_all_of_a_tied_model_once(tied: Model) -> None:
    available, overhead = {"cpu": 8_000_000_000}, {"cpu": 90_000_000}
    (use,) = plan(tied, configuration({"cpu": 30}, "cpu"), 2048, available, overhead)
    assert use.weights_bytes == model_bytes(tied)
    assert use.kv_cache_bytes == 4 * 2048 * 76_800
    assert use.activations_bytes == activation_bytes(tied, 128, 4, 2048)
    assert (use.overhead_bytes, use.available_bytes) == (90_000_000, 8_000_000_000)


def test_a_split_keeps_layers_and_their_cache_together_and_copies_a_tied_matrix(tied: Model) -> None:
    devices = {"cpu": 8_000_000_000, "cuda:0": 4_000_000_000}
    cpu, gpu = plan(tied, configuration({"cpu": 10, "cuda:0": 20}, "cuda:0"), 2048, devices, dict.fromkeys(devices, 0))
    layer = weight_bytes(tied.layers[0])
    assert cpu.weights_bytes == 10 * layer + ends_bytes(tied, head=False)
    assert gpu.weights_bytes == 20 * layer + site_bytes(tied.head) + tied.norm_bytes
    assert 2 * cpu.kv_cache_bytes == gpu.kv_cache_bytes == 20 * 4 * 2048 * 2560
    assert cpu.weights_bytes + gpu.weights_bytes == model_bytes(tied) + site_bytes(tied.embedding)


def test_an_untied_split_copies_nothing(untied: Model) -> None:
    devices = {"cpu": 8_000_000_000, "cuda:0": 4_000_000_000}
    split = plan(untied, configuration({"cpu": 9, "cuda:0": 9}, "cuda:0"), 2048, devices, dict.fromkeys(devices, 0))
    assert sum(use.weights_bytes for use in split) == model_bytes(untied)


def test_a_head_may_lie_where_no_layer_is(untied: Model) -> None:
    devices = {"cpu": 8_000_000_000, "cuda:0": 4_000_000_000}
    gpu, cpu = plan(untied, configuration({"cuda:0": 18}, "cpu"), 2048, devices, dict.fromkeys(devices, 0))
    assert (gpu.device, cpu.device) == ("cuda:0", "cpu")
    assert cpu.weights_bytes == site_bytes(untied.head) + untied.norm_bytes
    assert cpu.kv_cache_bytes == 0


def test_layers_of_different_sizes_are_counted_where_they_are(tied: Model) -> None:
    heavy = msgspec.structs.replace(
        tied.layers[0], sites=tuple(msgspec.structs.replace(site, format="F16") for site in tied.layers[0].sites)
    )
    model = msgspec.structs.replace(tied, layers=(heavy, *tied.layers[1:]))
    devices = {"cpu": 8_000_000_000, "cuda:0": 4_000_000_000}
    cpu, gpu = plan(model, configuration({"cpu": 1, "cuda:0": 29}, "cuda:0"), 64, devices, dict.fromkeys(devices, 0))
    assert cpu.weights_bytes - ends_bytes(model, head=False) == 2 * 69_468_160
    assert gpu.weights_bytes - ends_bytes(model, embedding=False) == 29 * weight_bytes(tied.layers[0])


def test_activations_hold_scores_of_the_largest_step_and_logits_of_each_sequence(untied: Model) -> None:
    """As llama.cpp's compute buffer without flash attention: heads x chunk x context float32 scores dominate it."""
    scores = 4 * 8 * 512 * 8192
    assert scores < activation_bytes(untied, 512, 1, 8192) < 1.35 * scores
    more = activation_bytes(untied, 512, 3, 8192) - activation_bytes(untied, 512, 1, 8192)
    assert more == 2 * 4 * untied.vocab_size
    # at a short context the feed-forward is the widest point
    per_row = activation_bytes(untied, 2, 1, 1) - activation_bytes(untied, 1, 1, 1)
    assert per_row == 4 * 2 * 2048 + 8192 + 4 * 2 * 8192


def test_arrays_give_what_ints_give_point_by_point(tied: Model) -> None:
    layers, tokens = np.arange(31)[:, None], 2048 * np.array([1, 4, 16])
    cache = kv_cache_bytes(tied, layers, tokens)
    rows, sequences = np.array([[32], [512]]), np.array([1, 4, 16])
    activations = activation_bytes(tied, rows, sequences, 2048)
    assert cache.shape == (31, 3)
    assert activations.shape == (2, 3)
    assert cache[7, 2] == kv_cache_bytes(tied, 7, 2048 * 16)
    assert activations[1, 1] == activation_bytes(tied, 512, 4, 2048)


def test_a_quantised_kv_cache_counts_its_fraction_of_bytes(tied: Model) -> None:
    q8_0 = msgspec.structs.replace(tied, kv_bytes_per_element=34 / 32)
    assert kv_cache_bytes(q8_0, 30, 1) == 76_800 * 34 // 64


def test_too_large_a_batch_is_told_the_batch_that_fits(tied: Model) -> None:
    available, overhead = {"cpu": 2_000_000_000}, {"cpu": 100_000_000}
    text = what_would_fit(tied, server(), available, overhead)
    assert text.endswith(": a batch of at most 4 would fit")
    for batch, fits in ((4, True), (5, False)):
        (use,) = plan(tied, configuration({"cpu": 30}, "cpu", batch, 32), 2048, available, overhead)
        assert (use.total_bytes <= use.available_bytes) == fits


def test_too_long_a_context_is_told_the_context_that_fits(tied: Model) -> None:
    available, overhead = {"cpu": 1_400_000_000}, {"cpu": 100_000_000}
    text = what_would_fit(tied, server(4096), available, overhead)
    assert text.startswith("bitnet-b1.58-2B-4T needs 1.52 GB for one sequence of 4,096 tokens")
    assert "(model 1.19 GB, KV cache 315 MB, activations" in text
    assert "but beside the runtime itself there is room for 1.3 GB on cpu: a context of at most" in text
    context = int(text.partition("a context of at most ")[2].partition(" tokens")[0].replace(",", ""))
    for tokens, fits in ((context, True), (context + 1, False)):
        (use,) = plan(tied, configuration({"cpu": 30}, "cpu", 1, 32), tokens, available, overhead)
        assert (use.total_bytes <= use.available_bytes) == fits


def test_smaller_formats_are_named_only_where_the_weights_can_be_in_them(tied: Model) -> None:
    """The largest first; no ternary one for weights that aren't, and none that is lossy."""
    f32, f16 = (analyse("bitnet-b1.58-2B-4T", name) for name in ("F32", "F16"))
    text = what_would_fit(f32, server(), {"cpu": 6_000_000_000}, {"cpu": 0})
    formats = ("F16 (model 4.83 GB)", "Q8_0 (model 2.88 GB)", "Q6_K (model 2.38 GB)")
    assert text.endswith(f": {' or '.join(f'the weight format {name}' for name in formats)} would fit")
    (use,) = plan(f16, configuration({"cpu": 30}, "cpu", 1, 32), 2048, {"cpu": 0}, {"cpu": 0})
    assert 4_900_000_000 < use.total_bytes < 6_000_000_000
    assert "F16" not in what_would_fit(f32, server(), {"cpu": 4_900_000_000}, {"cpu": 0})


def test_nothing_that_fits_is_said_plainly(tied: Model) -> None:
    text = what_would_fit(tied, server(), {"cpu": 1_000_000_000}, {"cpu": 0})
    assert text.endswith(": no shorter context and no other format would fit")


def test_a_ternary_model_is_told_the_smaller_ternary_formats(tied: Model) -> None:
    text = what_would_fit(tied, server(), {"cpu": 1_300_000_000}, {"cpu": 0})
    assert "the weight format TQ1_0 (model 1.11 GB) or the weight format TL2 (model 1.11 GB) would fit" in text
    assert "IQ2_S" not in text


def test_a_smaller_format_must_hold_every_site() -> None:
    """bitnet_b1_58-3B's 3,200 columns are no multiple of TQ1_0's 256."""
    large = analyse("bitnet_b1_58-3B", machine="x86_64")
    text = what_would_fit(large, server(), {"cpu": 2_900_000_000}, {"cpu": 0})
    assert "weight format TL2" in text
    assert "TQ1_0" not in text


@pytest.mark.parametrize(
    ("weight_format", "layers_bytes"),
    [
        ("I2_S", 521_011_200 + 210 * 32),
        ("TL1", 521_011_200 + 210 * 32),
        ("TL2", 30 * (2 * 1_392_672 + 2 * 348_192 + 2 * 3_760_160 + 3_713_760)),
        ("TQ1_0", 2_084_044_800 // 256 * 54),
        ("TQ2_0", 2_084_044_800 // 256 * 66),
        ("IQ2_S", 2_084_044_800 // 256 * 82),
        ("Q6_K", 2_084_044_800 // 256 * 210),
        ("Q8_0", 2_084_044_800 // 32 * 34),
    ],
)
def test_the_layers_of_2b_4t_take_the_exact_bytes_of_each_format(weight_format: str, layers_bytes: int) -> None:
    model = analyse("bitnet-b1.58-2B-4T", weight_format, machine="x86_64")
    assert sum(map(weight_bytes, model.layers)) == layers_bytes


def test_advice_for_several_devices_is_what_a_split_of_layers_can_do(tied: Model) -> None:
    """A tied matrix needs a copy on either side of a split, so the sum of the memory alone would promise too much."""
    available = {"cpu": 1_100_000_000, "cuda:0": 1_200_000_000}
    overhead = {"cpu": 100_000_000, "cuda:0": 200_000_000}
    text = what_would_fit(tied, server(8192), available, overhead)
    assert "room for 1 GB on cpu and 1 GB on cuda:0" in text
    context = int(text.partition("a context of at most ")[2].partition(" tokens")[0].replace(",", ""))

    def fits(tokens: int) -> bool:
        splits = ({"cpu": layers, "cuda:0": 30 - layers} for layers in range(1, 30))
        plans = (plan(tied, configuration(split, "cuda:0", 1, 32), tokens, available, overhead) for split in splits)
        return any(all(use.total_bytes <= use.available_bytes for use in uses) for uses in plans)

    assert fits(context)
    assert not fits(context + 1)


def test_a_device_too_small_for_its_runtime_gives_no_room(tied: Model) -> None:
    available = {"cpu": 1_500_000_000, "cuda:0": 50_000_000}
    text = what_would_fit(tied, server(), available, {"cpu": 0, "cuda:0": 300_000_000})
    assert "1.5 GB on cpu and 0 B on cuda:0: a batch of at most 1 would fit" in text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (76_800, "76.8 kB"),
        (656_670_720, "657 MB"),
        (1_187_801_280, "1.19 GB"),
    ],
)
def test_sizes_read_in_decimal_units(size_bytes: int, text: str) -> None:
    assert readable_bytes(size_bytes) == text
