"""What else could have been chosen: figures along each setting, the chosen configuration's others kept."""

from __future__ import annotations

from typing import NamedTuple

from autotune.outlook import Outlook, Prospect, Setting
from autotune.records import Configuration
from autotune.report.measured import Rates

_MOST_CURVES = 3
"""As many as stand beside each other on a wide page."""

_BROKEN = {"memory": "fits the memory", "limits": "keeps the limits", None: "is feasible"}


class Mark(NamedTuple):
    """One value of a setting.

    Attributes:
        value: The setting's.
        predicted: Output tokens per second; None: nothing with this value fits the memory at all.
        within: 95 % band of that.
        measured: Output tokens per second; None: it was not run.
        measured_within: 95 % interval of that.
        chosen: Whether it is the chosen configuration.
        obstacles: What keeps it from being feasible, in sentences; empty: nothing.
    """

    value: int
    predicted: float | None
    within: tuple[float, float] | None
    measured: float | None
    measured_within: tuple[float, float] | None
    chosen: bool
    obstacles: tuple[str, ...]


class Curve(NamedTuple):
    """Tokens per second over one setting.

    Attributes:
        title: The setting.
        caption: What becomes of the other settings, in words.
        marks: By ascending value.
        doubling: Whether values double from one to the next, rather than count on.
    """

    title: str
    caption: str
    marks: tuple[Mark, ...]
    doubling: bool = False


class Blocked(NamedTuple):
    """Neighbouring values that aren't feasible.

    Attributes:
        values: In words, ``16 to 64``.
        obstacle: What speaks against the first of them: one sentence.
    """

    values: str
    obstacle: str


def curves_of(outlook: Outlook, rates: Rates) -> tuple[Curve, ...]:
    """The settings that say the most about a choice; those that offer one value only are left out."""

    def along(setting: Setting) -> tuple[Mark, ...]:
        found = outlook.over(setting)
        return tuple(_mark(getattr(prospect.configuration, setting), prospect, outlook, rates) for prospect in found)

    kept = "All other settings stay as chosen."
    best = "With each number the best threads, batch and chunk."
    found = (
        Curve("Decode threads", kept, along("decode_threads")),
        Curve("Batch size", kept, along("batch_size"), doubling=True),
        Curve("Layers on GPUs", best, _over_gpu_layers(outlook, rates)),
        Curve("Prefill chunk", kept, along("prefill_chunk"), doubling=True),
        Curve("Prefill threads", kept, along("prefill_threads")),
    )
    return tuple(curve for curve in found if len(curve.marks) > 1)[:_MOST_CURVES]


def blocked(curve: Curve) -> tuple[Blocked, ...]:
    """What keeps values from being feasible.

    Sentences differ from value to value in their numbers alone, so of neighbours the first one's stands for all.
    """
    runs: list[list[Mark]] = []
    previous = None
    for mark in curve.marks:
        if mark.obstacles:
            if previous is None or not previous.obstacles:
                runs.append([])
            runs[-1].append(mark)
        previous = mark
    return tuple(
        Blocked(str(run[0].value) if len(run) == 1 else f"{run[0].value} to {run[-1].value}", run[0].obstacles[0])
        for run in runs
    )


def gpu_layers(configuration: Configuration) -> int:
    """Layers that aren't on the CPU."""
    return sum(layers for device, layers in configuration.device_layers.items() if device != "cpu")


def _over_gpu_layers(outlook: Outlook, rates: Rates) -> tuple[Mark, ...]:
    """The best with each number of layers; with the chosen one's number it is the chosen one."""
    chosen, marks = outlook.chosen, []
    for split in outlook.result.decision.split_curve:
        if split.gpu_layers == gpu_layers(chosen.configuration):
            marks.append(_mark(split.gpu_layers, chosen, outlook, rates))
        elif split.best is not None:
            marks.append(_mark(split.gpu_layers, outlook.at(split.best), outlook, rates))
        else:
            obstacle = f"No configuration with so many {_BROKEN[split.broken]}."
            marks.append(Mark(split.gpu_layers, None, None, None, None, chosen=False, obstacles=(obstacle,)))
    return tuple(marks)


def _mark(value: int, prospect: Prospect, outlook: Outlook, rates: Rates) -> Mark:
    rate = rates.of(prospect.configuration)
    return Mark(
        value=value,
        predicted=prospect.predicted.tokens_per_s,
        within=prospect.tokens_per_s_within,
        measured=None if rate is None else rate.measured.tokens_per_s,
        measured_within=None if rate is None else rate.within,
        chosen=prospect.configuration == outlook.chosen.configuration,
        obstacles=prospect.obstacles,
    )
