"""Sizes in words. Light: what explains a saved result needs no numerical library."""

from __future__ import annotations


def readable_bytes(size_bytes: float) -> str:
    """A size for people, in decimal units: ``1.19 GB``."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size_bytes >= factor:
            value = size_bytes / factor
            return f"{round(value, 2 if value < 10 else 1 if value < 100 else 0):g} {unit}"
    return f"{size_bytes:.0f} B"
