"""The memory plan: what a configuration needs on each device, and what would fit if nothing does."""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.model.analyse import analyse
from autotune.model.memory import (
    Room,
    activation_bytes,
    ends_bytes,
    fits,
    kv_cache_bytes,
    layers_bytes,
    model_bytes,
    plan,
    site_bytes,
    vocabulary_bytes,
    weight_bytes,
    what_would_fit,
)
from autotune.model.sites import on_gpu
from autotune.model.sizes import readable_bytes
from autotune.records import Attention, Configuration, Layer, Model, Site, Workload


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


def room(overhead: int = 0, gpu_host_bytes: int = 0, **available: int) -> Room:
    """Room on the CPU and, as ``gpu0`` and so on, GPUs; all with the same overhead."""
    available_bytes = {name.replace("gpu", "cuda:"): size for name, size in available.items()}
    return Room(available_bytes, dict.fromkeys(available_bytes, overhead), gpu_host_bytes)


BOTH = room(cpu=8_000_000_000, gpu0=4_000_000_000)


def test_one_device_holds_all_of_a_tied_model_once(tied: Model) -> None:
    (use,) = plan(tied, configuration({"cpu": 30}, "cpu"), 2048, room(90_000_000, cpu=8_000_000_000))
    assert use.weights_bytes == model_bytes(tied)
    assert use.kv_cache_bytes == 4 * 2048 * 76_800
    assert use.activations_bytes == activation_bytes(tied, 128, 4, 2048)
    assert (use.overhead_bytes, use.available_bytes) == (90_000_000, 8_000_000_000)


def test_a_split_keeps_layers_and_their_cache_together_and_copies_a_tied_matrix(tied: Model) -> None:
    cpu, gpu = plan(tied, configuration({"cpu": 10, "cuda:0": 20}, "cuda:0"), 2048, BOTH)
    layer = weight_bytes(tied.layers[0])
    assert cpu.weights_bytes == 10 * layer + site_bytes(tied.embedding) + vocabulary_bytes(tied)
    assert gpu.weights_bytes == 20 * layer + site_bytes(tied.head) + tied.norm_bytes
    assert 2 * cpu.kv_cache_bytes == gpu.kv_cache_bytes == 20 * 4 * 2048 * 2560
    assert cpu.weights_bytes + gpu.weights_bytes == model_bytes(tied) + site_bytes(tied.embedding)


def test_an_untied_split_copies_nothing(untied: Model) -> None:
    for head in ("cpu", "cuda:0"):
        split = plan(untied, configuration({"cpu": 9, "cuda:0": 9}, head), 2048, BOTH)
        assert sum(use.weights_bytes for use in split) == model_bytes(untied)


def test_with_the_head_on_the_cpu_a_tied_matrix_is_there_once_and_nowhere_else(tied: Model) -> None:
    for layers in ({"cuda:0": 30}, {"cpu": 10, "cuda:0": 20}):
        cpu, gpu = plan(tied, configuration(layers, "cpu"), 2048, BOTH)
        assert (cpu.device, gpu.device) == ("cpu", "cuda:0")
        assert cpu.weights_bytes + gpu.weights_bytes == model_bytes(tied)
        assert gpu.weights_bytes == layers_bytes(tied.layers[-layers["cuda:0"] :])
        assert gpu.activations_bytes == activation_bytes(tied, 128, 4, 2048, head=False)
        assert cpu.kv_cache_bytes == 4 * 2048 * 2560 * layers.get("cpu", 0)


