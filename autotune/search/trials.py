"""Runs configurations on the engine as trials of the study, each no longer than it could win."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec
import optuna
from optuna.trial import TrialState

from autotune.engine.interface import Engine
from autotune.records import Configuration, PartRun, Phase, RunFailure, Trial, Workload
from autotune.records.runs import TrialState as Ending
from autotune.search.belief import Belief
from autotune.search.figures import Halves, Runs, Standing, beats
from autotune.search.parameters import axes, point_at
from autotune.search.pruner import BOUND
from autotune.search.space import Point
from autotune.search.storage import CONFIGURATION, ORIGIN, RECORD, begin, keep, records_in, runs_in

COULD_WIN = "could win"
"""Origin of what the sampler proposes."""
PLAINER = "as good and plainer"
"""Origin of what could tie with the best and would then be preferred: it need not be better."""

_FIRST_STEPS = 3
"""Decode steps after which most hopeless trials show."""
_PART_SHARE = 0.05
"""Share of the budget that sampling one part may take, beyond the samples it takes at least: a second by default."""
_WELL_KNOWN = 0.02
"""Relative interval at which a median needs no more samples."""

_REASONS = {
    "memory": "it needs more memory than there is",
    "tpot": "it breaks the limit on the time per output token",
    "ttft": "it breaks the limit on the time to the first token",
}
_HOPELESS = "it could not become the best any more"
_NO_TIME = "there was no time left to run it to its end"


class Allowance:
    """The wall time that a search may take.

    Args:
        budget_s: All of it.
        clock: Tells the time in seconds.
    """

    def __init__(self, budget_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.budget_s = budget_s
        self._clock, self._started = clock, clock()

    def spent_s(self) -> float:
        """Since the search began."""
        return self._clock() - self._started

    def left_s(self, share: float = 1.0) -> float:
        """Of a share of the budget; negative where that is overdrawn."""
        return self.budget_s * share - self.spent_s()


class Done(NamedTuple):
    """What taking up a configuration came to.

    Attributes:
        news: Whether anything was learned by it.
        in_time: Whether it ended for another reason than that the time was up.
    """

    news: bool
    in_time: bool


class _EndedError(Exception):
    """A trial ends before it is complete."""

    def __init__(self, ending: Ending, reason: str) -> None:
        super().__init__(reason)
        self.ending, self.reason = ending, reason


class _FailedError(Exception):
    """The engine could not run a part."""

    def __init__(self, failure: RunFailure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Trials:
    """The trials of one search.

    Args:
        engine: Runs configurations.
        study: Keeps them.
        belief: Says what they could do; it learns from each.
        runs: Takes the samples.
        workload: What for.
        allowance: The time there is.
        default: What would run without tuning: it is run to the end, for everything is compared with it.
        noise: Relative; below it two times are not told apart.

    Attributes:
        failures: What the engine could not run.
        records: What came of each configuration, in the order they were first taken up.
    """

    def __init__(
        self,
        engine: Engine,
        study: optuna.Study,
        belief: Belief,
        runs: Runs,
        workload: Workload,
        *,
        allowance: Allowance,
        default: Configuration,
        noise: float,
    ) -> None:
        self._engine, self._study, self._belief, self._runs = engine, study, belief, runs
        self._workload, self._allowance, self._default = workload, allowance, default
        self._noise = noise
        self.failures: list[RunFailure] = []
        self.records: dict[Halves, Trial] = {}
        self._kept: set[str] = set()

    def gather(self, known: Iterable[PartRun] = ()) -> None:
        """Take in what the study keeps and was not taken in yet: of searches before this one, or beside it.

        Args:
            known: Runs that are in no study.
        """
        known = tuple(known)
        kept = {key: run for key, run in runs_in(self._study) if key not in self._kept}
        self._kept |= kept.keys()
        # An earlier search of this study may have handed on what it kept there: no sample counts twice.
        twice = {(run.part, sample_s) for run in known for sample_s in run.samples_s}
        new = [run for run in kept.values() if any((run.part, sample_s) not in twice for sample_s in run.samples_s)]
        # Part after part, so that it shows how surprising each was.
        for part in Runs(self._workload, self._noise, (*known, *new)).all():
            self._runs.add(part)
            self._belief.learn()
        for run in self._runs.all():
            if self._well_known(run):
                self._belief.settle(run.part)
        if kept:
            self._belief.learn()
        for record in records_in(self._study):
            self._note(record)

    def _note(self, record: Trial) -> None:
        """Keep what came of a configuration; of one that was taken up before, why it was so the first time."""
        halves = self._runs.halves(record.configuration)
        before = self.records.get(halves)
        self.records[halves] = record if before is None else msgspec.structs.replace(record, origin=before.origin)

    def known(self, configuration: Configuration) -> bool:
        """Whether a configuration was taken up before."""
        return self._runs.halves(configuration) in self.records

    def standings(self) -> list[Standing]:
        """How the configurations did that were run to the end and keep the limits; the best first."""
        found = (self.standing(record.configuration) for record in self.records.values())
        kept = (standing for standing in found if standing is not None and self._belief.feasible(standing))
        return sorted(kept, key=lambda standing: standing.costs)

    def standing(self, configuration: Configuration) -> Standing | None:
        """How a configuration did; None where it isn't in the space or was not run to the end."""
        places = [self._belief.space.place(part) for part in self._runs.halves(configuration)]
        settled = all(self._belief.settled(part) for part in self._runs.halves(configuration))
        return self._runs.standing(configuration) if settled and None not in places else None

    def run(self, trial: optuna.Trial, share: float) -> Done:
        """Run the configuration of a trial as long as it could win, and tell the study.

        Whoever watches the study may end a trial; then what was measured of it counts all the same.

        Args:
            trial: Asked for, with nothing suggested yet.
            share: Of the budget, that no part is begun beyond.
        """
        belief, space = self._belief, self._belief.space
        with warnings.catch_warnings():
            # An enqueued trial of a search over another space may be out of range.
            warnings.simplefilter("ignore")
            suggested = {axis: trial.suggest_int(axis, 0, last) for axis, last in axes(space).items()}
        wanted, point = trial.user_attrs.get(CONFIGURATION), point_at(space, suggested)
        inside = all(0 <= index < length for index, length in zip(point, space.shape, strict=True))
        if not inside or wanted not in (None, msgspec.to_builtins(space.configuration(point))):
            self._study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            return Done(news=True, in_time=True)
        point = space.plain(point)
        configuration = space.configuration(point)
        before = self._learned(), self.known(configuration)
        reason = None
        try:
            begin(trial, configuration, trial.user_attrs.get(ORIGIN, COULD_WIN))
            self._measure(trial, point, configuration, share)
            self._complete(trial, configuration)
        except optuna.exceptions.UpdateFinishedTrialError:
            return Done(news=True, in_time=True)
        except _EndedError as ended:
            reason = ended.reason
            self._close(trial, point, ended.ending, reason)
        except _FailedError as failed:
            self.failures.append(failed.failure)
            belief.bar(point, failed.failure)
            belief.learn()
            self._close(trial, point, "failed", f"{failed.failure.kind.replace('_', ' ')}: {failed.failure.message}")
        return Done(news=before != (self._learned(), True), in_time=reason != _NO_TIME)

    def sample(
        self,
        holder: optuna.Trial | optuna.Study,
        configuration: Configuration,
        phase: Phase,
        *,
        at_least: int = 1,
        at_most_s: float | None = None,
    ) -> RunFailure | None:
        """Take samples of one part of a configuration.

        Args:
            holder: What keeps them.
            configuration: What to run.
            phase: Which part.
            at_least: Samples to take whatever they take.
            at_most_s: When to stop beyond those; None: after the time that a part may take.
        """
        most_s = self.part_s if at_most_s is None else at_most_s
        most_s = max(0.0, min(most_s, self._allowance.left_s()))
        found = self._engine.measure(configuration, self._workload, phase, at_least=at_least, at_most_s=most_s)
        if isinstance(found, RunFailure):
            return found
        self._runs.add(found)
        self._kept.add(keep(holder, found))
        self._belief.learn()
        return None

    @property
    def part_s(self) -> float:
        """Time that sampling one part may take beyond the samples that it takes at least."""
        return self._allowance.budget_s * _PART_SHARE

    def _measure(self, trial: optuna.Trial, point: Point, configuration: Configuration, share: float) -> None:
        """A few decode steps, a prompt, more decode steps; ended where it can't win any more."""
        belief = self._belief
        decode, prefill = self._runs.halves(configuration)
        self._check(trial, point, step=0)
        if belief.settled(decode) and belief.settled(prefill):
            return
        _expect(self._engine.prepare(configuration, self._workload))
        if self._runs.of(decode) is None:
            self._check_time(2 * float(belief.expected.at(point).tpot_s), share)
            _expect(self.sample(trial, configuration, "decode", at_least=self._first_steps(point), at_most_s=0.0))
            self._check(trial, point, step=1)
        if belief.max_tpot_s is not None and belief.expected.at(point).tpot_s > belief.max_tpot_s:
            # Before a prompt is run for nothing.
            self._settle_decode(trial, configuration)
            self._check(trial, point, step=2)
        if not belief.settled(prefill):
            # Its first and its last piece once more to warm up; and a prompt can't be stopped half way.
            pieces = min(1.0, 2 * configuration.prefill_chunk / self._workload.prompt_tokens)
            self._check_time((1 + pieces) * float(belief.expected.at(point).ttft_s), share)
            _expect(self.sample(trial, configuration, "prefill"))
            belief.settle(prefill)
            self._check(trial, point, step=3)
        if not belief.settled(decode):
            self._settle_decode(trial, configuration)
        belief.learn()

    def _settle_decode(self, trial: optuna.Trial, configuration: Configuration) -> None:
        """More decode steps, after which their median counts."""
        _expect(self.sample(trial, configuration, "decode"))
        self._belief.settle(self._runs.halves(configuration)[0])
        self._belief.learn()

    def _first_steps(self, point: Point) -> int:
        """How many decode steps a first look takes: fewer where they are slow."""
        return max(1, min(_FIRST_STEPS, int(self.part_s / float(self._belief.expected.at(point).tpot_s))))

    def _check_time(self, time_s: float, share: float) -> None:
        """Ends a trial whose next samples would take longer than there is.

        Raises:
            _EndedError: They would.
        """
        if time_s > self._allowance.left_s(share):
            raise _EndedError("pruned", _NO_TIME)

    def _check(self, trial: optuna.Trial, point: Point, step: int) -> None:
        """Ends a trial that can't win, given the best that it could still come to.

        Raises:
            _EndedError: It breaks the memory or a limit, or is hopeless.
        """
        broken = [_REASONS[name] for name, by in self._belief.broken(point).items() if by > 0]
        if broken:
            raise _EndedError("infeasible", " and ".join(broken))
        bound = self._belief.bound(point)
        trial.set_user_attr(BOUND, bound)
        trial.report(bound[0], step)
        if self._belief.space.configuration(point) == self._default:
            return
        if step == 0 and trial.user_attrs[ORIGIN] != COULD_WIN:
            return  # a first look at what people use tells what the cost model may miss
        if trial.user_attrs[ORIGIN] == PLAINER:
            hopeless = any(beats(standing.costs, bound, self._noise) for standing in self.standings())
        else:
            hopeless = trial.should_prune()
        if hopeless:
            raise _EndedError("pruned", _HOPELESS)

    def _complete(self, trial: optuna.Trial, configuration: Configuration) -> None:
        standing = self._runs.standing(configuration)
        assert standing is not None, "both parts were run"
        violations = self._belief.violations(standing)
        broken = [_REASONS[name] for name, by in violations.items() if by > 0]
        record = Trial(
            configuration,
            trial.user_attrs[ORIGIN],
            "infeasible" if broken else "complete",
            " and ".join(broken) or None,
            standing.measured,
        )
        self._tell(trial, record, violations, standing.costs[0])

    def _close(self, trial: optuna.Trial, point: Point, ending: Ending, reason: str) -> None:
        """End a trial that was not run to its end."""
        record = Trial(self._belief.space.configuration(point), trial.user_attrs[ORIGIN], ending, reason)
        self._tell(trial, record, self._belief.broken(point), None)

    def _tell(self, trial: optuna.Trial, record: Trial, violations: dict[str, float], value: float | None) -> None:
        # In every trial: one without constraints would count as feasible.
        for name, by in violations.items():
            trial.set_constraint(name, by)
        trial.set_user_attr(RECORD, msgspec.to_builtins(record))
        ended = TrialState.FAIL if record.state == "failed" else TrialState.PRUNED
        self._study.tell(trial, value, state=ended if value is None else TrialState.COMPLETE, skip_if_finished=True)
        self._note(record)

    def _learned(self) -> int:
        """Grows with all that is learned."""
        return len(self.failures) + sum(len(run.samples_s) for run in self._runs.all())

    def _well_known(self, run: PartRun) -> bool:
        width = run.relative_interval
        return sum(run.samples_s) >= self.part_s or (width is not None and width <= _WELL_KNOWN)


def _expect(failure: RunFailure | None) -> None:
    if failure is not None:
        raise _FailedError(failure)
