"""Stages on a GPU against a plain model and beside a CPU; where there is no GPU, on torch's CPU device.

What a GPU adds, that a pass is one graph and transfers don't wait, is tested as far as torch's stand-ins tell.
"""

from __future__ import annotations

import gc
import os
import weakref
from importlib.util import find_spec

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from autotune.engine import gpu_pass
from autotune.engine.gpu_stage import GpuStage
from autotune.engine.stages import Kernels, Pass
from autotune.engine.transformer import Transformer
from autotune.engine.weights import PackedWeights, RandomWeights
from autotune.model.fusion import fused
from autotune.model.sites import on_gpu
from autotune.records import Configuration, Part, SiteKernels
from ternary_kernels.cuda.product import Product
from tests.engine.models import small_model
from tests.engine.plain_model import PlainModel

PLACE = "cuda:0" if torch.cuda.is_available() else "cpu"
BACKENDS = ["torch", *(["triton"] if find_spec("triton") else [])]
if PLACE == "cpu" and "triton" in BACKENDS:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is defined, which is when a stage needs one
CAPACITY = 24
TOKENS = np.array([7, 300, 0, 319, 42, 42, 5, 128, 99, 17, 250])

LEAD = 0.1
"""How far a token must lead in its logit for its choice to be the model's: attention in float16 changes a logit by some
hundredths, as it makes int8 activations round another way."""
TERNARY, FLOATING = 4e-2, 4e-3
"""Errors of a layer's rows relative to their norm, for the same reason; they are far above those of an operation."""


def kernels(backend="torch", device="cuda:0"):
    return Kernels((), {"cpu": "numpy", device: backend})


def with_torchs_products(model, backend):
    """Of the backend all but the products, which have tests of their own and take Triton's interpreter minutes."""
    held = on_gpu(model)
    sites = {site for layer in held.layers for site in fused(layer)} | {held.head}
    listed = {"1": "torch"}
    return Kernels(
        tuple(SiteKernels(site.format, site.n_out, site.k_in, listed, {}, "cuda:0") for site in sites),
        {"cuda:0": backend},
    )


def make_stage(model, weights, layers=range(0), *, embedding=False, head=False, sequences=3, tokens=0, **overrides):
    stage = GpuStage(
        model,
        layers,
        **{
            "device": "cuda:0",
            "torch_device": PLACE,
            "weights": weights,
            "embedding": embedding,
            "head": head,
            "capacity": CAPACITY,
            **overrides,
        },
    )
    stage.reserve(sequences, tokens)
    return stage


def prefill(rows, context=0, slot=0, last=True):
    return Pass(rows, 1, context, last=last, slot=slot)


def decode(sequences, context, slot=0):
    return Pass(sequences, sequences, context, last=True, slot=slot)


def errors_of(found, expected):
    """Each row's error, relative to its norm."""
    assert found.shape == expected.shape
    return np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)


@pytest.fixture(scope="module")
def problem():
    """A model, its weights, three prompts, and how it continues them by a clear lead."""
    model = small_model()
    weights = PackedWeights(model, seed=1)
    plain, rng = PlainModel(model, weights), np.random.default_rng(0)
    prompts, expected = [], []
    while len(prompts) < 3:
        prompt = rng.integers(0, model.vocab_size, 9)
        tokens, lead = plain.generate(prompt, 3)
        if lead > LEAD:
            prompts.append(prompt)
            expected.append(tokens)
    return model, weights, np.array(prompts), np.array(expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("family", "layer_format", "formats", "tolerance"),
    [
        ("bitnet", "I2_S", {}, TERNARY),
        ("llama", "TQ2_0", {}, TERNARY),
        ("llama", "F16", {}, FLOATING),
        ("bitnet", "I2_S", {"v": "F16", "up": "F16", "o": "F16"}, TERNARY),
    ],
)
def test_each_layer_agrees_with_the_plain_model(backend, family, layer_format, formats, tolerance):
    """First a piece of a prompt, then another, then a token; in formats that a GPU has and others, one or several."""
    model = small_model(family, layer_format, layers=1, formats=formats)
    weights = PackedWeights(model)
    plain = PlainModel(model, weights)
    stream = plain.embed(TOKENS)
    expected = plain.layer(0, stream)
    stage = make_stage(model, weights, range(1))
    for step in (prefill(6), prefill(4, 6, last=False), decode(1, 10)):
        rows = slice(step.context, step.context + step.rows)
        bound = stage.bind(step, 1, with_torchs_products(model, backend))
        for _ in range(2):  # the graph may be replayed
            found = bound(stream[rows].astype(np.float32))
            assert errors_of(found, expected[rows]).max() < tolerance, step


