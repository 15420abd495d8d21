"""The whole model: what it says, however it is run; and parts of configurations, ready to be timed."""

from __future__ import annotations

import subprocess
import sys
import weakref

import numpy as np
import pytest

from autotune.engine.cpu_stage import CpuStage
from autotune.engine.stages import Kernels, Pass
from autotune.engine.transformer import Transformer
from autotune.engine.weights import PackedWeights, RandomWeights
from autotune.model.memory import site_bytes, weight_bytes
from autotune.records import Part, SiteKernels
from tests.engine.models import NUMPY, configuration, every_site_on, runnable_kernels, small_model
from tests.engine.plain_model import PlainModel

CAPACITY = 32
PROMPTS = np.random.default_rng(11).integers(0, 320, (3, 10))
COUNT = 5
SURE = 0.03
"""A lead that no rounding to int8 overturns."""


@pytest.fixture
def transformer():
    """Makes transformers, which are closed when the test is done."""
    made = []

    def transformer(model, weights=None, **options):
        made.append(Transformer(model, weights or RandomWeights(), capacity=CAPACITY, cpus=None, **options))
        return made[-1]

    yield transformer
    for each in made:
        each.close()


class Counted(RandomWeights):
    """Counts the matrices that are asked for."""

    def __init__(self):
        super().__init__()
        self.made = 0

    def matrix(self, layer, site):
        self.made += 1
        return super().matrix(layer, site)


def sure_model(family, **options):
    """A model with weights, and what it continues the prompts with; none of the tokens is a close call."""
    model = small_model(family, layers=2, **options)
    for seed in range(200):
        weights = PackedWeights(model, seed)
        plain = PlainModel(model, weights)
        continued = []
        for prompt in PROMPTS:
            tokens, lead = plain.generate(prompt, COUNT)
            if lead < SURE:
                break
            continued.append(tokens)
        else:
            return model, weights, continued
    raise AssertionError("no model is sure of all its tokens")


@pytest.fixture(scope="module", params=["bitnet", "llama"])
def sure(request):
    """Either family; one with a tied head, the other with a head of its own."""
    return sure_model(request.param, head_format="Q6_K" if request.param == "llama" else None)


@pytest.mark.parametrize(
    ("batch", "chunk", "threads"), [(1, 10, 1), (1, 1, 1), (3, 4, 1), (2, 3, 2), (3, 16, 3)], ids=str
)
def test_tokens_depend_on_no_batch_chunk_or_threads(sure, transformer, batch, chunk, threads):
    """They are those of a plain model that computes everything anew for each token."""
    model, weights, expected = sure
    run = configuration(model, threads=threads, batch=batch, chunk=chunk)
    assert transformer(model, weights).generate(PROMPTS, COUNT, run, NUMPY).tolist() == expected


def test_compiled_kernels_say_the_same(sure, transformer):
    if ("native", "I2_S") not in runnable_kernels():
        pytest.skip("the native kernels can't run here")
    model, weights, expected = sure
    run = configuration(model, threads=2, batch=3, chunk=4)
    kernels = every_site_on(model, "native")
    assert transformer(model, weights).generate(PROMPTS, COUNT, run, kernels).tolist() == expected


@pytest.mark.parametrize(("gpu_layers", "head_device"), [(1, "cpu"), (1, "cuda:0"), (2, "cpu"), (2, "cuda:0")], ids=str)
def test_tokens_depend_on_no_placement(sure, transformer, gpu_layers, head_device):
    """Layers and ends on the stage of a GPU, for which torch's CPU stands in."""
    pytest.importorskip("torch")
    model, weights, expected = sure
    run = configuration(model, batch=2, chunk=6, gpu_layers=gpu_layers, head_device=head_device)
    kernels = Kernels((), {"cpu": "numpy", "cuda:0": "torch"})
    found = transformer(model, weights, gpus={"cuda:0": "cpu"}).generate(PROMPTS, COUNT, run, kernels)
    assert found.tolist() == expected


def part(model, phase, size, context=12, *, threads=1, gpu_layers=0, head_device="cpu"):
    run = configuration(model, gpu_layers=gpu_layers, head_device=head_device)
    return Part(phase, tuple(run.device_layers.items()), head_device, threads, size, context)


@pytest.mark.parametrize(("phase", "size"), [("decode", 1), ("decode", 3), ("prefill", 5), ("prefill", 64)])
def test_a_part_can_be_sampled_again_and_again(transformer, phase, size):
    model = small_model()
    running = transformer(model).part(part(model, phase, size), NUMPY)
    running.warm_up()
    for _ in range(3):
        total_s, device_s = running.sample()
        assert device_s.keys() == {"cpu"}
        assert 0 < device_s["cpu"] <= total_s
    assert 0 < running.overhead_share() < 1


