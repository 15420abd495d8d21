"""llama.cpp: options that its parser knows, and that place layers, head and sequences as the configuration does."""

from __future__ import annotations

import shlex

import numpy as np
import pytest

from autotune.errors import ExportError
from autotune.export.targets import export
from autotune.records import Model
from tests.export.cases import (
    GPU,
    HYBRID,
    LAYERS,
    PLACEMENTS,
    TWO_GPUS,
    a_model,
    a_result,
    check_value,
    documented,
    parse,
)


def _flags(text: str) -> dict[str, str]:
    program, *words = shlex.split(text)
    assert program == "llama-server"
    return parse(words, "llama.cpp")


def _placed(options: dict[str, str], layers: int) -> list[str]:
    """Where llama.cpp puts each layer and, last, the output.

    Of ``layers + 1`` slots the last ``-ngl`` are offloaded; slot k of n goes to the first device whose share of
    ``-ts``, summed up, is above k / n, in single precision. Source: llama-model.cpp, ``load_tensors``.
    """
    offloaded = min(int(options["-ngl"]), layers + 1)
    devices = [
        f"cuda:{name.removeprefix('CUDA')}" for name in options.get("-dev", "CUDA0").split(",") if name != "none"
    ]
    if "none" in options.get("-dev", ""):
        return ["cpu"] * (layers + 1)
    shares = np.cumsum([float(share) for share in options.get("-ts", "1").split(",")], dtype=np.float32)
    assert len(shares) == len(devices)
    splits = shares / shares[-1]
    slots = ["cpu"] * (layers + 1 - offloaded) + [
        devices[int(np.searchsorted(splits, np.float32(slot) / np.float32(offloaded), side="right"))]
        for slot in range(offloaded)
    ]
    if "-ot" in options:
        assert options["-ot"] == "^output.weight=CPU"
        slots[-1] = "cpu"
    return slots


@pytest.mark.parametrize("name", PLACEMENTS)
def test_llama_cpp_places_layers_and_head_as_the_configuration_does(name: str) -> None:
    device_layers, head = PLACEMENTS[name]
    options = _flags(export(a_result(device_layers, head), "llama.cpp").text)
    expected = [device for device, count in device_layers.items() for _ in range(count)]
    assert _placed(options, LAYERS) == [*expected, head]


def test_every_way_to_share_layers_among_two_gpus_survives_single_precision() -> None:
    for layers in (12, 30, 40, 61):
        for first in range(1, layers):
            split = {"cuda:0": first, "cuda:1": layers - first}
            placed = _placed(_flags(export(a_result(split, "cuda:1"), "llama.cpp").text), layers)
            assert placed == ["cuda:0"] * first + ["cuda:1"] * (layers - first + 1)


def test_threads_batch_and_chunk_have_options_and_the_context_is_that_of_all_sequences() -> None:
    options = _flags(export(a_result(batch_size=4, prefill_chunk=128), "llama.cpp").text)
    assert (options["-t"], options["-tb"]) == ("6", "8")
    assert (options["-np"], options["-c"]) == ("4", str(4 * 512))
    assert (options["-b"], options["-ub"]) == ("128", "128")


def test_a_chunk_that_is_smaller_than_the_batch_gives_way_to_it_and_a_note_says_so() -> None:
    exported = export(a_result(batch_size=256, prefill_chunk=32), "llama.cpp")
    assert _flags(exported.text)["-ub"] == "256"
    assert any("256 tokens at a time, and not 32" in note for note in exported.notes)
    assert not export(a_result(), "llama.cpp").notes


@pytest.mark.parametrize("name", PLACEMENTS)
def test_the_environment_says_what_the_flags_say_but_for_the_threads_of_prefill(name: str) -> None:
    device_layers, head = PLACEMENTS[name]
    result = a_result(device_layers, head)
    by_variable = {option.env: option for option in documented("llama.cpp").values()}
    found = {}
    exported = export(result, "llama.cpp", "env", "models/a.gguf")
    for line in exported.text.splitlines():
        variable, _, value = line.partition("=")
        check_value(by_variable[variable], value)
        found[by_variable[variable].names[0]] = value
    flags = _flags(export(result, "llama.cpp", "flags", "models/a.gguf").text)
    assert found == {option: value for option, value in flags.items() if option != "-tb"}
    told = any(f"--threads-batch {flags['-tb']}" in note for note in exported.notes)
    assert told == (flags["-tb"] != flags["-t"])


def test_the_environment_is_complete_where_prefill_has_as_many_threads_as_decode() -> None:
    assert not export(a_result(prefill_threads=6), "llama.cpp", "env").notes


def test_the_head_of_a_bitnet_model_is_on_the_cpu_whatever_is_asked() -> None:
    model = a_model(architecture="bitnet", tied=True)
    on_gpu, on_cpu = (export(a_result(HYBRID, head, model=model), "llama.cpp") for head in ("cuda:0", "cpu"))
    assert on_gpu.text == on_cpu.text
    assert "-ot" not in _flags(on_cpu.text)
    assert any("can't be put on the GPU" in note for note in on_gpu.notes)
    assert not any("can't be put on the GPU" in note for note in on_cpu.notes)


