"""Records as lines for a person: what all have in common once, below it a line for each."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from autotune.history.select import moment_of
from autotune.history.store import Stored
from autotune.history.table import device_layers
from autotune.records.history import HistoryRecord
from autotune.summary import three_digits

_UNLIMITED = 10_000
"""Columns where there is no terminal to fit in: every record stays on one line."""

_GAP = 2
_NARROWEST = 12
"""Columns that are left to what may be wrapped."""

Value = Callable[[HistoryRecord], str]

_EACH: dict[str, Value] = {
    "when (UTC)": lambda record: f"{moment_of(record).astimezone(UTC):%Y-%m-%d %H:%M}",
    "commit": lambda record: "-" if record.commit is None else f"{record.commit[:7]}{'*' if record.dirty else ''}",
    "tokens/s": lambda record: tokens_per_s(record) + ("" if record.measured else " (predicted)"),
    "TPOT": lambda record: _milliseconds((record.measured or record.predicted).tpot_s),
    "TTFT": lambda record: _milliseconds((record.measured or record.predicted).ttft_s),
    "speed-up": lambda record: "-" if record.speedup_over_default is None else f"{record.speedup_over_default:.2f}x",
    "noise": lambda record: record.noise_label,
}
"""Columns that are there always."""

_SHARED: dict[str, Value] = {
    "model": lambda record: f"{record.model_name} ({record.weight_format})",
    "workload": lambda record: record.workload.name,
    "class": lambda record: record.hardware_class or "unknown",
    "layers": device_layers,
    "threads": lambda record: f"{record.configuration.decode_threads}/{record.configuration.prefill_threads}",
    "batch": lambda record: f"{record.configuration.batch_size}",
    "chunk": lambda record: f"{record.configuration.prefill_chunk}",
}
"""What is often the same in all records: a column only where it isn't."""

_WRAPPED = ("layers", "model", "class")
_DROPPED = ("noise", "TTFT", "chunk", "commit", "TPOT", "speed-up", "threads")
"""What a narrow terminal is spared, the first first; then the table says so."""


def listing(stored: Sequence[Stored], width: int | None) -> str:
    """Records as a table in words.

    Args:
        stored: The records, in the order to list them in; at least one.
        width: Columns of the terminal, which the lines keep to; None: there is none.
    """
    records = [one.record for one in stored]
    cells = {label: [_printable(value(record)) for record in records] for label, value in (_EACH | _SHARED).items()}
    same = [label for label in _SHARED if len(set(cells[label])) == 1]
    head = [f"{label}: {cells.pop(label)[0]}" for label in same]
    dropped = [label for label in _DROPPED if label in cells]
    left_out = []
    while width is not None and dropped and _least_width(cells) > width:
        left_out.append(dropped.pop(0))
        del cells[left_out[-1]]
    if left_out:
        head.append(f"no room for {', '.join(left_out)}")
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
    for label in cells:
        table.add_column(label, no_wrap=label not in _WRAPPED, overflow="fold")
    for row in zip(*cells.values(), strict=True):
        table.add_row(*row)
    text = io.StringIO()
    console = Console(
        file=text, width=width or _UNLIMITED, color_system=None, markup=False, emoji=False, highlight=False
    )
    if head:
        console.print("; ".join(head), "", sep="\n")
    console.print(table)
    # Rich fills every line with spaces to the table's width.
    return "".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines())


def figures(record: HistoryRecord) -> str:
    """The chosen configuration's figures in words, measured if it was run."""
    found, about = record.measured or record.predicted, "measured" if record.measured else "predicted"
    speedup = (
        "" if record.speedup_over_default is None else f", {record.speedup_over_default:.2f}x the fallback's speed"
    )
    times = f"TPOT {_milliseconds(found.tpot_s)}, TTFT {_milliseconds(found.ttft_s)}"
    return f"{about} {tokens_per_s(record)} tokens/s, {times}{speedup}"


def tokens_per_s(record: HistoryRecord) -> str:
    """Output tokens per second with the interval that is known, predicted where nothing was run."""
    found = record.measured
    if found is None:
        return three_digits(record.predicted.tokens_per_s)
    interval = "" if found.relative_interval is None else f" ±{found.relative_interval:.1%}"
    return f"{three_digits(found.tokens_per_s)}{interval}"


def _least_width(cells: Mapping[str, Sequence[str]]) -> int:
    """Columns that a table needs at least."""
    widths = {label: max(map(cell_len, (label, *column))) for label, column in cells.items()}
    least = (min(width, _NARROWEST) if label in _WRAPPED else width for label, width in widths.items())
    return sum(least) + _GAP * (len(cells) - 1)


def _milliseconds(time_s: float) -> str:
    return f"{three_digits(time_s * 1e3)} ms"


def _printable(text: str) -> str:
    """Names come from other machines: what could steer a terminal is shown as a question mark."""
    return "".join(character if character.isprintable() else "?" for character in text)
