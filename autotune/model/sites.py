"""The sites of a layer: their shapes, and whether their weight format can hold them."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from functools import lru_cache

from msgspec.structs import replace

from autotune.errors import ModelError, UsageError
from autotune.records import Attention, Layer, Model, Site
from ternary_kernels.cuda.support import stored_as
from ternary_kernels.formats import get_format
from ternary_kernels.geometry import LayerGeometry

_ARM_MACHINES = ("aarch64", "arm64")


def layer_shapes(hidden: int, intermediate: int, attention: Attention) -> dict[str, tuple[int, int]]:
    """Rows and columns of a layer's sites by name, in the order they are multiplied with: seven in all families."""
    query_width, kv_width = attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim
    return {
        "q": (query_width, hidden),
        "k": (kv_width, hidden),
        "v": (kv_width, hidden),
        "o": (hidden, query_width),
        "gate": (intermediate, hidden),
        "up": (intermediate, hidden),
        "down": (hidden, intermediate),
    }


def layer_geometry(model: Model) -> LayerGeometry:
    """The widths of a model's layers, which are all alike."""
    attention = model.attention
    return LayerGeometry(
        model.hidden_size,
        model.intermediate_size,
        attention.heads,
        attention.kv_heads,
        attention.head_dim,
        model.activation,
    )


def check_known(weight_format: str) -> None:
    """Checks a format's name that a user gave.

    Raises:
        UsageError: No format of the registry has that name.
    """
    try:
        get_format(weight_format)
    except ValueError as error:
        raise UsageError(f"--format: {error}") from None


def host_ternary_format(machine: str | None = None) -> str:
    """The registry's name of I2_S as bitnet.cpp lays it out on a machine: Arm builds have a layout of their own.

    Args:
        machine: ``x86_64``, ``aarch64``, ...; None for this machine.
    """
    return "I2_S_ARM" if (machine or platform.machine()).lower() in _ARM_MACHINES else "I2_S"


def host_lookup_format(machine: str | None = None) -> str:
    """The format of bitnet.cpp's look-up kernels on a machine: TL1 on Arm, TL2 elsewhere."""
    return "TL1" if host_ternary_format(machine) == "I2_S_ARM" else "TL2"


def holds(weight_format: str, n_out: int, k_in: int) -> bool:
    """Whether a format can hold an (n_out, k_in) matrix."""
    try:
        get_format(weight_format).size_bytes(n_out, k_in)
    except ValueError:
        return False
    return True


@lru_cache(maxsize=64)
def on_gpu(model: Model) -> Model:
    """The model as a GPU holds it: every site in the format that its kernels read.

    A site whose shape that format can't hold is F16.
    """
    sites = {site for layer in model.layers for site in layer.sites} | {model.embedding, model.head}
    stored = {site: replace(site, format=_on_gpu(site)) for site in sites}
    layers = {layer: Layer(tuple(stored[site] for site in layer.sites)) for layer in set(model.layers)}
    return replace(
        model,
        layers=tuple(layers[layer] for layer in model.layers),
        embedding=stored[model.embedding],
        head=stored[model.head],
    )


def _on_gpu(site: Site) -> str:
    name = stored_as(site.format, site.k_in)
    return name if holds(name, site.n_out, site.k_in) else "F16"


def lossy_notes(layers: Iterable[Layer]) -> list[str]:
    """A note for each format of the layers that ternary weights can't be in unchanged."""
    names = sorted({site.format for layer in layers for site in layer.sites})
    return [
        f"{name} is lossy on ternary weights: packing changes them, and with them what the model answers"
        for name in names
        if get_format(name).lossy
    ]


def make_site(where: str, name: str, n_out: int, k_in: int, weight_format: str) -> Site:
    """A site whose format can hold it.

    Args:
        where: File and key or tensor, for the message.
        name: The site's name.
        n_out: Rows.
        k_in: Columns.
        weight_format: A name that the registry knows.

    Raises:
        ModelError: The format can't hold that shape.
    """
    try:
        get_format(weight_format).size_bytes(n_out, k_in)
    except ValueError as error:
        raise ModelError(f"{where}: the {name} matrix can't be stored: {error}") from None
    return Site(name=name, n_out=n_out, k_in=k_in, format=weight_format)
