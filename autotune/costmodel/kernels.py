"""Which kernel the cost model's times are of: the fastest one at every point."""

from __future__ import annotations

from autotune.costmodel.roofline import Product, product_of
from autotune.records import Campaign, Configuration, Model, SiteKernels


def fastest_kernels(campaign: Campaign, model: Model, configuration: Configuration) -> tuple[SiteKernels, ...]:
    """The fastest kernel of each distinct site of a model, at the values of m that a configuration runs with.

    Where its number of threads wasn't timed, the nearest one that was counts. Sites that weren't timed are left out.
    """
    layer_sites = dict.fromkeys(product_of(site) for layer in dict.fromkeys(model.layers) for site in layer.sites)
    head = product_of(model.head)
    found = []
    for product in dict.fromkeys((*layer_sites, head)):
        by_threads = _fastest(campaign, product)
        if by_threads:
            decode = _up_to(configuration.batch_size, by_threads, configuration.decode_threads)
            prefill = _up_to(configuration.prefill_chunk, by_threads, configuration.prefill_threads)
            found.append(SiteKernels(*product, decode, prefill if product in layer_sites else {}))
    return tuple(found)


def _fastest(campaign: Campaign, product: Product) -> dict[int, dict[int, str]]:
    """Name of the fastest kernel by thread count and m."""
    best: dict[tuple[int, int], tuple[float, str]] = {}
    for found in campaign.measurements():
        point = found.point
        if point.op == "matmul" and (point.format, point.n_out, point.k_in) == product:
            key, timed = (point.threads, point.m), (found.median_s, point.kernel)
            best[key] = min(timed, best.get(key, timed))
    by_threads: dict[int, dict[int, str]] = {}
    for (threads, m), (_, kernel) in sorted(best.items()):
        by_threads.setdefault(threads, {})[m] = kernel
    return by_threads


def _up_to(largest: int, by_threads: dict[int, dict[int, str]], threads: int) -> dict[str, str]:
    nearest = min(by_threads, key=lambda count: abs(count - threads))
    return {str(m): kernel for m, kernel in by_threads[nearest].items() if m <= largest}
