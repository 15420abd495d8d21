"""Stages on the CPU against a plain model, layer by layer."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from autotune.engine.cpu_stage import CpuStage
from autotune.engine.stages import Kernels, Pass
from autotune.engine.weights import PackedWeights, RandomWeights
from autotune.model.memory import activation_bytes, kv_cache_bytes
from ternary_kernels.formats import FORMATS
from tests.engine.models import NUMPY, every_site_on, runnable_kernels, small_model
from tests.engine.plain_model import PlainModel

CAPACITY = 24
TOKENS = np.array([7, 300, 0, 319, 42, 42, 5, 128, 99, 17, 250])

LEAST, LARGEST = 5e-4, 5e-2
"""Errors of a layer's rows, relative to their norm: lower quartile and maximum.

Where float32 and float64 round a key to different halves or an activation to different int8 values, this row and those
that attend to it differ from then on; after ReLU² one such step of the largest activation can be 1 % of a row."""


@pytest.fixture
def make_stage(teams):
    """Makes a stage of some layers, with room for sequences."""

    def make_stage(model, weights, layers=range(0), *, embedding=False, head=False, sequences=3, tokens=0):
        stage = CpuStage(
            model,
            layers,
            device="cpu",
            teams=teams,
            weights=weights,
            embedding=embedding,
            head=head,
            capacity=CAPACITY,
        )
        stage.reserve(sequences, tokens)
        return stage

    return make_stage


def prefill(rows, context=0, slot=0, last=True):
    return Pass(rows, 1, context, last=last, slot=slot)


def decode(sequences, context, slot=0):
    return Pass(sequences, sequences, context, last=True, slot=slot)


def errors_of(found, expected):
    """Each row's error, relative to its norm."""
    assert found.shape == expected.shape
    return np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)


def check_layers(make_stage, model, weights, kernels, threads=1):
    """Each layer alone, on what the plain model has there: first a piece of a prompt, then another, then a token."""
    plain = PlainModel(model, weights)
    stream = plain.embed(TOKENS)
    for index in range(len(model.layers)):
        stage = make_stage(model, weights, range(index, index + 1))
        expected = plain.layer(index, stream)
        errors = []
        for step in (prefill(6), prefill(4, 6, last=False), decode(1, 10)):
            rows = slice(step.context, step.context + step.rows)
            found = stage.bind(step, threads, kernels)(stream[rows].astype(np.float32))
            errors.extend(errors_of(found, expected[rows]))
        assert np.quantile(errors, 0.25) < LEAST, index
        assert max(errors) < LARGEST, index
        stream = expected
        stage.close()
    return plain


@pytest.mark.parametrize("backend", ["numpy", "native"])
@pytest.mark.parametrize("family", ["bitnet", "llama"])
def test_each_layer_agrees_with_the_plain_model(make_stage, family, backend):
    if (backend, "I2_S") not in runnable_kernels():
        pytest.skip(f"the {backend} kernels can't run here")
    model = small_model(family)
    check_layers(make_stage, model, PackedWeights(model), every_site_on(model, backend), threads=2)


@pytest.mark.parametrize(("backend", "name"), runnable_kernels())
def test_each_kernel_and_format_agrees_with_the_plain_model(make_stage, backend, name):
    """Ternary formats take int8, all others float32: norms and gates must give each what it takes."""
    model = small_model("llama", name, layers=1, intermediate_size=256)
    check_layers(make_stage, model, PackedWeights(model), every_site_on(model, backend))


@pytest.mark.parametrize("family", ["bitnet", "llama"])
@pytest.mark.parametrize(
    "formats", [{"v": "F16"}, {"q": "F32", "k": "F32", "v": "F32"}, {"o": "F16", "down": "Q8_0"}, {"up": "F16"}]
)
def test_sites_that_share_an_input_may_differ_in_format(make_stage, family, formats):
    model = small_model(family, layers=1, formats=formats)
    check_layers(make_stage, model, PackedWeights(model), NUMPY)


@pytest.mark.parametrize("name", FORMATS)
def test_random_weights_keep_numbers_normal(make_stage, name):
    """Nothing on the way through the model is infinite, not a number or subnormal, and the engine agrees with it."""
    for family in ("bitnet", "llama"):
        model = small_model(family, name, embedding_format=name)
        weights = RandomWeights(3)
        plain = check_layers(make_stage, model, weights, NUMPY)
        plain.logits(plain.seen[-1])
        values = np.abs(np.concatenate([seen.ravel() for seen in plain.seen]))
        assert np.isfinite(values).all()
        assert (values[values > 0] > np.finfo(np.float32).tiny).all()
        assert values.max() < 1e4
        sizes = [np.sqrt((seen**2).mean()) for seen in plain.seen]
        assert 1e-3 < min(sizes) <= max(sizes) < 1e3