def test_a_tied_head_is_kept_on_the_cpu_under_the_embeddings_name() -> None:
    options = _flags(export(a_result(HYBRID, "cpu", model=a_model(tied=True)), "llama.cpp").text)
    assert options["-ot"] == "^token_embd.weight=CPU"


def test_a_model_that_needs_squared_relu_is_told_which_llama_cpp_has_it() -> None:
    """Others load it, and answer badly."""
    bitnet = a_model(architecture="bitnet", activation="relu2")
    assert any(
        "bitnet.hidden_activation says relu2" in note for note in export(a_result(model=bitnet), "llama.cpp").notes
    )
    assert not export(a_result(model=a_model(architecture="bitnet")), "llama.cpp").notes


def test_one_of_several_gpus_is_named_and_the_only_one_is_not() -> None:
    assert _flags(export(a_result(GPU, "cuda:0", gpus=2), "llama.cpp").text)["-dev"] == "CUDA0"
    assert "-dev" not in _flags(export(a_result(GPU, "cuda:0"), "llama.cpp").text)
    notes = export(a_result(TWO_GPUS, "cuda:1"), "llama.cpp").notes
    assert any("CUDA_DEVICE_ORDER=PCI_BUS_ID" in note for note in notes)


@pytest.mark.parametrize("weight_format", ["TQ1_0", "TQ2_0"])
def test_formats_without_a_cuda_product_are_named_where_layers_are_on_a_gpu(weight_format: str) -> None:
    notes = export(a_result(GPU, "cuda:0", model=a_model(weight_format=weight_format)), "llama.cpp").notes
    assert any(f"no {weight_format} product" in note for note in notes)
    notes = export(a_result(GPU, "cuda:0", model=a_model(weight_format="IQ2_S")), "llama.cpp").notes
    assert not any("product" in note for note in notes)


@pytest.mark.parametrize(
    ("model", "threads", "told"),
    [
        (a_model(weight_format="IQ2_S", architecture="bitnet", tied=True), "2", "for the head it gets all 2 threads"),
        (a_model(weight_format="TQ2_0"), "2", "for TQ2_0 matrices it gets all 2 threads"),
        (a_model(weight_format="IQ2_S"), "1", ""),
    ],
)
def test_a_cpu_that_was_to_be_idle_gets_threads_for_what_llama_cpp_leaves_to_it(
    model: Model, threads: str, told: str
) -> None:
    """A plan for GPUs alone has one thread: with that, the head of a bitnet model would crawl."""
    exported = export(a_result(GPU, "cuda:0", decode_threads=1, prefill_threads=1, model=model), "llama.cpp")
    options = _flags(exported.text)
    assert (options["-t"], options["-tb"]) == (threads, threads)
    assert bool(told) == any("was to be idle" in note and told in note for note in exported.notes)


def test_threads_that_were_chosen_for_the_cpus_own_layers_are_kept() -> None:
    model = a_model(weight_format="IQ2_S", architecture="bitnet", tied=True)
    options = _flags(export(a_result(HYBRID, "cuda:0", model=model), "llama.cpp").text)
    assert (options["-t"], options["-tb"]) == ("6", "8")


@pytest.mark.parametrize("weight_format", ["I2_S", "I2_S_ARM", "TL1", "TL2"])
def test_weights_that_llama_cpp_does_not_read_are_an_error(weight_format: str) -> None:
    model = a_model(weight_format=weight_format)
    with pytest.raises(ExportError, match=f"doesn't read {weight_format} weights.* export to bitnet.cpp, or tune"):
        export(a_result(model=model), "llama.cpp")
    with pytest.raises(ExportError, match=f"doesn't read {weight_format} weights.*: tune with --format TQ2_0"):
        export(a_result(HYBRID, "cuda:0", model=model), "llama.cpp")


@pytest.mark.parametrize("architecture", ["bitnet-b1.58", "bitnet-25"])
def test_an_architecture_of_bitnet_cpps_own_llama_cpp_is_an_error(architecture: str) -> None:
    with pytest.raises(ExportError, match=f"architecture {architecture} of synthetic/model"):
        export(a_result(model=a_model(architecture=architecture)), "llama.cpp")


@pytest.mark.parametrize("path", ["a b.gguf", "it's.gguf", "$(touch x).gguf", "-m.gguf", "neu\nzeile.gguf"])
def test_any_path_survives_the_shell(path: str) -> None:
    assert _flags(export(a_result(), "llama.cpp", "flags", path).text)["-m"] == path


@pytest.mark.parametrize("path", ["a b.gguf", "it's.gguf", "~/a.gguf", "$HOME/a.gguf", "a\nb.gguf"])
def test_a_path_that_needs_quotes_does_not_fit_an_environment_file(path: str) -> None:
    with pytest.raises(ExportError, match="LLAMA_ARG_MODEL="):
        export(a_result(), "llama.cpp", "env", path)
