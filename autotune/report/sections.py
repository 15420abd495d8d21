"""What the page shows: each figure with its chart, caption, legend, the numbers behind it, and notes."""

from __future__ import annotations

from typing import NamedTuple

from markupsafe import Markup

from autotune.outlook import Outlook
from autotune.records import Confirmation, MemoryUse, Result
from autotune.report import step_time as steps
from autotune.report.bar_chart import Bar, Segment, axis_end, draw_bars
from autotune.report.curve_chart import draw_curve
from autotune.report.curves import Curve, blocked, curves_of
from autotune.report.measured import Rates
from autotune.report.rivals import CHOSEN, Rival
from autotune.report.roofline_chart import draw_roofline
from autotune.report.rooflines import Roofline
from autotune.report.step_time import StepTime
from autotune.report.tables import (
    Table,
    curve_table,
    memory_table,
    rivals_table,
    roofline_table,
    step_table,
    trials_table,
)
from autotune.report.trial_chart import draw_trials
from autotune.report.trials import steps_of
from autotune.report.wording import brief, counted, inside, percent, ranges, rate, seconds, sentence, size
from autotune.summary import three_digits

_MEMORY_PARTS = ("weights", "KV cache", "activations", "runtime")
_SERIES = {kind: number for number, kind in enumerate(steps.KINDS, 1)}


class Key(NamedTuple):
    """An entry of a legend.

    Attributes:
        swatch: The style sheet's class of its sample.
        text: What it stands for.
    """

    swatch: str
    text: str


class Figure(NamedTuple):
    """A chart and what belongs to it.

    Attributes:
        title: Its heading.
        caption: What to see, in a sentence or two.
        chart: The image.
        table: The numbers behind it.
        legend: Empty where another figure's is enough.
        notes: What else must be said, a sentence each.
    """

    title: str
    caption: str
    chart: Markup
    table: Table
    legend: tuple[Key, ...] = ()
    notes: tuple[str, ...] = ()


CURVE_LEGEND = (
    Key("line", "predicted"),
    Key("band", "95 % band"),
    Key("dot", "measured, with 95 % interval"),
    Key("ring", "chosen"),
    Key("cross", "not possible"),
)
ROOFLINE_LEGEND = (
    Key("dot-accent", "decode, at the batch size"),
    Key("diamond-second", "prefill, at the chunk"),
    Key("hollow", "outlined: interpolated, not timed at this size"),
    Key("line-plain", "ceilings of the host"),
)
TRIAL_LEGEND = (
    Key("dot-accent", "run, the best until then"),
    Key("dot", "run"),
    Key("ring", "chosen"),
    Key("hollow", "pruned"),
    Key("cross", "infeasible"),
    Key("diamond", "failed"),
    Key("line", "best so far"),
)


def curve_figures(outlook: Outlook, rates: Rates) -> tuple[Figure, ...]:
    """Tokens per second over each setting."""
    return tuple(_curve_figure(curve) for curve in curves_of(outlook, rates))


def _curve_figure(curve: Curve) -> Figure:
    notes = tuple(f"{curve.title} {each.values}: {each.obstacle}" for each in blocked(curve))
    return Figure(f"Over {inside(curve.title)}", curve.caption, draw_curve(curve), curve_table(curve), notes=notes)


def roofline_figure(roofline: Roofline) -> Figure:
    """A device's roofline."""
    on_cpu = roofline.devices[0] == "cpu"
    best, lesser = roofline.ceilings[-1], roofline.ceilings[:-1]
    threads = f" on {counted(best.threads, 'thread')}" if on_cpu else ""
    fewer = f"; fainter: {' and '.join(counted(each.threads, 'thread') for each in lesser)}" if lesser else ""
    caption = (
        f"Ceilings{threads}: {three_digits(best.read_bytes_per_s / 1e9)} GB/s and "
        f"{three_digits(best.operations_per_s / 1e9)} GOP/s{fewer}."
    )
    title = f"Roofline of {' and '.join(roofline.devices)}"
    return Figure(title, caption, draw_roofline(roofline), roofline_table(roofline))


def step_figures(step: StepTime) -> tuple[Figure, Figure]:
    """The whole decode step, and a single layer of it."""
    table = step_table(step)
    bars = [
        Bar(
            f"{device.device}{'' if device.measured_s is None else f', measured {seconds(device.measured_s)}'}",
            seconds(device.time_s),
            tuple(_segment(piece) for piece in device.pieces),
            mark=None if device.measured_s is None else device.measured_s * 1e3,
        )
        for device in step.devices
    ]
    kinds = [
        kind for kind in steps.KINDS if any(piece.kind == kind for device in step.devices for piece in device.pieces)
    ]
    legend = [Key(f"series-{_SERIES[kind]}", kind) for kind in kinds]
    whole = f"A decode step is predicted to take {seconds(step.time_s)}"
    if step.measured_s is not None:
        whole += f" and took {seconds(step.measured_s)} when run"
        legend.append(Key("tick", "measured"))
    spent = {kind: sum(p.time_s for d in step.devices for p in d.pieces if p.kind == kind) for kind in kinds}
    shares = ", ".join(
        f"{kind} {percent(time_s / step.time_s)}" for kind, time_s in sorted(spent.items(), key=lambda each: -each[1])
    )
    first = Figure(
        "A whole decode step",
        f"{whole}.",
        draw_bars(bars, "ms", f"A decode step takes {seconds(step.time_s)}: {shares}.", _milliseconds),
        table,
        tuple(legend),
    )
    return first, _layer_figure(step, table)


