"""Bad config.json files: each gets one sentence that names the file, the key, what was expected and what was found."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autotune.errors import ModelError
from autotune.model.analyse import analyse
from autotune.records import Model

Save = Callable[..., Path]
ABSENT = object()


def message(path: Path, weight_format: str | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        analyse(path, weight_format, machine="x86_64")
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "expected a config.json, got an empty file"),
        (b"  \n\t ", "expected a config.json, got an empty file"),
        (b'{"hidden_size": 25', "expected JSON, got something else"),
        (b"hidden_size: 2560", "expected JSON, got something else"),
        (b'{"hidden_size": NaN}', "expected JSON, got something else"),
        (b'{"hidden_size": 1e999}', "expected JSON, got something else"),
        (b"[1, 2]", "expected a JSON object, got a list of length 2"),
        (b"42", "expected a JSON object, got 42"),
        (b'{"name": "caf\xe9"}', "expected UTF-8 text, got byte 0xe9"),
        (b"[" * 100_000, "JSON nested too deeply"),
        (b'{"a":' * 100_000, "JSON nested too deeply"),
    ],
)
def test_a_file_that_is_no_json_object(save: Save, content: bytes, expected: str) -> None:
    assert expected in message(save(content))


SIZES = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"]


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (ABSENT, "nothing"),
        (None, "null"),
        ("256", "'256'"),
        (256.0, "256.0"),
        (True, "true"),
        (0, "0"),
        (-256, "-256"),
        ([256], "a list of length 1"),
        ({}, "an object of length 0"),
        (10**9, "1000000000"),
        (10**30, "a number of 100 bits"),
    ],
)
def test_a_size_that_is_no_sensible_number(
    save: Save, bitnet: dict[str, Any], key: str, value: object, shown: str
) -> None:
    if value is ABSENT:
        del bitnet[key]
    else:
        bitnet[key] = value
    assert f"{key}: expected a whole number from 1 to" in (text := message(save(bitnet)))
    assert text.endswith(f"got {shown}")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"num_hidden_layers": 1001}, "num_hidden_layers: expected a whole number from 1 to 1,000, got 1001"),
        ({"hidden_size": 255}, "hidden_size: expected a multiple of num_attention_heads (4), got 255"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: expected a divisor of num_attention_heads (4), got 3"),
        ({"num_key_value_heads": 0}, "num_key_value_heads: expected a whole number from 1 to"),
        (
            {"head_dim": 128},
            "head_dim: expected hidden_size / num_attention_heads = 256 / 4 in a BitNet model",
        ),
        ({"hidden_size": 260}, "head_dim: expected an even number, whose halves rotary embedding turns, got 65"),
        ({"max_position_embeddings": "many"}, "max_position_embeddings: expected a whole number"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings: expected true or false, got 'yes'"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings: expected true or false, got 1"),
        ({"attention_bias": 0.5}, "attention_bias: expected true or false, got 0.5"),
        ({"hidden_act": "swiglu"}, "hidden_act: expected one of silu"),
        ({"hidden_act": 3}, "hidden_act: expected a string, got 3"),
        ({"architectures": "BitNetForCausalLM"}, "architectures: expected a list of strings, got 'BitNetForCausalLM'"),
        ({"architectures": [7]}, "architectures: expected a list of strings"),
        ({"architectures": ["MambaForCausalLM"]}, "architectures: expected one of BitNetForCausalLM"),
        ({"architectures": [], "model_type": "mamba"}, "model_type: expected one of bitnet, llama, got 'mamba'"),
        ({"architectures": None, "model_type": None}, "model_type: expected one of bitnet, llama, got null"),
        ({"model_type": "llama"}, "model_type: expected bitnet, as BitNetForCausalLM has, got 'llama'"),
        ({"model_type": ["bitnet"]}, "model_type: expected a string"),
        ({"architectures": ["FalconForCausalLM"]}, "got the older Falcon, which has two"),
        ({"architectures": [], "model_type": "falcon"}, "got the older Falcon, which has two"),
        ({"quantization_config": "bitnet"}, "quantization_config: expected an object, got 'bitnet'"),
        ({"quantization_config": {}}, "quantization_config.quant_method: expected a string, got nothing"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quant_method: expected 'bitnet', or a --format"),
        (
            {"quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": "lm_head"}},
            "modules_to_not_convert: expected a list of strings, got 'lm_head'",
        ),
    ],
)
def test_a_contradictory_or_unsupported_model(
    save: Save, bitnet: dict[str, Any], change: dict[str, Any], expected: str
) -> None:
    assert expected in message(save(bitnet | change))


def test_an_attention_wider_than_any_model(save: Save, llama: dict[str, Any]) -> None:
    assert "head_dim: expected at most 1,048,576 / num_attention_heads (4)" in message(
        save(llama | {"head_dim": 2**20})
    )


def test_columns_that_the_format_asked_for_cannot_hold(save: Save, bitnet: dict[str, Any]) -> None:
    text = message(save(bitnet | {"intermediate_size": 400}), "I2_S")
    assert "the down matrix can't be stored: I2_S needs k_in to be a multiple of 128, got 400" in text


def test_a_ternary_model_of_which_no_matrix_can_be_ternary(save: Save, bitnet: dict[str, Any]) -> None:
    text = message(save(bitnet | {"hidden_size": 200, "intermediate_size": 400}))
    assert "I2_S needs k_in to be a multiple of 128, got 200" in text


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
KEYS = [
    *SIZES,
    *("model_type", "architectures", "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings"),
    *("tie_word_embeddings", "quantization_config", "attention_bias", "mlp_bias", "torch_dtype", "_name_or_path"),
]
LIKELY = st.sampled_from([0, 1, 2, 4, 64, 128, 256, 384, 2**20, 10**9, "bitnet", "llama", "silu", ["LlamaForCausalLM"]])


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    base=st.booleans(),
    change=st.dictionaries(st.sampled_from(KEYS), LIKELY | JSON_VALUES, max_size=6),
    weight_format=st.sampled_from([None, "I2_S", "F16"]),
)
def test_any_object_gives_a_model_or_a_model_error(
    save: Save, bitnet: dict[str, Any], base: bool, change: dict[str, Any], weight_format: str | None
) -> None:
    path = save(json.dumps((bitnet if base else {}) | change))
    with contextlib.suppress(ModelError):
        assert isinstance(analyse(path, weight_format), Model)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200) | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_give_a_model_error(save: Save, content: bytes) -> None:
    with pytest.raises(ModelError):
        analyse(save(content))
