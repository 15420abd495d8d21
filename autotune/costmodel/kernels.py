"""Which kernel the cost model's times are of: the fastest one at every point."""

from __future__ import annotations

from autotune.costmodel.placement import parts
from autotune.costmodel.points import counted, timed_devices
from autotune.costmodel.roofline import Product
from autotune.records import Campaign, Configuration, Model, SiteKernels

_Fastest = dict[Product, dict[int, dict[int, str]]]
"""Name of the fastest kernel by product, thread count and m."""


def fastest_kernels(campaign: Campaign, model: Model, configuration: Configuration) -> tuple[SiteKernels, ...]:
    """The fastest kernel of each distinct site on each device, at the values of m that a configuration runs with.

    Where its number of threads wasn't timed, the nearest one that was counts. Sites that weren't timed are left out.
    """
    timed = timed_devices(campaign)
    found = []
    for part in parts(model, configuration):
        fastest = _fastest(campaign, timed[part.device])
        for product in dict.fromkeys((*part.products, *([part.head] if part.head else []))):
            by_threads = fastest.get(product)
            if by_threads:
                decode = _up_to(configuration.batch_size, by_threads, configuration.decode_threads)
                prefill = _up_to(configuration.prefill_chunk, by_threads, configuration.prefill_threads)
                found.append(SiteKernels(*product, decode, prefill if product in part.products else {}, part.device))
    return tuple(found)


def _fastest(campaign: Campaign, device: str) -> _Fastest:
    best: dict[tuple[Product, int, int], tuple[float, str]] = {}
    for found in counted(campaign, "matmul", device):
        point = found.point
        key = Product(point.format, point.n_out, point.k_in), point.threads, point.m
        timed = found.median_s, point.kernel
        best[key] = min(timed, best.get(key, timed))
    fastest: _Fastest = {}
    for (product, threads, m), (_, kernel) in sorted(best.items()):
        fastest.setdefault(product, {}).setdefault(threads, {})[m] = kernel
    return fastest


def _up_to(largest: int, by_threads: dict[int, dict[int, str]], threads: int) -> dict[str, str]:
    """At each m up to the largest the kernel on the number of threads that was timed there and is nearest."""
    nearest = sorted(by_threads, key=lambda count: abs(count - threads), reverse=True)
    kernels = {m: kernel for count in nearest for m, kernel in by_threads[count].items() if m <= largest}
    return {str(m): kernel for m, kernel in sorted(kernels.items())}
