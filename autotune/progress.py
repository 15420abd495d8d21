"""How far a benchmark is: a bar on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from autotune.bench.campaign import Progress

_LINE_EVERY_S = 5.0


@contextmanager
def shown(*, quiet: bool) -> Iterator[Progress | None]:
    """A callback for the benchmark that shows its progress on standard error; None if ``quiet``."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _bar() as progress:
            yield progress
    else:
        yield _lines()


@contextmanager
def _bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = TextColumn("timing"), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn()
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0)

        def progress(share: float, timed: int, points: int) -> None:
            bar.update(task, completed=share, description=f"{timed} of {points} points")

        yield progress


def _lines() -> Progress:
    last = -_LINE_EVERY_S

    def progress(share: float, timed: int, points: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _LINE_EVERY_S:
            last = time.monotonic()
            print(f"timing: {timed} of {points} points, {share:.0%} of the budget", file=sys.stderr, flush=True)

    return progress