@pytest.mark.parametrize("ends", [{}, {"head_format": "F16"}, {"embedding_format": "I2_S"}])
def test_ends_agree_with_the_plain_model(ends):
    """Tied or not, floating or ternary; of a prompt the last token counts."""
    model = small_model(layers=1, **ends)
    weights = PackedWeights(model)
    plain = PlainModel(model, weights)
    first = make_stage(model, weights, embedding=True).bind(prefill(len(TOKENS)), 1, kernels())
    np.testing.assert_allclose(first(TOKENS), plain.embed(TOKENS), rtol=1e-6)
    stage = make_stage(model, weights, head=True, sequences=5)
    stream = np.random.default_rng(0).standard_normal((5, model.hidden_size), np.float32)
    expected = [plain.logits(row[None]).argmax() for row in stream]
    assert stage.bind(prefill(5), 1, kernels())(stream).tolist() == expected[-1:]
    assert stage.bind(decode(5, 0), 1, kernels())(stream).tolist() == expected
    assert stage.bind(prefill(5, last=False), 1, kernels())(stream) is None


@pytest.mark.parametrize(
    ("device_layers", "head_device", "batch", "chunk"),
    [
        ({"cuda:0": 3}, "cuda:0", 3, 9),
        ({"cuda:0": 3}, "cuda:0", 1, 4),
        ({"cuda:0": 3}, "cpu", 2, 16),
        ({"cpu": 1, "cuda:0": 2}, "cuda:0", 3, 4),
        ({"cpu": 2, "cuda:0": 1}, "cpu", 3, 5),
        ({"cuda:0": 1, "cuda:1": 2}, "cuda:1", 3, 4),
        ({"cpu": 1, "cuda:0": 1, "cuda:1": 1}, "cuda:1", 2, 8),
    ],
)
def test_tokens_are_those_of_the_plain_model_wherever_the_layers_are(problem, device_layers, head_device, batch, chunk):
    """And whatever the batch and the chunk."""
    model, weights, prompts, expected = problem
    where = Configuration(device_layers, head_device, 1, 1, batch, chunk)
    backends = dict.fromkeys(("cuda:0", "cuda:1"), "torch") | {"cpu": "numpy"}
    transformer = Transformer(model, weights, capacity=12, cpus=None, gpus=dict.fromkeys(("cuda:0", "cuda:1"), PLACE))
    try:
        found = transformer.generate(prompts, 3, where, Kernels((), backends))
    finally:
        transformer.close()
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_a_part_runs_on_both_devices_and_tells_the_time_on_each(phase):
    model = small_model()
    transformer = Transformer(model, RandomWeights(), capacity=CAPACITY, cpus=None, gpus={"cuda:0": PLACE})
    try:
        part = Part(phase, (("cpu", 1), ("cuda:0", 2)), "cuda:0", 1, 4, 11)
        running = transformer.part(part, kernels())
        running.warm_up()
        total_s, device_s = running.sample()
        assert set(device_s) == {"cpu", "cuda:0"}
        assert min(device_s.values()) > 0
        assert sum(device_s.values()) <= total_s
    finally:
        transformer.close()


