"""What can be chosen, what it is chosen for, and what a loader reads of it."""

from __future__ import annotations

from typing import Literal

import msgspec

from autotune.records.base import Record

WorkloadName = Literal["chat", "server", "offline"]


class Workload(Record, frozen=True):
    """What the model is used for, and the limits a configuration must keep."""

    name: WorkloadName
    prompt_tokens: int
    output_tokens: int
    context_tokens: int
    """KV-cache slots reserved per sequence: at least prompt + output."""
    max_batch: int
    max_tpot_s: float | None
    """Longest time per output token; None: no limit."""
    max_ttft_s: float | None
    """Longest time to the first token of one sequence; None: no limit."""
    relaxed_tpot_ratio: float | None = None
    """Where even one sequence can't keep ``max_tpot_s``: allow this ratio of the best TPOT instead. None: an error."""

    @property
    def decode_context(self) -> int:
        """Tokens in a sequence's KV cache at a typical decode step: half of the output is there."""
        return self.prompt_tokens + self.output_tokens // 2


class HybridSplit(Record, frozen=True):
    """Layers on either side of a split."""

    cpu_layers: int
    gpu_layers: int


class Hybrid(Record, frozen=True):
    """Serde's externally tagged shape of ``DeviceStrategy::Hybrid { cpu_layers, gpu_layers }``."""

    split: HybridSplit = msgspec.field(name="Hybrid")


class DeviceConfig(Record, frozen=True):
    """What a loader needs; its JSON is what serde's plain derives of BitNet-rs' ``DeviceConfig`` read.

    Source: BitNet-rs, crates/bitnet-models/src/production_loader.rs.
    """

    strategy: Literal["CpuOnly", "GpuOnly"] | Hybrid
    cpu_threads: int | None
    gpu_memory_fraction: float | None
    """Share of the GPU's total memory the model may take; None without a GPU."""
    recommended_batch_size: int


class Configuration(Record, frozen=True):
    """One point of the search space."""

    device_layers: dict[str, int]
    """Layers per device in the order data flows, ``{"cpu": 10, "cuda:0": 20}``; devices with none are left out."""
    head_device: str
    decode_threads: int
    prefill_threads: int
    batch_size: int
    """Sequences decoded together."""
    prefill_chunk: int
    """Prompt tokens processed at once."""
