"""accelerate: a device_map by the rules that its documentation and transformers' module names set."""

from __future__ import annotations

import json

import pytest

from autotune.export.targets import export
from tests.export.cases import GPU, HYBRID, LAYERS, PLACEMENTS, TWO_GPUS, a_model, a_result

MODULES = ["model.embed_tokens", "model.rotary_emb", *(f"model.layers.{index}" for index in range(LAYERS))]
MODULES += ["model.norm", "lm_head"]
"""The modules of a causal language model in transformers that a map must give a device.

Source: huggingface/transformers, modeling_llama.py; modular_bitnet.py takes its modules over.
"""


@pytest.mark.parametrize("name", [name for name in PLACEMENTS if name != "cpu"])
@pytest.mark.parametrize("tied", [False, True])
def test_every_module_has_one_device_and_layers_and_head_have_theirs(name: str, tied: bool) -> None:
    device_layers, head = PLACEMENTS[name]
    document = json.loads(export(a_result(device_layers, head, model=a_model(tied=tied)), "accelerate").text)
    placed = document["device_map"]
    assert list(placed) == MODULES
    expected = [device for device, count in device_layers.items() for _ in range(count)]
    names = [device if device == "cpu" else int(device[5:]) for device in expected]
    assert [placed[f"model.layers.{index}"] for index in range(LAYERS)] == names
    assert placed["lm_head"] == placed["model.norm"] == (head if head == "cpu" else int(head[5:]))
    if tied:
        assert placed["model.embed_tokens"] == placed["lm_head"]
    else:
        assert placed["model.embed_tokens"] == ("cpu" if head == "cpu" else names[0])


def test_a_model_on_the_cpu_is_one_module_there() -> None:
    assert json.loads(export(a_result(), "accelerate").text)["device_map"] == {"": "cpu"}


def test_max_memory_is_what_weights_may_take_of_each_device() -> None:
    result = a_result(TWO_GPUS, "cuda:1")
    max_memory = json.loads(export(result, "accelerate").text)["max_memory"]
    (use, *_) = result.decision.chosen.predicted.memory
    room = use.available_bytes - use.kv_cache_bytes - use.activations_bytes - use.overhead_bytes
    assert max_memory == {"cpu": room, "0": room, "1": room}


def test_what_a_map_can_not_say_is_noted() -> None:
    assert "set_num_threads(6)" in export(a_result(), "accelerate").notes[0]
    assert "4 sequences" in export(a_result(), "accelerate").notes[0]
    assert "planned with TQ2_0 weights" in export(a_result(), "accelerate").notes[1]
    assert "1 sequence at" in export(a_result(batch_size=1), "accelerate").notes[0]


@pytest.mark.parametrize(
    ("device_layers", "head", "what"),
    [
        (HYBRID, "cuda:0", "(5 layers)"),
        ({"cpu": 1, "cuda:0": 11}, "cpu", "(1 layer and the head)"),
        (GPU, "cpu", "(the head)"),
    ],
)
def test_what_is_on_the_cpu_is_said_to_be_copied(device_layers: dict[str, int], head: str, what: str) -> None:
    _, _, copied, packed = export(a_result(device_layers, head), "accelerate").notes
    assert what in copied
    assert "bf16" in packed


def test_gpus_are_numbered_as_cuda_may_not_number_them() -> None:
    def told(gpus: int) -> bool:
        notes = export(a_result(GPU, "cuda:0", gpus=gpus), "accelerate").notes
        return any("CUDA_DEVICE_ORDER=PCI_BUS_ID" in note for note in notes)

    assert told(2)
    assert not told(1)


def test_a_model_on_a_gpu_alone_has_nothing_copied() -> None:
    assert len(export(a_result(GPU, "cuda:0"), "accelerate").notes) == len(export(a_result(), "accelerate").notes) == 2


def test_a_tied_embedding_that_moves_to_the_head_is_noted() -> None:
    notes = export(a_result(HYBRID, "cuda:0", model=a_model(tied=True)), "accelerate").notes
    assert "one matrix" in notes[-1]
