"""Operations and bytes of a step, and what they say about speed before anything is timed.

Multiplications and additions count as one operation each, so a weight costs two operations per token.
"""

from __future__ import annotations

import bisect
from collections import Counter
from dataclasses import dataclass

from autotune.model.memory import kv_cache_bytes, kv_token_bytes, readable_bytes, site_bytes, weight_bytes
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


def compute_bound_batch(model: Model, context: int, read_bytes_per_s: float, operations_per_s: float) -> int | None:
    """The smallest batch at which decode's operations take longer than its bytes; None if there is none.

    There is none where reading the KV cache grows as fast as the operations do.

    Args:
        model: The model.
        context: Tokens in each sequence's KV cache.
        read_bytes_per_s: Measured read bandwidth.
        operations_per_s: Measured peak.
    """
    balance = operations_per_s / read_bytes_per_s
    batches = range(1, _LARGEST_BATCH + 1)
    index = bisect.bisect_left(batches, balance, key=lambda batch: decode_work(model, batch, context).intensity)
    return batches[index] if index < len(batches) else None


def hints(
    model: Model, *, read_bytes_per_s: float | None = None, operations_per_s: float | None = None
) -> tuple[str, ...]:
    """What the shapes alone say about speed, a sentence each; with measured ceilings also what bounds a host.

    Args:
        model: The model.
        read_bytes_per_s: Measured read bandwidth of the host, if known.
        operations_per_s: Measured multiplications and additions per second of the host, if known.
    """
    step = decode_work(model, batch=1, context=_HINT_CONTEXT)
    head_bytes = site_bytes(model.head)
    cache_bytes = kv_cache_bytes(model, len(model.layers), 1)
    found = [
        f"one decode step reads {readable_bytes(step.moved_bytes)} for {step.operations / 1e9:.1f} billion operations, "
        f"{step.intensity:.1f} per byte: memory-bound wherever kernels compute faster than that per byte read",
        f"the head ({model.head.format}) is {head_bytes / step.moved_bytes:.0%} of the bytes a decoded token reads",
        f"the KV cache grows by {readable_bytes(1000 * cache_bytes)} per 1,000 tokens and sequence, and equals the "
        f"layers' weights at {_layers_bytes(model) // cache_bytes:,} tokens",
        _attention_hint(model),
    ]
    if read_bytes_per_s is not None and operations_per_s is not None:
        found.append(_bound_hint(model, step, read_bytes_per_s, operations_per_s))
    return tuple(found)


def _bound_hint(model: Model, step: Work, read_bytes_per_s: float, operations_per_s: float) -> str:
    balance = operations_per_s / read_bytes_per_s
    here = f"this host does {balance:.1f} operations in the time it reads a byte"
    batch = compute_bound_batch(model, _HINT_CONTEXT, read_bytes_per_s, operations_per_s)
    if batch is None:
        return f"{here}: decode is memory-bound at every batch size, at a context of {_HINT_CONTEXT:,} tokens"
    if batch == 1:
        return f"{here}, decode needs {step.intensity:.1f}: it is compute-bound even for one sequence"
    return f"{here}: decode is memory-bound below a batch of about {batch}, compute-bound from there on"


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
        moved_bytes=_layers_bytes(model)
        + site_bytes(model.head)
        + rows * embedding_row
        + (cached + rows) * token_cache,
    )


def _layer_sites(model: Model) -> Counter[Site]:
    return Counter(site for layer in model.layers for site in layer.sites)


def _layers_bytes(model: Model) -> int:
    return sum(weight_bytes(layer) for layer in model.layers)
