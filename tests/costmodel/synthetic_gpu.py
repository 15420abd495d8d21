"""Synthetic GPUs whose times follow known laws with a launch's floor and waves of tiles; no GPU was timed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace

from autotune.model.fusion import fused
from autotune.model.sites import on_gpu
from autotune.records import Campaign, GpuRun, Measurement, Model, Point, Site
from tests.costmodel.synthetic import measured, site_bytes

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
CONTEXTS = (128, 1024)
SEQUENCES = (1, 4, 16, 64)
HANDOVER_BYTES = (8, 10_240, 163_840, 655_360)


@dataclass(frozen=True)
class SyntheticGpu:
    """A GPU with tiles of (rows, tokens), one on each multiprocessor at a time.

    A product takes the launch and then the longer of reading the weights and all waves. Few tokens go through tiles of
    another shape than many, as in kernels that choose them by m.
    """

    device: str = "cuda:0"
    bytes_per_s: float = 2.9e12
    operations_per_s: float = 1.3e15
    multiprocessors: int = 132
    launch_s: float = 2.5e-6
    few: tuple[int, int] = (32, 16)
    many: tuple[int, int] = (128, 64)
    noise: float = 0.0

    def product_s(self, site: Site, m: int) -> float:
        rows, tokens = self.few if m <= self.few[1] else self.many
        tiles = math.ceil(site.n_out / rows) * math.ceil(m / tokens)
        waves = math.ceil(tiles / self.multiprocessors)
        tile_s = 2 * rows * tokens * site.k_in / (0.4 * self.operations_per_s / self.multiprocessors)
        activation_bytes = 1 if site.format == "I2_S" else 4
        moved = site_bytes(site) + m * (site.k_in * activation_bytes + 4 * site.n_out)
        return self.launch_s + max(moved / (0.8 * self.bytes_per_s), waves * tile_s)

    def attention_s(self, m: float, context: float, sequences: float = 1) -> float:
        """Linear in the context, a power law in m and in the sequences."""
        return m**0.5 * sequences**0.8 * (1e-6 + 1e-9 * context)

    def small_ops_s(self, m: float) -> float:
        return 3e-6 * m**0.25

    def handover_s(self, size_bytes: float) -> float:
        """There and back, with a latency."""
        return 2e-5 + 2 * size_bytes / 2e10

    def products(self, sites: Sequence[Site], tokens: Sequence[int] = TOKENS) -> list[Measurement]:
        rng = np.random.default_rng(7)
        return [
            measured(
                Point("matmul", self.device, "triton", 1, m, site.format, site.n_out, site.k_in, launch="graph"),
                self.product_s(site, m) * math.exp(rng.normal(0, self.noise)),
            )
            for site in sites
            for m in tokens
        ]

    def ceilings(self) -> list[Measurement]:
        read = Point("read", self.device, "torch", 1, k_in=1 << 30, launch="graph")
        peak = Point("peak", self.device, "torch", 1, 4096, "I8", 4096, 4096, launch="graph")
        return [
            measured(read, (1 << 30) / self.bytes_per_s),
            measured(peak, 2 * 4096**3 / self.operations_per_s),
        ]

    def attention(self) -> list[Measurement]:
        decode = [(1, sequences, context) for sequences in SEQUENCES for context in CONTEXTS]
        prefill = [(m, 1, context) for m in (16, 64) for context in (0, 1024)]
        return [
            measured(
                Point("attention", self.device, "torch", 1, m, "F16", 256, 128, context, sequences, "graph"),
                self.attention_s(m, context, sequences),
            )
            for m, sequences, context in (*decode, *prefill)
        ]

    def layer_rest(self) -> list[Measurement]:
        """Attention, small operations and handovers."""
        small_ops = [
            measured(Point("layer_ops", self.device, "triton", 1, m, "F32", 768, 256, launch="graph"), time_s)
            for m, time_s in ((m, self.small_ops_s(m)) for m in TOKENS)
        ]
        handovers = [
            measured(Point("handover", self.device, "pinned", 1, k_in=size), self.handover_s(size))
            for size in HANDOVER_BYTES
        ]
        return [*self.attention(), *small_ops, *handovers]

    def outcomes(self, model: Model) -> list[Measurement]:
        """All that a benchmark would time for a model, fused and in the formats that a GPU stores."""
        return [*self.ceilings(), *self.products(gpu_sites(model)), *self.layer_rest()]


def gpu_sites(model: Model) -> list[Site]:
    """A model's distinct sites on a GPU, by shape, the head last."""
    held = on_gpu(model)
    sites = [site for layer in held.layers for site in fused(layer)]
    return list({(site.format, site.n_out, site.k_in): site for site in [*sites, held.head]}.values())


def with_gpu(campaign: Campaign, gpu: SyntheticGpu, outcomes: Sequence[Measurement], *twins: str) -> Campaign:
    """A campaign and a GPU's points, which count for identical GPUs as well."""
    run = GpuRun((gpu.device, *twins), None, multiprocessors=gpu.multiprocessors)
    return replace(campaign, outcomes=(*campaign.outcomes, *outcomes), gpus=(*campaign.gpus, run))
