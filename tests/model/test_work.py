"""Operations and bytes of a step, and the hints drawn from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autotune.model.analyse import analyse
from autotune.model.describe import describe
from autotune.model.memory import site_bytes
from autotune.model.work import decode_work, hints, parameters, prefill_work
from autotune.records import Model

TERNARY_WEIGHTS = 2_084_044_800
HEAD_WEIGHTS = 128256 * 2560


@pytest.fixture(scope="module")
def model() -> Model:
    return analyse("bitnet-b1.58-2B-4T", machine="x86_64")


def test_a_decoded_token_costs_two_operations_per_weight_and_reads_each_once(model: Model) -> None:
    step = decode_work(model, batch=1, context=0)
    own_attention = 4 * 30 * 20 * 128
    assert step.operations == 2 * (TERNARY_WEIGHTS + HEAD_WEIGHTS) + own_attention
    weights = TERNARY_WEIGHTS // 4 + 210 * 32 + 2 * HEAD_WEIGHTS
    assert step.moved_bytes == weights + 2 * 2560 + 76_800  # an embedding row, and this token's keys and values
    assert step.intensity == pytest.approx(4.1, abs=0.1)


def test_context_adds_attention_and_cache_for_each_sequence(model: Model) -> None:
    short, long = decode_work(model, 4, 100), decode_work(model, 4, 1100)
    assert long.operations - short.operations == 4 * 1000 * 4 * 30 * 20 * 128
    assert long.moved_bytes - short.moved_bytes == 4 * 1000 * 76_800


def test_a_batch_shares_the_weights_and_so_raises_intensity(model: Model) -> None:
    one, sixteen = decode_work(model, 1, 128), decode_work(model, 16, 128)
    assert sixteen.operations == 16 * one.operations
    assert sixteen.bytes_per_token < one.bytes_per_token / 10
    assert sixteen.intensity > 10 * one.intensity


def test_prefill_attends_causally_and_heads_only_its_last_token(model: Model) -> None:
    prompt = prefill_work(model, 512)
    attended = 512 * 513 // 2
    assert prompt.operations == 2 * (512 * TERNARY_WEIGHTS + HEAD_WEIGHTS) + attended * 4 * 30 * 20 * 128
    assert prompt.operations_per_token < decode_work(model, 1, 512).operations_per_token
    assert prefill_work(model, 1).operations == decode_work(model, 1, 0).operations


def test_parameters_count_a_tied_matrix_once(model: Model) -> None:
    assert parameters(model) == 2_412_820_480
    assert parameters(analyse("Llama3-8B-1.58-100B-tokens")) == 8_030_261_248


def test_hints_say_what_bounds_decode_and_what_its_bytes_are(model: Model) -> None:
    text = "\n".join(hints(model))
    assert "4.1 per byte: memory-bound wherever" in text
    assert "the head (F16) is 52% of the bytes" in text
    assert "grows by 76.8 MB per 1,000 tokens" in text
    assert "4 query heads share each key-value head: the KV cache is 1/4 of what 20 would need" in text
    assert site_bytes(model.head) / decode_work(model, 1, 1024).moved_bytes == pytest.approx(0.52, abs=0.005)


def test_a_model_without_grouped_queries_is_told_so() -> None:
    assert any("keys and values of its own" in hint for hint in hints(analyse("bitnet_b1_58-large")))


def test_a_description_has_the_figures_a_reader_looks_for(model: Model) -> None:
    lines = describe(model)
    text = dict(lines)
    assert text["model"] == "bitnet-b1.58-2B-4T (bitnet, 2.41 billion parameters)"
    assert text["weights"] == "521 MB in 210 I2_S matrices"
    assert "657 MB (F16), head tied" in text["ends"]
    assert text["KV cache"] == "76.8 kB per token"
    assert text["size"].startswith("1.19 GB")
    assert {label for label, _ in lines[-len(hints(model)) :]} == {"hint"}
    assert all(value and "\n" not in value for _, value in lines)


def test_a_description_names_every_format_and_an_untied_head() -> None:
    assert "26 F16" in dict(describe(analyse("bitnet_b1_58-3B", machine="x86_64")))["weights"]
    assert "head 1.05 GB (F16)" in dict(describe(analyse("Llama3-8B-1.58-100B-tokens")))["ends"]


def test_a_description_of_a_file_gives_its_size(save_gguf: Callable[..., Path], bitnet: dict[str, Any]) -> None:
    path = save_gguf()
    assert f"the file has {path.stat().st_size / 1e3:.0f} kB" in dict(describe(analyse(path)))["size"]
