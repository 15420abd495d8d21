"""Why a configuration was chosen: for each setting, what its nearest alternative would have cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autotune.costmodel.steps import Seconds
from autotune.model.sizes import readable_bytes
from autotune.search.evaluate import Evaluator
from autotune.search.rank import Ranking
from autotune.search.space import Point
from autotune.search.splits import explain_split
from autotune.search.wording import compared, milliseconds


def explain(ranking: Ranking, chosen: Point) -> tuple[str, ...]:
    """One sentence per setting that had an alternative, and one if the TPOT limit was relaxed."""
    evaluator = ranking.contest.evaluator
    sentences = [_relaxed_limit(evaluator, ranking), *explain_split(ranking.contest, chosen)]
    if evaluator.space.works[chosen.placement, 0]:
        every = np.arange(len(evaluator.space.threads))
        decode_s = evaluator.decode.at(chosen.placement, every, chosen.batch)
        prefill_s = evaluator.prefill.at(chosen.placement, every, chosen.chunk)
        sentences.append(_threads("Decode", evaluator, decode_s, int(chosen.decode_threads)))
        sentences.append(_threads("Prefill", evaluator, prefill_s, int(chosen.prefill_threads)))
    sentences += [_batch(evaluator, ranking, chosen), _chunk(evaluator, chosen)]
    return tuple(sentence for sentence in sentences if sentence)


def explain_format(chosen: str, others: Sequence[tuple[str, float | Seconds | None]], chosen_s: float | Seconds) -> str:
    """Why the weight format: what the best configuration in each other one would have cost; empty without others.

    Args:
        chosen: The format's name.
        others: Name and time of each other format; None where nothing in it fits memory and limits.
        chosen_s: The chosen configuration's time.
    """
    parts = [
        f"{name} would {'break the memory or the limits' if time_s is None else f'be {compared(time_s, chosen_s)}'}"
        for name, time_s in others
    ]
    return f"The weight format is {chosen}: {', '.join(parts)}." if parts else ""


def _relaxed_limit(evaluator: Evaluator, ranking: Ranking) -> str:
    limit_s, ratio = evaluator.workload.max_tpot_s, evaluator.workload.relaxed_tpot_ratio
    if limit_s is None or ratio is None or ranking.max_tpot_s == limit_s:
        return ""
    assert ranking.max_tpot_s is not None, "a limit was given"
    return (
        f"No batch size keeps {milliseconds(limit_s)} per output token (the best is "
        f"{milliseconds(ranking.max_tpot_s / ratio)}), so {ratio:g} times the best is allowed."
    )


def _threads(step: str, evaluator: Evaluator, step_s: Seconds, index: int) -> str:
    threads = evaluator.space.threads
    neighbours = [other for other in (index - 1, index + 1) if 0 <= other < len(threads)]
    if not neighbours:
        return ""
    parts = [f"{threads[other]} would be {compared(step_s[other], step_s[index])}" for other in neighbours]
    return f"{step} uses {threads[index]} thread{'s' if threads[index] > 1 else ''}: {' and '.join(parts)}."


def _batch(evaluator: Evaluator, ranking: Ranking, chosen: Point) -> str:
    space = evaluator.space
    batch, larger = int(space.batches[chosen.batch]), int(chosen.batch) + 1
    if larger == len(space.batches):
        return f"Batch {batch} is the largest that the workload allows."
    start = f"Batch {batch} and not {space.batches[larger]}: "
    shortage = int(evaluator.excess_bytes[:, larger].min())
    if shortage > 0:
        return f"{start}that needs {readable_bytes(shortage)} more memory than there is."
    other = ranking.contest.best(batch=larger)
    if other is not None:
        return f"{start}that would be {compared(evaluator.at(other).costs[0], evaluator.at(chosen).costs[0])}."
    fits = (evaluator.excess_bytes[:, larger] <= 0).any(axis=-1)
    tpot_s = float(evaluator.fastest.tpot_s[fits, larger].min())
    if ranking.max_tpot_s is not None and tpot_s > ranking.max_tpot_s:
        return (
            f"{start}a token would take {milliseconds(tpot_s)}, over the limit of {milliseconds(ranking.max_tpot_s)}."
        )
    return f"{start}that can't keep the memory and the limits together."


def _chunk(evaluator: Evaluator, chosen: Point) -> str:
    chunks = evaluator.space.chunks
    if len(chunks) == 1:
        return ""
    fastest_s = evaluator.fastest.ttft_s[chosen.placement, 0]
    others = np.delete(np.arange(len(chunks)), chosen.chunk)
    other = others[fastest_s[others].argmin()]
    chosen_s = evaluator.prefill.at(chosen.placement, chosen.prefill_threads, chosen.chunk)
    times = compared(fastest_s[other], chosen_s)
    if evaluator.excess_bytes[chosen.placement, chosen.batch, other] > 0:
        times += " but would not fit the memory"
    return f"Prompts go through {chunks[chosen.chunk]} tokens at a time: {chunks[other]} would be {times}."
