"""An exam as tables for a person, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from autotune.model.sizes import readable_bytes
from autotune.records import Configuration, Errors, Exam, Measured, Verification
from autotune.records.exam import Interval
from autotune.summary import three_digits

_WIDTH_ELSEWHERE = 200
"""Columns where standard error is no terminal."""
_UNKNOWN = "-"


def show(verification: Verification) -> None:
    """Print all of it."""
    width = None if sys.stderr.isatty() else _WIDTH_ELSEWHERE
    console = Console(file=sys.stderr, width=width, highlight=False, markup=False, emoji=False)
    for block in blocks(verification):
        console.print(block)


def blocks(verification: Verification) -> Iterator[RenderableType]:
    """What to print, in order."""
    grid = verification.grid
    yield Text(
        f"{verification.model} in {verification.format} on {verification.host}: {len(grid.parts)} of "
        f"{grid.feasible_parts} parts of configurations, each run in {grid.rounds} rounds by {grid.engine}, "
        f"{grid.spent_s:.0f} s"
    )
    for exam in verification.exams:
        yield _contenders(exam)
        for remark in _remarks(exam):
            yield Text(f"   {remark}")
    yield _predictions(verification.exams)
    yield _times(verification)
    if any(exam.memory for exam in verification.exams):
        yield _memory(verification.exams)


def _contenders(exam: Exam) -> Table:
    """The chosen configuration, the best and the baselines, one row each."""
    limit = "" if exam.max_tpot_s is None else f", TPOT within {exam.max_tpot_s * 1e3:.4g} ms"
    title = f"{exam.workload.name}: {exam.configurations:,} of {exam.feasible_configurations:,} configurations{limit}"
    of_configurations = ["", "layers", "threads", "batch", "chunk"]
    of_runs = ["tokens/s", "TPOT", "TTFT", "regret (95 %)", "chosen's speed-up (95 %)"]
    table = _table(title, [*of_configurations, *of_runs], left=("", "layers"))
    name = "chosen" if exam.confirmed else "chosen as predicted"
    own = [*_configuration(exam.chosen), *_figures(exam.measured)]
    table.add_row(name, *own, _regret(exam.regret, exam.regret_interval), "")
    if exam.best is not None:
        own = [*_configuration(exam.best), *_figures(exam.best_measured)]
        table.add_row("best measured", *own, _regret(0.0, None), "")
    for one in exam.baselines:
        own = [*_configuration(one.configuration), *_figures(one.measured)]
        regret, speedup = _regret(one.regret, one.regret_interval), _speedup(one.speedup, one.speedup_interval)
        table.add_row(one.name, *own, regret, speedup)
    return table


def _remarks(exam: Exam) -> Iterator[str]:
    if exam.within_noise:
        yield "the chosen configuration is within the noise of the best"
    if exam.cross_fitted_regret is not None:
        yield f"regret against what other samples say is the best: {_regret(exam.cross_fitted_regret, None)}"
    yield from exam.notes
    for one in exam.baselines:
        if one.obstacle is not None:
            yield f"{one.name}: {one.obstacle}"


def _predictions(exams: Sequence[Exam]) -> Table:
    columns = ["workload", "correction", "parts", "unseen parts", "configurations", "unseen", "rank"]
    title = "prediction error in %: median / p90 / worst (of how many); and Spearman's rank correlation"
    table = _table(title, columns, left=("workload", "correction"))
    for exam in exams:
        for stage in exam.predictions:
            found = (stage.parts, stage.unseen_parts, stage.configurations, stage.unseen_configurations)
            correlation = _UNKNOWN if stage.rank_correlation is None else f"{stage.rank_correlation:.3f}"
            when = stage.stage.removesuffix(" correction")
            table.add_row(exam.workload.name, when, *map(_errors, found), correlation)
    return table


def _times(verification: Verification) -> Table:
    columns = ["workload", "tune, measured", "grid, measured", "exhaustive, computed", "exhaustive / tune"]
    table = _table("time; exhaustive: every configuration of the grid by itself, none sharing a part", columns)
    for exam in verification.exams:
        spent_s = exam.tune_time_s, verification.grid.spent_s, exam.exhaustive_time_s
        ratio = f"{three_digits(exam.exhaustive_time_s / exam.tune_time_s)}x" if exam.tune_time_s else _UNKNOWN
        table.add_row(exam.workload.name, *(f"{time_s:,.1f} s" for time_s in spent_s), ratio)
    return table


def _memory(exams: Sequence[Exam]) -> Table:
    columns = ["workload", "device", "planned", "used", "difference", ""]
    table = _table("memory of the chosen configuration, its KV cache full", columns, left=("workload", "device"))
    for exam in exams:
        for use in exam.memory:
            more = use.planned_bytes - use.used_bytes
            difference = f"{'-' if more < 0 else '+'}{readable_bytes(abs(more))}"
            sizes = readable_bytes(use.planned_bytes), readable_bytes(use.used_bytes)
            table.add_row(exam.workload.name, use.device, *sizes, difference, f"{use.relative_error:+.1%}")
    return table


def _table(title: str, columns: Sequence[str], left: Sequence[str] = ("workload",)) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", overflow="fold")
    return table


def _configuration(configuration: Configuration) -> list[str]:
    """Layers and head, threads of decode and prefill, batch and chunk."""
    devices = " + ".join(f"{layers} {device}" for device, layers in configuration.device_layers.items())
    if configuration.head_device != [*configuration.device_layers][-1]:
        devices += f", head {configuration.head_device}"
    on_cpu = "cpu" in (*configuration.device_layers, configuration.head_device)
    threads = f"{configuration.decode_threads} / {configuration.prefill_threads}" if on_cpu else _UNKNOWN
    return [devices, threads, str(configuration.batch_size), str(configuration.prefill_chunk)]


def _figures(measured: Measured | None) -> list[str]:
    if measured is None:
        return [_UNKNOWN] * 3
    times_s = measured.tpot_s, measured.ttft_s
    return [three_digits(measured.tokens_per_s), *(f"{three_digits(time_s * 1e3)} ms" for time_s in times_s)]


def _errors(errors: Errors) -> str:
    shares = (
        _UNKNOWN if share is None else f"{share * 100:.1f}" for share in (errors.median, errors.p90, errors.worst)
    )
    return f"{' / '.join(shares)} ({errors.count})"


def _regret(regret: float | None, interval: Interval | None) -> str:
    if regret is None:
        return _UNKNOWN
    ends = "" if interval is None else f" ({interval[0] * 100:.1f} to {interval[1] * 100:.1f})"
    return f"{regret * 100:.1f} %{ends}"


def _speedup(ratio: float | None, interval: Interval | None) -> str:
    if ratio is None:
        return _UNKNOWN
    ends = "" if interval is None else f" ({interval[0]:.2f} to {interval[1]:.2f})"
    return f"{ratio:.2f}x{ends}"
