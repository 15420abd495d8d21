"""Exact ranking: the best of all configurations that fit memory and keep the workload's limits.

The space is a full product and may hold 10^8 configurations, but its two thread axes need not be enumerated.
Decode threads enter only through the time of a decode step and prefill threads only through the time of a
prefill, neither needs memory, and every objective and limit is monotone in both times. So the fastest thread
count of each can be found first, per placement and batch size or chunk, and the ranking over what is left
(placement, batch size, chunk) is exact.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autotune.costmodel.steps import Seconds
from autotune.errors import ConstraintError, MemoryLimitError
from autotune.model import memory
from autotune.search.evaluate import Evaluation, Evaluator
from autotune.search.space import Point

TIE = 1e-9
"""Relative difference up to which two predictions count as equal: below any measurement, above rounding."""


@dataclass(frozen=True)
class Ranking:
    """What came first, and of how many.

    Attributes:
        best: The best feasible point. Ties go to fewer decode threads, then fewer prefill threads, less
            memory, a smaller batch.
        runner_up: The best feasible point that decodes differently: with another placement, batch size or
            number of decode threads; None if there is none.
        feasible: Points that fit memory and keep the limits.
        max_tpot_s: The limit on TPOT that was applied; None without one.
        time_s: What the ranking took.
    """

    best: Point
    runner_up: Point | None
    feasible: int
    max_tpot_s: float | None
    time_s: float


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
    best = best_point(evaluator, max_tpot_s)
    if best is None:
        return None
    others = np.ones(evaluator.decode_s.shape, dtype=bool)
    on_cpu = evaluator.space.layers[best.placement, 0] > 0
    others[best.placement, best.decode_threads if on_cpu else slice(None), best.batch] = False
    runner_up = best_point(evaluator, max_tpot_s, others)
    return Ranking(
        best=best,
        runner_up=runner_up,
        feasible=_count_feasible(evaluator, max_tpot_s),
        max_tpot_s=max_tpot_s,
        time_s=time.perf_counter() - start_s,
    )


def effective_max_tpot_s(evaluator: Evaluator) -> float | None:
    """The limit on TPOT after relaxation; None without a limit.

    Raises:
        MemoryLimitError: No configuration fits the memory.
        ConstraintError: None that fits keeps the limit on TTFT, or on TPOT where that may not be relaxed.
    """
    workload = evaluator.workload
    value = evaluator.at(_fastest_threads(evaluator, evaluator.decode_s))
    possible = np.broadcast_to(value.excess_bytes <= 0, value.tokens_per_s.shape)
    if not possible.any():
        raise MemoryLimitError(
            memory.what_would_fit(
                evaluator.model,
                workload,
                evaluator.available_bytes,
                evaluator.overhead_bytes,
                prefill_chunk=int(evaluator.space.chunks[0]),
            )
        )
    condition = "fits the memory"
    if workload.max_ttft_s is not None:
        fastest_s = float(np.where(possible, value.ttft_s, np.inf).min())
        if fastest_s > workload.max_ttft_s:
            raise ConstraintError(
                f"the limit of {_ms(workload.max_ttft_s)} on the time to the first token can't be kept: "
                f"the best prefill of {workload.prompt_tokens} tokens that fits the memory "
                f"takes {_ms(fastest_s)}"
            )
        possible = possible & (value.ttft_s <= workload.max_ttft_s)
        condition += f" and keeps the time to the first token within {_ms(workload.max_ttft_s)}"
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
        f"the limit of {_ms(workload.max_tpot_s)} on the time per output token can't be kept: "
        f"the best that {condition} is {_ms(fastest_s)}, with a batch of {batch}"
    )


def best_point(
    evaluator: Evaluator, max_tpot_s: float | None, allowed: NDArray[np.bool_] | None = None
) -> Point | None:
    """The best feasible point, or None if there is none.

    Args:
        evaluator: The space and its figures.
        max_tpot_s: Limit on TPOT; None: no limit.
        allowed: Which combinations of placement, decode threads and batch size may be chosen, broadcastable
            to (P, T, B); None: all.
    """
    within = np.broadcast_to(np.array(True) if allowed is None else allowed, evaluator.decode_s.shape)

    def feasible(points: Point, value: Evaluation) -> NDArray[np.bool_]:
        chosen = within[points.placement, points.decode_threads, points.batch]
        kept: NDArray[np.bool_] = evaluator.feasible(value, max_tpot_s) & chosen
        return kept

    grid = _fastest_threads(evaluator, np.where(within, evaluator.decode_s, np.inf))
    value = evaluator.at(grid)
    rivals = _take(grid, feasible(grid, value))
    if not np.size(rivals.batch):
        return None
    ceilings_s: list[float] = []
    for place in range(len(value.costs)):
        cost_s = evaluator.at(rivals).costs[place]
        ceilings_s.append(float(cost_s.min()) * (1 + TIE))
        rivals = _take(rivals, cost_s <= ceilings_s[-1])

    def ties(points: Point) -> NDArray[np.bool_]:
        value = evaluator.at(points)
        tied = feasible(points, value)
        for cost_s, ceiling_s in zip(value.costs, ceilings_s, strict=True):
            tied = tied & (cost_s <= ceiling_s)
        return tied

    counts = np.arange(len(evaluator.space.threads))
    for axis in ("decode_threads", "prefill_threads"):
        columns = Point(*(np.asarray(index)[:, None] for index in rivals))
        # Every rival ties with some count, so the first True is the fewest threads that still do.
        fewest = ties(columns._replace(**{axis: counts})).argmax(axis=1)
        rivals = _take(rivals._replace(**{axis: fewest}), fewest == fewest.min())
    total_bytes = evaluator.at(rivals).total_bytes
    keys = [np.asarray(index) for index in (rivals.chunk, rivals.placement, rivals.batch, total_bytes)]
    first = np.lexsort(keys)[0]
    return Point(*(int(np.asarray(index)[first]) for index in rivals))


def _fastest_threads(evaluator: Evaluator, decode_s: Seconds) -> Point:
    """Every placement, batch size and chunk with its fastest threads: indices that broadcast to (P, B, C).

    Args:
        evaluator: The space and its prefill times.
        decode_s: Times of a decode step to choose by, shape (P, T, B).
    """
    placements, _, _, batches, chunks = evaluator.space.shape
    return Point(
        placement=np.arange(placements)[:, None, None],
        decode_threads=decode_s.argmin(axis=1)[:, :, None],
        prefill_threads=evaluator.prefill_s.argmin(axis=1)[:, None, :],
        batch=np.arange(batches)[:, None],
        chunk=np.arange(chunks),
    )


def _count_feasible(evaluator: Evaluator, max_tpot_s: float | None) -> int:
    """Feasible points of the full product: where memory fits, every decode count with every prefill count."""
    max_ttft_s = evaluator.workload.max_ttft_s
    decode = (evaluator.decode_s <= (np.inf if max_tpot_s is None else max_tpot_s)).sum(axis=1)
    prefill = (evaluator.prefill_s <= (np.inf if max_ttft_s is None else max_ttft_s)).sum(axis=1)
    fits = evaluator.excess_bytes <= 0
    return int(np.einsum("pbc,pb,pc->", fits.astype(np.int64), decode, prefill))


def _take(points: Point, mask: NDArray[np.bool_]) -> Point:
    """Those points for which ``mask`` holds, as one-dimensional index arrays."""
    return Point(*(index[mask] for index in np.broadcast_arrays(*points)))


def _ms(time_s: float) -> str:
    return f"{time_s * 1e3:.4g} ms"
