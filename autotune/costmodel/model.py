"""The cost model of one host and model: from a campaign's points to the time of any step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autotune.costmodel.layers import AttentionTimes, SmallOpsTimes
from autotune.costmodel.products import Key, Products, key_of, measured_products
from autotune.costmodel.roofline import Ceilings, Form, product_bytes, product_operations
from autotune.costmodel.steps import StepCosts
from autotune.records import Campaign, Configuration, Layer, Model, Site, Workload

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
        tokens = sorted({1, *batches, *(size for chunk in chunks for size, _, _ in _pieces(prompt, chunk))})
        products = _ProductTable(self.products, tokens, counts)
        kinds: dict[Layer, int] = {}
        layer_kinds = np.array([kinds.setdefault(layer, len(kinds)) for layer in model.layers])
        decode_rest = self._decode_rest_s(workload, counts, batches)
        prefill_rest = np.stack([self._prefill_rest_s(prompt, counts, chunk) for chunk in chunks], axis=1)
        decode, prefill = [], []
        for layer in kinds:
            at_once = _total([products.time_s(site) for site in layer.sites])
            decode.append(decode_rest + products.select(at_once, batches))
            over_prompt = [
                _total([count * products.select(at_once, [size])[:, 0] for size, count, _ in _pieces(prompt, chunk)])
                for chunk in chunks
            ]
            prefill.append(prefill_rest + np.stack(over_prompt, axis=1))
        head = products.time_s(model.head)
        return StepCosts(
            devices=("cpu",),
            layer_kinds=layer_kinds,
            threads=counts,
            batches=np.array(batches),
            chunks=np.array(chunks),
            decode_layer_s=np.stack(decode)[None],
            decode_ends_s=products.select(head, batches)[None],
            prefill_layer_s=np.stack(prefill)[None],
            prefill_ends_s=np.repeat(products.select(head, [1])[None], len(chunks), axis=2),
            decode_crossing_s=np.zeros((1, len(batches))),
            prefill_crossing_s=np.zeros((1, len(chunks))),
        )

    def _decode_rest_s(self, workload: Workload, threads: NDArray[np.int64], batches: Sequence[int]) -> Floats:
        """A layer's decode step but for its products, half of the output in the cache; shape (T, B)."""
        context = np.array([workload.prompt_tokens + workload.output_tokens / 2])
        attention: Floats = self.attention.time_s(1, context, threads)[:, None] * np.array(batches)
        attention += np.array([self.small_ops.time_s(batch) for batch in batches])
        return attention

    def _prefill_rest_s(self, prompt: int, threads: NDArray[np.int64], chunk: int) -> Floats:
        """A layer over a whole prompt but for its products; shape (T,)."""
        total = np.zeros(len(threads))
        for size, count, first in _pieces(prompt, chunk):
            contexts = first + size * np.arange(count, dtype=np.float64)
            total += self.attention.time_s(size, contexts, threads) + count * self.small_ops.time_s(size)
        return total

    def bound_by(self, model: Model, workload: Workload, configuration: Configuration) -> str:
        """What limits a configuration's decode step, in words, from where its time goes and the host's ceilings."""
        threads = np.array([configuration.decode_threads])
        batch = configuration.batch_size
        tokens = np.array([float(batch)])
        context = np.array([workload.prompt_tokens + workload.output_tokens / 2])
        sites = [site for layer in model.layers for site in layer.sites]
        spent = {
            "ternary layers": sum(float(self.products.time_s(site, [batch], threads)[0, 0]) for site in sites),
            "head": float(self.products.time_s(model.head, [batch], threads)[0, 0]),
            "attention": float(self.attention.time_s(1, context, threads)[0]) * batch * len(model.layers),
            "norms, gate and quantisation": self.small_ops.time_s(batch) * len(model.layers),
        }
        if not any(site.format.startswith(("I2", "T")) for site in sites):
            spent["layers"] = spent.pop("ternary layers")
        products = [*sites, model.head]
        moved = sum(float(product_bytes(site, tokens)[0]) for site in products)
        operations = sum(float(product_operations(site, tokens)[0]) for site in products)
        read, peak = (float(ceiling[0]) for ceiling in self.ceilings.at(threads))
        total = sum(spent.values())
        memory, compute = moved / read / total, operations / peak / total
        if memory >= _BOUND_SHARE and memory >= compute:
            verdict = "memory bandwidth"
        elif compute >= _BOUND_SHARE:
            verdict = "arithmetic"
        else:
            verdict = "the kernels' own overhead (unpacking weights), neither memory nor arithmetic"
        shares = ", ".join(
            f"{name} {part / total:.0%}" for name, part in sorted(spent.items(), key=lambda item: -item[1])
        )
        return (
            f"{verdict}: a decode step uses {memory:.0%} of the measured read bandwidth ({read / 1e9:.1f} GB/s) and "
            f"{compute:.0%} of the measured arithmetic ({peak / 1e9:.0f} GFLOP/s); time goes to {shares}"
        )

    def caveats(self, model: Model, workload: Workload, configuration: Configuration) -> tuple[str, ...]:
        """Where a configuration lies outside the measured range, in words; empty where all was interpolated."""
        found = []
        site = model.layers[0].sites[0]
        for name, wanted, timed in (
            ("layer products", max(configuration.batch_size, configuration.prefill_chunk), self.products.largest_m(site)),
            ("the head's product", configuration.batch_size, self.products.largest_m(model.head)),
        ):
            if wanted > timed:
                found.append(f"{name} at m = {wanted} are extrapolated: the largest timed m is {timed}")
        context = workload.prompt_tokens + workload.output_tokens // 2
        if context > self.attention.longest_context:
            found.append(
                f"attention over {context} tokens is extrapolated: the longest timed context is "
                f"{self.attention.longest_context}"
            )
        return tuple(found)


class _ProductTable:
    """Times of products at a set of m, each distinct product predicted once; shape (T, M)."""

    def __init__(self, products: Products, tokens: Sequence[int], threads: NDArray[np.int64]) -> None:
        self._products = products
        self._tokens = tokens
        self._threads = threads
        self._known: dict[Key, Floats] = {}

    def time_s(self, site: Site) -> Floats:
        key = key_of(site)
        if key not in self._known:
            self._known[key] = self._products.time_s(site, self._tokens, self._threads)
        return self._known[key]

    def select(self, table: Floats, tokens: Sequence[int]) -> Floats:
        """The columns of a table for those m."""
        return table[:, np.searchsorted(self._tokens, tokens)]


def _total(parts: Sequence[Floats]) -> Floats:
    total: Floats = np.sum(np.stack(parts), axis=0)
    return total


def _pieces(prompt: int, chunk: int) -> list[tuple[int, int, int]]:
    """A prompt as (size, how many, where the first begins): whole chunks, then a shorter last one if need be."""
    whole, rest = divmod(prompt, chunk)
    pieces = [(chunk, whole, 0)] if whole else []
    return [*pieces, (rest, 1, whole * chunk)] if rest else pieces
