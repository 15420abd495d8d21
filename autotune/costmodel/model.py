"""The cost model of one host and model: from a campaign's points to the time of any step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from autotune.costmodel.layers import AttentionTimes, SmallOpsTimes
from autotune.costmodel.products import Products, measured_products
from autotune.costmodel.roofline import Ceilings, Form, Product, product_of
from autotune.costmodel.steps import StepCosts
from autotune.model.work import decode_work
from autotune.records import Campaign, Configuration, Layer, Model, Workload

Floats = NDArray[np.float64]

_BOUND_SHARE = 0.6
"""A step whose roofline memory (or compute) time is at least this share of its time is bound by it."""


class CostModel:
    """Predicts decode steps and prefills on the CPU.

    A layer is the sum of its sites' products, attention and the small operations; a step is its layers and the
    head. Gathering embedding rows (a few kilobytes a token) is not counted.

    Args:
        campaign: What was measured.
        form: How the roofline combines memory and compute time; ``heldout.fit`` chooses it.

    Raises:
        BenchmarkError: The campaign lacks the ceilings.
    """

    def __init__(self, campaign: Campaign, form: Form) -> None:
        self.ceilings = Ceilings(campaign)
        self.form: Form = form
        self.products = Products(measured_products(campaign), self.ceilings, form)
        self.attention = AttentionTimes(campaign)
        self.small_ops = SmallOpsTimes(campaign)

    def steps(
        self, model: Model, workload: Workload, threads: Sequence[int], batches: Sequence[int], chunks: Sequence[int]
    ) -> StepCosts:
        """The table that the search ranks.

        Args:
            model: The model.
            workload: Its prompt and output lengths.
            threads: CPU thread counts, ascending.
            batches: Batch sizes, ascending.
            chunks: Prefill chunks, ascending.

        Raises:
            BenchmarkError: A site can't be predicted.
        """
        counts = np.array(threads)
        prompt = workload.prompt_tokens
        sizes = sorted({1, *batches, *(size for chunk in chunks for size, _, _ in _pieces(prompt, chunk))})
        tokens = np.array(sizes, np.float64)
        one, per_batch = sizes.index(1), np.searchsorted(sizes, batches)
        # How often a prompt multiplies so many tokens at once: (M, C) turns times per m into times per prompt.
        passes = np.zeros((len(sizes), len(chunks)))
        for column, chunk in enumerate(chunks):
            for size, count, _ in _pieces(prompt, chunk):
                passes[sizes.index(size), column] = count
        times = {product: self.products.time_s(product, tokens, counts) for product in _layer_products(model)}
        small_ops = self.small_ops.time_s(tokens, counts)
        decode_attention = np.outer(self._decode_attention_s(workload, counts), batches)
        prefill_attention = np.stack([self._prefill_attention_s(prompt, counts, chunk) for chunk in chunks], axis=1)
        kinds: dict[Layer, int] = {}
        layer_kinds = np.array([kinds.setdefault(layer, len(kinds)) for layer in model.layers])
        layers = [small_ops + np.sum([times[product_of(site)] for site in layer.sites], axis=0) for layer in kinds]
        head = self.products.time_s(product_of(model.head), tokens, counts)
        return StepCosts(
            devices=("cpu",),
            layer_kinds=layer_kinds,
            threads=counts,
            batches=np.array(batches),
            chunks=np.array(chunks),
            decode_layer_s=np.stack([layer[:, per_batch] + decode_attention for layer in layers])[None],
            decode_ends_s=head[None, :, per_batch],
            prefill_layer_s=np.stack([layer @ passes + prefill_attention for layer in layers])[None],
            prefill_ends_s=np.repeat(head[None, :, [one]], len(chunks), axis=2),
            decode_crossing_s=np.zeros((1, len(batches))),
            prefill_crossing_s=np.zeros((1, len(chunks))),
        )

    def _decode_attention_s(self, workload: Workload, threads: NDArray[np.int64]) -> Floats:
        """A layer's attention in one sequence's decode step, shape (T,)."""
        return self.attention.time_s(1, np.array([_decode_context(workload)], np.float64), threads)

    def _prefill_attention_s(self, prompt: int, threads: NDArray[np.int64], chunk: int) -> Floats:
        """A layer's attention over a whole prompt, shape (T,)."""
        total = np.zeros(len(threads))
        for size, count, first in _pieces(prompt, chunk):
            total += self.attention.time_s(size, first + size * np.arange(count, dtype=np.float64), threads)
        return total

    def bound_by(self, model: Model, workload: Workload, configuration: Configuration) -> str:
        """What limits a configuration's decode step, in words, from where its time goes and the host's ceilings."""
        threads = np.array([configuration.decode_threads])
        batch = configuration.batch_size
        tokens = np.array([batch], np.float64)
        spent = {
            "the layers' products": sum(
                count * float(self.products.time_s(product, tokens, threads)[0, 0])
                for product, count in _layer_products(model).items()
            ),
            "the head": float(self.products.time_s(product_of(model.head), tokens, threads)[0, 0]),
            "attention": float(self._decode_attention_s(workload, threads)[0]) * batch * len(model.layers),
            "norms, gate and quantisation": float(self.small_ops.time_s(tokens, threads)[0, 0]) * len(model.layers),
        }
        total = sum(spent.values())
        work = decode_work(model, batch, _decode_context(workload))
        byte_s, operation_s = float(self.ceilings.byte_s(threads)[0]), float(self.ceilings.operation_s(threads)[0])
        memory, compute = work.moved_bytes * byte_s / total, work.operations * operation_s / total
        if memory >= _BOUND_SHARE and memory >= compute:
            verdict = "memory bandwidth"
        elif compute >= _BOUND_SHARE:
            verdict = "arithmetic"
        elif self.form == "sum" and memory + compute >= _BOUND_SHARE:
            verdict = "memory bandwidth and arithmetic together"
        else:
            verdict = "what the kernels do besides, short of both memory and arithmetic"
        shares = ", ".join(
            f"{name} {part / total:.0%}" for name, part in sorted(spent.items(), key=lambda item: -item[1])
        )
        return (
            f"{verdict}: a decode step uses {memory:.0%} of the measured read bandwidth ({1e-9 / byte_s:.1f} GB/s) and "
            f"{compute:.0%} of the measured arithmetic ({1e-9 / operation_s:.0f} GOP/s); time goes to {shares}"
        )

    def caveats(self, model: Model, workload: Workload, configuration: Configuration) -> tuple[str, ...]:
        """Where a configuration lies outside the measured range, in words; empty where all was interpolated."""
        layers, head = list(_layer_products(model)), product_of(model.head)
        pieces = _pieces(workload.prompt_tokens, configuration.prefill_chunk)
        decode_threads, prefill_threads = configuration.decode_threads, configuration.prefill_threads
        last_pieces = [(size, first + size * (count - 1)) for size, count, first in pieces]
        return (
            *self._not_timed([*layers, head]),
            *self._extrapolated_products("decode", decode_threads, configuration.batch_size, [*layers, head]),
            *self._extrapolated_attention("decode", [(1, _decode_context(workload))]),
            *self._extrapolated_products("prefill", prefill_threads, max(size for size, _ in last_pieces), layers),
            *self._extrapolated_attention("prefill", last_pieces),
        )

    def _not_timed(self, products: Sequence[Product]) -> Iterator[str]:
        for product in dict.fromkeys(products):
            if not self.products.thread_counts(product):
                yield f"{product} was not timed: its time follows from the other {product.format} products"
        if not self.attention.tokens:
            yield "attention was not timed: its time is left out"
        if not self.small_ops.tokens:
            yield "norms, gate and quantisation were not timed: their time is left out"

    def _extrapolated_products(self, step: str, threads: int, m: int, products: Sequence[Product]) -> Iterator[str]:
        """Of a step with m tokens at once; those that weren't timed at all are named elsewhere."""
        counts = {product: self.products.thread_counts(product) for product in products}
        timed = [product for product in products if counts[product]]
        largest_m = min((self.products.largest_m(product, threads) for product in timed), default=m)
        if m > largest_m:
            yield f"{step}: products at m = {m} are extrapolated, the largest timed m is {largest_m}"
        fewest = max((counts[product][0] for product in timed), default=threads)
        most = min((counts[product][-1] for product in timed), default=threads)
        if not fewest <= threads <= most:
            yield f"{step}: {threads} threads are extrapolated, products were timed on {fewest} to {most}"

    def _extrapolated_attention(self, step: str, sizes: Sequence[tuple[int, int]]) -> Iterator[str]:
        """Of a step with attention of such (m, context)."""
        for m, context in sizes if self.attention.tokens else ():
            if m > self.attention.tokens[-1]:
                yield (
                    f"{step}: attention at m = {m} is extrapolated, the largest timed m is {self.attention.tokens[-1]}"
                )
            longest = self.attention.longest_context(m)
            if context > longest:
                yield f"{step}: attention over {context} tokens is extrapolated, the longest timed context is {longest}"


def _layer_products(model: Model) -> Counter[Product]:
    return Counter(product_of(site) for layer in model.layers for site in layer.sites)


def _decode_context(workload: Workload) -> int:
    """Tokens in the KV cache of a typical decode step: half of the output is there."""
    return workload.prompt_tokens + workload.output_tokens // 2


def _pieces(prompt: int, chunk: int) -> list[tuple[int, int, int]]:
    """A prompt as (size, how many, where the first begins): whole chunks, then a shorter last one if need be."""
    whole, rest = divmod(prompt, chunk)
    pieces = [(chunk, whole, 0)] if whole else []
    return [*pieces, (rest, 1, whole * chunk)] if rest else pieces
