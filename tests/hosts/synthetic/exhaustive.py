"""The best configuration there is on a synthetic host: every one of them tried by the host's laws.

Nothing here is the tuner's but records and the byte counts of `autotune.model.memory`, which have tests of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.model import memory
from autotune.model.sites import on_gpu
from autotune.records import Configuration
from autotune.search.workload import batch_grid, chunk_grid
from tests.hosts.synthetic.machines import CONTEXT_BYTES, CPU_OVERHEAD_BYTES, GPU_HOST_BYTES
from tests.hosts.synthetic.truth import Times, Truth, pieces_of

Floats = NDArray[np.float64]

PLANNABLE = 0.9
"""Share of the free memory that a configuration may plan with."""


class Exhaustive:
    """Every configuration of a machine, a model and a workload: P placements, B batches, C chunks, and all threads.

    Batches and chunks are those that the tuner offers.
    """

    def __init__(self, truth: Truth) -> None:
        self._truth = truth
        machine, workload = truth.machine, truth.workload
        self._gpus = list(machine.gpus)
        self._threads = range(1, machine.host.limits.usable_threads + 1)
        self._batches = batch_grid(workload.max_batch)
        self._chunks = chunk_grid(workload.prompt_tokens)
        total = len(truth.model.layers)
        splits = [split for split in product(range(total + 1), repeat=len(self._gpus)) if sum(split) <= total]
        rows = [(total - sum(split), split, 0) for split in splits]
        rows += [(*row[:2], 1 + max(np.flatnonzero(row[1]))) for row in rows if any(row[1])]
        self._cpu = np.array([row[0] for row in rows])
        self._on_gpus = np.array([row[1] for row in rows], np.int64).reshape(len(rows), len(self._gpus))
        self._heads = np.array([row[2] for row in rows])

    def best(self) -> tuple[Configuration, Times]:
        """The best of those that fit the memory and keep the limit on TPOT; and what it takes."""
        truth, workload = self._truth, self._truth.workload
        pieces = [list(pieces_of(workload.prompt_tokens, chunk)) for chunk in self._chunks]
        context = workload.prompt_tokens + workload.output_tokens // 2
        tpot_s, decode_threads = self._times(
            self._batches,
            lambda device, threads, batch: truth.layer_s(device, threads, 1, batch, context),
            lambda device, threads, batch: truth.head_s(device, threads, batch),
            lambda configuration, batch: truth.handed_s(configuration, [batch], batch),
        )
        ttft_s, prefill_threads = self._times(
            pieces,
            lambda device, threads, found: sum(truth.layer_s(device, threads, size, 1, done) for size, done in found),
            lambda device, threads, found: truth.head_s(device, threads, 1),
            lambda configuration, found: truth.handed_s(configuration, [size for size, _ in found], 1),
        )
        batches, output = np.array(self._batches)[:, None], workload.output_tokens
        requests_s = (batches * ttft_s[:, None, :] + (output - 1) * tpot_s[:, :, None]) / (batches * output)
        fits = self._fits()
        decode_s = np.where(fits, tpot_s[:, :, None], np.inf)
        limit_s = workload.max_tpot_s or np.inf
        if decode_s.min() > limit_s and workload.relaxed_tpot_ratio is not None:
            limit_s = workload.relaxed_tpot_ratio * float(decode_s.min())
        kept = fits & (decode_s <= limit_s)
        cost_s = np.where(kept, decode_s if workload.name == "chat" else requests_s, np.inf)
        place, batch, chunk = np.unravel_index(cost_s.argmin(), cost_s.shape)
        configuration = self._configuration(
            place,
            int(decode_threads[place, batch]),
            int(prefill_threads[place, chunk]),
            self._batches[batch],
            self._chunks[chunk],
        )
        return configuration, truth.times(configuration)

    def _times(
        self,
        columns: Sequence[Any],
        layer_s: Callable[..., float],
        head_s: Callable[..., float],
        handed_s: Callable[..., float],
    ) -> tuple[Floats, NDArray[np.int64]]:
        """Seconds with the best number of threads, and that number, shape (P, columns) each."""
        layers = np.array([[layer_s("cpu", count, column) for column in columns] for count in self._threads])
        heads = np.array([[head_s("cpu", count, column) for column in columns] for count in self._threads])
        # What the CPU has to do: layers, and the head or not. Shape (L + 1, 2, T, columns).
        counts = np.arange(self._cpu.max() + 1)[:, None, None, None]
        work = counts * layers + np.array([0, 1])[:, None, None] * heads
        on_cpu = self._cpu, (self._heads == 0).astype(int)
        total_s = work.min(axis=2)[on_cpu]
        for index, gpu in enumerate(self._gpus):
            total_s = total_s + self._on_gpus[:, [index]] * np.array([layer_s(gpu, 1, column) for column in columns])
            total_s = total_s + (self._heads == index + 1)[:, None] * [head_s(gpu, 1, column) for column in columns]
        # Handing over depends on what is where, not on how much of it.
        ways: dict[tuple[object, ...], list[float]] = {}
        for place in range(len(self._cpu)):
            way = (self._cpu[place] > 0, *(self._on_gpus[place] > 0), self._heads[place] == 0)
            if way not in ways:
                configuration = self._configuration(place, 1, 1, 1, 1)
                ways[way] = [handed_s(configuration, column) for column in columns]
            total_s[place] += ways[way]
        return total_s, work.argmin(axis=2)[on_cpu] + 1

    def _configuration(self, place: int, decode: int, prefill: int, batch: int, chunk: int) -> Configuration:
        counts = {"cpu": self._cpu[place], **dict(zip(self._gpus, self._on_gpus[place], strict=True))}
        return Configuration(
            device_layers={device: int(count) for device, count in counts.items() if count},
            head_device=("cpu", *self._gpus)[self._heads[place]],
            decode_threads=decode,
            prefill_threads=prefill,
            batch_size=batch,
            prefill_chunk=chunk,
        )

    def _fits(self) -> NDArray[np.bool_]:
        """Whether the memory of every device is enough, shape (P, B, C)."""
        model, workload, host = self._truth.model, self._truth.workload, self._truth.machine.host
        batches, chunks = np.array(self._batches)[:, None], np.array(self._chunks)
        rows, context = np.maximum(batches, chunks), workload.context_tokens
        used = [self._cpu > 0, *(self._on_gpus[:, index] > 0 for index in range(len(self._gpus)))]
        first = np.where(self._heads == 0, 0, np.argmax(np.stack(used), axis=0))
        any_gpu = (self._on_gpus > 0).any(axis=1)
        fits = np.ones((len(self._cpu), len(self._batches), len(self._chunks)), bool)
        for index, device in enumerate(("cpu", *self._gpus)):
            held = on_gpu(model) if index else model
            layers = self._on_gpus[:, index - 1] if index else self._cpu
            embedding, head = first == index, self._heads == index
            one = memory.weight_bytes(held.layers[0]) + memory.kv_cache_bytes(held, 1, batches * context)
            need = layers[:, None, None] * one
            need = need + np.where(embedding, memory.site_bytes(held.embedding), 0)[:, None, None]
            head_bytes = np.where(embedding & model.tied, 0, memory.site_bytes(held.head)) + model.norm_bytes
            need = need + np.where(head, head_bytes, 0)[:, None, None]
            for has_layers, has_head in product((False, True), repeat=2):
                alike = ((layers > 0) == has_layers) & (head == has_head)
                passing = memory.activation_bytes(model, rows, batches, context, layers=has_layers, head=has_head)
                need = need + np.where(alike[:, None, None], passing, 0)
            if index:
                gpu = host.gpus.usable[device]
                need, free = need + CONTEXT_BYTES, gpu.memory_free_bytes or 0
                unused = ~used[index]
            else:
                own = np.where(any_gpu, max(CPU_OVERHEAD_BYTES, GPU_HOST_BYTES), CPU_OVERHEAD_BYTES)
                need = need + (own + memory.vocabulary_bytes(model))[:, None, None]
                free, unused = host.memory.usable_bytes, np.zeros(len(self._cpu), bool)
            fits &= unused[:, None, None] | (need <= int(PLANNABLE * free))
        return fits
