"""The host's own ceilings, and the time a product would take if nothing but they held it back."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from autotune.costmodel.scaling import over_threads
from autotune.errors import BenchmarkError
from autotune.records import Campaign, Measurement, Site
from ternary_kernels.formats import get_format

Floats = NDArray[np.float64]
Form = Literal["sum", "max"]


class Ceilings:
    """Measured read bandwidth and arithmetic of one device.

    Args:
        campaign: Holds the ``read`` and ``peak`` points.
        device: Which device's.

    Attributes:
        threads: Thread counts that were timed, ascending.
        read_bytes_per_s: Streaming read bandwidth at each.
        operations_per_s: Multiplications and additions at each.

    Raises:
        BenchmarkError: The campaign has no such points.
    """

    def __init__(self, campaign: Campaign, device: str = "cpu") -> None:
        read: dict[int, float] = {}
        peak: dict[int, float] = {}
        for outcome in campaign.outcomes:
            point = outcome.point
            if not isinstance(outcome, Measurement) or point.device != device:
                continue
            if point.op == "read":
                read[point.threads] = point.k_in / outcome.median_s
            elif point.op == "peak":
                peak[point.threads] = 2 * point.m * point.n_out * point.k_in * point.threads / outcome.median_s
        common = sorted(read.keys() & peak.keys())
        if not common:
            raise BenchmarkError(
                f"no ceiling of {device} was measured: expected read bandwidth and arithmetic at one thread count or more"
            )
        self.threads = np.array(common)
        self.read_bytes_per_s = np.array([read[count] for count in common])
        self.operations_per_s = np.array([peak[count] for count in common])
        self._at: dict[bytes, tuple[Floats, Floats]] = {}

    def at(self, threads: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """(bytes/s, operations/s) at any thread counts, shapes (T,): per unit of work both are times that scale."""
        known = self._at.get(threads.tobytes())
        if known is None:
            read = 1 / over_threads(self.threads, 1 / self.read_bytes_per_s, threads)
            known = read, 1 / over_threads(self.threads, 1 / self.operations_per_s, threads)
            self._at[threads.tobytes()] = known
        return known

    def time_s(self, site: Site, m: Floats, threads: NDArray[np.int64], form: Form) -> Floats:
        """Roofline time of a site's product, shape (T, M): bytes / bandwidth and operations / peak, combined by ``form``."""
        read, peak = self.at(threads)
        memory = product_bytes(site, m)[None] / read[:, None]
        compute = product_operations(site, m)[None] / peak[:, None]
        return memory + compute if form == "sum" else np.maximum(memory, compute)


def product_bytes(site: Site, m: Floats) -> Floats:
    """Bytes moved: the weights once, m tokens of activations in (int8 or float32) and out (float32)."""
    held = get_format(site.format)
    activation_bytes = 1 if held.ternary else 4
    return held.size_bytes(site.n_out, site.k_in) + m * (site.k_in * activation_bytes + site.n_out * 4)


def product_operations(site: Site, m: Floats) -> Floats:
    """Multiplications and additions of a product with m tokens."""
    return 2.0 * m * site.n_out * site.k_in
