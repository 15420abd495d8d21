"""A transformer as plainly as it can be written: no cache, no batch, float64; the slow twin of the engine's stages.

Like a W1.58A8 runtime it rounds what ternary matrices multiply to int8, and keys and values to float16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.engine.weights import WeightSource
from autotune.records import Model, Site
from ternary_kernels.formats import get_format

Doubles = NDArray[np.float64]


class PlainModel:
    """All of a model on whole sequences.

    Args:
        model: The model.
        weights: Where the engine has its weights from; they are unpacked here.

    Attributes:
        seen: Every intermediate value since the model was made.
    """

    def __init__(self, model: Model, weights: WeightSource) -> None:
        self.model = model
        self._weights = weights
        self._unpacked: dict[tuple[int | None, Site], Doubles] = {}
        self.seen: list[Doubles] = []

    def embed(self, tokens: Sequence[int] | NDArray[np.int64]) -> Doubles:
        """Tokens (n,) to the residual stream (n, hidden_size)."""
        return self._see(self._matrix(None, self.model.embedding)[np.asarray(tokens)])

    def layer(self, index: int, stream: Doubles) -> Doubles:
        """One layer on the stream of a whole sequence (n, hidden_size)."""
        sites = {site.name: site for site in self.model.layers[index].sites}
        bitnet = self.model.architecture == "bitnet"
        geometry = self.model.attention

        def product(name: str, x: Doubles) -> Doubles:
            return self._product(index, sites[name], x)

        x = self._norm(index, "attention", stream)
        query, key, value = (product(name, x).reshape(len(x), -1, geometry.head_dim) for name in ("q", "k", "v"))
        query, key = self._rotated(query), _as_stored(self._rotated(key))
        value = _as_stored(value)
        mixed = np.empty_like(query)
        for head in range(geometry.heads):
            shared = head // (geometry.heads // geometry.kv_heads)
            for position in range(len(x)):
                scores = key[: position + 1, shared] @ query[position, head] / np.sqrt(geometry.head_dim)
                weights = np.exp(scores - scores.max())
                mixed[position, head] = weights / weights.sum() @ value[: position + 1, shared]
        x = self._see(mixed.reshape(len(x), -1))
        stream = stream + product("o", self._norm(index, "o", x) if bitnet else x)

        x = self._norm(index, "feed_forward", stream)
        gated, up = product("gate", x), product("up", x)
        gated = np.maximum(gated, 0) ** 2 if self.model.activation == "relu2" else gated / (1 + np.exp(-gated))
        x = self._see(gated * up)
        return self._see(stream + product("down", self._norm(index, "down", x) if bitnet else x))

    def logits(self, stream: Doubles) -> Doubles:
        """The last token's stream (n, hidden_size) to its logits (vocab_size,)."""
        return self._product(None, self.model.head, self._norm(None, "head", stream[-1:]))[0]

    def generate(self, prompt: Sequence[int] | NDArray[np.int64], count: int) -> tuple[list[int], float]:
        """Continue a prompt greedily.

        Returns:
            The tokens, and the least lead that any of them had over the second best, in its logit.
        """
        tokens, leads = [int(token) for token in prompt], []
        for _ in range(count):
            stream = self.embed(tokens)
            for index in range(len(self.model.layers)):
                stream = self.layer(index, stream)
            logits = self.logits(stream)
            second, first = np.sort(logits)[-2:]
            leads.append(first - second)
            tokens.append(int(logits.argmax()))
        return tokens[-count:], float(min(leads))

    def _product(self, layer: int | None, site: Site, x: Doubles) -> Doubles:
        if get_format(site.format).ternary:
            scale = 127 / np.maximum(np.abs(x).max(axis=1, keepdims=True), 1e-5)
            x = np.rint(x * scale) / scale
        return self._see(x @ self._matrix(layer, site).T)

    def _matrix(self, layer: int | None, site: Site) -> Doubles:
        if (layer, site) not in self._unpacked:
            packed = self._weights.matrix(layer, site)
            weights, scale = get_format(site.format).unpack(packed, site.n_out, site.k_in)
            self._unpacked[layer, site] = weights.astype(np.float64) * scale
        return self._unpacked[layer, site]

    def _norm(self, layer: int | None, name: str, x: Doubles) -> Doubles:
        weight = self._weights.norm(layer, name, x.shape[1])
        return self._see(x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5) * weight)

    def _rotated(self, x: Doubles) -> Doubles:
        pairs = x.shape[2] // 2
        turned = np.arange(len(x))[:, None] / 10_000 ** (np.arange(pairs) / pairs)
        numbers = (x[..., :pairs] + 1j * x[..., pairs:]) * np.exp(1j * turned)[:, None]
        return self._see(np.concatenate([numbers.real, numbers.imag], axis=2))

    def _see(self, values: NDArray[Any]) -> Doubles:
        self.seen.append(values)
        return values


def _as_stored(values: Doubles) -> Doubles:
    return values.astype(np.float16).astype(np.float64)
