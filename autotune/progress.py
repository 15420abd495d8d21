"""How far measuring is: a bar on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from autotune.bench.campaign import Progress
from autotune.search.measured import Running

_LINE_EVERY_S = 5.0

Show = Callable[[str, float, str], None]
"""Takes what is done, the share of its budget that is spent, and how far it is in words."""


class Display(NamedTuple):
    """What is told of a tune's progress; None where nothing is to be shown.

    Attributes:
        progress: For the benchmark.
        running: For the search among runs.
        measuring: For the grid of an exam.
    """

    progress: Progress | None = None
    running: Running | None = None
    measuring: Progress | None = None


@contextmanager
def shown(*, quiet: bool) -> Iterator[Display]:
    """Callbacks that show progress on standard error; none if ``quiet``."""
    if quiet:
        yield Display()
    elif sys.stderr.isatty():
        with _bar() as show:
            yield _display(show)
    else:
        yield _display(_lines())


def _display(show: Show) -> Display:
    def progress(share: float, timed: int, points: int) -> None:
        show("timing", share, f"{timed} of {points} points")

    def running(share: float, tried: int) -> None:
        show("running", share, f"{tried} configuration{'' if tried == 1 else 's'}")

    def measuring(share: float, done: int, parts: int) -> None:
        show("measuring", share, f"{done} of {parts} runs")

    return Display(progress, running, measuring)


@contextmanager
def _bar() -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = TextColumn("{task.fields[what]}"), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn()
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0, what="")
        last = ""

        def show(what: str, share: float, detail: str) -> None:
            nonlocal last
            if what != last:
                last = what
                bar.reset(task)
            bar.update(task, completed=share, description=detail, what=what)

        yield show


def _lines() -> Show:
    last, last_s = "", 0.0

    def show(what: str, share: float, detail: str) -> None:
        nonlocal last, last_s
        if what != last or time.monotonic() - last_s >= _LINE_EVERY_S:
            last, last_s = what, time.monotonic()
            print(f"{what}: {detail}, {share:.0%} of the budget", file=sys.stderr, flush=True)

    return show