def recorded_passes(monkeypatch, transformer, model, wanted):
    """The passes that a sample of a part runs, in order."""
    ran, bind = [], CpuStage.bind

    def recording(stage, step, threads, kernels):
        bound = bind(stage, step, threads, kernels)

        def run(given):
            ran.append((step, threads))
            return bound(given)

        return run

    monkeypatch.setattr(CpuStage, "bind", recording)
    running = transformer(model).part(wanted, NUMPY)
    running.warm_up()
    warm = len(ran)
    running.sample()
    return ran[:warm], ran[warm:]


@pytest.mark.parametrize(("phase", "size", "sequences", "slots"), [("decode", 3, 3, 12), ("prefill", 2, 1, 11)])
def test_no_memory_of_the_kv_cache_is_touched_for_the_first_time_in_a_sample(
    monkeypatch, transformer, phase, size, sequences, slots
):
    """A step's slots and those of a whole prompt hold numbers before any pass runs, but the one a step writes."""
    held = []
    bind = CpuStage.bind
    monkeypatch.setattr(CpuStage, "bind", lambda stage, *args: (held.append(stage._caches), bind(stage, *args))[1])
    model = small_model()
    transformer(model).part(part(model, phase, size, context=11), NUMPY)
    for caches in held:
        assert caches.shape == (3, 2, sequences, 2, slots, 64)
        assert abs(caches.astype(np.float32)).min() > 0.2
        assert abs(caches.astype(np.float32)).max() < 1.6


def test_a_decode_sample_is_one_step_of_all_sequences(monkeypatch, transformer):
    model = small_model()
    warm, sampled = recorded_passes(monkeypatch, transformer, model, part(model, "decode", 3, 12, threads=2))
    assert warm == sampled == [(Pass(3, 3, 12, last=True), 2)]


def test_a_prefill_sample_is_a_whole_prompt_in_pieces(monkeypatch, transformer):
    """A shorter piece comes last, and is warmed up as well."""
    model = small_model()
    warm, sampled = recorded_passes(monkeypatch, transformer, model, part(model, "prefill", 5, 12))
    pieces = [Pass(5, 1, 0, last=False), Pass(5, 1, 5, last=False), Pass(2, 1, 10, last=True)]
    assert [step for step, _ in sampled] == pieces
    assert [step for step, _ in warm] == [pieces[0], pieces[2]]
    assert all(threads == 1 for _, threads in sampled)


def test_a_split_part_says_what_each_device_took(transformer):
    pytest.importorskip("torch")
    model = small_model()
    kernels = Kernels((), {"cpu": "numpy", "cuda:0": "torch"})
    wanted = part(model, "decode", 2, gpu_layers=2)
    running = transformer(model, gpus={"cuda:0": "cpu"}).part(wanted, kernels)
    running.warm_up()
    total_s, device_s = running.sample()
    assert device_s.keys() == {"cpu", "cuda:0"}
    assert min(device_s.values()) > 0
    assert sum(device_s.values()) == pytest.approx(total_s)
    assert 0 < running.overhead_share() < 1


def test_what_is_in_place_stays(transformer):
    """Weights on the CPU are made once, whatever part runs and wherever else layers were in between."""
    pytest.importorskip("torch")
    model, weights = small_model(), Counted()
    engine = transformer(model, weights, gpus={"cuda:0": "cpu"})
    engine.part(part(model, "decode", 1), NUMPY)
    assert weights.made == 3 * 7 + 1
    engine.part(part(model, "prefill", 8), NUMPY)
    assert weights.made == 3 * 7 + 1
    engine.place({"cpu": 1, "cuda:0": 2}, "cpu")
    on_gpu = weights.made
    engine.place({"cpu": 1, "cuda:0": 2}, "cpu")
    engine.place({"cpu": 3}, "cpu")
    assert weights.made == on_gpu


def test_what_is_on_a_gpu_stays_when_the_layers_around_it_move(monkeypatch, transformer):
    """So long as the next stage there needs it; what it does not need is given back."""
    pytest.importorskip("torch")
    from ternary_kernels.cuda.product import Product

    load, uploaded = Product.load, []

    def loading(product, *matrices):
        held = load(product, *matrices)
        uploaded.append(weakref.ref(held.codes))
        return held

    monkeypatch.setattr(Product, "load", loading)
    model, weights = small_model(head_format="F16"), Counted()
    engine = transformer(model, weights, gpus={"cuda:0": "cpu"})
    engine.place({"cpu": 3}, "cpu")

    def made_for(layers, head_device):
        before = weights.made
        engine.place(layers, head_device)
        return weights.made - before

    def matrices_on_gpu():
        return sum(codes() is not None for codes in uploaded)

    assert made_for({"cpu": 1, "cuda:0": 2}, "cpu") == 2 * 4
    assert made_for({"cuda:0": 3}, "cuda:0") == 4 + 2, "a layer and both ends"
    assert made_for({"cpu": 2, "cuda:0": 1}, "cuda:0") == 0
    assert matrices_on_gpu() == 4 + 1
    assert made_for({"cpu": 3}, "cpu") == 0
    assert made_for({"cpu": 1, "cuda:0": 2}, "cpu") == 4
    assert matrices_on_gpu() == 2 * 4
    engine.close()
    assert matrices_on_gpu() == 0


