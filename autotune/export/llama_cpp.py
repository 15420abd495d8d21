"""llama-server's command line, or the environment that it reads.

Sources: ggml-org/llama.cpp, tools/server/README.md (options and their variables), src/llama-model.cpp
(``load_tensors``: which layers ``--n-gpu-layers`` and ``--tensor-split`` place where) and src/models/bitnet.cpp (the
head, and the activation).
"""

from __future__ import annotations

from collections.abc import Iterator

from autotune.errors import ExportError
from autotune.export.placement import Placement, formats_of, gpu_order_note, placement_of
from autotune.export.shell import command_line, environment_file
from autotune.export.targets import Exported
from autotune.records import Model, Result

_FORMATS = ("F32", "F16", "Q8_0", "Q6_K", "IQ2_S", "TQ1_0", "TQ2_0")
_CPU_FORMATS = ("TQ1_0", "TQ2_0")
"""Formats for which its CUDA backend had no product when this was written (pull request 11183 was open)."""
_FOREIGN_ARCHITECTURES = ("bitnet-25", "bitnet-b1.58")
"""GGUF architectures of bitnet.cpp's own llama.cpp."""

_VARIABLES = {
    "--model": "LLAMA_ARG_MODEL",
    "--threads": "LLAMA_ARG_THREADS",
    "--threads-batch": None,
    "--ctx-size": "LLAMA_ARG_CTX_SIZE",
    "--parallel": "LLAMA_ARG_N_PARALLEL",
    "--batch-size": "LLAMA_ARG_BATCH",
    "--ubatch-size": "LLAMA_ARG_UBATCH",
    "--n-gpu-layers": "LLAMA_ARG_N_GPU_LAYERS",
    "--device": "LLAMA_ARG_DEVICE",
    "--tensor-split": "LLAMA_ARG_TENSOR_SPLIT",
    "--override-tensor": "LLAMA_ARG_OVERRIDE_TENSOR",
}
"""The variable for each option; None: it has none."""


def export(result: Result, form: str, model_path: str) -> Exported:
    """A command line (``flags``) or an environment (``env``) for llama-server.

    Raises:
        ExportError: llama.cpp can't read the weights, or the path doesn't fit an environment file.
    """
    placement = placement_of(result.decision.chosen.configuration)
    _check_readable(result.model, placement)
    options = {"--model": model_path, **server_options(result), **_placement_options(result, placement)}
    notes = [*_activation_notes(result.model), *server_notes(result), *_placement_notes(result, placement)]
    left_to_cpu = _left_to_cpu(result.model, placement)
    if left_to_cpu and not placement.uses_cpu:
        # The plan's number is of no consequence then: the CPU has nothing to do in it.
        threads = result.host.limits.usable_threads
        options |= dict.fromkeys(("--threads", "--threads-batch"), str(threads))
        notes.append(f"the CPU was to be idle; for {left_to_cpu} it gets all {threads} threads that may be used")
    if form == "flags":
        return Exported(command_line(("llama-server",), options), tuple(notes))
    if options["--threads-batch"] != options["--threads"]:
        notes.append(
            f"no variable sets the threads of prefill, which are as many as of decode then: "
            f"give --threads-batch {options['--threads-batch']} as well"
        )
    named = {variable: options[option] for option, variable in _VARIABLES.items() if variable and option in options}
    return Exported(environment_file(named), tuple(notes))


def server_options(result: Result) -> dict[str, str]:
    """What llama-server takes of a configuration wherever its layers are; bitnet.cpp's older one as well.

    Its context is that of all sequences together. Its physical batch (``--ubatch-size``) cuts prompts and decode steps
    alike, so that it must hold a prefill chunk and one token of each sequence.
    """
    configuration = result.decision.chosen.configuration
    tokens = str(_largest_pass(result))
    return {
        "--threads": str(configuration.decode_threads),
        "--threads-batch": str(configuration.prefill_threads),
        "--ctx-size": str(result.workload.context_tokens * configuration.batch_size),
        "--parallel": str(configuration.batch_size),
        "--batch-size": tokens,
        "--ubatch-size": tokens,
    }


def server_notes(result: Result) -> Iterator[str]:
    """What `server_options` leave out."""
    configuration = result.decision.chosen.configuration
    if configuration.prefill_chunk < configuration.batch_size:
        yield (
            f"prompts are processed {_largest_pass(result)} tokens at a time, and not {configuration.prefill_chunk}: "
            f"the physical batch must hold a token of each of {configuration.batch_size} sequences"
        )