@pytest.mark.parametrize("name", FORMATS)
def test_embeddings_of_every_format_are_looked_up(make_stage, name):
    model = small_model(embedding_format=name)
    weights = PackedWeights(model)
    stage = make_stage(model, weights, embedding=True)
    found = stage.bind(prefill(len(TOKENS)), 1, NUMPY)(TOKENS)
    np.testing.assert_allclose(found, PlainModel(model, weights).embed(TOKENS), rtol=1e-6)


@pytest.mark.parametrize("head_format", [None, "I2_S", "Q6_K", "F32"])
def test_the_head_takes_the_likeliest_token_of_each_sequence(make_stage, head_format):
    """Also of a tied matrix, and of a ternary one; only a prompt's last row counts."""
    model = small_model(head_format=head_format)
    weights = PackedWeights(model)
    plain = PlainModel(model, weights)
    stream = np.random.default_rng(5).standard_normal((3, model.hidden_size), np.float32)
    expected = [plain.logits(stream[row : row + 1].astype(np.float64)).argmax() for row in range(3)]
    stage = make_stage(model, weights, head=True)
    assert stage.bind(decode(3, 0), 1, NUMPY)(stream).tolist() == expected
    assert stage.bind(prefill(3), 1, NUMPY)(stream).tolist() == expected[2:]
    assert stage.bind(prefill(3, last=False), 1, NUMPY)(stream) is None


def test_one_stage_does_what_its_layers_do_one_after_the_other(make_stage):
    """The sum that a layer leaves for the next one to add is not lost between stages."""
    model = small_model()
    weights = PackedWeights(model)
    given, steps = TOKENS, prefill(len(TOKENS))
    for stage in (
        make_stage(model, weights, range(2), embedding=True),
        make_stage(model, weights, range(2, 3)),
        make_stage(model, weights, range(3, 3), head=True),
    ):
        given = stage.bind(steps, 1, NUMPY)(given)
    whole = make_stage(model, weights, range(3), embedding=True, head=True)
    assert whole.bind(steps, 1, NUMPY)(TOKENS).tolist() == given.tolist()


def test_decode_attends_to_each_sequence_alone(make_stage):
    """Three sequences in their slots: a step of all gives each what a step of its own gives."""
    model = small_model(layers=2)
    stage = make_stage(model, PackedWeights(model), range(2), embedding=True)
    prompts = np.random.default_rng(1).integers(0, model.vocab_size, (3, 6))
    for slot, prompt in enumerate(prompts):
        stage.bind(prefill(6, slot=slot), 1, NUMPY)(prompt)
    following = np.array([3, 14, 15])
    together = stage.bind(decode(3, 6), 1, NUMPY)(following).copy()
    for slot in range(3):
        alone = stage.bind(decode(1, 6, slot), 1, NUMPY)(following[slot : slot + 1])
        assert errors_of(alone[0], together[slot]) < LARGEST


def test_a_pass_may_be_called_again_and_others_in_between(make_stage):
    """Passes share buffers, which grow with the largest: what is bound stays right."""
    model = small_model(layers=2)
    stage = make_stage(model, PackedWeights(model), range(2), embedding=True, head=True)
    first = stage.bind(prefill(2), 1, NUMPY)
    expected = first(TOKENS[:2]).tolist()
    stage.bind(prefill(11), 1, NUMPY)(TOKENS)
    stage.bind(decode(1, 11), 2, NUMPY)(TOKENS[:1])
    assert first(TOKENS[:2]).tolist() == expected


def test_a_reserved_cache_holds_keys_and_values(make_stage):
    """Pages that were never written are one page of zeros, which never leaves the cache: too fast to be true."""
    model = small_model(layers=1)
    weights = PackedWeights(model)
    outputs = []
    for tokens in (0, 8):
        stage = make_stage(model, weights, range(1), sequences=2, tokens=tokens)
        if not tokens:
            stage.reserve(2, 8)
        step = stage.bind(decode(2, 8), 1, NUMPY)
        stream = np.ones((2, model.hidden_size), np.float32)
        outputs.append(step(stream).copy())
    assert np.array_equal(*outputs)
    assert np.isfinite(outputs[0]).all()
    assert errors_of(outputs[0][0], outputs[0][1]) > LARGEST


