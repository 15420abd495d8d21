"""Synthetic hosts whose times follow exact laws, so that the right prediction is known; no host was timed."""

from __future__ import annotations

from dataclasses import dataclass

from autotune.records import Campaign, Failure, Measurement, Point, Site
from tests.builders import build_campaign

SMALL = Site("q", 256, 256, "I2_S")
WIDE = Site("gate", 768, 256, "I2_S")
LONG = Site("down", 256, 768, "I2_S")
LARGE = Site("gate", 1536, 256, "I2_S")
HEAD = Site("head", 1000, 256, "F16")
SITES = (SMALL, WIDE, LONG, LARGE, HEAD)


def scaled(threads: int, sigma: float, kappa: float) -> float:
    """T(p) / T(1) by the Universal Scalability Law."""
    return (1 + sigma * (threads - 1) + kappa * threads * (threads - 1)) / threads


def site_bytes(site: Site) -> float:
    """Bytes of a site's weights: two bits each and a 32-byte tail in I2_S, two bytes each in F16."""
    return site.n_out * site.k_in / 4 + 32 if site.format == "I2_S" else 2 * site.n_out * site.k_in


def measured(point: Point, time_s: float) -> Measurement:
    """A point with one sample."""
    return Measurement(point=point, samples_s=(time_s,), calls_per_sample=1, stopped="stable")


def matmul(site: Site, threads: int, m: int, kernel: str = "numpy") -> Point:
    """A site's product on the CPU."""
    return Point("matmul", "cpu", kernel, threads, m, site.format, site.n_out, site.k_in)


def attention(threads: int, m: int, context: int) -> Point:
    """Attention of m tokens over a context on the CPU."""
    return Point("attention", "cpu", "numpy", threads, m, "F16", 256, 128, context)


def small_ops(m: int) -> Point:
    """A layer's small operations on the CPU."""
    return Point("layer_ops", "cpu", "numpy", 1, m, "F32", 768, 256)


@dataclass(frozen=True)
class SyntheticHost:
    """A host that takes exactly ``form`` of memory and compute time over ``utilisation``, plus ``overhead_s``.

    Bandwidth and arithmetic scale with threads by the same sigma and kappa, so each product does as well.
    """

    form: str = "sum"
    bytes_per_s: float = 1e9
    operations_per_s: float = 2e10
    sigma: float = 0.05
    kappa: float = 0.002
    utilisation: float = 1.0
    overhead_s: float = 0.0

    def roofline_s(self, site: Site, m: float, threads: int) -> float:
        activation_bytes = 1 if site.format == "I2_S" else 4
        memory = (site_bytes(site) + m * (site.k_in * activation_bytes + 4 * site.n_out)) / self.bytes_per_s
        compute = 2 * m * site.n_out * site.k_in / self.operations_per_s
        both = memory + compute if self.form == "sum" else max(memory, compute)
        return both * scaled(threads, self.sigma, self.kappa)

    def product_s(self, site: Site, m: float, threads: int) -> float:
        return self.roofline_s(site, m, threads) / self.utilisation + self.overhead_s

    def attention_s(self, m: float, context: float, threads: int) -> float:
        """Linear in the context, a power law in m."""
        return m**1.5 * (2e-6 + 1e-8 * context) * scaled(threads, self.sigma, self.kappa)

    def small_ops_s(self, m: float) -> float:
        """A power law in m."""
        return 1e-6 * m**0.8

    def ceilings(self, threads=(1, 2, 4, 8)) -> list[Measurement]:
        found = []
        for count in threads:
            slower = scaled(count, self.sigma, self.kappa)
            read = Point("read", "cpu", "numpy", count, k_in=1 << 20)
            peak = Point("peak", "cpu", "numpy", count, 64, "F32", 32, 128)
            found += [
                measured(read, (1 << 20) / self.bytes_per_s * slower),
                # Every thread multiplies matrices of its own.
                measured(peak, count * 2 * 64 * 32 * 128 / self.operations_per_s * slower),
            ]
        return found

    def products(self, sites=SITES, threads=(1, 2, 4, 8), tokens=(1, 4, 16, 64)) -> list[Measurement]:
        return [
            measured(matmul(site, count, m), self.product_s(site, m, count))
            for site in sites
            for count in threads
            for m in tokens
        ]

    def layer_rest(self, threads=(1, 2, 4, 8), tokens=(1, 16, 64), contexts=(0, 256)) -> list[Measurement]:
        """Attention and small operations."""
        return [
            *(
                measured(attention(count, m, context), self.attention_s(m, context, count))
                for m in tokens
                for context in contexts
                for count in threads
            ),
            *(measured(small_ops(m), self.small_ops_s(m)) for m in tokens),
        ]

    def outcomes(self) -> list[Measurement]:
        """All that a benchmark would time."""
        return [*self.ceilings(), *self.products(), *self.layer_rest()]


def campaign_of(outcomes: list[Measurement | Failure]) -> Campaign:
    """A campaign with these outcomes."""
    return build_campaign(outcomes=tuple(outcomes))
