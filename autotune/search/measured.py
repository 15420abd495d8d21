"""The measured search: configurations are run, best prospects first, until none could win any more.

Imports Optuna only when it searches: that takes longer than re-computing a result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from autotune.costmodel.model import CostModel
from autotune.engine.interface import Engine
from autotune.model.memory import Room
from autotune.records import Configuration, Confirmation, Host, Model, PartRun, Workload
from autotune.search.belief import Belief
from autotune.search.figures import Runs, Standing
from autotune.search.parameters import silenced
from autotune.search.space import Point

Running = Callable[[float, int], None]
"""Told the share of the budget that is spent, and how many configurations were taken up."""


_EXPLORING_SHARE = 0.65
"""Of the budget, for running what could be the best; the rest is for running the best few again."""


class Outcome(NamedTuple):
    """What a measured search found.

    Attributes:
        confirmation: What was run, and how it ended.
        winner: The answer; None where nothing that keeps the limits was run to its end, or where there was time only
            for what is clearly not the best: then the corrected predictions say more.
        cost_model: Corrected by all runs.
    """

    confirmation: Confirmation
    winner: Configuration | None
    cost_model: CostModel


def search(
    engine: Engine,
    *,
    cost_model: CostModel,
    model: Model,
    workload: Workload,
    host: Host,
    room: Room,
    default: Configuration,
    threads: Sequence[int],
    batches: Sequence[int],
    chunks: Sequence[int],
    noise: float,
    budget_s: float,
    known: Iterable[PartRun] = (),
    storage: str | None = None,
    identity: str,
    seed: int = 0,
    running: Running | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Runs configurations of the space that a cost model spans, and names the best.

    Args:
        engine: Runs them; it is started and ended here.
        cost_model: Says which could be the best; what was run corrects it.
        model: What is run.
        workload: Objective, lengths and limits.
        host: Has the baselines that are tried beside what is predicted.
        room: The memory there is on each device of the cost model.
        default: What would run without tuning; a point of the space. It stays unless it is beaten by more than
            ``noise``.
        threads: CPU thread counts to choose from, ascending.
        batches: Batch sizes to choose from, ascending.
        chunks: Prefill chunks to choose from, ascending.
        noise: Relative; below it two times are not told apart.
        budget_s: Wall time. What is running when it is over is not interrupted.
        known: Runs of earlier searches for this host and model.
        storage: URL of a database that keeps the study, to be watched and resumed; None: memory.
        identity: Of the study: searches with the same one share their runs.
        seed: Of the order in which the best few are run again.
        running: Told how far the search is.
        clock: Tells the time in seconds.

    Raises:
        UsageError: The storage is no database that can be used here.
        StoreError: It can't be opened or written.
        BenchmarkError: The engine can't be started.
        ValueError: The default isn't a point of the space.
    """
    from autotune.search.exploration import enqueue_seeds, explore, seeds, take_up_again
    from autotune.search.finalists import choose, rerun
    from autotune.search.pruner import HopelessPruner
    from autotune.search.sampler import BoundSampler
    from autotune.search.storage import open_study, storing, without_password
    from autotune.search.trials import Allowance, Trials

    allowance = Allowance(budget_s, clock)
    runs = Runs(workload, noise)
    belief = Belief(
        cost_model, model, workload, room, threads=threads, batches=batches, chunks=chunks, runs=runs, noise=noise
    )
    start = belief.space.point(default)

    def incumbent() -> Standing | None:
        return next(iter(trials.standings()), None)

    def incumbent_costs() -> Sequence[float] | None:
        best = incumbent()
        return None if best is None else best.costs

    def propose() -> Point:
        return belief.promising(incumbent()) or start

    with silenced(), storing(storage):
        pruner = HopelessPruner(noise, incumbent_costs)
        study = open_study(storage, identity, BoundSampler(belief.space, propose), pruner)
        trials = Trials(engine, study, belief, runs, workload, allowance=allowance, default=default, noise=noise)
        trials.gather(known)
        take_up_again(study, belief.space)
        enqueue_seeds(study, trials, belief.space, seeds(belief, model, host, workload, default, room))
        with engine:
            share = _EXPLORING_SHARE
            while True:
                stopped = explore(study, trials, belief, allowance, share=share, running=running)
                news = rerun(trials, study, runs, default, noise=noise, allowance=allowance, seed=seed)
                if stopped == "budget" and share < 1.0:
                    share = 1.0  # what running the best few again did not need
                elif stopped != "decided" or not news:
                    # Else: where the best turned out worse than it seemed, something else could win again.
                    break
            standings = trials.standings()
            winner = choose(standings, belief, default, noise=noise)
            proof = None if winner is None else trials.standing(winner)
            if stopped == "budget" and proof is not None and belief.surpassed(proof):
                winner = None
            overhead_share = None if winner is None else engine.overhead_share(winner, workload)
            memory_used = engine.memory_used()
    of_default = trials.standing(default)
    chosen = None if winner is None else proof
    rest = [standing.configuration for standing in standings if standing.configuration != winner]
    return Outcome(
        Confirmation(
            engine=engine.name,
            budget_s=budget_s,
            spent_s=allowance.spent_s(),
            stopped=stopped,
            workload=workload,
            trials=tuple(trials.records.values()),
            runs=runs.all(),
            failures=tuple(trials.failures),
            corrections=belief.cost_model.corrections(),
            chosen=None if chosen is None else chosen.measured,
            default=None if of_default is None else of_default.measured,
            runner_up=rest[0] if rest else None,
            overhead_share=overhead_share,
            memory_used=memory_used,
            reused_layers=engine.reused_layers,
            storage=None if storage is None else without_password(storage),
        ),
        winner,
        belief.cost_model,
    )
