"""How many tokens go through a layer at once, and how often: decode steps, and prompts in chunks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autotune.records import Workload


class Passes:
    """The sizes of all passes that a workload makes with some batches and chunks.

    Args:
        workload: Its prompt and output lengths.
        batches: Batch sizes, ascending.
        chunks: Prefill chunks, ascending.

    Attributes:
        batches: As given, shape (B,).
        chunks: As given, shape (C,).
        tokens: The distinct sizes of decode and prefill passes and 1, ascending, shape (M,).
        one: Index of size 1.
        per_batch: Index of each batch's size, shape (B,).
        per_prompt: How often a prompt makes a pass of a size, shape (M, C): turns times per pass into times per prompt.
        prompt_pieces: Per chunk the prompt's pieces, see :func:`pieces`.
        decode_context: Tokens in the KV cache of a typical decode step.
    """

    def __init__(self, workload: Workload, batches: Sequence[int], chunks: Sequence[int]) -> None:
        self.batches = np.array(batches)
        self.chunks = np.array(chunks)
        self.prompt_pieces = [pieces(workload.prompt_tokens, chunk) for chunk in chunks]
        sizes = sorted({1, *batches, *(size for found in self.prompt_pieces for size, _, _ in found)})
        self.tokens = np.array(sizes, np.float64)
        self.one = sizes.index(1)
        self.per_batch = np.searchsorted(sizes, batches)
        self.per_prompt = np.zeros((len(sizes), len(chunks)))
        for column, found in enumerate(self.prompt_pieces):
            for size, count, _ in found:
                self.per_prompt[sizes.index(size), column] = count
        self.decode_context = workload.decode_context


def pieces(prompt: int, chunk: int) -> list[tuple[int, int, int]]:
    """A prompt as (size, how many, where the first begins): whole chunks, then a shorter last one if need be."""
    whole, rest = divmod(prompt, chunk)
    found = [(chunk, whole, 0)] if whole else []
    return [*found, (rest, 1, whole * chunk)] if rest else found
