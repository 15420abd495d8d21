"""A model in words and numbers, for the summary."""

from __future__ import annotations

from collections import Counter

from autotune.model.memory import kv_cache_bytes, layers_bytes, model_bytes, site_bytes
from autotune.model.sizes import readable_bytes
from autotune.model.work import Work, decode_work, hints, parameters, prefill_work
from autotune.records import Model

_CONTEXT = 1024
_PROMPT = 512


def describe(model: Model) -> list[tuple[str, str]]:
    """Labels and values, in the order to print them; notes and hints come last, each under its own label."""
    attention = model.attention
    decode, prefill = decode_work(model, 1, _CONTEXT), prefill_work(model, _PROMPT)
    lines = [
        ("model", f"{model.name} ({model.architecture}, {parameters(model) / 1e9:.2f} billion parameters)"),
        (
            "shape",
            f"{len(model.layers)} layers, hidden size {model.hidden_size:,}, feed-forward {model.intermediate_size:,} "
            f"({model.activation}), vocabulary {model.vocab_size:,}, context up to {model.max_context:,} tokens",
        ),
        (
            "attention",
            f"{attention.heads} heads of {attention.head_dim}, {attention.kv_heads} for keys and values",
        ),
        ("weights", f"{readable_bytes(layers_bytes(model.layers))} in {_formats(model)}"),
        (
            "ends",
            f"embedding {readable_bytes(site_bytes(model.embedding))} ({model.embedding.format}), head "
            + ("tied to it" if model.tied else f"{readable_bytes(site_bytes(model.head))} ({model.head.format})"),
        ),
        ("size", _size(model)),
        ("KV cache", f"{readable_bytes(kv_cache_bytes(model, len(model.layers), 1))} per token"),
        (
            "decode",
            f"{_per_token(decode)} (one sequence, {_CONTEXT:,} tokens in the cache)",
        ),
        (
            "prefill",
            f"{_per_token(prefill)} (a prompt of {_PROMPT:,})",
        ),
    ]
    return lines + [("note", note) for note in model.notes] + [("hint", hint) for hint in hints(model)]


def _formats(model: Model) -> str:
    counts = Counter(site.format for layer in model.layers for site in layer.sites)
    return ", ".join(f"{count} {name} matrices" for name, count in counts.most_common())


def _per_token(work: Work) -> str:
    return (
        f"{work.operations_per_token / 1e9:.2f} billion operations and {readable_bytes(work.bytes_per_token)} per token"
    )


def _size(model: Model) -> str:
    planned = f"{readable_bytes(model_bytes(model))} with norms and vocabulary"
    return planned if model.file_bytes is None else f"{planned}; the file has {readable_bytes(model.file_bytes)}"
