"""A report as people read it: a table per shape, in plain characters that any terminal and file can hold."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from rich.box import ASCII_DOUBLE_HEAD
from rich.console import Console
from rich.table import Table

from ternary_kernels.bench.cases import HEAD_SITE, PEER, Case
from ternary_kernels.bench.report import Report, Row
from ternary_kernels.formats import get_format

_LEAST_WIDTH = 190
"""What the tables need; narrower terminals break the lines."""


def show(report: Report) -> None:
    """Print a report on standard output."""
    console = Console(highlight=False, markup=False)
    console = Console(highlight=False, markup=False, width=max(console.width, _LEAST_WIDTH))
    machine, peer = report.machine, report.peer
    paths = f", kernels for {', '.join(machine.paths)}" if machine.paths else ""
    console.print(f"{machine.cpu} ({machine.architecture}){paths}; CPUs {', '.join(map(str, machine.cpus))}")
    console.print(", ".join(f"{name} {version}" for name, version in report.versions.items()))
    if peer is not None:
        console.print(f"peer: {peer.name} {peer.version}, built for {', '.join(peer.features) or 'any CPU'}")
    for ceiling in report.ceilings:
        name, unit = ("read bandwidth", "GB/s") if ceiling.what == "read" else (f"{report.arithmetic} peak", "Gop/s")
        console.print(f"{name}, threads {ceiling.threads}: {ceiling.per_s / 1e9:.1f} {unit}")
    arena = f"{report.arena_bytes / 2**20:.0f} MiB"
    console.print(f"cold: weights rotate through {arena} of memory; warm: the same weights at every call")
    rows = sorted(report.rows, key=lambda row: _subject(row.timing.case))
    for _, group in itertools.groupby(rows, key=lambda row: _subject(row.timing.case)):
        members = list(group)
        console.print(f"\n{_title(members[0].timing.case)}")
        console.print(_table(members))
    for note in report.notes:
        console.print(f"note: {note}")


def _subject(case: Case) -> tuple[bool, int, int, tuple[str, ...]]:
    """What a table is about: a shape; the head's slices, which differ from format to format, share one."""
    head = case.sites == HEAD_SITE
    return head, case.k_in, 0 if head else case.n_out, case.sites


def _table(rows: Sequence[Row]) -> Table:
    """All that was timed on a shape: cold and warm side by side, and what is compared one below the other."""
    kinds = sorted({row.timing.case.cold for row in rows}, reverse=True)
    table = Table(box=ASCII_DOUBLE_HEAD)
    for name in ("m", "threads"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("format", "kernel"):
        table.add_column(name, no_wrap=True)
    for cold in kinds:
        for name in (f"{'cold' if cold else 'warm'} ms", "quartiles", "GB/s", "% read", "% peak", "x ggml"):
            table.add_column(name, justify="right", no_wrap=True)
    cells: dict[tuple[int, int, bool, str, str], dict[bool, Row]] = {}
    for row in rows:
        case = row.timing.case
        kernel = f"{case.kernel} {case.path}" if case.path else case.kernel
        cells.setdefault((case.m, case.threads, case.kernel == PEER, _format(case), kernel), {})[case.cold] = row
    for (m, threads), group in itertools.groupby(sorted(cells), key=lambda key: key[:2]):
        table.add_section()
        for key in group:
            figures = itertools.chain.from_iterable(_figures(cells[key].get(cold)) for cold in kinds)
            table.add_row(str(m), str(threads), *key[3:], *figures)
    return table


def _title(case: Case) -> str:
    shape = f"(a slice) x {case.k_in}" if case.sites == HEAD_SITE else f"{case.n_out} x {case.k_in}"
    return f"{'/'.join(case.sites)} {shape}".strip()


def _format(case: Case) -> str:
    """The format's name, and what must be known of it beside others."""
    name = f"{case.format} (lossy)" if get_format(case.format).lossy else case.format
    return f"{name}, {case.n_out} rows" if case.sites == HEAD_SITE else name


def _figures(row: Row | None) -> tuple[str, ...]:
    """A row's cells for one kind of memory; empty where it was not timed."""
    if row is None:
        return ("",) * 6
    figures = row.figures
    lower, upper = figures.quartiles_s
    return (
        f"{figures.median_s * 1e3:.3g}",
        f"{lower * 1e3:.3g}-{upper * 1e3:.3g}",
        f"{figures.weight_bytes_per_s / 1e9:.3g}",
        _percent(figures.of_read_bandwidth),
        _percent(figures.of_peak),
        "" if figures.times_peer is None else f"{figures.times_peer:.2f}",
    )


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f}"