def test_memory_of_a_larger_cache_is_used_for_a_smaller_one(make_stage):
    """And what is random in it stays: decode, prefill and decode again write it once."""
    model = small_model(layers=1)
    stage = make_stage(model, PackedWeights(model), range(1), sequences=3, tokens=CAPACITY - 1)
    stream = np.ones((3, model.hidden_size), np.float32)
    expected = stage.bind(decode(3, CAPACITY - 1), 1, NUMPY)(stream).copy()
    tracemalloc.start()
    try:
        stage.reserve(1, 0)
        stage.reserve(2, 8)
        stage.reserve(3, CAPACITY - 1)
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most_bytes < 10_000
    assert np.array_equal(stage.bind(decode(3, CAPACITY - 1), 1, NUMPY)(stream), expected)


def test_slots_that_a_step_does_without_take_no_memory(make_stage):
    """A step looks at its context and writes one slot."""
    model = small_model(layers=2)
    most_bytes = {}
    for tokens in (0, 8):
        stage = make_stage(model, PackedWeights(model), range(2))
        tracemalloc.start()
        try:
            stage.reserve(30, tokens)
            most_bytes[tokens], _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    spared_bytes = kv_cache_bytes(model, 2, 30 * (CAPACITY - 9))
    assert most_bytes[0] - most_bytes[8] == pytest.approx(spared_bytes, rel=0.02)
    stage.bind(decode(3, 8), 1, NUMPY)
    with pytest.raises(ValueError, match="expected at most 9 tokens per sequence, got 9 and 1 more"):
        stage.bind(decode(3, 9), 1, NUMPY)
    with pytest.raises(ValueError, match="expected fewer than 24 tokens per sequence, got 24"):
        stage.reserve(1, CAPACITY)


def test_a_pass_that_the_cache_has_no_room_for_is_refused(make_stage):
    model = small_model(layers=1)
    stage = make_stage(model, PackedWeights(model), range(1), sequences=2)
    with pytest.raises(ValueError, match="expected room for 3 sequences, got 2: reserve them first"):
        stage.bind(decode(3, 0), 1, NUMPY)
    with pytest.raises(ValueError, match="expected at most 24 tokens per sequence, got 24 and 1 more"):
        stage.bind(decode(2, 24), 1, NUMPY)
    with pytest.raises(ValueError, match="expected at most 24 tokens per sequence, got 20 and 5 more"):
        stage.bind(prefill(5, 20), 1, NUMPY)


def test_the_listed_kernel_multiplies(make_stage):
    """Of another number of tokens the nearest that is listed; a kernel there isn't is refused."""
    model = small_model(layers=1)
    kernels = every_site_on(model, "no such kernel")._replace(backends={"cpu": "numpy"})
    stage = make_stage(model, PackedWeights(model), range(1))
    with pytest.raises(ValueError, match="no kernel 'no such kernel' for format 'I2_S'"):
        stage.bind(prefill(5), 1, kernels)


def test_a_site_that_is_not_listed_is_multiplied_all_the_same(make_stage):
    """By the backend's own kernel, or where it has none for the format, by the next best that has."""
    if ("native", "F16") not in runnable_kernels():
        pytest.skip("the native kernels can't run here")
    model = small_model(layers=1, layer_format="TQ1_0", formats={"down": "F16"})
    assert ("native", "TQ1_0") not in runnable_kernels()
    check_layers(make_stage, model, PackedWeights(model), Kernels((), {"cpu": "native"}))


@pytest.mark.parametrize(
    ("step", "family"), [(decode(3, 20), "bitnet"), (prefill(20), "bitnet"), (prefill(20), "llama")]
)
def test_a_pass_takes_no_more_memory_than_is_planned(make_stage, step, family):
    """All layers work in the same buffers, attention and gate in the same part of them."""
    model = small_model(family, layers=6)
    stage = make_stage(model, PackedWeights(model), range(6), embedding=True, head=True)
    planned_bytes = activation_bytes(model, step.rows, step.sequences, CAPACITY)
    tracemalloc.start()
    try:
        bound = stage.bind(step, 1, NUMPY)
        held_bytes = sum(trace.size for trace in tracemalloc.take_snapshot().traces if trace.size >= model.hidden_size)
    finally:
        tracemalloc.stop()
    assert bound is not None
    assert 0.5 * planned_bytes < held_bytes < 1.05 * planned_bytes + 20_000


def test_a_clock_around_the_kernels_changes_nothing(make_stage):
    model = small_model(layers=1)
    stage = make_stage(model, PackedWeights(model), range(1), embedding=True, head=True)
    step = stage.bind(prefill(len(TOKENS)), 1, NUMPY)
    expected = step(TOKENS).tolist()
    found, kernels_s = step.timed(TOKENS)
    assert found.tolist() == expected
    assert kernels_s > 0
