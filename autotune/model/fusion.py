"""Matrices that a GPU multiplies with at once: one launch, and a product large enough to fill it."""

from __future__ import annotations

from functools import lru_cache

from autotune.records import Layer, Site

_FUSED = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
"""Sites that take the same input, by the name of the one they become."""


@lru_cache(maxsize=1024)
def fused(layer: Layer) -> tuple[Site, ...]:
    """A layer's sites as a GPU multiplies with them: q, k and v are one matrix, gate and up another.

    Their rows lie one below the other. Sites that differ in format or columns stay as they are.
    """
    sites = list(layer.sites)
    for name, parts in _FUSED.items():
        for start in range(len(sites) - len(parts) + 1):
            found = sites[start : start + len(parts)]
            if tuple(site.name for site in found) == parts and len({(site.format, site.k_in) for site in found}) == 1:
                rows = sum(site.n_out for site in found)
                sites[start : start + len(parts)] = [Site(name, rows, found[0].k_in, found[0].format)]
                break
    return tuple(sites)
