"""Synthetic small models: with all that real ones have, in a size that a plain model can follow."""

from __future__ import annotations

from typing import Literal

from autotune.engine.stages import Kernels
from autotune.model.sites import layer_shapes
from autotune.records import Attention, Configuration, Layer, Model, Site, SiteKernels
from ternary_kernels.native.isa import this_machine
from ternary_kernels.registry import available

NUMPY = Kernels((), {"cpu": "numpy"})
"""The kernels that any machine has."""

Family = Literal["bitnet", "llama"]


def small_model(
    family: Family = "bitnet",
    layer_format: str = "I2_S",
    *,
    layers: int = 3,
    embedding_format: str = "F16",
    head_format: str | None = None,
    intermediate_size: int = 512,
    formats: dict[str, str] | None = None,
) -> Model:
    """A model of either family: BitNet has sub-norms and ReLU², Llama has neither and SiLU.

    Args:
        family: The family.
        layer_format: Of the layers' sites.
        layers: How many.
        embedding_format: Of the embedding, and of a tied head.
        head_format: Of a head of its own; None: tied.
        intermediate_size: Width of the gate.
        formats: Other formats of some sites, by name.
    """
    attention = Attention(heads=4, kv_heads=2, head_dim=64)
    shapes = layer_shapes(256, intermediate_size, attention)
    sites = tuple(Site(name, *shape, (formats or {}).get(name, layer_format)) for name, shape in shapes.items())
    return Model(
        name=f"synthetic/{family}",
        architecture=family,
        hidden_size=256,
        intermediate_size=intermediate_size,
        vocab_size=320,
        max_context=128,
        activation="relu2" if family == "bitnet" else "silu",
        attention=attention,
        layers=(Layer(sites),) * layers,
        embedding=Site("embedding", 320, 256, embedding_format),
        head=Site("head", 320, 256, head_format or embedding_format),
        tied=head_format is None,
        norm_bytes=4 * 256 * (1 + 2 * layers),
        source_digest="0" * 32,
    )


def configuration(
    model: Model, *, threads: int = 1, batch: int = 1, chunk: int = 8, gpu_layers: int = 0, head_device: str = "cpu"
) -> Configuration:
    """A configuration of the model, its last layers on a GPU."""
    layers = {"cpu": len(model.layers) - gpu_layers, "cuda:0": gpu_layers}
    return Configuration(
        device_layers={device: count for device, count in layers.items() if count},
        head_device=head_device,
        decode_threads=threads,
        prefill_threads=threads,
        batch_size=batch,
        prefill_chunk=chunk,
    )


def runnable_kernels() -> list[tuple[str, str]]:
    """Every backend and format that this machine can multiply with."""
    return [(found.kernel, found.format) for found in available(*this_machine()) if found.reason is None]


def every_site_on(model: Model, backend: str) -> Kernels:
    """All operations of a backend, and its kernel for all of the layers' sites; of the ends it is not said."""
    sites = {site for layer in model.layers for site in layer.sites}
    listed = {"1": backend}
    return Kernels(
        tuple(SiteKernels(site.format, site.n_out, site.k_in, listed, listed) for site in sites), {"cpu": backend}
    )
