"""Exact ranking: the best of all configurations that fit memory and keep the workload's limits."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autotune.errors import ConstraintError, MemoryLimitError
from autotune.model import memory
from autotune.search.contest import Contest
from autotune.search.evaluate import Evaluator
from autotune.search.space import Point
from autotune.search.wording import milliseconds


@dataclass(frozen=True)
class Ranking:
    """What came first, and of how many.

    Attributes:
        contest: What was ranked, under the limit on TPOT that applied.
        best: The best feasible point; see :meth:`Contest.best_of_each` for ties.
        runner_up: The best feasible point that decodes differently: with another placement, batch size or
            number of decode threads; None if there is none.
        feasible: Points that fit memory and keep the limits.
        time_s: What the ranking took.
    """

    contest: Contest
    best: Point
    runner_up: Point | None
    feasible: int
    time_s: float

    @property
    def max_tpot_s(self) -> float | None:
        """The limit on TPOT that was applied; None without one."""
        return self.contest.max_tpot_s


def rank(evaluators: Sequence[Evaluator]) -> list[Ranking | None]:
    """Ranks every configuration of one or several spaces, under the limit that applies to all of them together.

    Args:
        evaluators: Of one workload, for the model in one weight format each.

    Returns:
        A ranking per space; None where no configuration fits memory and limits.

    Raises:
        MemoryLimitError: None of any space fits the memory.
        ConstraintError: Some fit, but none keeps the workload's limits.
    """
    limits, errors = [], []
    for evaluator in evaluators:
        try:
            limits.append(effective_max_tpot_s(evaluator))
        except (MemoryLimitError, ConstraintError) as error:
            errors.append(error)
    if not limits:
        raise next((error for error in errors if isinstance(error, ConstraintError)), errors[0])
    # Where one space keeps the limit there is no reason to relax it for another; else the best step of all counts.
    max_tpot_s = min((limit for limit in limits if limit is not None), default=None)
    return [_rank(evaluator, max_tpot_s) for evaluator in evaluators]


def _rank(evaluator: Evaluator, max_tpot_s: float | None) -> Ranking | None:
    start_s = time.perf_counter()
    contest = Contest(evaluator, max_tpot_s)
    best = contest.best()
    if best is None:
        return None
    return Ranking(
        contest=contest,
        best=best,
        runner_up=contest.without(best).best(),
        feasible=_count_feasible(evaluator, max_tpot_s),
        time_s=time.perf_counter() - start_s,
    )


def effective_max_tpot_s(evaluator: Evaluator) -> float | None:
    """The limit on TPOT after relaxation; None without a limit.

    Raises:
        MemoryLimitError: No configuration fits the memory.
        ConstraintError: None that fits keeps the limit on TTFT, or on TPOT where that may not be relaxed.
    """
    workload = evaluator.workload
    value = evaluator.fastest
    possible = np.broadcast_to(value.excess_bytes <= 0, value.tokens_per_s.shape)
    if not possible.any():
        raise MemoryLimitError(
            memory.what_would_fit(
                evaluator.model, workload, evaluator.room, prefill_chunk=int(evaluator.space.chunks[0])
            )
        )
    condition = "fits the memory"
    if workload.max_ttft_s is not None:
        fastest_s = float(np.where(possible, value.ttft_s, np.inf).min())
        if fastest_s > workload.max_ttft_s:
            raise ConstraintError(
                f"the limit of {milliseconds(workload.max_ttft_s)} on the time to the first token can't be kept: "
                f"the best prefill of {workload.prompt_tokens} tokens that fits the memory "
                f"takes {milliseconds(fastest_s)}"
            )
        possible = possible & (value.ttft_s <= workload.max_ttft_s)
        condition += f" and keeps the time to the first token within {milliseconds(workload.max_ttft_s)}"
    if workload.max_tpot_s is None:
        return None
    tpot_s = np.where(possible, value.tpot_s, np.inf)
    fastest_s = float(tpot_s.min())
    if fastest_s <= workload.max_tpot_s:
        return workload.max_tpot_s
    if workload.relaxed_tpot_ratio is not None:
        return workload.relaxed_tpot_ratio * fastest_s
    batch = int(evaluator.space.batches[np.unravel_index(tpot_s.argmin(), tpot_s.shape)[1]])
    raise ConstraintError(
        f"the limit of {milliseconds(workload.max_tpot_s)} on the time per output token can't be kept: "
        f"the best that {condition} is {milliseconds(fastest_s)}, with a batch of {batch}"
    )


def _count_feasible(evaluator: Evaluator, max_tpot_s: float | None) -> int:
    """Feasible points of the full product: where memory fits, every decode count with every prefill count."""
    prefill = evaluator.prefill.within(evaluator.workload.max_ttft_s)
    fits = np.where(evaluator.excess_bytes <= 0, prefill[:, None, :], 0)
    return int((evaluator.decode.within(max_tpot_s) * fits.sum(axis=2)).sum())
