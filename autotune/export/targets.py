"""Which targets there are and in which forms. Light: the command line's parser reads it."""

from __future__ import annotations

from typing import NamedTuple

TYPE_CHECKING = False  # the cached answer's path runs through here, and records take longer to import than it takes
if TYPE_CHECKING:
    from collections.abc import Callable

    from autotune.records import Result

MODEL_PATH = "MODEL.gguf"
"""What stands in a command line for the model's file where nobody says where it lies."""


class Target(NamedTuple):
    """A runtime that an export is for.

    Attributes:
        forms: What can be printed for it; the first unless another is asked for.
        names_model: Whether the text holds the path of the model's file.
    """

    forms: tuple[str, ...]
    names_model: bool = False


TARGETS = {
    "llama.cpp": Target(("flags", "env"), names_model=True),
    "bitnet.cpp": Target(("llama-server", "run_inference", "run_inference_server"), names_model=True),
    "bitnet-rs": Target(("device-config", "performance-toml", "performance-json", "performance-env")),
    "accelerate": Target(("json",)),
    "env": Target(("env",)),
    "json": Target(("json",)),
}


class Exported(NamedTuple):
    """What an export prints.

    Attributes:
        text: For the runtime; it ends with a newline.
        notes: For a person: what the target can't express, one sentence each.
    """

    text: str
    notes: tuple[str, ...] = ()


def export(result: Result, target: str, form: str | None = None, model_path: str = MODEL_PATH) -> Exported:
    """Say a result's configuration in the words of a target.

    Args:
        result: A saved result.
        target: One of ``TARGETS``.
        form: One of the target's forms; None: its first.
        model_path: Where the runtime finds the model's file, for targets that name it.

    Raises:
        ExportError: The target can't express the configuration.
        ValueError: There is no such target, or it has no such form.
    """
    if target not in TARGETS:
        raise ValueError(f"expected a target of {', '.join(TARGETS)}, got {target!r}")
    forms = TARGETS[target].forms
    if form is None:
        form = forms[0]
    if form not in forms:
        raise ValueError(f"expected a form of {target}, {' or '.join(forms)}, got {form!r}")
    from autotune.export import accelerate, bitnet_cpp, bitnet_rs, document, environment, llama_cpp

    exporters: dict[str, Callable[[Result, str, str], Exported]] = {
        "llama.cpp": llama_cpp.export,
        "bitnet.cpp": bitnet_cpp.export,
        "bitnet-rs": bitnet_rs.export,
        "accelerate": accelerate.export,
        "env": environment.export,
        "json": document.export,
    }
    return exporters[target](result, form, model_path)
