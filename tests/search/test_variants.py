"""The weight formats that are compared with ``--format auto``, on model files as users have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autotune.errors import ModelError, UsageError
from autotune.model.analyse import analyse
from autotune.model.memory import model_bytes
from autotune.model.sites import host_lookup_format, host_ternary_format
from autotune.model.source import digest, resolve
from autotune.records import Kernel
from autotune.search.variants import format_of, formats_of, in_order, read_variants
from ternary_kernels.formats import FORMATS

USUAL, LOOKUP = host_ternary_format(), host_lookup_format()
EVERY_FORMAT = tuple(Kernel("native", name, "avx2", None) for name in FORMATS)
NUMPY_ALONE = (
    Kernel("native", USUAL, None, "llvmlite is not installed"),
    *(Kernel("numpy", name, None, None) for name in ("TQ2_0", USUAL, "F16")),
)


def sites_of(model):
    return {site.name: site.format for site in model.layers[0].sites}


def test_all_ternary_formats_that_keep_the_weights_are_compared_the_usual_one_first():
    variants = read_variants("bitnet-b1.58-2B-4T", "auto", EVERY_FORMAT)
    assert format_of(variants[0]) == USUAL
    assert {format_of(model) for model in variants} == {USUAL, LOOKUP, "TQ1_0", "TQ2_0"}
    assert variants[0].layers == analyse("bitnet-b1.58-2B-4T").layers
    for model in variants:
        assert set(sites_of(model).values()) == {format_of(model)}
        assert model.head.format == "F16"
        assert model.source_digest == digest(resolve("bitnet-b1.58-2B-4T"), "auto")
        assert f"ternary weights are taken as {format_of(model)}" in model.notes[-1]
    assert len({model_bytes(model) for model in variants}) == len(variants)


def test_where_only_numpy_can_run_its_formats_are_compared():
    assert [format_of(model) for model in read_variants("bitnet-b1.58-2B-4T", "auto", NUMPY_ALONE)] == [USUAL, "TQ2_0"]


def test_a_fast_kernel_for_one_format_leaves_the_others_out():
    kernels = (Kernel("native", "TQ2_0", "avx2", None), *NUMPY_ALONE)
    assert [format_of(model) for model in read_variants("bitnet-b1.58-2B-4T", "auto", kernels)] == ["TQ2_0"]


def test_a_site_that_a_format_cannot_hold_is_taken_as_f16_with_a_note():
    """1bitLLM's 3B: 8640 columns are no multiple of 128, nor 3200 of 256, so TQ1_0 and TQ2_0 hold nothing of it."""
    variants = {format_of(model): model for model in read_variants("bitnet_b1_58-3B", "auto", EVERY_FORMAT)}
    assert set(variants) == {USUAL, LOOKUP}
    assert set(sites_of(variants[LOOKUP]).values()) == {LOOKUP}
    if USUAL == "I2_S":
        assert {name for name, held in sites_of(variants[USUAL]).items() if held == "F16"} == {"down"}
        assert any("I2_S can't hold down (3,200 x 8,640): taken as F16" in note for note in variants[USUAL].notes)


def test_modules_that_were_never_converted_stay_as_they_are(tmp_path):
    path = tmp_path / "partly.json"
    preset = json.loads(Path(resolve("bitnet-b1.58-2B-4T").path).read_text())
    kept = {**preset["quantization_config"], "modules_to_not_convert": ["model.layers.0.mlp.down_proj"]}
    path.write_text(json.dumps({**preset, "quantization_config": kept}))
    for model in read_variants(path, "auto", EVERY_FORMAT):
        assert sites_of(model)["down"] == "F16"
        assert {site.format for layer in model.layers[1:] for site in layer.sites} == {format_of(model)}


def test_a_format_of_ones_own_is_taken_alone():
    assert read_variants("bitnet-b1.58-2B-4T", None, EVERY_FORMAT) == (analyse("bitnet-b1.58-2B-4T"),)
    assert read_variants("bitnet-b1.58-2B-4T", "TQ2_0", ()) == (analyse("bitnet-b1.58-2B-4T", "TQ2_0"),)


def test_a_gguf_file_has_its_weights_in_one_format(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(UsageError, match=r"model\.gguf is a GGUF file, which holds its weights in its own; leave"):
        read_variants(path, "auto", EVERY_FORMAT)


def test_weights_that_are_not_ternary_have_no_ternary_formats(tmp_path):
    path = tmp_path / "llama.json"
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "vocab_size": 512}
    config |= {"intermediate_size": 512, "num_hidden_layers": 1, "num_attention_heads": 4}
    path.write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"the weights of .*llama\.json are not ternary"):
        read_variants(path, "auto", EVERY_FORMAT)
    assert formats_of(analyse(path)) == ()
    assert format_of(analyse(path)) == "F16"


def test_shapes_that_no_runnable_format_can_hold_are_told():
    kernels = (Kernel("native", "TQ1_0", "avx2", None),)
    with pytest.raises(ModelError, match="that a ternary format can hold, got none of TQ1_0"):
        read_variants("bitnet_b1_58-3B", "auto", kernels)


def test_the_usual_format_depends_on_the_machine():
    assert in_order(["TQ2_0", "I2_S_ARM", "I2_S"], "aarch64")[0] == "I2_S_ARM"
    assert in_order(["TQ2_0", "I2_S_ARM", "I2_S"], "x86_64")[0] == "I2_S"
