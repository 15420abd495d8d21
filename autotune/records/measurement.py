"""What was timed: points, measurements with their raw samples, failures as values, and the noise of a run."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from autotune.records.base import Record
from autotune.records.host import Kernel

Op = Literal["matmul", "attention", "layer_ops", "read", "peak", "upload", "download", "handover"]
Launch = Literal["eager", "graph"]
FailureKind = Literal["wrong_result", "crashed", "hung", "out_of_memory", "unsupported", "budget"]


class Point(Record, frozen=True, omit_defaults=True):
    """One thing to time: an operation with its sizes, on a device, with a number of threads."""

    op: Op
    """matmul: a site's product. attention: scores and values over the KV cache, one layer. layer_ops: norms, activation
    quantisation, gate, one layer. read, peak: the device's ceilings (streaming reads, on a GPU a copy, whose bytes
    count when read and when written; multiply-adds). upload, download: bytes from host memory to a GPU's and back.
    handover: a step that passes through a GPU, its activations uploaded, the result downloaded and waited for."""
    device: str
    """``cpu``, ``cuda:0``, ..."""
    kernel: str
    """The kernel implementation, for example ``numpy``; of transfers the host memory's kind, ``pinned`` or
    ``pageable``."""
    threads: int
    """On the CPU; 1 on a GPU, which one host thread drives."""
    m: int = 0
    """Tokens multiplied at once (activation rows)."""
    format: str = ""
    """Weight format of a matmul; of the other operations what they calculate with."""
    n_out: int = 0
    k_in: int = 0
    """Of ``read`` and of transfers the bytes."""
    context: int = 0
    """Tokens in the KV cache before this step, for attention."""
    sequences: int = 1
    """Sequences of m tokens each that a GPU's attention takes at once."""
    launch: Launch | None = None
    """How a GPU's work was launched: call by call, or replayed from a CUDA graph; None on the CPU."""


class Measurement(Record, frozen=True, tag="measurement"):
    """Raw samples of one point. Median, quartiles and the interval are derived, never stored."""

    point: Point
    samples_s: tuple[float, ...]
    """Seconds per call of the whole operation, one entry per sample, in the order taken."""
    calls_per_sample: int
    stopped: Literal["converged", "stable", "budget", "beaten", "enough"]
    """Why sampling ended: the median's 95 % interval is within 2 %; it stopped shrinking; the time was up; another
    kernel does the same so much faster that more samples can't change which one counts; the interval is wider than
    2 %, but what is decided hardly depends on this point."""
    rows_timed: int | None = None
    """For a site too large to time whole: the rows that were, from which ``samples_s`` was scaled up."""
    disturbed: int = 0
    """Samples discarded and repeated because the process was interrupted or slowed down while they ran."""

    @property
    def median_s(self) -> float:
        """Median seconds per call."""
        return median(self.samples_s)

    @property
    def quartiles_s(self) -> tuple[float, float]:
        """First and third quartile, seconds per call (linear interpolation between order statistics)."""
        ordered = sorted(self.samples_s)
        return _quantile(ordered, 0.25), _quantile(ordered, 0.75)

    @property
    def mad_s(self) -> float:
        """Median absolute deviation from the median, seconds per call."""
        centre = self.median_s
        return median([abs(sample - centre) for sample in self.samples_s])

    @property
    def relative_interval(self) -> float | None:
        """Half the width of the median's 95 % interval, relative to the median; None below 6 samples.

        The interval is distribution-free: between order statistics chosen by the binomial distribution
        (Source: Hahn and Meeker, Statistical Intervals, section 5.2). Fewer than 6 samples can't give 95 %.
        """
        return relative_median_interval(self.samples_s)


class Failure(Record, frozen=True, tag="failure"):
    """A point that could not be timed, and why."""

    point: Point
    kind: FailureKind
    message: str


Outcome = Measurement | Failure


class Noise(Record, frozen=True):
    """How quiet the host was while measuring."""

    median_relative_interval: float | None
    """Median over all points of half the 95 % interval's width, relative; None if no point has 6 samples."""
    converged: int
    """Points whose interval came within 2 %."""
    points: int
    disturbed_samples: int
    control_drift: float
    """Largest distance of the control product's time from its median over the run, relative."""
    steal_fraction: float | None
    """Share of CPU time taken by the hypervisor while measuring; None where the system doesn't say."""
    throttled_s: float | None
    """Seconds the cgroup's CPU quota held the process back; None without a quota."""

    @property
    def label(self) -> Literal["quiet", "noisy", "very noisy"]:
        """quiet: interval within 2 % and drift within 3 %; very noisy: interval beyond 10 %.

        The drift is the largest of some dozens of readings, so it alone makes no host very noisy. Without an interval
        a host counts as noisy.
        """
        width = self.median_relative_interval
        if width is None:
            return "noisy"
        if width <= 0.02 and self.control_drift <= 0.03:
            return "quiet"
        return "very noisy" if width > 0.10 else "noisy"


