"""What is run, and in which order: what people use beside the predicted best, then whatever could still win."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Literal

import optuna

from autotune.model.memory import Room
from autotune.records import Configuration, Host, Model, Workload
from autotune.search.baselines import applicable
from autotune.search.belief import Belief
from autotune.search.contest import Contest
from autotune.search.figures import Standing
from autotune.search.measured import Running
from autotune.search.parameters import parameters_of
from autotune.search.space import Point, Space
from autotune.search.storage import enqueue, interrupted, waiting
from autotune.search.trials import PLAINER, Allowance, Trials

_MOST_FAILURES = 8
"""Configurations that may fail before one was run to its end; then the engine is given up."""

Stopped = Literal["decided", "budget", "failed"]


def explore(
    study: optuna.Study,
    trials: Trials,
    belief: Belief,
    allowance: Allowance,
    *,
    share: float,
    running: Running | None,
) -> Stopped:
    """Runs what could be the best until nothing could be any more.

    Args:
        study: Keeps the trials.
        trials: Runs them.
        belief: Says what could be the best.
        allowance: The time there is.
        share: Of the time, for this; until anything was run to its end, all there is.
        running: Told how far it is.
    """
    taken = 0
    while True:
        trials.gather()
        standings = trials.standings()
        if not standings and len(trials.failures) >= _MOST_FAILURES:
            return "failed"
        candidate = belief.promising(standings[0] if standings else None)
        queued = bool(waiting(study))
        if candidate is None and not queued:
            plainer = _plainer(belief, trials, standings)
            if plainer is None:
                break
            enqueue(study, parameters_of(belief.space, plainer), belief.space.configuration(plainer), PLAINER)
        own_share = share if standings else 1.0
        if allowance.left_s(own_share) <= 0:
            return "budget"
        done = trials.run(study.ask(), own_share)
        taken += 1
        if running is not None:
            running(min(1.0, allowance.spent_s() / allowance.budget_s), taken)
        if not done.in_time and not queued:
            return "budget"  # what is queued may still fit
        if not done.news and not queued and candidate is not None:
            break
    return "failed" if trials.failures and not standings else "decided"


def _plainer(belief: Belief, trials: Trials, standings: Sequence[Standing]) -> Point | None:
    """What is expected to be as good as the best with fewer devices, threads or bytes; None: nothing, or it was run."""
    point = belief.plainest()
    if point is None or not standings:
        return None
    configuration = belief.space.configuration(point)
    plainer = belief.plainness(configuration) < belief.plainness(standings[0].configuration)
    return point if plainer and not trials.known(configuration) else None


def seeds(
    belief: Belief, model: Model, host: Host, workload: Workload, default: Configuration, room: Room
) -> list[tuple[str, Point]]:
    """What is tried before the sampler is asked, and why: the predicted best, the default, and what people use."""
    space, found = belief.space, []
    contest = Contest(belief.expected, belief.max_tpot_s)
    best = contest.best()
    if best is not None:
        found.append(("predicted best", best))
    found.append(("default", space.point(default)))
    if best is not None and (second := contest.without(best).best()) is not None:
        found.append(("predicted runner-up", second))
    for baseline, configuration in applicable(model, host, workload, room):
        try:
            found.append((baseline.name, space.point(configuration)))
        except ValueError:
            continue  # it needs a thread count or a device that was not timed
    return [(origin, space.plain(point)) for origin, point in found]


def enqueue_seeds(study: optuna.Study, trials: Trials, space: Space, found: Iterable[tuple[str, Point]]) -> None:
    """Queue seeds that are neither queued nor run."""
    queued = waiting(study)
    for origin, point in found:
        configuration = space.configuration(point)
        if configuration not in queued and trials.standing(configuration) is None:
            enqueue(study, parameters_of(space, point), configuration, origin)
            queued.append(configuration)


def take_up_again(study: optuna.Study, space: Space) -> None:
    """Queue what a search that was stopped was running, and end its trials."""
    for trial, configuration, origin in interrupted(study):
        if configuration is not None:
            # Not in the space: that was another one. Queued first: if this is stopped in between, it is run again.
            with contextlib.suppress(ValueError):
                enqueue(study, parameters_of(space, space.point(configuration)), configuration, origin)
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)
