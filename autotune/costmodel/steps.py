"""The table of step costs: what the cost model hands to the search."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Seconds = NDArray[np.float64]


@dataclass(frozen=True)
class StepCosts:
    """Predicted times of the pieces that a decode step and a prefill are made of, in seconds.

    Axes: D devices, G kinds of layer, T CPU thread counts, B batch sizes, C prefill chunks. A GPU's times
    don't depend on T: its rows are broadcast. A step's time is the sum over its layers of the cost on the
    device they are on, plus the ends (embedding and head), plus what is handed over on its way: tokens come from
    the CPU and go back there, and each GPU on the way is entered and left once.

    A decode step advances each of B sequences by one token, with half of the output in the KV cache. A
    prefill takes one sequence's whole prompt, chunk after chunk; only its last token goes through the head.

    Attributes:
        devices: ``"cpu"`` first, then the GPUs that were timed.
        layer_kinds: For each layer of the model the index of its kind on axis G, shape (L,).
        threads: CPU thread counts, ascending, shape (T,).
        batches: Batch sizes, ascending, shape (B,).
        chunks: Prefill chunk lengths in tokens, ascending, shape (C,).
        decode_layer_s: One decode step of one layer, shape (D, G, T, B).
        decode_ends_s: Embedding and head of one decode step with the head on that device, shape (D, T, B).
        prefill_layer_s: One prompt through one layer, shape (D, G, T, C).
        prefill_ends_s: Embedding and head of one prompt, likewise, shape (D, T, C).
        decode_crossing_s: Entering or leaving a device with a decode step's activations: half of a handover, which is
            both, shape (D, B); CPU: 0.
        prefill_crossing_s: Entering or leaving it with one prompt's activations, chunk after chunk, shape (D, C);
            CPU: 0.
        decode_token_s: Entering or leaving it once with token ids, or with the activations of a single token, shape
            (D,); CPU: 0.
        prefill_token_s: Entering it with one prompt's token ids, chunk after chunk, shape (D, C); CPU: 0.
    """

    devices: tuple[str, ...]
    layer_kinds: NDArray[np.int64]
    threads: NDArray[np.int64]
    batches: NDArray[np.int64]
    chunks: NDArray[np.int64]
    decode_layer_s: Seconds
    decode_ends_s: Seconds
    prefill_layer_s: Seconds
    prefill_ends_s: Seconds
    decode_crossing_s: Seconds
    prefill_crossing_s: Seconds
    decode_token_s: Seconds
    prefill_token_s: Seconds
