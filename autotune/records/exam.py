"""The exam of a decision: a grid of configurations measured exhaustively, and how the chosen one did among them."""

from __future__ import annotations

from typing import Literal

from autotune.records.base import Record
from autotune.records.configuration import Configuration, Workload
from autotune.records.host import Fingerprint
from autotune.records.runs import Measured, PartRun, RunFailure

Stage = Literal["before correction", "after correction"]
Interval = tuple[float, float]
"""Ends of a 95 % interval; relative, as what it is of."""


class GridPart(Record, frozen=True):
    """A part of the grid, run in every round."""

    outcome: PartRun | RunFailure
    """Samples of all rounds in the order taken; a failure where a round had none."""
    spent_s: float
    """Wall time of its runs, warm-up included."""


class Grid(Record, frozen=True):
    """Parts measured for their own sake, not because anything predicted them to be good."""

    engine: str
    parts: tuple[GridPart, ...]
    feasible_parts: int
    """Distinct parts of all configurations that fit the memory: what an unbounded grid would run."""
    rounds: int
    """How often each part was run; in each round in another order."""
    spent_s: float
    """Wall time of it all, weights moved included."""
    reused_layers: int = 0
    """Layers whose weights are another layer's, because the memory doesn't hold all."""

    def runs(self) -> tuple[PartRun, ...]:
        """The parts that could be run."""
        return tuple(part.outcome for part in self.parts if isinstance(part.outcome, PartRun))

    def failures(self) -> tuple[RunFailure, ...]:
        """The parts that could not be."""
        return tuple(part.outcome for part in self.parts if isinstance(part.outcome, RunFailure))


class Errors(Record, frozen=True):
    """Relative errors of predictions against what was measured, absolute value."""

    count: int
    median: float | None
    p90: float | None
    worst: float | None


class PredictionExam(Record, frozen=True):
    """How well one cost model predicted a grid."""

    stage: Stage
    parts: Errors
    """Seconds per step or prompt."""
    unseen_parts: Errors
    """Of these, the parts that the correction was not made from."""
    configurations: Errors
    """What the workload is after: TPOT for ``chat``, else output tokens per second."""
    unseen_configurations: Errors
    """Of these, the configurations with at least one unseen part."""
    rank_correlation: float | None
    """Spearman's, over the configurations; None where there are fewer than three or all tie."""


class BaselineExam(Record, frozen=True):
    """What a way to configure without measuring would have given."""

    name: str
    origin: str
    configuration: Configuration
    obstacle: str | None
    """What speaks against it, in words: ``does not fit``, ``breaks the limit on TPOT``, ``could not be run``; None:
    nothing."""
    measured: Measured | None
    """None where it doesn't fit or could not be run."""
    regret: float | None
    """How much more time per output token than the best measured: 0.1 is 10 % more."""
    regret_interval: Interval | None
    speedup: float | None
    """How many times its time per output token the chosen configuration's fits into it."""
    speedup_interval: Interval | None


class MemoryExam(Record, frozen=True):
    """Memory planned on a device against memory used."""

    device: str
    planned_bytes: int
    """Without the tokenizer's vocabulary, which the engine doesn't have."""
    used_bytes: int
    """The process' peak."""

    @property
    def relative_error(self) -> float:
        """By how much more was planned than used, relative to used; negative: less."""
        return self.planned_bytes / self.used_bytes - 1


class Exam(Record, frozen=True):
    """A decision for one workload against a grid."""

    workload: Workload
    confirmed: bool
    """Whether the configuration was chosen by running it; False: as predicted."""
    chosen: Configuration
    measured: Measured | None
    """The chosen configuration in the grid; None: it isn't in it, or it could not be run."""
    kept_limits: bool | None
    """Whether it kept the workload's limits as measured; None where it wasn't measured."""
    max_tpot_s: float | None
    """The limit on TPOT that applied to what was measured; None: no limit."""
    best: Configuration | None
    """The best measured that keeps the limits; None: none does."""
    best_measured: Measured | None
    regret: float | None
    """How much more time per output token the chosen one takes than the best; negative where it only is faster because
    it breaks a limit. Of many that are measured the best is also the luckiest, so this is rather too high than too
    low."""
    regret_interval: Interval | None
    """By resampling the samples of every part; None where there is no regret."""
    configurations: int
    """Those that fit the memory and whose parts were both measured."""
    feasible_configurations: int
    """Those that fit the memory."""
    baselines: tuple[BaselineExam, ...]
    predictions: tuple[PredictionExam, ...]
    tune_time_s: float
    exhaustive_time_s: float
    """Computed, not measured: of measuring every configuration of the grid by itself as often, none sharing a part."""
    memory: tuple[MemoryExam, ...]
    """Empty where it wasn't measured."""
    notes: tuple[str, ...] = ()
    cross_fitted_regret: float | None = None
    """The regret without that luck: the best is found by two thirds of the samples and compared by the rest, in turns.
    Of one exam it is noisier than ``regret``, and about 0 where nothing is better. None where there is no regret, or a
    part has too few samples."""

    @property
    def within_noise(self) -> bool | None:
        """Whether the chosen configuration keeps the limits and can't be told from the best; None: no interval."""
        return None if self.regret_interval is None else bool(self.kept_limits) and self.regret_interval[0] <= 0


class Verification(Record, frozen=True):
    """The document of ``autotune verify``."""

    created_at: str
    """UTC, ISO 8601."""
    host: str
    """The hostname: only a label."""
    fingerprint: Fingerprint
    model: str
    format: str
    grid: Grid
    exams: tuple[Exam, ...]
    """One per workload."""
