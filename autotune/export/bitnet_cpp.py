"""bitnet.cpp: its two Python scripts, and the llama-server that it builds.

Source: microsoft/BitNet, run_inference.py and run_inference_server.py; the options of its llama.cpp are in that one's
examples/server/README.md.
"""

from __future__ import annotations

from collections.abc import Iterator

from autotune.errors import ExportError
from autotune.export import llama_cpp
from autotune.export.placement import placement_of
from autotune.export.shell import command_line
from autotune.export.targets import Exported
from autotune.records import Result

_USUAL_CHUNK = 512
"""llama.cpp's physical batch where no option says otherwise."""
_PROMPT = "You are a helpful assistant"


def export(result: Result, form: str, model_path: str) -> Exported:
    """A command line to run in BitNet's folder: ``llama-server``, ``run_inference`` or ``run_inference_server``.

    Raises:
        ExportError: The configuration uses a GPU.
    """
    configuration = result.decision.chosen.configuration
    placement = placement_of(configuration)
    if placement.gpus:
        raise ExportError(
            f"bitnet.cpp runs on the CPU alone, and {placement.gpu_layers} of {placement.layers} layers are on GPUs: "
            f"tune with no GPU visible (CUDA_VISIBLE_DEVICES=)"
        )
    if form == "llama-server":
        options = {"--model": model_path, **llama_cpp.server_options(result), "--n-gpu-layers": "0"}
        notes = (*_activation_notes(result), *llama_cpp.server_notes(result))
        return Exported(command_line(("build/bin/llama-server",), options), notes)
    options = {
        "--model": model_path,
        "--threads": str(configuration.decode_threads),
        "--ctx-size": str(result.workload.context_tokens),
        "--n-predict": str(result.workload.output_tokens),
    }
    if form == "run_inference":
        options |= {"--prompt": _PROMPT, "--conversation": ""}
    notes = (*_activation_notes(result), *_script_notes(result, form))
    return Exported(command_line(("python", f"{form}.py"), options), notes)


def _activation_notes(result: Result) -> Iterator[str]:
    if result.model.activation == "relu2":
        yield (
            f"{result.model.name} needs squared ReLU, and bitnet.cpp since July 2026 multiplies it with SiLU, and "
            f"answers badly (its issue 588, open when this was written): take an older one, or one with the issue fixed"
        )


def _script_notes(result: Result, form: str) -> Iterator[str]:
    configuration = result.decision.chosen.configuration
    if configuration.batch_size > 1:
        yield (
            f"{form}.py serves one sequence at a time: the batch of {configuration.batch_size} sequences needs "
            f"--form llama-server"
        )
    if configuration.prefill_threads != configuration.decode_threads:
        yield (
            f"{form}.py has one number of threads, that of decode: prefill's {configuration.prefill_threads} need "
            f"--form llama-server"
        )
    if configuration.prefill_chunk != _USUAL_CHUNK:
        yield (
            f"{form}.py processes prompts {_USUAL_CHUNK} tokens at a time: chunks of {configuration.prefill_chunk} "
            f"need --form llama-server"
        )
