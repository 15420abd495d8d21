"""A comparison as a table in words, as GitHub-flavoured Markdown, and as the sentence that fails a job."""

from __future__ import annotations

from collections.abc import Sequence

from autotune.compare.verdict import Change, Compared, Comparison, MetricName
from autotune.records import Configuration
from autotune.summary import three_digits

_HEADERS = ("metric", "BASE", "HEAD", "change", "95 % interval", "verdict")
_MARKS = {"worse": "❌", "better": "✅", "same": "✅", "can't tell": "❔"}


def table(found: Comparison) -> str:
    """For a terminal and a job's log."""
    lines = [found.base, found.head]
    for each in found.compared:
        rows = [_HEADERS, *map(_cells, each.changes)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += ["", *_about(each, found), ""]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
    lines += ["", *(f"note: {note}" for note in found.notes), f"verdict: {_verdict(found)}"]
    return "\n".join(lines) + "\n"


def markdown(found: Comparison) -> str:
    """For a job's summary."""
    lines = [f"### autotune compare: {_MARKS[found.verdict]} {_verdict(found)}", ""]
    lines += [f"- {_escaped(line)}" for line in (found.base, found.head)]
    for each in found.compared:
        lines += ["", *(f"{_escaped(line)}  " for line in _about(each, found)), ""]
        lines += [f"| {' | '.join(_HEADERS)} |", f"|{' --- |' * len(_HEADERS)}"]
        lines += [f"| {' | '.join(map(_escaped, _cells(change)))} |" for change in each.changes]
    if found.notes:
        lines += ["", *(f"- {_escaped(note)}" for note in found.notes)]
    return "\n".join(lines) + "\n"


def regression(found: Comparison) -> str:
    """What got worse, in a sentence."""
    worse = [
        f"{_change(change)} (95 % interval {_interval(change)}) of {each.model_name}, {each.workload.name}"
        for each in found.compared
        for change in each.changes
        if change.decides and change.verdict == "worse"
    ]
    return f"HEAD is slower than BASE beyond the margin of {found.margin:.1%}: {'; '.join(worse)}"


def _change(change: Change) -> str:
    values = f"{_value(change.metric, change.base)} to {_value(change.metric, change.head)}"
    return f"{change.metric} {change.change:+.1%}, {values}"


def _about(each: Compared, found: Comparison) -> Sequence[str]:
    workload, formats = each.workload, " / ".join(dict.fromkeys(each.weight_format))
    base, head = (_configuration(configuration) for configuration in each.configuration)
    ran = [f"both ran: {base}"] if base == head else [f"BASE ran: {base}", f"HEAD ran: {head}"]
    if not each.alike:
        decides = next(change.metric for change in each.changes if change.decides)
        ran.append(f"not all ran the same: {decides} decides, as the workload is after that")
    unit = "rounds" if found.mode == "interleaved" else "records"
    runs = " and ".join(dict.fromkeys(map(str, each.runs))) + f" {unit} of each side"
    lengths = f"{workload.name}: prompt {workload.prompt_tokens}, output {workload.output_tokens}"
    return (
        f"{each.model_name} ({formats}), {lengths}, on {each.hardware_class or 'this host'}, {runs}",
        *ran,
    )


def _configuration(configuration: Configuration) -> str:
    layers = ", ".join(f"{count} layers on {device}" for device, count in configuration.device_layers.items())
    threads = f"{configuration.decode_threads} threads for decode, {configuration.prefill_threads} for prefill"
    sizes = f"batch {configuration.batch_size}, prompts in chunks of {configuration.prefill_chunk}"
    return f"{layers}, head on {configuration.head_device}; {threads}; {sizes}"


def _cells(change: Change) -> tuple[str, ...]:
    return (
        change.metric,
        _value(change.metric, change.base),
        _value(change.metric, change.head),
        f"{change.change:+.1%}",
        _interval(change),
        change.verdict if change.decides else f"({change.verdict})",
    )


def _interval(change: Change) -> str:
    return f"{change.low:+.1%} to {change.high:+.1%}"


def _value(metric: MetricName, value: float) -> str:
    return three_digits(value) if metric == "tokens/s" else f"{three_digits(value * 1e3)} ms"


def _verdict(found: Comparison) -> str:
    spent = "" if found.spent_s is None else f", {len(found.rounds)} rounds in {found.spent_s:.0f} s"
    return f"{found.verdict} (margin {found.margin:.1%}{spent})"


def _escaped(text: str) -> str:
    """Text as Markdown shows it: names may hold what marks emphasis or ends a table's cell."""
    for mark in "\\`*_|<>[]":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("\n", " ")
