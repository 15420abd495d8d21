"""The matrices of published ternary models: what a layer multiplies with, and the head."""

from __future__ import annotations

from typing import NamedTuple


class Shape(NamedTuple):
    """Rows and columns of a weight matrix, and the names of the sites that have it."""

    sites: tuple[str, ...]
    n_out: int
    k_in: int

    def __str__(self) -> str:
        return f"{'/'.join(self.sites)} {self.n_out}x{self.k_in}".strip()


class ModelShapes(NamedTuple):
    """A model's matrices.

    Attributes:
        layers: How often each of ``shapes`` occurs per site.
        shapes: The distinct matrices of a layer; all layers are alike.
        head: The output head.
    """

    layers: int
    shapes: tuple[Shape, ...]
    head: Shape


def _model(layers: int, hidden: int, intermediate: int, kv_width: int, vocabulary: int) -> ModelShapes:
    """A model whose query heads together are as wide as its hidden state, as in all models of the table."""
    named = {
        "q": (hidden, hidden),
        "k": (kv_width, hidden),
        "v": (kv_width, hidden),
        "o": (hidden, hidden),
        "gate": (intermediate, hidden),
        "up": (intermediate, hidden),
        "down": (hidden, intermediate),
    }
    shapes = tuple(
        Shape(tuple(site for site, other in named.items() if other == size), *size)
        for size in dict.fromkeys(named.values())
    )
    return ModelShapes(layers, shapes, Shape(("head",), vocabulary, hidden))


MODELS = {
    "bitnet-b1.58-2B-4T": _model(30, hidden=2560, intermediate=6912, kv_width=640, vocabulary=128256),
    "bitnet_b1_58-large": _model(24, hidden=1536, intermediate=4096, kv_width=1536, vocabulary=32002),
    "bitnet_b1_58-3B": _model(26, hidden=3200, intermediate=8640, kv_width=3200, vocabulary=32002),
    "Llama3-8B-1.58-100B-tokens": _model(32, hidden=4096, intermediate=14336, kv_width=1024, vocabulary=128256),
    "Falcon3-1B-Instruct-1.58bit": _model(18, hidden=2048, intermediate=8192, kv_width=1024, vocabulary=131072),
    "Falcon3-10B-Base-1.58bit": _model(40, hidden=3072, intermediate=23040, kv_width=1024, vocabulary=131072),
}
"""By the names of autotune's presets, whose config.json these figures come from."""
