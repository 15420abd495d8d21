"""A step's way through the devices: each holds a stage, some consecutive layers and what comes before or after them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from autotune.records import Site, SiteKernels

Array = NDArray[Any]
Bound = Callable[[Array], Array | None]
"""A stage on one pass.

It takes the pass' tokens (rows,) int64, or the residual stream (rows, hidden_size) float32 that the stage before
returned. It returns the stream, or from the stage with the head the next token of each sequence (sequences,) int64, but
None on a piece of a prompt that isn't its last. What it returns is overwritten by the next call."""


class Pass(NamedTuple):
    """One pass of tokens through the model.

    Attributes:
        rows: Tokens multiplied at once: of decode one of each sequence, of prefill a piece of one prompt.
        sequences: Sequences they belong to: ``rows`` in decode, 1 in prefill.
        context: Tokens in each sequence's KV cache before them.
        last: Whether the next token is wanted: always in decode, in prefill on a prompt's last piece.
        slot: Where in the KV cache the first of the sequences is; the others follow.
    """

    rows: int
    sequences: int
    context: int
    last: bool
    slot: int = 0


class Kernels(NamedTuple):
    """Which kernels run a configuration.

    Attributes:
        sites: Of products, per site and device; of a number of tokens that is not listed the nearest that is.
        backends: Of all else, per device: ``{"cpu": "native", "cuda:0": "triton"}``.
    """

    sites: tuple[SiteKernels, ...]
    backends: Mapping[str, str]

    def of(self, site: Site, device: str, tokens: int, *, prefill: bool = False) -> str | None:
        """The kernel of a site's product with so many tokens; None where the site is not listed for the device."""
        for found in self.sites:
            if (found.format, found.n_out, found.k_in, found.device) == (site.format, site.n_out, site.k_in, device):
                # Only a prompt's last token goes through the head, as in decode.
                listed = (prefill and found.prefill) or found.decode or found.prefill
                nearest = min(listed, key=lambda size: abs(math.log(int(size) / tokens)), default=None)
                return None if nearest is None else listed[nearest]
        return None


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
