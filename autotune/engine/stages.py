"""A step's way through the devices: each holds a stage, some consecutive layers and what comes before or after them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from autotune.records import SiteKernels

Array = NDArray[Any]
Bound = Callable[[Array], Array | None]
"""A stage on one pass.

It takes the pass' tokens (rows,) int64, or the residual stream (rows, hidden_size) float32 that the stage before
returned. It returns the stream, or from the stage with the head the next token of each sequence (sequences,) int64; None
from the head on a prompt's piece that isn't its last. What it returns is overwritten by the next call."""


class Pass(NamedTuple):
    """One pass of tokens through the model.

    Attributes:
        rows: Tokens multiplied at once: of decode one of each sequence, of prefill a piece of one prompt.
        sequences: Sequences they belong to: ``rows`` in decode, 1 in prefill, whose sequence is in slot 0 of the cache.
        context: Tokens in each sequence's KV cache before them.
        last: Whether the next token is wanted: always in decode, in prefill on a prompt's last piece.
    """

    rows: int
    sequences: int
    context: int
    last: bool


class Kernels(NamedTuple):
    """Which kernels run a configuration.

    Attributes:
        sites: Of products, per site and device; of a number of tokens that is not listed the nearest that is.
        backends: Of all else, per device: ``{"cpu": "native", "cuda:0": "triton"}``.
    """

    sites: tuple[SiteKernels, ...]
    backends: Mapping[str, str]


class Stage(Protocol):
    """Consecutive layers on one device, with the embedding before them or the head after them where those are there.

    Attributes:
        device: ``cpu``, ``cuda:0``, ...
    """

    device: str

    def reserve(self, sequences: int, tokens: int) -> None:
        """Make room in the KV cache for so many sequences.

        The first ``tokens`` of each are filled with random keys and values: reading them is as cold as in a real run.

        Raises:
            MemoryError: There isn't so much memory.
        """

    def bind(self, step: Pass, threads: int, kernels: Kernels) -> Bound:
        """Everything of one pass, made ready to be called many times: on a GPU one graph.

        Args:
            step: The pass.
            threads: CPU threads; of no consequence on a GPU.
            kernels: What to run it with.
        """

    def close(self) -> None:
        """Give its memory back."""
