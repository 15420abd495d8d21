"""Which kernels compete at a point, when one of them has lost, and what its loss spares.

Every kernel that can run is timed where it may be the fastest. The reference is an exception: it is timed at two
points first, and at the others only if it isn't beaten at both, or where all other kernels failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from autotune.errors import KernelUnavailableError, UsageError
from autotune.records import Kernel, Point

REFERENCE = "numpy"
"""The kernel that runs on every CPU and that others are written to beat."""

GPU_REFERENCE = "torch"
"""The same on GPUs."""

FEW_SAMPLES = 2
"""Samples after which a kernel that isn't beaten may still win."""

_MAIN = "native"
_TILES = "amx"
_REFERENCE_TOKENS = 64
_LEAST_TOKENS = {_TILES: 16}
"""A kernel that multiplies tiles has nothing to gain where they aren't full."""

_CLEARLY_SLOWER = 1.5
_FAR_SLOWER = 3.0
"""What one sample alone is believed."""


@dataclass(frozen=True)
class Kernels:
    """The kernels to choose from.

    Attributes:
        by_format: Those that can run here by weight format, the one expected to be fastest first.
        forced: The CPU's that a user asked for, wherever it can be had; None: all are rivals.
        main: That of all that is no product: attention, the small operations, the host's ceilings.
        tiles: The kernel whose arithmetic has a higher peak than the main one's; None: there is none.
        on_gpu: GPU kernels to choose from, those that can't run included; empty where there is no GPU.
    """

    by_format: Mapping[str, tuple[str, ...]]
    forced: str | None = None
    main: str = REFERENCE
    tiles: str | None = None
    on_gpu: tuple[Kernel, ...] = ()

    def at(self, weight_format: str, m: int) -> tuple[str, ...]:
        """Those to time on products with m tokens in a format, the one expected to be fastest first."""
        names = self.by_format.get(weight_format, ())
        able = tuple(name for name in names if m >= _LEAST_TOKENS.get(name, 1)) or names
        if self.forced is None:
            return able
        return (self.forced,) if self.forced in able else able[:1]


def choose_kernels(found: Sequence[Kernel], formats: Sequence[str], forced: str | None) -> Kernels:
    """The kernels to time for a model.

    Args:
        found: What the host can run, on its CPU and on GPUs.
        formats: Weight formats of the model's sites.
        forced: The kernel that the user asked for, of the CPU's or of GPUs'. On a CPU, sites that it has no kernel for
            take the next best one.

    Raises:
        UsageError: There is no kernel of that name.
        KernelUnavailableError: It can't run here with any of the formats, or a format has no kernel that can.
    """
    names = tuple(dict.fromkeys(kernel.kernel for kernel in found))
    if forced is not None and forced not in names:
        raise UsageError(f"--kernel must be one of {', '.join(names)}, got {forced!r}")
    on_cpu = [kernel for kernel in found if kernel.device == "cpu"]
    on_gpu = tuple(kernel for kernel in found if kernel.device == "gpu")
    able = [kernel for kernel in on_cpu if kernel.reason is None]
    by_format = {name: tuple(kernel.kernel for kernel in able if kernel.format == name) for name in formats}
    if forced is not None:
        # A GPU holds some formats as others, so any that its kernel can run will do.
        asked_of_gpu = tuple(kernel for kernel in on_gpu if kernel.kernel == forced)
        asked_of_cpu = [kernel for kernel in on_cpu if kernel.kernel == forced and kernel.format in formats]
        _check_able(forced, asked_of_gpu or asked_of_cpu, formats)
        if asked_of_gpu:
            forced, on_gpu = None, asked_of_gpu
    for name, kernels in by_format.items():
        if not kernels:
            why = "; ".join(f"{kernel.kernel}: {kernel.reason}" for kernel in on_cpu if kernel.format == name)
            raise KernelUnavailableError(f"no kernel can run the weight format {name} here: {why or 'there is none'}")
    running = {kernel.kernel for kernel in able}
    main = _MAIN if forced != REFERENCE and _MAIN in running else REFERENCE
    tiles = _TILES if forced in (None, _TILES) and _TILES in running else None
    return Kernels(by_format, forced, main, tiles, on_gpu)


def _check_able(forced: str, found: Sequence[Kernel], formats: Sequence[str]) -> None:
    if all(kernel.reason is not None for kernel in found):
        reasons = dict.fromkeys(kernel.reason for kernel in found if kernel.reason is not None)
        why = "; ".join(reasons) or f"it has none for {' or '.join(formats)}"
        raise KernelUnavailableError(f"the kernel {forced!r} can't run this here: {why}")


def reference(device: str) -> str:
    """The kernel that is timed throughout only where no other one is faster."""
    return REFERENCE if device == "cpu" else GPU_REFERENCE


def rivals(points: Sequence[Point]) -> list[tuple[int, ...]]:
    """For each point the indices of those that differ from it in nothing but the kernel."""
    alike: dict[Point, list[int]] = {}
    for index, point in enumerate(points):
        alike.setdefault(replace(point, kernel=""), []).append(index)
    return [
        tuple(other for other in alike[replace(point, kernel="")] if other != index)
        for index, point in enumerate(points)
    ]


def gates(points: Sequence[Point]) -> list[tuple[int, ...]]:
    """For each point the indices of those that spare it: where its kernel is beaten at all of them.

    Only the reference has such points, where other kernels do the same. In each format it is compared on the largest
    product, at one token and at 64 (or the most below that), on the most threads: it is slow, and what it loses there
    by half it wins nowhere.
    """
    opposed = rivals(points)
    contested: dict[tuple[str, str], list[int]] = {}
    for index, point in enumerate(points):
        if point.op == "matmul" and point.kernel == reference(point.device) and opposed[index]:
            contested.setdefault((point.device, point.format), []).append(index)
    found: list[tuple[int, ...]] = [()] * len(points)
    for indices in contested.values():
        largest = max((points[index] for index in indices), key=lambda p: (p.n_out * p.k_in, p.n_out, p.threads))
        same = largest.n_out, largest.k_in, largest.threads
        on_largest = [i for i in indices if (points[i].n_out, points[i].k_in, points[i].threads) == same]
        most = max((points[index].m for index in on_largest if points[index].m <= _REFERENCE_TOKENS), default=0)
        first = tuple(index for index in on_largest if points[index].m in (1, most))
        for index in indices:
            if index not in first:
                found[index] = first
    return found


def is_beaten(samples_s: Sequence[float], rivals_s: Sequence[Sequence[float]]) -> bool:
    """Whether a rival is clearly faster, the best sample of each compared.

    Args:
        samples_s: Seconds per call of one kernel.
        rivals_s: The same of the others at this point.
    """
    if not samples_s:
        return False
    factor = _CLEARLY_SLOWER if len(samples_s) >= FEW_SAMPLES else _FAR_SLOWER
    return any(min(samples_s) > factor * min(other) for other in rivals_s if other)
