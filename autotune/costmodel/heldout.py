"""How well the cost model predicts what it did not see: the error that is printed and saved with every result."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from autotune.costmodel.model import CostModel
from autotune.costmodel.points import timed_devices
from autotune.costmodel.products import Grid, Products, measured_products
from autotune.costmodel.roofline import Ceilings, Form, Product
from autotune.records import Campaign, CostModelReport, HeldOut

LeftOut = Literal["interior m", "site", "thread count"]
_CPU_FORMS: tuple[Form, ...] = ("sum", "max")
_GPU_FORMS: tuple[Form, ...] = (*_CPU_FORMS, "waves")


def fit(campaign: Campaign) -> tuple[CostModel, tuple[CostModelReport, ...]]:
    """Fit every device that was timed, each in the form that predicts its left-out points best.

    Returns:
        The cost model, and a report on each device: the CPU's first, then one per kind of GPU.

    Raises:
        BenchmarkError: The campaign lacks a device's ceilings.
    """
    reports = tuple(_report(campaign, device) for device in dict.fromkeys(timed_devices(campaign).values()))
    return CostModel(campaign, {report.device: report.roofline for report in reports}), reports


def _report(campaign: Campaign, device: str) -> CostModelReport:
    ceilings = Ceilings(campaign, device)
    grid = measured_products(campaign, device)
    forms = _CPU_FORMS if device == "cpu" else _GPU_FORMS
    errors = {form: held_out(grid, ceilings, form) for form in forms}
    # The form matters where the model leans on the roofline: for what was not timed at all. Fewest median errors
    # summed over the ways of leaving out; a tie goes to the sum, which cold CPU products were nearer to.
    form = min(forms, key=lambda candidate: sum(error.median or 0.0 for error in errors[candidate]))
    return CostModelReport(
        roofline=form,
        read_bytes_per_s={str(count): rate for count, rate in sorted(ceilings.read_bytes_per_s.items())},
        operations_per_s={str(count): rate for count, rate in sorted(ceilings.operations_per_s.items())},
        # A GPU is driven by one thread: there is no thread count to leave out.
        held_out=tuple(error for error in errors[form] if device == "cpu" or error.left_out != "thread count"),
        device=device,
    )


def held_out(grid: Grid, ceilings: Ceilings, form: Form) -> tuple[HeldOut, ...]:
    """Errors of a form, for each way of leaving something out."""
    return (
        _summary("interior m", list(_without_m(grid, ceilings, form))),
        _summary("site", list(_without_site(grid, ceilings, form))),
        _summary("thread count", list(_without_threads(grid, ceilings, form))),
    )


def _without_m(grid: Grid, ceilings: Ceilings, form: Form) -> Iterator[float]:
    """Each m of each curve but the first and last, predicted from what was timed at other m on as many threads."""
    for threads in sorted({threads for curves in grid.values() for threads in curves}):
        timed = {product: curves[threads] for product, curves in grid.items() if threads in curves}
        for m in sorted({m for curve in timed.values() for m in sorted(curve)[1:-1]}):
            rest = {
                product: {threads: {other: time_s for other, time_s in curve.items() if other != m}}
                for product, curve in timed.items()
                if set(curve) != {m}
            }
            without = Products(rest, ceilings, form)
            for product, curve in timed.items():
                if m in sorted(curve)[1:-1]:
                    yield from _errors(without, product, threads, {m: curve[m]})


def _without_site(grid: Grid, ceilings: Ceilings, form: Form) -> Iterator[float]:
    """Each product, predicted from the others of its format at the same m and thread count."""
    for product, curves in grid.items():
        rest = {other: held for other, held in grid.items() if other != product and other.format == product.format}
        if rest:
            without = Products(rest, ceilings, form)
            for threads, curve in curves.items():
                yield from _errors(without, product, threads, curve)


def _without_threads(grid: Grid, ceilings: Ceilings, form: Form) -> Iterator[float]:
    """Each thread count, predicted from the others of the same product, at the m that these were timed around."""
    for product, curves in grid.items():
        for threads, curve in curves.items():
            rest = {other: held for other, held in curves.items() if other != threads}
            told = {
                m: time_s for m, time_s in curve.items() if any(min(held) <= m <= max(held) for held in rest.values())
            }
            if told:
                yield from _errors(Products({product: rest}, ceilings, form), product, threads, told)


def _errors(products: Products, product: Product, threads: int, curve: dict[int, float]) -> Iterator[float]:
    """Relative errors of predicting a curve (seconds by m) at one thread count."""
    predicted = products.time_s(product, np.array(list(curve), np.float64), np.array([threads]))[0]
    yield from np.abs(predicted / np.array(list(curve.values())) - 1).tolist()


def _summary(left_out: LeftOut, errors: list[float]) -> HeldOut:
    if not errors:
        return HeldOut(left_out, 0, None, None, None)
    return HeldOut(left_out, len(errors), float(np.median(errors)), float(np.quantile(errors, 0.9)), max(errors))
