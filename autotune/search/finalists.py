"""The last round: the best few are run again in turns, so that drift hits all alike, and the winner is named."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterable, Sequence

import optuna

from autotune.records import Configuration, Part
from autotune.search.belief import Belief
from autotune.search.figures import Runs, Standing, apart, beats
from autotune.search.trials import Allowance, Trials

_MOST = 4
"""How many are run again, the default beside them."""
_FINE = 0.01
"""Relative; two that differ by less are not worth more samples, however quiet the host."""
_SLICE = 0.5
"""Of the time that a part may take, for one turn."""


def rerun(
    trials: Trials,
    study: optuna.Study,
    runs: Runs,
    default: Configuration,
    *,
    noise: float,
    allowance: Allowance,
    seed: int,
) -> bool:
    """Take more samples of those that could be the best, in turns, until they are told apart or the time is up.

    Args:
        trials: What was run.
        study: Keeps the samples.
        runs: Likewise.
        default: What would run without tuning: it is among them unless it is clearly worse.
        noise: Relative; below it two are not told apart.
        allowance: The time there is.
        seed: Of the order.

    Returns:
        Whether any were taken.
    """
    order, news = random.Random(seed), False  # noqa: S311 (an order, no secret)
    failed: set[Part] = set()
    while turns := _turns(trials.standings(), runs, default, noise, failed):
        parts = _shuffled(turns, order)
        taken = False
        for part in parts:
            run = runs.of(part)
            assert run is not None, "finalists were run"
            # What was begun isn't interrupted.
            if max(_SLICE * trials.part_s, run.median_s) > allowance.left_s():
                continue
            failure = trials.sample(study, turns[part], part.phase, at_most_s=_SLICE * trials.part_s)
            taken = True
            if failure is not None:
                trials.failures.append(failure)
                failed.add(part)
        news |= taken
        if not taken:
            break
    return news


def _shuffled(parts: Iterable[Part], order: random.Random) -> list[Part]:
    """Parts in random order but that those of a placement follow each other: weights move once for all of them."""
    shuffled = list(parts)
    order.shuffle(shuffled)
    placements = list(dict.fromkeys(map(_placement, shuffled)))
    return sorted(shuffled, key=lambda part: placements.index(_placement(part)))


def _placement(part: Part) -> tuple[tuple[tuple[str, int], ...], str]:
    return part.device_layers, part.head_device


def _turns(
    standings: Sequence[Standing], runs: Runs, default: Configuration, noise: float, failed: Collection[Part]
) -> dict[Part, Configuration]:
    """The parts that can tell the best from those that could be better, each with a configuration that has it."""
    near = [other for other in standings[1:] if not apart(standings[0], other, max(noise, _FINE))]
    rivals = [other for place, other in enumerate(near) if place < _MOST or other.configuration == default]
    halves = [runs.halves(standing.configuration) for standing in (*standings[:1], *rivals)]
    if not rivals:
        return {}
    # What all have in common can't tell them apart.
    shared = set(halves[0]).intersection(*halves[1:])
    return {
        part: standing.configuration
        for standing, pair in zip((standings[0], *rivals), halves, strict=True)
        for part in pair
        if part not in shared and part not in failed
    }


def choose(
    standings: Sequence[Standing], belief: Belief, default: Configuration, *, noise: float
) -> Configuration | None:
    """The winner: the best, or of those that can't be told from it the plainest; the default unless that is beaten.

    A default that there was no time to run is taken to do what is expected of it.

    Args:
        standings: Those that were run and keep the limits, the best first.
        belief: Knows what is expected, and the memory that is needed.
        default: What would run without tuning.
        noise: Relative; what the default has to be beaten by.
    """
    near = list(standings)
    for place in range(2):
        near = [standing for standing in near if _ties(standing, near[0], place, noise)]
        near.sort(key=lambda standing: standing.costs[place + 1 :])
    if not near:
        return None
    winner = min(near, key=lambda standing: (belief.plainness(standing.configuration), standing.costs))
    if (costs := _costs_of(default, standings, belief)) is None:
        return winner.configuration
    was_run = any(standing.configuration == default for standing in standings)
    kept = was_run and not beats(winner.costs, costs, noise)
    return default if kept or beats(costs, winner.costs, noise) else winner.configuration


def _costs_of(default: Configuration, standings: Sequence[Standing], belief: Belief) -> Sequence[float] | None:
    """The default's costs; None where it can't run or breaks a limit."""
    for standing in standings:
        if standing.configuration == default:
            return standing.costs
    value = belief.at(default)
    kept = belief.expected.feasible(value, belief.max_tpot_s)
    return tuple(map(float, value.costs)) if kept else None


def _ties(standing: Standing, best: Standing, place: int, noise: float) -> bool:
    """Whether a cost can't be told from the best one."""
    best_s = best.costs[place]
    margin_s = math.hypot(standing.margins_s[place], best.margins_s[place])
    return standing.costs[place] - best_s <= min(noise * best_s, margin_s)