def _largest_pass(result: Result) -> int:
    configuration = result.decision.chosen.configuration
    return max(configuration.prefill_chunk, configuration.batch_size)


def _check_readable(model: Model, placement: Placement) -> None:
    if model.architecture in _FOREIGN_ARCHITECTURES:
        raise ExportError(
            f"llama.cpp doesn't read the GGUF architecture {model.architecture} of {model.name}, which is bitnet.cpp's "
            f"own: convert the model with llama.cpp's script, and tune what comes out"
        )
    unknown = [name for name in formats_of(model) if name not in _FORMATS]
    if unknown:
        instead = "tune with --format TQ2_0" if placement.gpus else "export to bitnet.cpp, or tune with --format TQ2_0"
        raise ExportError(
            f"llama.cpp doesn't read {' and '.join(unknown)} weights, which {model.name} was tuned with: {instead}"
        )


def _placement_options(result: Result, placement: Placement) -> dict[str, str]:
    """Options that put layers and head where the configuration has them.

    llama.cpp counts ``n_layer + 1`` slots, the output last, and offloads the last ``--n-gpu-layers`` of them: the
    output is the first to go, then layers from the last one back. The slots offloaded are shared out in the proportion
    of ``--tensor-split``, in order.
    """
    if not placement.gpus:
        # Without a device, nor does it copy the CPU's matrices to a GPU to multiply long prompts there.
        return {"--n-gpu-layers": "0", "--device": "none"}
    options = {"--n-gpu-layers": str(placement.gpu_layers + 1)}
    if len(result.host.gpus.usable) > 1:
        options["--device"] = ",".join(f"CUDA{number}" for number, _ in placement.gpus)
    if len(placement.gpus) > 1:
        *before, last = (layers for _, layers in placement.gpus)
        options["--tensor-split"] = ",".join(str(layers) for layers in (*before, last + 1))
    if not placement.head_on_gpu and not _multiplies_with_embedding(result.model):
        # A tied head is loaded under the embedding's name. Quotes would not do in an environment file: no $, no \.
        options["--override-tensor"] = f"^{'token_embd' if result.model.tied else 'output'}.weight=CPU"
    return options


def _activation_notes(model: Model) -> Iterator[str]:
    if model.activation == "relu2":
        yield (
            f"{model.name} needs squared ReLU: llama.cpp multiplies it with SiLU instead, and answers badly, unless it "
            f"is of August 2026 or later and the file's {model.architecture}.hidden_activation says relu2"
        )


def _placement_notes(result: Result, placement: Placement) -> Iterator[str]:
    if not placement.gpus:
        return
    slots = placement.gpu_layers + 1
    yield (
        f"--n-gpu-layers {slots} is {placement.gpu_layers} of {placement.layers} layers and the output, by the rule of "
        f"llama.cpp since December 2025 (pull request 18148); older ones take the output last"
    )
    if placement.head_on_gpu and _multiplies_with_embedding(result.model):
        yield (
            "llama.cpp multiplies with the embedding of a bitnet model as its head where that lies, on the CPU: the "
            "head can't be put on the GPU"
        )
    if not placement.head_on_gpu and not _multiplies_with_embedding(result.model):
        yield "the output's norm goes to the GPU with its slot; --override-tensor keeps the head's matrix on the CPU"
    for name in _on_cpu_alone(result.model):
        yield (
            f"a llama.cpp whose CUDA backend has no {name} product leaves these matrices on the CPU, whatever "
            f"--n-gpu-layers says"
        )
    yield from gpu_order_note(result)
    yield (
        "the share of the GPU's memory has no option: llama.cpp takes what layers and context need, and the memory "
        "plan was made for autotune's own engine"
    )


def _left_to_cpu(model: Model, placement: Placement) -> str:
    """What llama.cpp keeps on the CPU, though the configuration has it on a GPU, in words; empty: nothing."""
    parts = [f"{name} matrices" for name in _on_cpu_alone(model)] if placement.gpus else []
    if placement.head_on_gpu and _multiplies_with_embedding(model):
        parts.append("the head")
    return " and ".join(parts)


def _on_cpu_alone(model: Model) -> list[str]:
    return [name for name in formats_of(model) if name in _CPU_FORMATS]


def _multiplies_with_embedding(model: Model) -> bool:
    """Whether llama.cpp's graph has no output matrix of its own, and uses the embedding, which is always on the CPU."""
    return model.architecture == "bitnet"
