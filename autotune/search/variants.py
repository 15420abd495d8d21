"""The weight formats that a model may be run in: one, or with ``--format auto`` all that suit model and host."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from autotune.bench.rivals import REFERENCE
from autotune.errors import ModelError, UsageError
from autotune.model.analyse import analyse
from autotune.model.sites import holds, host_lookup_format, host_ternary_format
from autotune.model.source import digest, resolve
from autotune.options import AUTO
from autotune.records import Kernel, Layer, Model, Site
from ternary_kernels.formats import FORMATS, get_format

_UNHELD = "F16"
"""What a site is taken as that a format can't hold, as where no format is asked for."""


def read_variants(
    model: str | os.PathLike[str],
    weight_format: str | None,
    kernels: Sequence[Kernel],
    machine: str | None = None,
) -> tuple[Model, ...]:
    """The model in the format asked for, or in every one that is to be compared.

    Args:
        model: A config.json, a GGUF file or a preset.
        weight_format: A format's name, ``auto``, or None for the model's own.
        kernels: What the host can run: ``auto`` is for formats with a kernel on its CPU, which every strategy may need.
        machine: The host's machine name (``x86_64``, ``aarch64``); None for this machine.

    Returns:
        One model, or with ``auto`` one per format, the host's usual one first.

    Raises:
        ModelError: The model can't be read, or no format can hold it.
        UsageError: There is no such format, or the model exists in one format only.
    """
    if weight_format != AUTO:
        return (analyse(model, weight_format, machine=machine),)
    source = resolve(model)
    if source.kind == "gguf":
        raise UsageError(
            f"--format auto compares formats that a config.json leaves open: {source.path} is a GGUF file, "
            "which holds its weights in its own; leave --format out"
        )
    if not formats_of(analyse(model, machine=machine)):
        raise UsageError(f"--format auto compares ternary formats: the weights of {source.path} are not ternary")
    # F32 holds any shape, so it marks all sites whose format is open; the others are those that were never converted.
    marked = replace(analyse(model, "F32", machine=machine), source_digest=digest(source, AUTO))
    names = in_order(_runnable(kernels, machine), machine)
    variants = [variant for name in names if (variant := _in_format(marked, name)) is not None]
    if not variants:
        raise ModelError(
            f"{source.path}: expected shapes that a ternary format can hold, got none of {', '.join(names)}"
        )
    return tuple(variants)


def formats_of(model: Model) -> tuple[str, ...]:
    """The ternary formats of a model's sites."""
    sites = (site for layer in dict.fromkeys(model.layers) for site in layer.sites)
    return tuple(dict.fromkeys(site.format for site in sites if get_format(site.format).ternary))


def format_of(model: Model) -> str:
    """The name of the one format that a variant is in: its ternary sites' format."""
    return (*formats_of(model), model.layers[0].sites[0].format)[0]


def in_order(names: Iterable[str], machine: str | None) -> tuple[str, ...]:
    """Names of formats in the registry's order, but the one that bitnet.cpp uses on a machine first.

    Args:
        names: The names.
        machine: ``x86_64``, ``aarch64``; None for this machine.
    """
    usual, registry = host_ternary_format(machine), list(FORMATS)
    return tuple(sorted(names, key=lambda name: (name != usual, registry.index(name))))


def _runnable(kernels: Sequence[Kernel], machine: str | None) -> set[str]:
    """Ternary formats that keep the weights as they are and that a fast kernel of the CPU runs; else those any does."""
    # bitnet.cpp's formats are each for one architecture: a file for the other is none for this host.
    other_layouts = {"I2_S", "I2_S_ARM", "TL1", "TL2"} - {host_ternary_format(machine), host_lookup_format(machine)}
    able = [
        kernel
        for kernel in kernels
        if kernel.reason is None
        and kernel.device == "cpu"
        and kernel.format not in other_layouts
        and get_format(kernel.format).ternary
        and not get_format(kernel.format).lossy
    ]
    return {kernel.format for kernel in able if kernel.kernel != REFERENCE} or {kernel.format for kernel in able}


def _in_format(marked: Model, name: str) -> Model | None:
    """The model with its open sites in a format, where it can hold them; None where it can hold none."""
    open_sites = {site for layer in marked.layers for site in layer.sites if site.format == "F32"}
    unheld = {site for site in open_sites if not holds(name, site.n_out, site.k_in)}
    if unheld == open_sites:
        return None

    def stored(site: Site) -> Site:
        if site not in open_sites:
            return site
        return replace(site, format=_UNHELD if site in unheld else name)

    notes = [f"ternary weights are taken as {name}, embedding and head as {marked.head.format}: --format auto"]
    if unheld:
        sites = ", ".join(sorted(f"{site.name} ({site.n_out:,} x {site.k_in:,})" for site in unheld))
        notes.append(f"{name} can't hold {sites}: taken as {_UNHELD}")
    changed = {layer: Layer(tuple(map(stored, layer.sites))) for layer in dict.fromkeys(marked.layers)}
    return replace(marked, layers=tuple(changed[layer] for layer in marked.layers), notes=(*marked.notes, *notes))
