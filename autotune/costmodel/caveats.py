"""Where a configuration lies outside the measured range, in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from autotune.costmodel.device import DeviceModel
from autotune.costmodel.passes import pieces
from autotune.costmodel.placement import Part, parts
from autotune.costmodel.roofline import Product
from autotune.records import Configuration, Model, Workload


def caveats(
    models: Mapping[str, DeviceModel], model: Model, workload: Workload, configuration: Configuration
) -> tuple[str, ...]:
    """What is extrapolated or left out in a configuration's figures.

    Args:
        models: Of all devices.
        model: What is run.
        workload: Its prompt and output lengths.
        configuration: Where the model's layers and head are, and what they run with.

    Returns:
        A sentence each, which names the devices it is about unless that is the CPU; empty where all was interpolated.
    """
    devices: dict[tuple[bool, str], list[str]] = {}
    for part in parts(model, configuration):
        for sentence in _Range(part, models[part.device]).caveats(workload, configuration):
            devices.setdefault((part.device == "cpu", sentence), []).append(part.device)
    return tuple(
        sentence if on_cpu else f"on {' and '.join(named)}: {sentence}" for (on_cpu, sentence), named in devices.items()
    )


class _Range:
    """What a device was timed at, against what its part of a configuration needs."""

    def __init__(self, part: Part, held: DeviceModel) -> None:
        self._part, self._held = part, held
        self._on_cpu = part.device == "cpu"

    def caveats(self, workload: Workload, configuration: Configuration) -> Iterator[str]:
        layers, head = list(self._part.products), [self._part.head] if self._part.head else []
        batch, chunks = configuration.batch_size, pieces(workload.prompt_tokens, configuration.prefill_chunk)
        last_pieces = [(size, first + size * (count - 1)) for size, count, first in chunks]
        yield from self._not_timed([*layers, *head])
        yield from self._products("decode", configuration.decode_threads, batch, [*layers, *head])
        if layers:
            yield from self._decode_attention(batch, workload.decode_context)
        largest = max(size for size, _ in last_pieces)
        yield from self._products("prefill", configuration.prefill_threads, largest, layers)
        if layers:
            yield from self._prefill_attention(last_pieces)

    def _not_timed(self, products: Iterable[Product]) -> Iterator[str]:
        for product in dict.fromkeys(products):
            if not self._held.products.thread_counts(product):
                yield f"{product} was not timed: its time follows from the other {product.format} products"
        if self._part.products and not self._held.attention.timed:
            yield "attention was not timed: its time is left out"
        if self._part.products and not self._held.small_ops.tokens:
            yield "norms, gate and quantisation were not timed: their time is left out"
        if not self._on_cpu and not self._held.handovers.timed:
            yield "handing activations over was not timed: its time is left out"

    def _products(self, step: str, cpu_threads: int, m: int, products: Sequence[Product]) -> Iterator[str]:
        """Of a step with m tokens at once; those that weren't timed at all are named elsewhere."""
        threads = cpu_threads if self._on_cpu else 1
        counts = {product: self._held.products.thread_counts(product) for product in products}
        timed = [product for product in products if counts[product]]
        largest_m = min((self._held.products.largest_m(product, threads) for product in timed), default=m)
        if m > largest_m:
            yield f"{step}: products at m = {m} are extrapolated, the largest timed m is {largest_m}"
        fewest = max((counts[product][0] for product in timed), default=threads)
        most = min((counts[product][-1] for product in timed), default=threads)
        if not fewest <= threads <= most:
            yield f"{step}: {threads} threads are extrapolated, products were timed on {fewest} to {most}"

    def _decode_attention(self, batch: int, context: int) -> Iterator[str]:
        attention = self._held.attention
        most = max(attention.sequences, default=batch)
        # A CPU takes sequences in turn, so the one that was timed tells of all.
        if batch > most and not self._on_cpu:
            yield f"decode: attention of {batch} sequences is extrapolated, the most timed at once is {most}"
        longest = attention.longest_decode_context(batch)
        if context > longest and attention.timed:
            yield _too_long("decode", context, longest)

    def _prefill_attention(self, pieces: Sequence[tuple[int, int]]) -> Iterator[str]:
        """Of the last pieces of a prompt, each (m, context)."""
        attention = self._held.attention
        for m, context in pieces if attention.tokens else ():
            if m > attention.tokens[-1]:
                yield f"prefill: attention at m = {m} is extrapolated, the largest timed m is {attention.tokens[-1]}"
            longest = attention.longest_context(m)
            if context > longest:
                yield _too_long("prefill", context, longest)


def _too_long(step: str, context: int, longest: int) -> str:
    return f"{step}: attention over {context} tokens is extrapolated, the longest timed context is {longest}"