class GpuClocks(Record, frozen=True):
    """What a GPU's clocks did while it was timed, as NVML told; None where it doesn't say."""

    lowest_sm_hz: float | None
    highest_sm_hz: float | None
    memory_hz: float | None
    throttle_reasons: tuple[str, ...]
    """Why clocks were held back at some time, in NVML's words: ``sw_power_cap``, ``hw_thermal_slowdown``."""
    busy_before: float | None
    """Share of time that the GPU was busy before anything was timed, with other processes' work: 0 to 1."""


class GpuRun(Record, frozen=True):
    """What timing a GPU told beside its points, or why it wasn't timed."""

    devices: tuple[str, ...]
    """GPUs for which the points of the first one count: they are identical, so one is timed."""
    failure: str | None
    """Why nothing can be decided about them, in words; None: they were timed."""
    noise: Noise | None = None
    spent_s: float = 0.0
    cold_bytes: int = 0
    """Memory through which weights rotate on the GPU: more than twice its L2 cache."""
    context_bytes: int = 0
    """Device memory that a process takes before it has a tensor: context, libraries, kernels; measured."""
    host_bytes: int = 0
    """Resident host memory of such a process."""
    free_bytes: int | None = None
    """Device memory that was free before the context."""
    l2_bytes: int | None = None
    multiprocessors: int | None = None
    clocks: GpuClocks | None = None
    libraries: dict[str, str] = msgspec.field(default_factory=dict)
    """What ran there, name to version: torch, triton, cuda (that torch was built for)."""


class Campaign(Record, frozen=True):
    """All that one benchmark run measured on one host for one model."""

    outcomes: tuple[Outcome, ...]
    noise: Noise
    budget_s: float
    spent_s: float
    cold_bytes: int
    """Size of the memory through which weights rotate, so that none is in cache when it is used."""
    runtime_overhead_bytes: int
    """Resident memory of the worker before it allocated anything: interpreter, libraries, kernels."""
    kernel: str | None = None
    """The kernel that ``--kernel`` asked for; None: all that can run were rivals."""
    kernels: tuple[Kernel, ...] = ()
    """The kernels there are for the formats timed, and which of them could run."""
    quick: bool = False
    """Whether a shorter benchmark was asked for, which could have timed fewer points."""
    spared: int = 0
    """The CPU's points that could have been timed and were not asked for, as the decision needed others more, or no
    more at all."""
    gpus: tuple[GpuRun, ...] = ()
    """One entry per kind of GPU; noise, cold memory and overhead above are the CPU's."""
    measured_at: str | None = None
    """When it began, UTC, ISO 8601; None in campaigns older than this field."""

    def measurements(self) -> tuple[Measurement, ...]:
        """The points that were timed."""
        return tuple(outcome for outcome in self.outcomes if isinstance(outcome, Measurement))

    def failures(self) -> tuple[Failure, ...]:
        """The points that could not be."""
        return tuple(outcome for outcome in self.outcomes if isinstance(outcome, Failure))


def median(values: tuple[float, ...] | list[float]) -> float:
    """Median of a non-empty sequence, without the imports that ``statistics.median`` would cost a loader."""
    return _quantile(sorted(values), 0.5)


def relative_median_interval(samples: tuple[float, ...] | list[float]) -> float | None:
    """Half the width of a 95 % distribution-free interval of the median, over the median; None below 6 samples."""
    count = len(samples)
    if count < 6:
        return None
    ordered = sorted(samples)
    # The largest rank r with P(Binomial(n, 1/2) < r) <= 2.5 %: the interval is [x_(r), x_(n+1-r)], ranks from 1.
    tail, rank = 0.5**count, 0
    while tail <= 0.025:
        rank += 1
        tail += math.comb(count, rank) * 0.5**count
    return (ordered[count - rank] - ordered[rank - 1]) / 2 / median(ordered)


def _quantile(ordered: list[float], q: float) -> float:
    position = q * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)
