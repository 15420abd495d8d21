"""Time to hand activations to a GPU and back."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autotune.costmodel.fitting import fit_line
from autotune.costmodel.passes import Passes
from autotune.costmodel.points import fastest
from autotune.model.memory import ACTIVATION_BYTES, TOKEN_ID_BYTES
from autotune.records import Campaign

Floats = NDArray[np.float64]


class HandoverCosts(NamedTuple):
    """One device's columns of ``StepCosts``: entering or leaving it, in seconds."""

    decode_crossing_s: Floats
    """Shape (B,)."""
    prefill_crossing_s: Floats
    """Shape (C,)."""
    decode_token_s: np.float64
    prefill_token_s: Floats
    """Shape (C,)."""


class Handovers:
    """Half a handover: entering a GPU with so many bytes, or leaving it with them.

    A handover (upload, a kernel, download, waiting for all of it) takes a latency and the bytes over a bandwidth,
    fitted to those timed, but never less than the fastest of them.

    Args:
        campaign: Holds the ``handover`` points.
        device: Which GPU's.

    Attributes:
        timed: Whether there are any.
    """

    def __init__(self, campaign: Campaign, device: str) -> None:
        found = fastest(campaign, "handover", device)
        self.timed = bool(found)
        self._byte_s = self._latency_s = self._least_s = 0.0
        if found:
            sizes = np.array([point.k_in for point in found], np.float64)
            times = np.array(list(found.values()))
            byte_s, latency_s = fit_line(sizes, times)
            self._byte_s, self._latency_s, self._least_s = float(byte_s), float(latency_s), float(times.min())

    def costs(self, hidden_size: int, passes: Passes) -> HandoverCosts:
        """What a model's steps pay; nothing where no handover was timed."""
        activations_s = self._half_s(passes.tokens * hidden_size * ACTIVATION_BYTES)
        return HandoverCosts(
            decode_crossing_s=activations_s[passes.per_batch],
            prefill_crossing_s=activations_s @ passes.per_prompt,
            decode_token_s=activations_s[passes.one],
            prefill_token_s=self._half_s(passes.tokens * TOKEN_ID_BYTES) @ passes.per_prompt,
        )

    def _half_s(self, size_bytes: Floats) -> Floats:
        half: Floats = np.maximum(self._latency_s + size_bytes * self._byte_s, self._least_s) / 2
        return half
