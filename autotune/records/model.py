"""What a model is: layers made of sites (weight matrices), attention geometry, and where its bytes go."""

from __future__ import annotations

from typing import Literal

from autotune.records.base import Record

ActivationFunction = Literal["silu", "relu2", "gelu"]


class Site(Record, frozen=True):
    """One weight matrix: ``n_out`` rows, ``k_in`` columns, in a weight format of the registry.

    A product with m tokens is ``y = x @ w.T`` with x (m, k_in), w (n_out, k_in), y (m, n_out).
    """

    name: str
    """q, k, v, o, gate, up, down; or embedding, head."""
    n_out: int
    k_in: int
    format: str


class Layer(Record, frozen=True):
    """One transformer block, as the sites that it multiplies with in order."""

    sites: tuple[Site, ...]


class Attention(Record, frozen=True):
    """Geometry of (grouped-query) attention."""

    heads: int
    kv_heads: int
    head_dim: int


class Model(Record, frozen=True):
    """A language model's shapes: all that its speed and memory depend on, none of its weights."""

    name: str
    architecture: str
    """Family: ``bitnet``, ``llama``, ``falcon`` (Falcon3, which is Llama-shaped) or GGUF's own word for it."""
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    max_context: int
    activation: ActivationFunction
    attention: Attention
    layers: tuple[Layer, ...]
    embedding: Site
    head: Site
    tied: bool
    """Whether head and embedding are one matrix, which then counts once in memory."""
    norm_bytes: int
    """Norm weights and the like, which no site holds."""
    source_digest: str
    """Digest of the input this was read from: half of the cache's key."""
    kv_bytes_per_element: float = 2.0
    """2 for F16, llama.cpp's and bitnet.cpp's default."""
    file_bytes: int | None = None
    """Size of the model file where the input was one (GGUF)."""
    notes: tuple[str, ...] = ()
    """What was assumed, in words (a format that the input doesn't say, an activation's default)."""


class MemoryUse(Record, frozen=True):
    """Bytes one device needs for a configuration."""

    device: str
    weights_bytes: int
    kv_cache_bytes: int
    activations_bytes: int
    overhead_bytes: int
    """The runtime's own memory: interpreter, libraries, thread stacks; on a GPU its context."""
    available_bytes: int

    @property
    def total_bytes(self) -> int:
        """Sum of the four parts."""
        return self.weights_bytes + self.kv_cache_bytes + self.activations_bytes + self.overhead_bytes