def test_a_model_on_a_gpu_leaves_the_cpu_the_vocabulary_and_what_drives_the_gpu(tied: Model) -> None:
    """The rows of a step pass through the CPU's memory at most as they are between two layers."""
    driven = BOTH._replace(overhead_bytes={"cpu": 90_000_000, "cuda:0": 500_000_000}, gpu_host_bytes=900_000_000)
    cpu, gpu = plan(tied, configuration({"cuda:0": 30}, "cuda:0"), 2048, driven)
    assert (cpu.weights_bytes, cpu.kv_cache_bytes) == (vocabulary_bytes(tied), 0)
    assert cpu.activations_bytes == 128 * 4 * tied.hidden_size
    assert (cpu.overhead_bytes, gpu.overhead_bytes) == (900_000_000, 500_000_000)
    assert gpu.weights_bytes == model_bytes(tied) - vocabulary_bytes(tied)
    assert gpu.activations_bytes == activation_bytes(tied, 128, 4, 2048)
    (alone,) = plan(tied, configuration({"cpu": 30}, "cpu"), 2048, driven)
    assert alone.overhead_bytes == 90_000_000
    roomier = driven._replace(gpu_host_bytes=50_000_000)
    assert plan(tied, configuration({"cuda:0": 30}, "cuda:0"), 2048, roomier)[0].overhead_bytes == 90_000_000


def test_between_two_gpus_the_first_holds_the_embedding_and_the_last_the_head(tied: Model) -> None:
    cpu, first, last = plan(
        tied, configuration({"cuda:0": 10, "cuda:1": 20}, "cuda:1"), 2048, room(cpu=10**9, gpu0=10**9, gpu1=10**9)
    )
    assert first.weights_bytes == layers_bytes(tied.layers[:10]) + site_bytes(tied.embedding)
    assert last.weights_bytes == layers_bytes(tied.layers[10:]) + site_bytes(tied.head) + tied.norm_bytes
    assert cpu.weights_bytes == vocabulary_bytes(tied)


def test_layers_of_different_sizes_are_counted_where_they_are(tied: Model) -> None:
    heavy = msgspec.structs.replace(
        tied.layers[0], sites=tuple(msgspec.structs.replace(site, format="F16") for site in tied.layers[0].sites)
    )
    model = msgspec.structs.replace(tied, layers=(heavy, *tied.layers[1:]))
    cpu, gpu = plan(model, configuration({"cpu": 1, "cuda:0": 29}, "cuda:0"), 64, BOTH)
    assert cpu.weights_bytes - ends_bytes(model, head=False) - vocabulary_bytes(model) == 2 * 69_468_160
    assert gpu.weights_bytes - ends_bytes(model, embedding=False) == 29 * weight_bytes(tied.layers[0])


@pytest.mark.parametrize(
    ("weight_format", "stored"), [("TL2", "I2_S"), ("TQ1_0", "I2_S"), ("I2_S", "I2_S"), ("IQ2_S", "F16")]
)
def test_a_gpu_holds_layers_in_the_format_of_its_kernels(weight_format: str, stored: str) -> None:
    model = analyse("bitnet-b1.58-2B-4T", weight_format, machine="x86_64")
    as_stored = analyse("bitnet-b1.58-2B-4T", stored, machine="x86_64")
    cpu, gpu = plan(model, configuration({"cpu": 10, "cuda:0": 20}, "cuda:0"), 64, BOTH)
    assert cpu.weights_bytes - ends_bytes(model, head=False) - vocabulary_bytes(model) == layers_bytes(
        model.layers[:10]
    )
    assert gpu.weights_bytes - ends_bytes(model, embedding=False) == layers_bytes(as_stored.layers[10:])


def test_a_shape_that_the_gpus_format_cannot_hold_is_f16_there() -> None:
    """96 columns are neither a multiple of 128, as I2_S needs, nor of 64, as on Arm."""
    model = analyse("bitnet-b1.58-2B-4T", "TL2", machine="x86_64")
    sites = (Site("q", 128, 256, "TL2"), Site("o", 256, 96, "TL1"), Site("down", 256, 320, "TQ2_0"))
    odd = msgspec.structs.replace(
        model, layers=(Layer(sites), Layer(sites)), head=Site("head", 1000, 256, "Q6_K"), tied=False
    )
    stored = on_gpu(odd)
    assert [site.format for site in stored.layers[1].sites] == ["I2_S", "F16", "I2_S_ARM"]
    assert (stored.embedding.format, stored.head.format) == ("F16", "F16")
    assert [(site.name, site.n_out, site.k_in) for site in stored.layers[0].sites] == [
        (site.name, site.n_out, site.k_in) for site in sites
    ]
    assert on_gpu(odd) is stored


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
    small = room(100_000_000, cpu=2_000_000_000)
    text = what_would_fit(tied, server(), small)
    assert text.endswith(": a batch of at most 4 would fit")
    for batch, enough in ((4, True), (5, False)):
        (use,) = plan(tied, configuration({"cpu": 30}, "cpu", batch, 32), 2048, small)
        assert (use.total_bytes <= use.available_bytes) == enough