def test_passes_of_different_sizes_are_called_in_any_order():
    """They share memory; what one returns is to be read before the next is called."""
    model = small_model(layers=2)
    weights = PackedWeights(model)
    stage = make_stage(model, weights, range(2), sequences=4)
    rng = np.random.default_rng(0)
    steps = [prefill(7), prefill(7, 7), decode(4, 14), decode(2, 14, slot=2), prefill(3)]
    given = [rng.standard_normal((step.rows, model.hidden_size), np.float32) for step in steps]
    alone = [stage.bind(step, 1, kernels())(stream).copy() for step, stream in zip(steps, given, strict=True)]
    bound = [stage.bind(step, 1, kernels()) for step in steps]
    for index in (0, 1, 4, 0, 2, 3, 1, 2):
        np.testing.assert_array_equal(bound[index](given[index]), alone[index])


def test_sequences_do_not_see_each_other():
    model = small_model(layers=1)
    stage = make_stage(model, PackedWeights(model), range(1), sequences=3, tokens=9)
    stream = np.random.default_rng(0).standard_normal((3, model.hidden_size), np.float32)
    bound = stage.bind(decode(3, 9), 1, kernels())
    before = bound(stream).copy()
    stream[1] *= -1
    after = bound(stream)
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])
    assert not np.isclose(after[1], before[1]).all()


def test_caches_hold_random_numbers_up_to_where_they_are_wanted():
    stage = make_stage(small_model(layers=2), RandomWeights(), range(2), sequences=2, tokens=5)
    stage.reserve(1, 7)  # room that is there is kept, and filled further
    caches = [*stage._caches.keys, *stage._caches.values]
    assert len(caches) == 4
    for cache in caches:
        assert cache.shape == (2, 2, CAPACITY, 64)
        assert 0.9 < cache[:, :, :7].float().std() < 1.1
        assert (cache[:, :, 5:7] != 0).any(dim=-1).all()
        assert not cache[:, :, 7:].any()
    kept = caches[0][:, :, :7].clone()
    stage.reserve(2, 3)
    assert torch.equal(stage._caches.keys[0][:, :, :7], kept)


def test_a_pass_survives_that_room_is_made_for_more():
    """Its graph knew the caches by their addresses."""
    model = small_model(layers=1)
    stage = make_stage(model, PackedWeights(model), range(1), sequences=1)
    stream = np.random.default_rng(0).standard_normal((6, model.hidden_size), np.float32)
    bound = stage.bind(prefill(6), 1, kernels())
    before = bound(stream).copy()
    stage.reserve(8, 0)
    np.testing.assert_array_equal(bound(stream), before)
    assert stage._caches.keys[0][0].any()


def test_all_memory_is_given_back_when_a_stage_is_closed_and_its_passes_are_gone():
    """At once: what only a garbage collection would free would still be there when the next stage needs the room."""
    model = small_model(layers=1)
    gc.collect()
    gc.disable()
    try:
        stage = make_stage(model, RandomWeights(), range(1), embedding=True, head=True)
        bound = stage.bind(prefill(4), 1, kernels())
        bound(TOKENS[:4])
        weights = stage._weights
        held = [weights.embedding.weights.codes, weights.layers[0].matrices["qkv"].weights.codes, *stage._caches.keys]
        held = [weakref.ref(tensor) for tensor in (*held, stage._streams[4].there)]
        del weights
        stage.close()
        del bound
        assert [reference() for reference in held] == [None] * 4
    finally:
        gc.enable()


def test_a_listed_kernel_multiplies_and_else_the_backends_own():
    if "triton" not in BACKENDS:
        pytest.skip("needs two kernels")
    site = on_gpu(small_model()).head
    place = torch.device(PLACE)
    listed = SiteKernels(site.format, site.n_out, site.k_in, {"1": "torch", "8": "triton"}, {}, "cuda:0")
    chosen = [
        gpu_pass.Tools(Kernels(sites, {"cuda:0": "triton"}), "cuda:0", place)
        .product(site, tokens, prefill=False)
        .kernel
        for sites, tokens in (((listed,), 1), ((listed,), 8), ((), 1))
    ]
    assert chosen == ["torch", "triton", "triton"]


