"""Operations and bytes of a step, and what they say about speed before anything is timed.

Multiplications and additions count as one operation each, so a weight costs two operations per token.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from autotune.model.memory import kv_cache_bytes, kv_token_bytes, layers_bytes, site_bytes
from autotune.model.sizes import readable_bytes
from autotune.records import Model, Site

_LARGEST_BATCH = 4096
_HINT_CONTEXT = 1024  # a context at which decode is described


@dataclass(frozen=True)
class Work:
    """What a step computes and moves.

    Attributes:
        tokens: Rows that go through the layers.
        operations: Multiplications and additions of all products and of attention.
        moved_bytes: Weights once, embedding rows, KV cache read and written. Activations stay in cache.
    """

    tokens: int
    operations: int
    moved_bytes: int

    @property
    def intensity(self) -> float:
        """Arithmetic intensity: operations per byte moved."""
        return self.operations / self.moved_bytes

    @property
    def operations_per_token(self) -> float:
        """Operations per token of the step."""
        return self.operations / self.tokens

    @property
    def bytes_per_token(self) -> float:
        """Bytes moved per token of the step."""
        return self.moved_bytes / self.tokens


def parameters(model: Model) -> int:
    """Weights of all matrices and norms; a tied matrix counts once."""
    ends = [model.embedding] if model.tied else [model.embedding, model.head]
    return sum(site.n_out * site.k_in for site in [*_layer_sites(model).elements(), *ends]) + model.norm_bytes // 4


def decode_work(model: Model, batch: int, context: int) -> Work:
    """One decode step: ``batch`` sequences advance by a token each, which attends to ``context`` tokens and itself."""
    return _work(model, rows=batch, head_rows=batch, attended=batch * (context + 1), cached=batch * context)


def prefill_work(model: Model, tokens: int) -> Work:
    """One prompt at once: token i attends to i tokens; only the last one goes through the head."""
    return _work(model, rows=tokens, head_rows=1, attended=tokens * (tokens + 1) // 2, cached=0)


def hints(model: Model) -> tuple[str, ...]:
    """What the shapes alone say about speed, a sentence each."""
    step = decode_work(model, batch=1, context=_HINT_CONTEXT)
    head_bytes = site_bytes(model.head)
    cache_bytes = kv_cache_bytes(model, len(model.layers), 1)
    return (
        f"one decode step reads {readable_bytes(step.moved_bytes)} for {step.operations / 1e9:.1f} billion operations, "
        f"{step.intensity:.1f} per byte: memory-bound wherever kernels compute faster than that per byte read",
        f"the head ({model.head.format}) is {head_bytes / step.moved_bytes:.0%} of the bytes a decoded token reads",
        f"the KV cache grows by {readable_bytes(1000 * cache_bytes)} per 1,000 tokens and sequence, and equals the "
        f"layers' weights at {layers_bytes(model.layers) // cache_bytes:,} tokens",
        _attention_hint(model),
    )


def _attention_hint(model: Model) -> str:
    heads, kv_heads = model.attention.heads, model.attention.kv_heads
    if heads == kv_heads:
        return f"each of the {heads} heads has keys and values of its own: the KV cache is as large as it can be"
    group = heads // kv_heads
    return f"{group} query heads share each key-value head: the KV cache is 1/{group} of what {heads} would need"


def _work(model: Model, rows: int, head_rows: int, attended: int, cached: int) -> Work:
    sites = _layer_sites(model)
    weights = sum(count * site.n_out * site.k_in for site, count in sites.items())
    head = model.head.n_out * model.head.k_in
    # scores and mixed values: one multiplication and one addition each per element of a query head
    attention = 4 * len(model.layers) * model.attention.heads * model.attention.head_dim * attended
    embedding_row = site_bytes(model.embedding) // model.embedding.n_out
    token_cache = len(model.layers) * kv_token_bytes(model)
    return Work(
        tokens=rows,
        operations=2 * (weights * rows + head * head_rows) + attention,
        moved_bytes=layers_bytes(model.layers)
        + site_bytes(model.head)
        + rows * embedding_row
        + (cached + rows) * token_cache,
    )


def _layer_sites(model: Model) -> Counter[Site]:
    return Counter(site for layer in model.layers for site in layer.sites)