def test_too_long_a_context_is_told_the_context_that_fits(tied: Model) -> None:
    small = room(100_000_000, cpu=1_400_000_000)
    text = what_would_fit(tied, server(4096), small)
    assert text.startswith("bitnet-b1.58-2B-4T needs 1.52 GB for one sequence of 4,096 tokens")
    assert "(model 1.19 GB, KV cache 315 MB, activations" in text
    assert "but beside the runtime itself there is room for 1.3 GB on cpu: a context of at most" in text
    context = int(text.partition("a context of at most ")[2].partition(" tokens")[0].replace(",", ""))
    for tokens, enough in ((context, True), (context + 1, False)):
        (use,) = plan(tied, configuration({"cpu": 30}, "cpu", 1, 32), tokens, small)
        assert (use.total_bytes <= use.available_bytes) == enough


def test_a_cpu_without_the_memory_to_drive_a_gpu_is_told_what_that_takes(tied: Model) -> None:
    """Else room for far more than the model on the GPU would seem not to be enough."""
    text = what_would_fit(
        tied, server(), Room({"cpu": 10**9, "cuda:0": 10**10}, {"cpu": 10**8, "cuda:0": 0}, 12 * 10**8)
    )
    assert (
        "there is room for 900 MB on cpu and 10 GB on cuda:0, where driving a GPU takes another 1.1 GB on cpu: no"
    ) in text


def test_smaller_formats_are_named_only_where_the_weights_can_be_in_them(tied: Model) -> None:
    """The largest first; no ternary one for weights that aren't, and none that is lossy."""
    f32, f16 = (analyse("bitnet-b1.58-2B-4T", name) for name in ("F32", "F16"))
    text = what_would_fit(f32, server(), room(cpu=6_000_000_000))
    formats = ("F16 (model 4.83 GB)", "Q8_0 (model 2.88 GB)", "Q6_K (model 2.38 GB)")
    assert text.endswith(f": {' or '.join(f'the weight format {name}' for name in formats)} would fit")
    (use,) = plan(f16, configuration({"cpu": 30}, "cpu", 1, 32), 2048, room(cpu=0))
    assert 4_900_000_000 < use.total_bytes < 6_000_000_000
    assert "F16" not in what_would_fit(f32, server(), room(cpu=4_900_000_000))


def test_nothing_that_fits_is_said_plainly(tied: Model) -> None:
    text = what_would_fit(tied, server(), room(cpu=1_000_000_000))
    assert text.endswith(": no shorter context and no other format would fit")


def test_a_ternary_model_is_told_the_smaller_ternary_formats(tied: Model) -> None:
    text = what_would_fit(tied, server(), room(cpu=1_300_000_000))
    assert "the weight format TQ1_0 (model 1.11 GB) or the weight format TL2 (model 1.11 GB) would fit" in text
    assert "IQ2_S" not in text


def test_a_smaller_format_must_hold_every_site() -> None:
    """bitnet_b1_58-3B's 3,200 columns are no multiple of TQ1_0's 256."""
    large = analyse("bitnet_b1_58-3B", machine="x86_64")
    text = what_would_fit(large, server(), room(cpu=2_900_000_000))
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
    """Only layers can be parted: the CPU's room beside embedding and head takes few of them."""
    both = Room({"cpu": 1_000_000_000, "cuda:0": 800_000_000}, {"cpu": 100_000_000, "cuda:0": 200_000_000}, 150_000_000)
    text = what_would_fit(tied, server(8192), both)
    assert "room for 900 MB on cpu and 600 MB on cuda:0" in text
    context = int(text.partition("a context of at most ")[2].partition(" tokens")[0].replace(",", ""))
    for tokens, enough in ((context, True), (context + 1, False)):
        assert fits_by_trying(tied, 1, 32, tokens, both) == enough
        assert fits(tied, server(tokens), both) == enough