def _layer_figure(step: StepTime, table: Table) -> Figure:
    layers = [
        Bar(
            f"{'layer' if len(group.numbers) == 1 else 'layers'} {ranges(group.numbers)}, {group.device}",
            f"{seconds(group.layer_s)}{' each' if len(group.numbers) > 1 else ''}",
            tuple(_segment(piece) for piece in group.pieces),
        )
        for group in step.groups
    ]
    if len(step.groups) == 1:
        caption = f"All {len(step.groups[0].numbers)} layers are alike, so one stands for all."
    elif len({group.device for group in step.groups}) == len(step.groups):
        caption = "On each device all layers are alike, so one stands for all of them."
    else:
        caption = "Layers that are alike are drawn once, with their numbers."
    described = "; ".join(f"{bar.label} {bar.note}" for bar in layers)
    return Figure(
        "Layer by layer",
        f"{caption} Small operations are norms, gate and quantisation.",
        draw_bars(layers, "ms", f"Time of a single layer: {described}.", _milliseconds),
        table,
    )


def memory_figure(uses: tuple[MemoryUse, ...], confirmation: Confirmation | None) -> Figure:
    """The plan of each device against what is available and what was used."""
    used = {} if confirmation is None else confirmation.memory_used
    bars, notes = [], []
    for use in uses:
        parts = (use.weights_bytes, use.kv_cache_bytes, use.activations_bytes, use.overhead_bytes)
        found = used.get(use.device)
        bars.append(
            Bar(
                use.device,
                f"{size(use.total_bytes)} of {size(use.available_bytes)}",
                tuple(
                    Segment(at, name, part / 1e9)
                    for at, (name, part) in enumerate(zip(_MEMORY_PARTS, parts, strict=True), 1)
                ),
                mark=None if found is None else found / 1e9,
                capacity=use.available_bytes / 1e9,
            )
        )
        if found is not None:
            notes.append(f"On {use.device} {size(found)} were used at the peak of the runs; the mark shows it.")
    open_ended = any(use.available_bytes / 1e9 > axis_end(bars) for use in uses)
    beyond = " A frame that is open to the right goes on beyond the chart." if open_ended else ""
    legend = [Key(f"series-m{at}", name) for at, name in enumerate(_MEMORY_PARTS, 1)]
    legend.append(Key("frame", "available"))
    if used:
        legend.append(Key("tick", "used when run"))
    described = "; ".join(f"{bar.label} {bar.note}" for bar in bars)
    return Figure(
        "Memory plan",
        f"What the chosen configuration needs at its full context, and what may be planned with.{beyond}",
        draw_bars(bars, "GB", f"Memory planned: {described}.", lambda value: size(value * 1e9), family="m"),
        memory_table(uses, confirmation),
        tuple(legend),
        tuple(notes),
    )


def trials_figure(result: Result, confirmation: Confirmation) -> Figure | None:
    """The measured search; None where it tried nothing."""
    found = steps_of(result, confirmation)
    if not found:
        return None
    chat = confirmation.workload.name == "chat"
    caption = (
        f"Each trial's {'time per output token; less is better' if chat else 'output tokens per second'}, in the order "
        "run. Below the axis stand those without figures of their own."
    )
    states = {step.trial.state for step in found}
    absent = {"pruned": "hollow", "infeasible": "cross", "failed": "diamond"}
    left_out = {swatch for state, swatch in absent.items() if state not in states}
    legend = tuple(key for key in TRIAL_LEGEND if key.swatch not in left_out)
    last = [step for step in found if step.leads][-1:]
    notes = tuple(
        f"Trial {step.number} is no better than the chosen one beyond the noise." for step in last if not step.chosen
    )
    return Figure("Trials", caption, draw_trials(found, chat=chat), trials_table(found), legend, notes)


def rivals_figure(rivals: tuple[Rival, ...]) -> Figure:
    """The chosen configuration beside the baselines."""
    bars, notes = [], []
    for rival in rivals:
        series, how = (1 if CHOSEN in rival.names else 2), "predicted" if rival.rate is None else "measured"
        if rival.prospect.obstacles:
            series, how = 3, "not possible"
            notes.append(f"{sentence(rival.names[0])}: {inside(rival.prospect.obstacles[0])}")
        more = len(rival.names) - 1
        label = rival.names[0] if not more else f"{rival.names[0]} and {counted(more, 'other')}"
        segment = Segment(series, brief(rival.prospect.configuration), rival.tokens_per_s)
        bars.append(Bar(label, f"{three_digits(rival.tokens_per_s)} {how}", (segment,)))
    possible = [rival.tokens_per_s for rival in rivals[1:] if not rival.prospect.obstacles]
    caption = "What people run without tuning, on this host and for this workload."
    if possible:
        times = rivals[0].tokens_per_s / max(possible)
        caption += f" The chosen configuration gives {times:.2f} times the output of the best that is possible."
    described = "; ".join(f"{bar.label} {bar.note}" for bar in bars)
    return Figure(
        "Against the usual rules",
        caption,
        draw_bars(bars, "tokens/s", f"Output tokens per second: {described}.", rate, family="b"),
        rivals_table(rivals),
        notes=tuple(notes),
    )


def _segment(piece: steps.Piece) -> Segment:
    return Segment(_SERIES[piece.kind], piece.name, piece.time_s * 1e3)


def _milliseconds(value: float) -> str:
    return seconds(value / 1e3)