def test_products_are_shared_by_the_passes_that_they_fit():
    model = small_model()
    tools = gpu_pass.Tools(kernels(), "cuda:0", torch.device(PLACE))
    site = on_gpu(model).head
    assert tools.product(site, 4, prefill=True) is tools.product(site, 4, prefill=False)
    assert tools.product(site, 4, prefill=True) is not tools.product(site, 5, prefill=True)


def test_passes_that_cannot_be_are_refused():
    model = small_model(layers=1)
    stage = make_stage(model, RandomWeights(), range(1), sequences=2)
    with pytest.raises(ValueError, match="KV cache: expected room for 3 sequences, got 2: reserve them first"):
        stage.bind(decode(2, 0, slot=1), 1, kernels())
    with pytest.raises(ValueError, match=f"expected room for 20 \\+ 5 tokens, got {CAPACITY} slots"):
        stage.bind(prefill(5, 20), 1, kernels())
    with pytest.raises(ValueError, match="no backend 'numpy' for a GPU"):
        stage.bind(prefill(5), 1, kernels("numpy"))
    with pytest.raises(ValueError, match=f"KV cache: expected at most {CAPACITY} tokens per sequence, got 25"):
        stage.reserve(2, 25)
    stage.close()
    with pytest.raises(ValueError, match="expected room for 1 sequences, got 0"):
        stage.bind(prefill(5), 1, kernels())


def test_too_little_memory_is_a_memory_error(monkeypatch):
    model = small_model(layers=1)
    stage = make_stage(model, RandomWeights(), range(1), capacity=1 << 40, sequences=0)
    with pytest.raises(MemoryError, match=r"^cuda:0: out of memory for the KV cache of 1 sequences$"):
        stage.reserve(1, 0)
    with pytest.raises(ValueError, match="expected room for 1 sequences, got 0"):
        stage.bind(decode(1, 0), 1, kernels())

    def full(*arguments, **others):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    stage = make_stage(model, RandomWeights(), range(1))
    monkeypatch.setattr(gpu_pass, "capture", full)
    with pytest.raises(MemoryError, match=r"^cuda:0: out of memory for a pass$"):
        stage.bind(decode(1, 0), 1, kernels())
    monkeypatch.setattr(Product, "load", full)
    with pytest.raises(MemoryError, match=r"^cuda:0: out of memory for its weights$"):
        make_stage(model, RandomWeights(), range(1))


def test_other_errors_stay_what_they_are(monkeypatch):
    def lost(*arguments, **others):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(gpu_pass, "capture", lost)
    stage = make_stage(small_model(layers=1), RandomWeights(), range(1))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        stage.bind(decode(1, 0), 1, kernels())


def test_on_a_gpu_a_call_uploads_replays_downloads_and_waits_in_this_order(monkeypatch):
    """As stand-ins are told; none of it but the last waits."""
    said = []

    class Link:
        def __init__(self, name):
            self.name, self.array = name, np.array([7])

        def upload(self, array):
            said.append(f"{self.name} goes up")

        def download(self):
            said.append(f"{self.name} comes down")

    class Forward:
        tokens, following = Link("tokens"), Link("following")

    class Stream:
        def synchronize(self):
            said.append("waits")

    monkeypatch.setattr(gpu_pass, "capture", lambda *what: said.append("recorded") or (lambda: said.append("replayed")))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    bound = gpu_pass.GpuPass(Forward(), Link("stream"), hands_on=False, place=torch.device("cuda:0"), device="cuda:0")
    assert said == ["recorded"]
    assert bound(TOKENS) is Forward.following.array
    assert said[1:] == ["tokens goes up", "replayed", "following comes down", "waits"]
    del said[:]
    Forward.tokens = Forward.following = None
    bound = gpu_pass.GpuPass(Forward(), Link("stream"), hands_on=True, place=torch.device("cuda:0"), device="cuda:0")
    bound(TOKENS)
    assert said == ["recorded", "stream goes up", "replayed", "stream comes down", "waits"]
