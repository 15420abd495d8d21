"""What configurations really take on a synthetic host: straight from its laws, with none of the tuner's predictions.

A step begins with token ids on the CPU and ends with them there. On its way it enters and leaves every GPU that has
layers, each time for half of a handover: of its activations, or of ids alone where the embedding (or the head) lies on
that GPU, so that nothing else comes (or goes).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from autotune.model.fusion import fused
from autotune.model.sites import on_gpu
from autotune.records import Configuration, Model, Point, Site, Workload
from tests.hosts.synthetic.law import F32_BYTES
from tests.hosts.synthetic.machines import Machine

ID_BYTES = 8


class Times(NamedTuple):
    """Seconds per output token, to the first token, and per output token over whole requests."""

    tpot_s: float
    ttft_s: float
    request_token_s: float


class Truth:
    """A machine with a model, all of whose layers are alike, under a workload's lengths."""

    def __init__(self, machine: Machine, model: Model, workload: Workload) -> None:
        self.machine, self.model, self.workload = machine, model, workload
        self._models = {device: model if device == "cpu" else on_gpu(model) for device in ("cpu", *machine.gpus)}
        # Many configurations share these.
        self.layer_s = lru_cache(None)(self._layer_s)
        self.head_s = lru_cache(None)(self._head_s)

    def times(self, configuration: Configuration) -> Times:
        """What a configuration takes."""
        workload, batch = self.workload, configuration.batch_size
        decode_threads, prefill_threads = configuration.decode_threads, configuration.prefill_threads
        context = workload.prompt_tokens + workload.output_tokens // 2
        pieces = tuple(pieces_of(workload.prompt_tokens, configuration.prefill_chunk))
        head = configuration.head_device
        tpot_s = self.head_s(head, decode_threads, batch) + self.handed_s(configuration, [batch], batch)
        ttft_s = self.head_s(head, prefill_threads, 1)
        ttft_s += self.handed_s(configuration, [size for size, _ in pieces], 1)
        for device, layers in configuration.device_layers.items():
            tpot_s += layers * self.layer_s(device, decode_threads, 1, batch, context)
            ttft_s += layers * sum(self.layer_s(device, prefill_threads, size, 1, done) for size, done in pieces)
        request_s = batch * ttft_s + (workload.output_tokens - 1) * tpot_s
        return Times(tpot_s, ttft_s, request_s / (batch * workload.output_tokens))

    def _layer_s(self, device: str, threads: int, m: int, sequences: int, context: int) -> float:
        """One layer on m tokens of each of some sequences: products and small operations on all of them at once."""
        model, rows = self._models[device], m * sequences
        heads, kv_heads, dim = model.attention.heads, model.attention.kv_heads, model.attention.head_dim
        attention = {"n_out": heads * dim, "k_in": kv_heads * dim, "format": "F16", "context": context}
        small = {"n_out": model.intermediate_size, "k_in": model.hidden_size, "format": "F32", "m": rows}
        if device == "cpu":
            law, layer = self.machine.cpu, model.layers[0]
            products_s = sum(self._product_s(device, threads, rows, site) for site in layer.sites)
            attention_s = sequences * law.time_s(Point("attention", "cpu", "native", threads, m=m, **attention))
            # One token is too little work for a team.
            small_ops_s = law.time_s(Point("layer_ops", "cpu", "native", threads if rows > 1 else 1, **small))
            return products_s + attention_s + small_ops_s
        gpu_law, kernels = self.machine.gpus[device], self._kernels(device)
        products_s = sum(self._product_s(device, 1, rows, site) for site in fused(model.layers[0]))
        attention_s = gpu_law.time_s(Point("attention", device, "torch", 1, m=m, sequences=sequences, **attention))
        return (
            products_s + attention_s + min(gpu_law.time_s(Point("layer_ops", device, k, 1, **small)) for k in kernels)
        )

    def _head_s(self, device: str, threads: int, sequences: int) -> float:
        return self._product_s(device, 1 if device != "cpu" else threads, sequences, self._models[device].head)

    def _product_s(self, device: str, threads: int, m: int, site: Site) -> float:
        law = self.machine.cpu if device == "cpu" else self.machine.gpus[device]
        return min(
            law.time_s(Point("matmul", device, kernel, threads, m, site.format, site.n_out, site.k_in))
            for kernel in self._kernels(device)
        )

    def _kernels(self, device: str) -> tuple[str, ...]:
        if device == "cpu":
            return ("native",)
        return ("triton", "torch") if self.machine.gpus[device].triton else ("torch",)

    def handed_s(self, configuration: Configuration, entering: list[int], leaving: int) -> float:
        """Entering and leaving all GPUs on the way.

        Args:
            configuration: Says where the layers and the head are.
            entering: Tokens that enter, in as many steps.
            leaving: Tokens of which the last GPU's result goes back to the CPU.
        """
        token_bytes = F32_BYTES * self._models["cpu"].hidden_size
        used = [device for device in configuration.device_layers if device != "cpu"]
        cpu_has_embedding = "cpu" in configuration.device_layers or configuration.head_device == "cpu"
        total_s = 0.0
        for device in used:
            law, first, last = self.machine.gpus[device], device == used[0], device == used[-1]
            into = token_bytes if not first or cpu_has_embedding else ID_BYTES
            out_of = token_bytes if not last or configuration.head_device == "cpu" else ID_BYTES
            total_s += sum(law.handover_s(tokens * into) / 2 for tokens in entering)
            total_s += sum(law.handover_s(tokens * out_of) / 2 for tokens in ([leaving] if last else entering))
        return total_s


def pieces_of(prompt: int, chunk: int) -> Iterator[tuple[int, int]]:
    """A prompt's chunks: tokens in it, and tokens before it."""
    for done in range(0, prompt, chunk):
        yield min(chunk, prompt - done), done
