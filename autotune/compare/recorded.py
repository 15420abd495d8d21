"""Compares what was recorded: runs of both sides on the same class of hardware, pooled."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from autotune.compare.statistics import LEVEL, runs_interval
from autotune.compare.verdict import (
    METRICS,
    Compared,
    Comparison,
    change_of,
    log_times,
    objective,
    on_the_whole,
    overall,
)
from autotune.errors import UsageError
from autotune.history import store
from autotune.history.select import Wanted, select
from autotune.records import Workload, median, relative_median_interval
from autotune.records.history import HistoryRecord

_COMMIT = re.compile("[0-9a-fA-F]{4,64}")
_WITHIN_95 = 1.96
_PROCESS_DEVIATION = 0.02
"""Of a process from the next, relative, and in none of its samples: see ``turns``. Most hosts show less."""
_DRIFTS_95 = 2.0
"""The drift recorded is the largest of some dozens of readings: about twice a standard deviation."""


class Kind(NamedTuple):
    """What records must have in common to be compared."""

    hardware_class: str
    model_name: str
    model_digest: str
    weight_format: str
    workload: Workload

    def __str__(self) -> str:
        lengths = f"prompt {self.workload.prompt_tokens}, output {self.workload.output_tokens}"
        return f"{self.model_name} ({self.weight_format}), {self.workload.name} ({lengths}), on {self.hardware_class}"


def find_records(
    side: str,
    given: str,
    results: str,
    *,
    model: str | None = None,
    workload: str | None = None,
    weight_format: str | None = None,
) -> list[HistoryRecord]:
    """The records that a user names: a file, a folder, or a commit whose records lie in the results' folder.

    Args:
        side: ``BASE`` or ``HEAD``.
        given: What the user said.
        results: Folder in which a commit's records are looked for.
        model: Only those of this model, by name or pattern.
        workload: Only those of this workload.
        weight_format: Only those in this format.

    Raises:
        UsageError: It names none.
        StoreError: The file can't be read, or is none.
        ResultNotFoundError: There is no such folder of results.
    """
    path, wanted = Path(given), Wanted(model=model, workload=workload)
    if path.is_file():
        stored = [store.Stored(given, store.read(path))]
    elif path.is_dir():
        stored = list(store.read_tree(path))
    elif _COMMIT.fullmatch(given):
        stored, wanted = list(store.read_tree(results)), wanted._replace(commit=given)
    else:
        raise UsageError(
            f"{side} ({given}): expected a Python executable, a virtual environment, a checkout of autotune, a record, "
            "a folder of records or the first 4 or more digits of a commit, and there is no such file"
        )
    wanted.check()
    found = [one.record for one in select(stored, wanted) if weight_format in (None, one.record.weight_format)]
    if not stored and path.is_dir():
        raise UsageError(
            f"{side} ({given}): the folder is no virtual environment, no checkout of autotune, and has no records"
        )
    if not found:
        limits = {"model": model, "workload": workload, "format": weight_format}
        asked = "".join(f", {name} {value}" for name, value in limits.items() if value is not None)
        where = f" in {results}" if wanted.commit else ""
        raise UsageError(f"{side} ({given}): expected records{where}{asked}, got none among {len(stored)}")
    return found


def compare_records(
    names: tuple[str, str], base: Sequence[HistoryRecord], head: Sequence[HistoryRecord], margin: float
) -> Comparison:
    """Compare runs of both sides, kind by kind.

    Args:
        names: What BASE and HEAD are, in words.
        base: BASE's records.
        head: HEAD's.
        margin: Relative time; what lies within it counts as the same.

    Raises:
        UsageError: They have nothing in common, or were only predicted.
    """
    notes: list[str] = []
    kinds = [_by_kind(name, side, notes) for name, side in zip(names, (base, head), strict=True)]
    common = [kind for kind in kinds[0] if kind in kinds[1]]
    shared = sum(len({*map(_run, kinds[0][kind])} & {*map(_run, kinds[1][kind])}) for kind in common)
    if shared:
        notes.append(
            f"BASE and HEAD have {shared} run{'' if shared == 1 else 's'} in common, which can't tell them apart"
        )
    if not common:
        have = [f"{name} has {'; '.join(map(str, side))}" for name, side in zip(names, kinds, strict=True)]
        raise UsageError(
            f"records are compared for the same hardware class, model, format and workload: {' and '.join(have)}"
        )
    for index, side in enumerate(kinds):
        notes += [f"only {names[index]} has {kind}: not compared" for kind in side if kind not in common]
    alpha = (1 - LEVEL) / (len(METRICS) * len(common))
    compared = tuple(_compared(kind, kinds[0][kind], kinds[1][kind], margin, alpha) for kind in common)
    verdict = on_the_whole(each.verdict for each in compared)
    if verdict == "can't tell":
        notes.append("more records of both sides, or running both in turns, tell more")
    labels = [{record.host_label for kind in common for record in side[kind]} for side in kinds]
    if labels[0] != labels[1]:
        notes.append(f"recorded on different hosts: {', '.join(sorted(labels[0]))} and {', '.join(sorted(labels[1]))}")
    return Comparison(
        mode="recorded",
        base=_described(names[0], base),
        head=_described(names[1], head),
        margin=margin,
        verdict=verdict,
        compared=compared,
        notes=tuple(notes),
        spent_s=None,
    )


def _by_kind(name: str, records: Iterable[HistoryRecord], notes: list[str]) -> dict[Kind, list[HistoryRecord]]:
    """Records by what they have in common; of those that can't be compared a note is left.

    Raises:
        UsageError: None can be.
    """
    kinds: dict[Kind, list[HistoryRecord]] = {}
    predicted = unclassed = again = 0
    known = set()
    for record in records:
        if record.measured is None:
            predicted += 1
        elif not record.hardware_class:
            unclassed += 1
        elif _run(record) in known:
            again += 1
        else:
            known.add(_run(record))
            kinds.setdefault(_kind(record), []).append(record)
    left_out = [
        f"{count} of {name} {words}"
        for count, words in (
            (predicted, "only predicted"),
            (unclassed, "without a hardware class"),
            (again, "of a run that another one is of"),
        )
        if count
    ]
    if not kinds:
        raise UsageError(f"expected records of runs on a class of hardware, got {' and '.join(left_out)}")
    notes += [f"records left out: {words}" for words in left_out]
    return kinds


def _compared(
    kind: Kind, base: Sequence[HistoryRecord], head: Sequence[HistoryRecord], margin: float, alpha: float
) -> Compared:
    alike = len({_identity(record) for record in (*base, *head)}) == 1
    times = [[_times(record) for record in side] for side in (base, head)]
    deviations = [_deviation(record) for record in (*base, *head)]
    changes = []
    for place, metric in enumerate(METRICS):
        of_base, of_head = ([run[place] for run in side] for side in times)
        slowdown = runs_interval(of_base, of_head, deviations, alpha)
        middles = median(of_base), median(of_head)
        changes.append(
            change_of(metric, middles, slowdown, margin, decides=alike or metric == objective(kind.workload))
        )
    return Compared(
        hardware_class=kind.hardware_class,
        model_name=kind.model_name,
        weight_format=(kind.weight_format, kind.weight_format),
        workload=kind.workload,
        configuration=(base[-1].configuration, head[-1].configuration),
        runs=(len(base), len(head)),
        alike=alike,
        changes=tuple(changes),
        verdict=overall(changes),
    )


def _times(record: HistoryRecord) -> tuple[float, ...]:
    assert record.measured is not None
    return log_times(record.measured.tpot_s, record.measured.ttft_s, record.configuration, record.workload)


def _deviation(record: HistoryRecord) -> float:
    """The standard deviation that a run's logarithms have by themselves.

    Of its samples, of the host's drift, and of one process from the next.
    """
    samples = record.decode_samples_s, record.prefill_samples_s
    widths = [width for width in map(relative_median_interval, samples) if width is not None]
    if len(widths) < len(samples):  # a few samples can't tell: what the host's others showed
        widths.append(record.noise.median_relative_interval or record.noise.control_drift)
    return math.hypot(max(widths) / _WITHIN_95, record.noise.control_drift / _DRIFTS_95, _PROCESS_DEVIATION)


def _kind(record: HistoryRecord) -> Kind:
    return Kind(record.hardware_class, record.model_name, record.model_digest, record.weight_format, record.workload)


def _run(record: HistoryRecord) -> tuple[object, ...]:
    """Equal for records of one run: `autotune record --cached` makes one of the same figures each time."""
    return _kind(record), record.host_label, record.measured_at, record.measured


def _identity(record: HistoryRecord) -> str:
    return repr(record.configuration)


def _described(name: str, records: Sequence[HistoryRecord]) -> str:
    commits = sorted({record.commit[:7] for record in records if record.commit})
    of = f" of {', '.join(commits)}" if commits else ""
    return f"{name}: {len(records)} record{'' if len(records) == 1 else 's'}{of}"