def test_a_model_too_large_for_a_gpu_in_its_format_there_is_told_so() -> None:
    """IQ2_S is unpacked to F16 on a GPU: eight times as large as it is in the file."""
    model = analyse("bitnet-b1.58-2B-4T", "IQ2_S", machine="x86_64")
    text = what_would_fit(model, server(), room(cpu=1_000_000_000, gpu0=1_000_000_000))
    assert "(model 1.33 GB, KV cache 157 MB, activations" in text
    assert "; on a GPU the model takes 4.83 GB)" in text
    ternary = analyse("bitnet-b1.58-2B-4T", machine="x86_64")
    assert "on a GPU the model" not in what_would_fit(ternary, server(), room(cpu=500_000_000, gpu0=500_000_000))


def test_a_device_too_small_for_its_runtime_gives_no_room(tied: Model) -> None:
    small = Room({"cpu": 1_500_000_000, "cuda:0": 50_000_000}, {"cpu": 0, "cuda:0": 300_000_000})
    text = what_would_fit(tied, server(), small)
    assert "1.5 GB on cpu and 0 B on cuda:0: a batch of at most 1 would fit" in text


def fits_by_trying(model: Model, sequences: int, rows: int, context: int, available: Room) -> bool:
    """Whether the plan of any placement fits: every share of the layers, with the head on the last GPU or the CPU."""
    devices = list(available.available_bytes)
    for counts in itertools.product(range(len(model.layers) + 1), repeat=len(devices)):
        layers = {device: count for device, count in zip(devices, counts, strict=True) if count}
        if sum(counts) != len(model.layers):
            continue
        for head in {"cpu", list(layers)[-1]}:
            uses = plan(model, configuration(layers, head, sequences, rows), context, available)
            if all(use.total_bytes <= use.available_bytes for use in uses):
                return True
    return False


@given(
    widths=st.lists(st.sampled_from([128, 512, 2048]), min_size=1, max_size=4),
    formats=st.lists(st.sampled_from(["I2_S", "Q8_0", "F16", "F32"]), min_size=4, max_size=4),
    tied=st.booleans(),
    kilobytes=st.lists(st.integers(0, 3000), min_size=1, max_size=4),
    overhead=st.sampled_from([0, 100_000]),
    gpu_host_bytes=st.sampled_from([0, 300_000]),
    sequences=st.integers(1, 4),
    context=st.sampled_from([1, 256]),
)
@settings(deadline=None, max_examples=300)
def test_what_fits_is_what_trying_every_placement_finds(
    widths: list[int],
    formats: list[str],
    tied: bool,
    kilobytes: list[int],
    overhead: int,
    gpu_host_bytes: int,
    sequences: int,
    context: int,
) -> None:
    """Synthetic models of unlike layers on up to three GPUs, of about the memory that they need."""
    layers = (
        Layer((Site("up", width, 256, name), Site("down", 256, width, name)))
        for width, name in zip(widths, formats, strict=False)
    )
    model = Model(
        name="synthetic",
        architecture="bitnet",
        hidden_size=256,
        intermediate_size=2048,
        vocab_size=1000,
        max_context=4096,
        activation="relu2",
        attention=Attention(heads=4, kv_heads=2, head_dim=64),
        layers=tuple(layers),
        embedding=Site("embedding", 1000, 256, "Q8_0"),
        head=Site("head", 1000, 256, "Q8_0"),
        tied=tied,
        norm_bytes=4096,
        source_digest="synthetic",
    )
    names = ("cpu", "cuda:0", "cuda:1", "cuda:2")
    available = {name: 1000 * size for name, size in zip(names, kilobytes, strict=False)}
    some = Room(available, dict.fromkeys(available, overhead), gpu_host_bytes)
    workload = msgspec.structs.replace(server(context), max_batch=sequences)
    possible = [fits_by_trying(model, batch, max(batch, 2), context, some) for batch in range(1, sequences + 1)]
    assert fits(model, workload, some, prefill_chunk=2) == possible[0]
    advised = f"a batch of at most {sum(possible)} would fit"
    assert (advised in what_would_fit(model, workload, some, prefill_chunk=2)) == possible[0]


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
