"""What models need before anything is measured: equal to the plan that a tune makes, and to what records used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from autotune.errors import ModelError, UsageError
from autotune.model.analyse import analyse
from autotune.model.memory import Room, fits
from autotune.model.requirements import CHUNK, FORMATS, RUNTIME_BYTES, requirements
from autotune.model.source import PRESETS
from autotune.search.workload import SMALLEST_CHUNK, make_workload
from autotune.store.entry import is_entry, parse
from autotune.store.schema import decode_result
from ternary_kernels.formats import FORMATS as REGISTRY

ROOT = Path(__file__).parents[2]
RESULTS, PRESET_FILES = ROOT / "results", ROOT / "autotune" / "model" / "presets"


@pytest.mark.parametrize("preset", PRESETS)
def test_what_a_model_needs_is_the_least_memory_that_a_tune_accepts(preset: str) -> None:
    """A byte less, and the smallest configuration doesn't fit."""
    for need in requirements(preset).needed:
        names = need.format.split(", ")
        model = analyse(preset, names[0] if len(names) == 1 else None, machine="x86_64")
        workload = make_workload("chat", model, prompt=8, output=8, context=need.context_tokens)

        enough, short = (Room({"cpu": need.needed_bytes - by}, {"cpu": RUNTIME_BYTES}) for by in (0, 1))
        assert fits(model, workload, enough, prefill_chunk=CHUNK)
        assert not fits(model, workload, short, prefill_chunk=CHUNK)


def test_all_formats_are_asked_about_that_ternary_weights_can_be_in() -> None:
    """I2_S stands for its layout on Arm as well; of the others only F16, which is what the weights were trained in."""
    suiting = {name for name, each in REGISTRY.items() if each.ternary or each.lossy} - {"I2_S_ARM"}
    assert set(FORMATS) == suiting | {"F16"}
    needed = requirements("bitnet-b1.58-2B-4T").needed
    assert {need.format for need in needed} == set(FORMATS)


def test_the_smallest_prompt_chunk_is_the_search_space_s() -> None:
    assert CHUNK == SMALLEST_CHUNK


def test_the_runtime_takes_what_records_say_it_took() -> None:
    """Within a tenth, for each saved result in results/."""
    documents = {str(path): path.read_bytes() for path in RESULTS.glob("*.json")}
    saved = [parse(raw, path) for path, raw in documents.items() if is_entry(raw)]
    assert saved
    for entry in saved:
        campaign = decode_result(entry).campaign
        assert campaign.runtime_overhead_bytes == pytest.approx(RUNTIME_BYTES, rel=0.1)


def test_contexts_beyond_the_longest_are_left_out() -> None:
    """bitnet_b1_58-large has 2,048 tokens: the usual question about 4,096 has no answer for it."""
    assert {need.context_tokens for need in requirements("bitnet_b1_58-large").needed} == {2048}
    asked = requirements("Falcon3-1B-Instruct-1.58bit", ["TL2"], [100_000, 512, 8192, 512])
    assert [need.context_tokens for need in asked.needed] == [512, 8192]


def test_more_context_costs_cache_and_scores_but_no_weights() -> None:
    short, long = requirements("bitnet-b1.58-2B-4T", ["I2_S"], [1024, 2048]).needed
    assert long.kv_cache_bytes == 2 * short.kv_cache_bytes
    assert long.activations_bytes > short.activations_bytes
    assert (long.weights_bytes, long.overhead_bytes) == (short.weights_bytes, short.overhead_bytes)
    assert long.decode_bytes - short.decode_bytes == long.kv_cache_bytes - short.kv_cache_bytes


def test_a_format_that_cannot_hold_a_matrix_is_left_out_with_the_reason() -> None:
    """The 3B model has 3,200 columns, no multiple of the 256 that llama.cpp's blocks have."""
    found = requirements("bitnet_b1_58-3B")
    reasons = {left_out.format: left_out.reason for left_out in found.left_out}
    assert "multiple of 256, got 3200" in reasons["TQ2_0"]
    # As the tuner takes it without --format: the matrix that I2_S can't hold is F16.
    assert {need.format for need in found.needed} == {"I2_S, F16", "TL1", "TL2", "F16"}


def test_a_model_that_is_not_ternary_is_asked_about_as_it_is(tmp_path: Path) -> None:
    """Weights that weren't trained to be ternary can't become so."""
    config = json.loads((PRESET_FILES / "Falcon3-1B-Instruct-1.58bit.json").read_text())
    del config["quantization_config"]
    path = tmp_path / "plain.json"
    path.write_text(json.dumps(config))
    (need, *_) = found = requirements(path).needed
    assert {each.format for each in found} == {need.format}
    assert need.format in ("F16", "F32")


def test_a_gguf_file_is_in_the_format_that_it_is_in(save_gguf: Callable[..., Path]) -> None:
    """Unless another is named; its matrices have 256 and 384 columns."""
    path = save_gguf()
    assert {(need.format, need.context_tokens) for need in requirements(path).needed} == {("I2_S", 512)}
    asked = requirements(path, ["F16", "TQ2_0"])
    assert {need.format for need in asked.needed} == {"F16"}
    assert "got 384" in asked.left_out[0].reason


def test_a_copy_of_a_preset_needs_the_same(tmp_path: Path) -> None:
    copy = shutil.copy(PRESET_FILES / "bitnet_b1_58-large.json", tmp_path / "bitnet_b1_58-large.json")
    assert requirements(copy) == requirements("bitnet_b1_58-large")


def test_what_cannot_be_answered_is_said_in_a_sentence() -> None:
    with pytest.raises(UsageError, match="at least 1 token, got 0"):
        requirements("bitnet-b1.58-2B-4T", contexts=[0])
    with pytest.raises(UsageError, match="unknown weight format 'Q9'"):
        requirements("bitnet-b1.58-2B-4T", ["Q9"])
    with pytest.raises(ModelError, match="no-such-model"):
        requirements("no-such-model")
