"""What a model needs of a host in each weight format: bytes to hold it, and bytes to read for a token."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from autotune.errors import UsageError
from autotune.model.analyse import analyse
from autotune.model.memory import Room, plan
from autotune.model.source import resolve
from autotune.model.work import decode_work
from autotune.records import Configuration, Model
from autotune.records.base import Record
from ternary_kernels.formats import get_format

FORMATS = ("I2_S", "TL1", "TL2", "TQ1_0", "TQ2_0", "IQ2_S", "F16")
"""What a ternary model is stored in, and what it takes unquantised. I2_S has as many bytes on Arm, in another order."""
CONTEXTS = (2048, 4096)
"""Contexts asked about beside the longest one that a model has."""
CHUNK = 32
"""Prompt tokens at once: the fewest that a tune considers, and so the least memory."""
RUNTIME_BYTES = 81_000_000
"""Interpreter, libraries and thread stacks of a process that runs a model on CPUs.

Source: ``campaign.runtime_overhead_bytes`` of the records in ``results/``, all of one host (2 threads of a Xeon).
"""

_MACHINE = "x86_64"  # as the table is the same everywhere; only I2_S has another name on Arm


class Requirement(Record, frozen=True):
    """What one sequence of a model needs on a CPU: the memory plan of the smallest configuration there is."""

    model: str
    format: str
    """Of the layers' matrices; the embedding and the head are F16. Several where one can't hold all."""
    context_tokens: int
    """KV-cache slots."""
    weights_bytes: int
    kv_cache_bytes: int
    activations_bytes: int
    overhead_bytes: int
    """``RUNTIME_BYTES``."""
    needed_bytes: int
    """The sum of these four."""
    decode_bytes: int
    """What a decode step moves with that context full: read bandwidth divided by it bounds tokens/s."""


class LeftOut(Record, frozen=True):
    """A format that can't hold one of a model's matrices."""

    model: str
    format: str
    reason: str


class Requirements(NamedTuple):
    """What was asked about one model.

    Attributes:
        needed: By format, then by context, ascending.
        left_out: Formats that can't hold it.
        max_context: The longest context that it has, in tokens.
    """

    needed: tuple[Requirement, ...]
    left_out: tuple[LeftOut, ...]
    max_context: int


def requirements(
    spec: str | os.PathLike[str], formats: Sequence[str] = (), contexts: Sequence[int] = ()
) -> Requirements:
    """What a model needs in weight formats and at contexts.

    Args:
        spec: A model file or a preset.
        formats: Names of the registry; none: the model's own, and of a ternary ``config.json`` all in ``FORMATS``.
        contexts: Tokens; those beyond the model's longest context are left out. None: ``CONTEXTS`` and the longest.

    Raises:
        ModelError: The model can't be read.
        UsageError: There is no such format, or a context has no tokens.
    """
    own = analyse(spec, machine=_MACHINE)
    for context in contexts:
        if context < 1:
            raise UsageError(f"--context must be at least 1 token, got {context}")
    lengths = sorted({length for length in contexts or (*CONTEXTS, own.max_context) if length <= own.max_context})
    held = {} if formats else {_format(own): own}
    left_out = []
    for name in formats or _usual(spec, own):
        reason = _why_not(own, name)
        if reason is None:
            model = analyse(spec, name, machine=_MACHINE)
            held.setdefault(_format(model), model)
        else:
            left_out.append(LeftOut(own.name, name, reason))
    needed = tuple(_requirement(model, name, length) for name, model in held.items() for length in lengths)
    return Requirements(needed, tuple(left_out), own.max_context)


def _usual(spec: str | os.PathLike[str], own: Model) -> tuple[str, ...]:
    """The formats that a model may be converted to; a GGUF file is in one already."""
    ternary = any(get_format(name).ternary for name in _names(own))
    return FORMATS if ternary and resolve(spec).kind != "gguf" else ()


def _why_not(model: Model, name: str) -> str | None:
    """Why a format can't hold one of a model's matrices, in words; None: it holds all."""
    try:
        weight_format = get_format(name)
    except ValueError as error:
        raise UsageError(f"--format: {error}") from None
    for site in dict.fromkeys(site for layer in model.layers for site in layer.sites):
        try:
            weight_format.size_bytes(site.n_out, site.k_in)
        except ValueError as error:
            return f"{site.name} {site.n_out} x {site.k_in}: {error}"
    return None


def _requirement(model: Model, name: str, context: int) -> Requirement:
    configuration = Configuration(
        device_layers={"cpu": len(model.layers)},
        head_device="cpu",
        decode_threads=1,
        prefill_threads=1,
        batch_size=1,
        prefill_chunk=min(CHUNK, context),
    )
    (use,) = plan(model, configuration, context, Room({"cpu": 0}, {"cpu": RUNTIME_BYTES}))
    return Requirement(
        model=model.name,
        format=name,
        context_tokens=context,
        weights_bytes=use.weights_bytes,
        kv_cache_bytes=use.kv_cache_bytes,
        activations_bytes=use.activations_bytes,
        overhead_bytes=use.overhead_bytes,
        needed_bytes=use.total_bytes,
        decode_bytes=decode_work(model, 1, context).moved_bytes,
    )


def _format(model: Model) -> str:
    return ", ".join(_names(model))


def _names(model: Model) -> Iterator[str]:
    """The formats of the layers' matrices, in the order in which they come."""
    yield from dict.fromkeys(site.format for layer in model.layers for site in layer.sites)
