"""What came of a run: the raw samples, and what they mean beside ceilings and peer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec
import numpy as np

from ternary_kernels.bench.cases import PEER, Case, peer_format

SCHEMA_VERSION = 1


class Timing(msgspec.Struct, frozen=True):
    """A case's samples."""

    case: Case
    weight_bytes: int
    """Read by one call."""
    calls_per_sample: int
    samples_s: tuple[float, ...]
    """Seconds per call."""

    @property
    def quartiles_s(self) -> tuple[float, float, float]:
        """Lower quartile, median and upper quartile."""
        return _quartiles(self.samples_s)

    @property
    def operations(self) -> int:
        """Of one call; a multiplication and an addition are two."""
        return 2 * self.case.m * self.case.n_out * self.case.k_in


class Ceiling(msgspec.Struct, frozen=True):
    """What the host does at best with some threads, in one call."""

    what: str
    """``read``: streams memory; ``peak``: multiplies."""
    threads: int
    amount: int
    """Bytes or operations of one call."""
    calls_per_sample: int
    samples_s: tuple[float, ...]

    @property
    def per_s(self) -> float:
        """Bytes or operations per second."""
        return self.amount / _quartiles(self.samples_s)[1]


class Machine(msgspec.Struct, frozen=True):
    """Where it was run."""

    cpu: str
    architecture: str
    paths: tuple[str, ...]
    """Instruction sets that the kernels timed use."""
    cpus: tuple[int, ...]
    """Logical CPUs that threads are pinned to, in order."""


class Peer(msgspec.Struct, frozen=True):
    """The peer's library."""

    name: str
    version: str
    features: tuple[str, ...]


class Figures(msgspec.Struct, frozen=True):
    """What a timing means beside ceilings and peer; None: what it is compared with was not timed."""

    median_s: float
    quartiles_s: tuple[float, float]
    weight_bytes_per_s: float
    of_read_bandwidth: float | None
    of_peak: float | None
    times_peer: float | None
    """How many times as fast as the peer at the same shape, m, threads and kind of memory."""


class Row(msgspec.Struct, frozen=True):
    """A timing and its figures."""

    timing: Timing
    figures: Figures


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All of a run."""

    schema_version: int = SCHEMA_VERSION
    machine: Machine
    versions: dict[str, str]
    peer: Peer | None
    arena_bytes: int
    """Memory that cold weights rotate through."""
    seconds: float
    seed: int
    arithmetic: Literal["int8", "float32"]
    """What the peak multiplies; a share of a float32 peak says little about integer kernels."""
    ceilings: tuple[Ceiling, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def to_rows(timings: Sequence[Timing], ceilings: Iterable[Ceiling]) -> tuple[Row, ...]:
    """Compare timings with the ceilings at the same thread count, and with the peer's timing beside each."""
    limits = {(ceiling.what, ceiling.threads): ceiling.per_s for ceiling in ceilings}
    peers = {_place(timing.case, timing.case.format): timing for timing in timings if timing.case.kernel == PEER}
    return tuple(Row(timing, _figures(timing, limits, peers)) for timing in timings)


def _figures(
    timing: Timing,
    limits: dict[tuple[str, int], float],
    peers: dict[tuple[object, ...], Timing],
) -> Figures:
    case = timing.case
    lower, median, upper = timing.quartiles_s
    read, peak = limits.get(("read", case.threads)), limits.get(("peak", case.threads))
    peer = peers.get(_place(case, peer_format(case.format)))
    return Figures(
        median_s=median,
        quartiles_s=(lower, upper),
        weight_bytes_per_s=timing.weight_bytes / median,
        of_read_bandwidth=timing.weight_bytes / median / read if read else None,
        of_peak=timing.operations / median / peak if peak else None,
        times_peer=peer.quartiles_s[1] / median if peer else None,
    )


def _place(case: Case, format_name: str) -> tuple[object, ...]:
    """What two timings must share to be compared, and the format of the peer's."""
    return format_name, case.n_out, case.k_in, case.m, case.threads, case.cold


def _quartiles(samples_s: Sequence[float]) -> tuple[float, float, float]:
    lower, median, upper = np.percentile(samples_s, [25, 50, 75])
    return float(lower), float(median), float(upper)