def test_a_gpu_model_says_the_same_after_its_layers_moved(sure, transformer):
    pytest.importorskip("torch")
    model, weights, expected = sure
    engine = transformer(model, weights, gpus={"cuda:0": "cpu"})
    kernels = Kernels((), {"cpu": "numpy", "cuda:0": "torch"})
    for gpu_layers, head_device in ((2, "cuda:0"), (1, "cpu"), (2, "cpu"), (1, "cuda:0")):
        run = configuration(model, gpu_layers=gpu_layers, head_device=head_device)
        assert engine.generate(PROMPTS, COUNT, run, kernels).tolist() == expected


@pytest.mark.parametrize(
    ("layers", "head_device", "matrices"),
    [
        ({"cuda:0": 3}, "cpu", 3 * 4 + 1),
        ({"cuda:0": 3}, "cuda:0", 3 * 4 + 1),
        ({"cpu": 1, "cuda:0": 2}, "cpu", 7 + 2 * 4 + 1),
        ({"cpu": 1, "cuda:0": 2}, "cuda:0", 7 + 2 * 4 + 2),
    ],
)
def test_the_embedding_is_with_the_head_on_the_cpu_or_else_with_the_first_layer(
    transformer, layers, head_device, matrices
):
    """As the memory plan has it: a tied matrix is there twice only where its ends are apart."""
    pytest.importorskip("torch")
    weights = Counted()
    transformer(small_model(), weights, gpus={"cuda:0": "cpu"}).place(layers, head_device)
    assert weights.made == matrices


def test_layers_share_weights_where_memory_does_not_hold_all(transformer):
    model = small_model()
    ends_bytes = site_bytes(model.embedding) + model.norm_bytes
    engine = transformer(model, room_bytes=ends_bytes + 2 * weight_bytes(model.layers[0]))
    engine.part(part(model, "decode", 1), NUMPY).sample()
    assert engine.reused_layers == 1
    larger = transformer(model)
    larger.place({"cpu": 3}, "cpu")
    assert larger.reused_layers == 0


def test_too_little_memory_is_an_error_and_leaves_nothing_placed(transformer):
    model = small_model()
    engine = transformer(model, room_bytes=weight_bytes(model.layers[0]), cache_bytes=1)
    with pytest.raises(MemoryError, match="its weights on the CPU take"):
        engine.part(part(model, "decode", 1), NUMPY)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"cpu": 2}, r"synthetic/bitnet: expected 3 layers on the devices, got \{'cpu': 2\}"),
        ({"cpu": 1, "cuda:1": 2}, "no device 'cuda:1': expected one of cpu, cuda:0"),
    ],
)
def test_a_placement_there_cannot_be_is_refused(transformer, layers, message):
    with pytest.raises(ValueError, match=message):
        transformer(small_model(), gpus={"cuda:0": "cpu"}).place(layers, "cpu")


def test_a_closed_transformer_can_be_used_again(transformer):
    model = small_model()
    engine = transformer(model)
    first = engine.generate(PROMPTS, 2, configuration(model), NUMPY)
    engine.close()
    assert np.array_equal(engine.generate(PROMPTS, 2, configuration(model), NUMPY), first)


def test_torch_is_not_needed_on_a_cpu():
    code = "import sys, autotune.engine.transformer; sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], check=False, env={"PYTHONPATH": ":".join(sys.path)}).returncode
        == 0
    )


def test_the_nearest_listed_kernel_is_taken():
    """In the logarithm of the tokens, by phase; the head, of which no prefill is listed, takes decode's."""
    model = small_model()
    site = model.layers[0].sites[0]
    found = SiteKernels(site.format, site.n_out, site.k_in, {"1": "a", "16": "b"}, {"64": "c", "512": "d"})
    head = SiteKernels(model.head.format, model.head.n_out, model.head.k_in, {"1": "e"}, {})
    elsewhere = SiteKernels(site.format, site.n_out, site.k_in, {"1": "f"}, {}, "cuda:0")
    kernels = Kernels((elsewhere, found, head), {})
    assert [kernels.of(site, "cpu", tokens) for tokens in (1, 3, 5, 16, 900)] == ["a", "a", "b", "b", "b"]
    assert [kernels.of(site, "cpu", tokens, prefill=True) for tokens in (8, 200, 300)] == ["c", "d", "d"]
    assert kernels.of(model.head, "cpu", 1, prefill=True) == "e"
    assert kernels.of(site, "cuda:0", 4) == "f"
    assert kernels.of(model.head, "cuda:0", 4) is None
