"""How well the cost model predicts what it did not see: the error that is printed and saved with every result."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from autotune.costmodel.model import CostModel
from autotune.costmodel.products import Grid, Key, Products, measured_products
from autotune.costmodel.roofline import Ceilings, Form
from autotune.records import Campaign, CostModelReport, HeldOut, Site

LeftOut = Literal["interior m", "site", "thread count"]
_FORMS: tuple[Form, ...] = ("sum", "max")


def fit(campaign: Campaign) -> tuple[CostModel, CostModelReport]:
    """Fit the cost model in the form that predicts left-out points best.

    Raises:
        BenchmarkError: The campaign lacks the host's ceilings.
    """
    ceilings = Ceilings(campaign)
    grid = measured_products(campaign)
    errors = {form: held_out(grid, ceilings, form) for form in _FORMS}
    # The form matters where the model leans on the roofline: for what was not timed at all. Fewest median errors
    # summed over the ways of leaving out; a tie goes to the sum, which cold CPU products were nearer to.
    form = min(_FORMS, key=lambda candidate: sum(error.median or 0.0 for error in errors[candidate]))
    return CostModel(campaign, form), CostModelReport(
        roofline=form,
        read_bytes_per_s={str(p): float(v) for p, v in zip(ceilings.threads, ceilings.read_bytes_per_s, strict=True)},
        operations_per_s={str(p): float(v) for p, v in zip(ceilings.threads, ceilings.operations_per_s, strict=True)},
        held_out=errors[form],
    )


def held_out(grid: Grid, ceilings: Ceilings, form: Form) -> tuple[HeldOut, ...]:
    """Errors of a form, for each way of leaving something out."""
    return (
        _summary("interior m", list(_without_m(grid, ceilings, form))),
        _summary("site", list(_without_site(grid, ceilings, form))),
        _summary("thread count", list(_without_threads(grid, ceilings, form))),
    )


def _without_m(grid: Grid, ceilings: Ceilings, form: Form) -> Iterator[float]:
    """Each m of each curve but the first and last, predicted from the rest of its curve."""
    for key, by_threads in grid.items():
        for threads, curve in by_threads.items():
            for m in sorted(curve)[1:-1]:
                rest = {other: time for other, time in curve.items() if other != m}
                yield _error(Products({key: {threads: rest}}, ceilings, form), key, m, threads, curve[m])


def _without_site(grid: Grid, ceilings: Ceilings, form: Form) -> Iterator[float]:
    """Each product, predicted from the others of its format at the same m and thread count."""
    for key, by_threads in grid.items():
        rest = {other: curves for other, curves in grid.items() if other != key and other[0] == key[0]}
        if not rest:
            continue
        products = Products(rest, ceilings, form)
        for threads, curve in by_threads.items():
            for m, time in curve.items():
                yield _error(products, key, m, threads, time)


def _without_threads(grid: Grid, ceilings: Ceilings, form: Form) -> Iterator[float]:
    """Each thread count, predicted from the others of the same product."""
    for key, by_threads in grid.items():
        for threads, curve in by_threads.items():
            rest = {count: other for count, other in by_threads.items() if count != threads}
            if not rest:
                continue
            products = Products({key: rest}, ceilings, form)
            for m, time in curve.items():
                yield _error(products, key, m, threads, time)


def _error(products: Products, key: Key, m: int, threads: int, time_s: float) -> float:
    predicted = products.time_s(Site("left out", key[1], key[2], key[0]), [m], np.array([threads]))[0, 0]
    return abs(float(predicted) / time_s - 1)


def _summary(left_out: LeftOut, errors: list[float]) -> HeldOut:
    if not errors:
        return HeldOut(left_out, 0, None, None, None)
    return HeldOut(
        left_out, len(errors), float(np.median(errors)), float(np.quantile(errors, 0.9)), float(max(errors))
    )
