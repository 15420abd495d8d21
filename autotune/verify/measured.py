"""A space whose times are those that a grid measured: ranked, limited and composed exactly as predictions are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autotune.costmodel.steps import Seconds
from autotune.records import Configuration, Grid, GridPart, Part, PartRun, Phase, Workload
from autotune.search.evaluate import Evaluator
from autotune.search.space import Point, Space
from autotune.search.times import BARRED_S, StepTimes
from autotune.verify.grid import FEWEST_SAMPLES, PHASES, shared

_RESAMPLES = 2000


class Cell(NamedTuple):
    """Where a part lies in a space: indices of placement, threads, and batch or chunk."""

    placement: int
    threads: int
    column: int


class MeasuredSpace:
    """The parts of a grid that belong to a workload's space.

    Args:
        evaluator: The space and its memory plan.
        grid: What was measured.
        seed: Of the resampling.

    Attributes:
        evaluator: The same with the parts' measured medians; what was not measured may not be chosen.
        cells: Every measured part of each phase, with where it lies.
    """

    def __init__(self, evaluator: Evaluator, grid: Grid, seed: int = 0) -> None:
        self.cells: dict[Phase, dict[Cell, GridPart]] = {"decode": {}, "prefill": {}}
        for part in grid.parts:
            found = locate(evaluator.space, evaluator.workload, part.outcome.part)
            if found is not None:
                self.cells[part.outcome.part.phase][found] = part
        self._seed = seed
        self._resampled: dict[Part, Seconds] = {}
        self.evaluator = evaluator
        decode, prefill = (_times(self.table(phase, self.medians_s(phase), BARRED_S)) for phase in PHASES)
        self.evaluator = dataclasses.replace(evaluator, decode=decode, prefill=prefill)

    def table(self, phase: Phase, values: Mapping[Cell, float], elsewhere: float = 0.0) -> Seconds:
        """Values of some cells over placements, threads, and batches or chunks, shape (P, T, B) or (P, T, C)."""
        space = self.evaluator.space
        columns = len(space.batches if phase == "decode" else space.chunks)
        found = np.full((len(space.layers), len(space.threads), columns), elsewhere)
        for cell, value in values.items():
            found[cell] = value
        return found

    def medians_s(self, phase: Phase) -> dict[Cell, float]:
        """Median seconds of each part that could be run."""
        return {
            cell: part.outcome.median_s for cell, part in self.cells[phase].items() if isinstance(part.outcome, PartRun)
        }

    def point(self, configuration: Configuration) -> Point | None:
        """Where a configuration lies, with the first thread count where the CPU does nothing; None: nowhere."""
        space = self.evaluator.space
        try:
            return space.plain(space.point(configuration))
        except ValueError:
            return None

    def halves(self, point: Point) -> tuple[GridPart | None, GridPart | None]:
        """A point's decode steps and prefill, as they came out; None where the grid hasn't one."""
        decode, prefill = cells_of(point)
        return self.cells["decode"].get(decode), self.cells["prefill"].get(prefill)

    def configurations(self) -> NDArray[np.intp]:
        """All that fit the memory and whose halves were both measured, as points, shape (N, 5)."""
        decode, prefill = (np.array([*self.medians_s(phase)], np.intp).reshape(-1, 3) for phase in self.cells)
        blocks = [np.zeros((0, 5), np.intp)]
        for placement in np.intersect1d(decode[:, 0], prefill[:, 0]):
            of_decode, of_prefill = decode[decode[:, 0] == placement], prefill[prefill[:, 0] == placement]
            steps = np.repeat(of_decode, len(of_prefill), axis=0)
            prompts = np.tile(of_prefill, (len(of_decode), 1))
            points = np.column_stack([steps[:, :2], prompts[:, 1], steps[:, 2], prompts[:, 2]])
            fits = self.evaluator.excess_bytes[placement, points[:, 3], points[:, 4]] <= 0
            blocks.append(points[fits])
        return np.concatenate(blocks)

    def resampled_s(self, point: Point) -> tuple[Seconds, Seconds] | None:
        """TPOT and TTFT of a measured point from resampled samples, each shape (2000,); None: too few samples.

        A part is resampled once, so what two configurations share is the same in both. Source: Efron and Tibshirani, An
        Introduction to the Bootstrap, chapter 13 (percentile intervals).
        """
        runs = [half.outcome for half in self.halves(point) if half is not None and isinstance(half.outcome, PartRun)]
        if len(runs) < 2 or min(len(run.samples_s) for run in runs) < FEWEST_SAMPLES:
            return None
        tpot_s, ttft_s = map(self._medians, runs)
        return tpot_s, ttft_s

    def _medians(self, run: PartRun) -> Seconds:
        if run.part not in self._resampled:
            samples_s = np.array(run.samples_s)
            random = np.random.default_rng([self._seed, len(self._resampled)])
            drawn = random.integers(0, len(samples_s), (_RESAMPLES, len(samples_s)))
            self._resampled[run.part] = np.median(samples_s[drawn], axis=1)
        return self._resampled[run.part]


def cells_of(point: Point) -> tuple[Cell, Cell]:
    """A point's two halves."""
    placement, decode_threads, prefill_threads, batch, chunk = map(int, point)
    return Cell(placement, decode_threads, batch), Cell(placement, prefill_threads, chunk)


def locate(space: Space, workload: Workload, part: Part) -> Cell | None:
    """Where a part lies in a workload's space; None: it is another workload's, or no part of the space.

    Where threads are of no consequence, a part is at the first count.
    """
    if part.context != (workload.decode_context if part.phase == "decode" else workload.prompt_tokens):
        return None
    place = space.place(shared(part))
    return None if place is None else Cell(place[0], place[1] or 0, place[2])


def _times(time_s: Seconds) -> StepTimes:
    """Times as they are, not as sums: every placement is work of its own kind."""
    nothing = np.zeros_like(time_s[:, 0])
    return StepTimes(gpus_s=nothing, cpu_s=time_s, work=np.arange(len(time_s)), handover_s=nothing)
