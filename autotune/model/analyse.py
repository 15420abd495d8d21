"""Entry point of the stage: from what a user names as a model to its layers and sites."""

from __future__ import annotations

import os

import msgspec

from autotune.model import config
from autotune.model.sites import check_known, lossy_notes
from autotune.model.source import Source, resolve
from autotune.records import Model


def analyse(
    spec: str | os.PathLike[str],
    format: str | None = None,  # noqa: A002 (the option's name)
    *,
    machine: str | None = None,
) -> Model:
    """Reads a model's shapes from a preset, a config.json or a GGUF file; never its weights.

    Args:
        spec: As for ``source.resolve``.
        format: Weight format of the layers' sites instead of the one that the input implies; a name of the registry.
        machine: Machine name that decides I2_S' layout (``x86_64``, ``aarch64``); None for this machine.

    Returns:
        The model, whose notes name a format of its layers that is lossy.

    Raises:
        ModelError: The input is missing, unreadable, contradictory, or of an architecture or tensor type not supported.
        UsageError: ``format`` is no name of the registry.
    """
    if format is not None:
        check_known(format)
    model = _read(resolve(spec), format, machine)
    return msgspec.structs.replace(model, notes=(*model.notes, *lossy_notes(model.layers)))


def _read(source: Source, weight_format: str | None, machine: str | None) -> Model:
    if source.kind != "gguf":
        return config.read_model(source, weight_format, machine)
    from autotune.model import gguf_file  # the gguf library takes longer to import than all the rest of the stage

    return gguf_file.read_model(source, weight_format, machine)
