"""What saved measurements say about configurations beside the chosen one: nothing is timed or searched for."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

from msgspec.structs import replace

from autotune.conclusion import noise_of
from autotune.costmodel.steps import Seconds
from autotune.evidence import axes_of, recall
from autotune.model.sizes import readable_bytes
from autotune.records import Configuration, Figures, Host, Measured, Result
from autotune.room import room_on
from autotune.search.contest import Contest
from autotune.search.evaluate import Evaluation, Evaluator, build_evaluator
from autotune.search.figures import Runs
from autotune.search.wording import milliseconds

Setting = Literal["decode_threads", "prefill_threads", "batch_size", "prefill_chunk"]
Range = tuple[float, float]

_SIGMAS = 1.96
"""Standard deviations on either side that hold 95 %."""
_MEDIAN_OF_NORMAL = 0.6745
"""The median absolute deviation of a normal distribution, in standard deviations."""
_BETWEEN_POINTS = ("interior m", "thread count")
"""What was left out of fits that is like what configurations ask of them; whole sites are all timed."""


class Prospect(NamedTuple):
    """A configuration and what is known of it.

    Attributes:
        configuration: What it is.
        predicted: Its figures by the cost model, corrected by what was run.
        tokens_per_s_within: Lowest and highest, meant to hold it in 95 % of all cases: what runs leave open of the
            correction, and of a half that was not run the error that the cost model showed on points it didn't see.
            ``tests/benchmarks/ranges.py`` counts how often they do.
        tpot_s_within: Likewise.
        ttft_s_within: Likewise.
        measured: Its figures where both halves of it were run; else None.
        obstacles: What speaks against it, a sentence each: memory, or a limit of the workload; empty: nothing.
    """

    configuration: Configuration
    predicted: Figures
    tokens_per_s_within: Range
    tpot_s_within: Range
    ttft_s_within: Range
    measured: Measured | None
    obstacles: tuple[str, ...]


class Outlook:
    """The cost model of a saved result, asked about one configuration after the other.

    Args:
        result: What was saved.
        host: The host whose memory counts; None: the result's as it was then.
        threads: Thread counts to be asked about beside those that were offered, within what the host may use.
        batches: Batch sizes likewise; they may exceed the workload's largest.
        chunks: Prefill chunks likewise.

    Attributes:
        result: As given.
        evaluator: The space of configurations and their figures.
        contest: Which of them is the best.
    """

    def __init__(
        self,
        result: Result,
        host: Host | None = None,
        *,
        threads: Iterable[int] = (),
        batches: Iterable[int] = (),
        chunks: Iterable[int] = (),
    ) -> None:
        self.result = result
        host = host or result.host
        evidence = recall(result, host)
        self._cost_model = evidence.cost_model
        self._room = room_on(host, result.campaign, self._cost_model.devices)
        offered = axes_of(host, self._cost_model, result.workload)
        chosen = result.decision.chosen.configuration
        self._axes = (
            sorted({*offered.threads, *threads, chosen.decode_threads, chosen.prefill_threads}),
            sorted({*offered.batches, *batches, chosen.batch_size}),
            sorted({*offered.chunks, *chunks, chosen.prefill_chunk}),
        )
        self.evaluator = self._evaluator(0.0)
        self.contest = Contest(self.evaluator, result.decision.search.effective_max_tpot_s)
        runs = () if result.confirmation is None else result.confirmation.runs
        self._runs = Runs(result.workload, noise_of(result.campaign), runs)

    @functools.cached_property
    def chosen(self) -> Prospect:
        """The configuration that the result chose."""
        return self.at(self.result.decision.chosen.configuration)

    def at(self, configuration: Configuration) -> Prospect:
        """What is known of a configuration.

        Raises:
            ValueError: It isn't a point of the space.
        """
        point = self.evaluator.space.point(configuration)
        value, low, high = (each.at(point) for each in (self.evaluator, *self._within))
        standing = self._runs.standing(configuration)
        decode, prefill = (self._runs.of(part) is not None for part in self._runs.halves(configuration))
        tpot_s = self._range(value.tpot_s, low.tpot_s, high.tpot_s, was_run=decode)
        ttft_s = self._range(value.ttft_s, low.ttft_s, high.ttft_s, was_run=prefill)
        slowest, fastest = (self.evaluator.taking(point, tpot_s[end], ttft_s[end]).tokens_per_s for end in (1, 0))
        measured = None if standing is None else standing.measured
        predicted = self.evaluator.candidate(point).predicted
        return Prospect(
            configuration,
            predicted,
            tokens_per_s_within=(float(slowest), float(fastest)),
            tpot_s_within=tpot_s,
            ttft_s_within=ttft_s,
            measured=measured,
            obstacles=tuple(self._obstacles(configuration, predicted, value, measured)),
        )

    def bound_by(self, configuration: Configuration) -> str:
        """What limits a configuration's decode step, in words, and where its time goes."""
        return self._cost_model.bound_by(self.result.model, self.result.workload, configuration)

    def caveats(self, configuration: Configuration) -> tuple[str, ...]:
        """Where a configuration lies outside the measured range, in words; empty where all is interpolated."""
        return self._cost_model.caveats(self.result.model, self.result.workload, configuration)

    def over(self, setting: Setting) -> tuple[Prospect, ...]:
        """The chosen configuration with each other value of one setting, ascending.

        Where the CPU has nothing to do, its threads are of no consequence, and there is but the chosen one.
        """
        space, configuration = self.evaluator.space, self.result.decision.chosen.configuration
        threads = setting in ("decode_threads", "prefill_threads")
        if threads and not space.works[space.point(configuration).placement, 0]:
            return (self.chosen,)
        values = space.threads if threads else space.batches if setting == "batch_size" else space.chunks
        return tuple(self.at(replace(configuration, **{setting: value})) for value in values.tolist())

    def _range(self, time_s: Seconds, low_s: Seconds, high_s: Seconds, *, was_run: bool) -> Range:
        """Where a time lies, from its range by the correction alone."""
        unseen = 0.0 if was_run else _SIGMAS * self._unseen_error
        spread = math.hypot(math.log(float(high_s / low_s)) / 2, unseen)
        return float(time_s) * math.exp(-spread), float(time_s) * math.exp(spread)

    @functools.cached_property
    def _unseen_error(self) -> float:
        """Relative standard deviation of predictions between the points that were timed, by the worst of the fits.

        A correction learns how whole steps differ from their sum, not how single points differ from the fit.
        """
        reports = (self.result.cost_model, *self.result.gpu_cost_models)
        errors = (held for report in reports for held in report.held_out if held.left_out in _BETWEEN_POINTS)
        return max((held.median for held in errors if held.median is not None), default=0.0) / _MEDIAN_OF_NORMAL

    @functools.cached_property
    def _within(self) -> tuple[Evaluator, Evaluator]:
        """The shortest times that are likely, and the longest."""
        return self._evaluator(-_SIGMAS), self._evaluator(_SIGMAS)

    def _evaluator(self, sigmas: float) -> Evaluator:
        model, workload = self.result.model, self.result.workload
        costs = self._cost_model.steps(model, workload, *self._axes, sigmas=sigmas)
        largest = replace(workload, max_batch=max(workload.max_batch, *self._axes[1]))
        decision = self.result.decision
        # They were possible with the memory of that time, which may have been shared out among GPUs in another way.
        saved = [candidate.configuration for candidate in (decision.chosen, *self.result.smaller)]
        saved += [split.best for split in decision.split_curve if split.best is not None]
        return build_evaluator(model, largest, costs, self._room, including=saved)

    def _obstacles(
        self, configuration: Configuration, predicted: Figures, value: Evaluation, measured: Measured | None
    ) -> Iterable[str]:
        """What speaks against a configuration; where it was run, limits are held against what was measured."""
        workload, limit_s = self.result.workload, self.contest.max_tpot_s
        for use in predicted.memory:
            missing = use.total_bytes - use.available_bytes
            if missing > 0:
                yield (
                    f"It needs {readable_bytes(use.total_bytes)} on {use.device}, "
                    f"{readable_bytes(missing)} more than there is."
                )
        if configuration.batch_size > workload.max_batch:
            yield f"The workload allows batches of at most {workload.max_batch}."
        tpot_s, ttft_s = (value.tpot_s, value.ttft_s) if measured is None else (measured.tpot_s, measured.ttft_s)
        if limit_s is not None and tpot_s > limit_s:
            yield f"A token takes {milliseconds(tpot_s)}, over the limit of {milliseconds(limit_s)}."
        if workload.max_ttft_s is not None and ttft_s > workload.max_ttft_s:
            yield f"A first token takes {milliseconds(ttft_s)}, over the limit of {milliseconds(workload.max_ttft_s)}."
