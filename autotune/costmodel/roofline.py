"""The host's own ceilings, and the time a product would take if nothing but they held it back."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autotune.costmodel.points import fastest
from autotune.costmodel.scaling import ScalabilityLaw
from autotune.errors import BenchmarkError
from autotune.records import Campaign, Site
from ternary_kernels.formats import get_format

Floats = NDArray[np.float64]
Form = Literal["sum", "max", "waves"]
"""How memory and compute time combine: they add up, the larger hides the smaller, or as in ``waves.Waves``."""


class Product(NamedTuple):
    """What a site multiplies with; sites that differ in name alone take the same time."""

    format: str
    n_out: int
    k_in: int

    def __str__(self) -> str:
        return f"{self.format} {self.n_out} x {self.k_in}"

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights."""
        return get_format(self.format).size_bytes(self.n_out, self.k_in)

    def moved_bytes(self, m: Floats) -> Floats:
        """Bytes moved: the weights once, m tokens of activations in (int8 or float32) and out (float32)."""
        activation_bytes = 1 if get_format(self.format).ternary else 4
        return self.weight_bytes + m * (self.k_in * activation_bytes + self.n_out * 4)

    def operations(self, m: Floats) -> Floats:
        """Multiplications and additions with m tokens."""
        return 2.0 * m * self.n_out * self.k_in


def product_of(site: Site) -> Product:
    """A site's product."""
    return Product(site.format, site.n_out, site.k_in)


class Ceilings:
    """Measured read bandwidth and arithmetic of one device.

    Args:
        campaign: Holds the ``read`` and ``peak`` points.
        device: Which device's.

    Attributes:
        device: The device.
        read_bytes_per_s: Streaming read bandwidth by thread count.
        operations_per_s: Multiplications and additions per second by thread count.
        multiprocessors: Of a GPU; 1 where their number isn't known.

    Raises:
        BenchmarkError: The campaign has no such points.
    """

    def __init__(self, campaign: Campaign, device: str = "cpu") -> None:
        self.device = device
        reads, peaks = fastest(campaign, "read", device), fastest(campaign, "peak", device)
        for name, found in (("read bandwidth", reads), ("arithmetic", peaks)):
            if not found:
                expected = "expected it at one thread count or more" if device == "cpu" else "expected one point of it"
                raise BenchmarkError(f"the {name} of {device} was not measured: {expected}")
        self.read_bytes_per_s = {p.threads: p.k_in / time_s for p, time_s in reads.items()}
        self.operations_per_s = {
            p.threads: 2 * p.m * p.n_out * p.k_in * p.threads / time_s for p, time_s in peaks.items()
        }
        counts = (run.multiprocessors for run in campaign.gpus if device in run.devices)
        self.multiprocessors = next(counts, None) or 1
        # Per unit of work both are times, which is what scales by the law.
        self._byte_s = ScalabilityLaw({count: 1 / rate for count, rate in self.read_bytes_per_s.items()})
        self._operation_s = ScalabilityLaw({count: 1 / rate for count, rate in self.operations_per_s.items()})

    def byte_s(self, threads: NDArray[np.int64]) -> Floats:
        """Seconds to read one byte at any thread counts, shape (T,)."""
        return self._byte_s.at(threads)

    def operation_s(self, threads: NDArray[np.int64]) -> Floats:
        """Seconds of one multiplication or addition at any thread counts, shape (T,)."""
        return self._operation_s.at(threads)

    def time_s(self, product: Product, m: Floats, threads: NDArray[np.int64], form: Form) -> Floats:
        """Roofline time of a product, shape (T, M): bytes / bandwidth and operations / peak, combined by ``form``."""
        memory = np.outer(self.byte_s(threads), product.moved_bytes(m))
        compute = np.outer(self.operation_s(threads), product.operations(m))
        return memory + compute if form == "sum" else np.maximum(memory, compute)
