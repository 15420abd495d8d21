"""bitnet.cpp: options of its scripts and of its llama-server, for the CPU alone."""

from __future__ import annotations

import shlex

import pytest

from autotune.errors import ExportError
from autotune.export.targets import TARGETS, export
from tests.export.cases import PLACEMENTS, a_model, a_result, parse

SCRIPTS = ("run_inference", "run_inference_server")


def test_its_server_takes_the_whole_configuration() -> None:
    exported = export(a_result(), "bitnet.cpp", "llama-server", "models/a b.gguf")
    program, *words = shlex.split(exported.text)
    assert program == "build/bin/llama-server"
    assert parse(words, "bitnet.cpp") == {
        "-m": "models/a b.gguf",
        "-t": "6",
        "-tb": "8",
        "-c": "2048",
        "-np": "4",
        "-b": "128",
        "-ub": "128",
        "-ngl": "0",
    }
    assert exported.notes == ()


@pytest.mark.parametrize("script", SCRIPTS)
def test_its_scripts_take_threads_context_and_output(script: str) -> None:
    program, file, *words = shlex.split(export(a_result(), "bitnet.cpp", script, "a.gguf").text)
    assert (program, file) == ("python", f"{script}.py")
    options = parse(words, script)
    assert {name: options[name] for name in ("-m", "-t", "-c", "-n")} == {
        "-m": "a.gguf",
        "-t": "6",
        "-c": "512",
        "-n": "64",
    }


def test_the_script_that_insists_on_a_prompt_gets_one() -> None:
    options = parse(shlex.split(export(a_result(), "bitnet.cpp", "run_inference").text)[2:], "run_inference")
    assert options["-p"]
    assert "-cnv" in options


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_its_scripts_have_no_option_for_is_said(script: str) -> None:
    batch, prefill, chunk = export(a_result(), "bitnet.cpp", script).notes
    assert "batch of 4 sequences" in batch
    assert "prefill's 8" in prefill
    assert "chunks of 128" in chunk
    plain = a_result(batch_size=1, prefill_threads=6, prefill_chunk=512)
    assert export(plain, "bitnet.cpp", script).notes == ()


@pytest.mark.parametrize("form", TARGETS["bitnet.cpp"].forms)
def test_a_model_that_needs_squared_relu_is_told_which_bitnet_cpp_lacks_it(form: str) -> None:
    bitnet = a_model(architecture="bitnet", activation="relu2")
    assert "needs squared ReLU" in export(a_result(model=bitnet), "bitnet.cpp", form).notes[0]


@pytest.mark.parametrize("form", TARGETS["bitnet.cpp"].forms)
@pytest.mark.parametrize("name", [name for name in PLACEMENTS if name != "cpu"])
def test_layers_on_a_gpu_are_an_error(name: str, form: str) -> None:
    with pytest.raises(ExportError, match="of 12 layers are on GPUs"):
        export(a_result(*PLACEMENTS[name]), "bitnet.cpp", form)


@pytest.mark.parametrize("weight_format", ["I2_S", "TL2", "TQ2_0"])
def test_it_reads_its_own_formats_and_llama_cpps(weight_format: str) -> None:
    model = a_model(weight_format=weight_format, architecture="bitnet-b1.58")
    assert export(a_result(model=model), "bitnet.cpp").text.startswith("build/bin/llama-server ")
