"""Hugging Face config.json: families, defaults and weight formats as transformers and converters have them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autotune.errors import ModelError, UsageError
from autotune.model.analyse import analyse
from autotune.records import Model

Save = Callable[..., Path]


def formats(model: Model) -> set[str]:
    return {site.format for layer in model.layers for site in layer.sites}


@pytest.mark.parametrize(("machine", "layout"), [("x86_64", "I2_S"), ("aarch64", "I2_S_ARM"), ("arm64", "I2_S_ARM")])
def test_ternary_weights_are_i2_s_in_the_machines_layout(
    save: Save, bitnet: dict[str, Any], machine: str, layout: str
) -> None:
    model = analyse(save(bitnet), machine=machine)
    assert formats(model) == {layout}
    assert (model.embedding.format, model.head.format) == ("F16", "F16")
    assert any(layout in note for note in model.notes)


def test_this_machine_decides_the_layout_unless_told(save: Save, bitnet: dict[str, Any]) -> None:
    assert formats(analyse(save(bitnet))) <= {"I2_S", "I2_S_ARM"}


def test_a_format_given_replaces_that_of_the_layers_but_not_of_the_ends(save: Save, bitnet: dict[str, Any]) -> None:
    model = analyse(save(bitnet), "F32")
    assert formats(model) == {"F32"}
    assert model.embedding.format == "F16"


@pytest.mark.parametrize("weight_format", ["TL1", "TL2", "Q8_0"])
def test_any_format_that_holds_the_sites_may_be_given(save: Save, bitnet: dict[str, Any], weight_format: str) -> None:
    model = analyse(save(bitnet), weight_format)
    assert formats(model) == {weight_format}
    assert not any("lossy" in note for note in model.notes)


def test_a_format_given_that_is_lossy_is_noted(save: Save, bitnet: dict[str, Any]) -> None:
    model = analyse(save(bitnet | {"intermediate_size": 512}), "IQ2_S")
    assert formats(model) == {"IQ2_S"}
    assert model.notes[-1].startswith("IQ2_S is lossy on ternary weights: ")


@pytest.mark.parametrize(
    ("weight_format", "expected"),
    [
        ("TQ2_0", "the down matrix can't be stored: TQ2_0 needs k_in to be a multiple of 256, got 384"),
        ("IQ2_S", "the down matrix can't be stored: IQ2_S needs k_in to be a multiple of 256, got 384"),
    ],
)
def test_a_format_given_must_hold_the_sites(
    save: Save, bitnet: dict[str, Any], weight_format: str, expected: str
) -> None:
    with pytest.raises(ModelError, match=expected):
        analyse(save(bitnet), weight_format)


def test_what_no_ternary_format_holds_is_taken_as_f16(save: Save, bitnet: dict[str, Any]) -> None:
    model = analyse(save(bitnet | {"intermediate_size": 400}), machine="x86_64")
    assert [site.format for site in model.layers[0].sites] == ["I2_S"] * 6 + ["F16"]
    assert model.notes[-1] == "I2_S can't hold down (400 columns): taken as F16"


def test_an_unknown_format_names_the_known_ones(save: Save, bitnet: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"--format: unknown weight format 'Q9_X': expected one of F16.*I2_S.*TQ2_0"):
        analyse(save(bitnet), "Q9_X")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "F16"),
        ({"torch_dtype": "bfloat16"}, "F16"),
        ({"dtype": "float32"}, "F32"),
        ({"torch_dtype": "float32"}, "F32"),
    ],
)
def test_unquantised_weights_keep_their_precision_and_the_model_says_so(
    save: Save, llama: dict[str, Any], change: dict[str, Any], expected: str
) -> None:
    model = analyse(save(llama | change))
    assert formats(model) == {model.embedding.format, model.head.format} == {expected}
    assert f"not ternary (no quantization_config): taken as {expected}" in " ".join(model.notes)


def test_an_unquantised_model_can_be_taken_as_ternary_on_demand(save: Save, llama: dict[str, Any]) -> None:
    model = analyse(save(llama), "I2_S")
    assert formats(model) == {"I2_S"}
    assert model.head.format == "F16"


def test_another_quantisation_is_taken_in_the_format_given(save: Save, llama: dict[str, Any]) -> None:
    assert formats(analyse(save(llama | {"quantization_config": {"quant_method": "gptq"}}), "F16")) == {"F16"}


@pytest.mark.parametrize(
    ("unconverted", "kept"),
    [
        (["lm_head"], []),
        (["down_proj"], [(0, "down"), (1, "down")]),
        (["self_attn"], [(layer, name) for layer in (0, 1) for name in "qkvo"]),
        (["model.layers.1.mlp.up_proj"], [(1, "up")]),
        (["proj"], []),
    ],
)
def test_modules_that_were_not_converted_stay_f16(
    save: Save, llama: dict[str, Any], unconverted: list[str], kept: list[tuple[int, str]]
) -> None:
    quantization = {"quant_method": "bitnet", "modules_to_not_convert": unconverted}
    model = analyse(save(llama | {"quantization_config": quantization}), machine="x86_64")
    found = [
        (index, site.name) for index, layer in enumerate(model.layers) for site in layer.sites if site.format == "F16"
    ]
    assert found == kept


@pytest.mark.parametrize(
    ("key", "attribute", "expected"),
    [
        ("hidden_act", "activation", "silu"),
        ("tie_word_embeddings", "tied", False),
        ("max_position_embeddings", "max_context", 2048),
    ],
)
@pytest.mark.parametrize("absent", ["left out", "null"])
def test_optional_keys_default_as_in_transformers(
    save: Save, llama: dict[str, Any], key: str, attribute: str, expected: object, absent: str
) -> None:
    llama.pop(key, None)
    assert getattr(analyse(save(llama | ({key: None} if absent == "null" else {}))), attribute) == expected


def test_key_value_heads_default_by_family(save: Save, bitnet: dict[str, Any], llama: dict[str, Any]) -> None:
    assert analyse(save(llama)).attention.kv_heads == 4
    del bitnet["num_key_value_heads"]
    bitnet |= {"num_attention_heads": 20, "hidden_size": 1280}
    assert analyse(save(bitnet)).attention.kv_heads == 5  # BitNetConfig's own default
    assert analyse(save(bitnet | {"num_key_value_heads": None})).attention.kv_heads == 20


def test_bitnet_defaults_to_relu2(save: Save, bitnet: dict[str, Any]) -> None:
    del bitnet["hidden_act"]
    assert analyse(save(bitnet)).activation == "relu2"


def test_a_head_dimension_of_its_own_sets_the_width_of_attention(save: Save, llama: dict[str, Any]) -> None:
    q, _, _, o, *_ = analyse(save(llama | {"head_dim": 96})).layers[0].sites
    assert (q.n_out, q.k_in, o.n_out, o.k_in) == (384, 256, 256, 384)


def test_sub_norms_and_biases_count(save: Save, bitnet: dict[str, Any], llama: dict[str, Any]) -> None:
    assert analyse(save(llama)).norm_bytes == 4 * (2 * 2 * 256 + 256)
    assert analyse(save(bitnet)).norm_bytes == 4 * (2 * (3 * 256 + 384) + 256)
    biased = analyse(save(llama | {"attention_bias": True, "mlp_bias": True}))
    assert biased.norm_bytes == 4 * (2 * (2 * 256 + 4 * 256 + 2 * 384 + 256) + 256)


def test_the_family_is_told_from_architecture_or_model_type(
    save: Save, bitnet: dict[str, Any], llama: dict[str, Any]
) -> None:
    del bitnet["architectures"]
    assert analyse(save(bitnet)).architecture == "bitnet"
    del llama["model_type"]
    assert analyse(save(llama)).architecture == "llama"
    assert analyse(save(llama, "Falcon3-7B.json")).architecture == "falcon"
    assert analyse(save(llama | {"_name_or_path": "tiiuae/Falcon-E-1B-Base"})).architecture == "falcon"


def test_1bitllms_models_are_bitnet_although_their_model_type_is_llama(save: Save, llama: dict[str, Any]) -> None:
    model = analyse(save(llama | {"architectures": ["BitnetForCausalLM"]}), machine="x86_64")
    assert (model.architecture, model.activation, formats(model)) == ("bitnet", "silu", {"I2_S"})


def test_of_a_key_given_twice_the_last_value_counts_as_in_transformers(save: Save) -> None:
    text = (
        '{"model_type": "llama", "hidden_size": 64, "hidden_size": 256, "intermediate_size": 384, '
        '"num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 10}'
    )
    assert analyse(save(text)).hidden_size == 256
