"""Why a configuration was chosen: for each setting, what its nearest alternative would have cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autotune.costmodel.steps import Seconds
from autotune.model.memory import readable_bytes
from autotune.search.evaluate import Evaluator
from autotune.search.rank import Ranking, best_point
from autotune.search.space import Point


def explain(evaluator: Evaluator, ranking: Ranking, chosen: Point) -> tuple[str, ...]:
    """One sentence per setting that had an alternative, and one if the TPOT limit was relaxed.

    "Slower" compares times: 10 % slower takes 1.1 times as long.
    """
    sentences = [_relaxed_limit(evaluator, ranking), _placement(evaluator, ranking, chosen)]
    if evaluator.space.layers[chosen.placement, 0]:
        decode_s = evaluator.decode_s[chosen.placement, :, chosen.batch]
        prefill_s = evaluator.prefill_s[chosen.placement, :, chosen.chunk]
        sentences.append(_threads("Decode", evaluator, decode_s, int(chosen.decode_threads)))
        sentences.append(_threads("Prefill", evaluator, prefill_s, int(chosen.prefill_threads)))
    sentences += [_batch(evaluator, ranking, chosen), _chunk(evaluator, chosen)]
    return tuple(sentence for sentence in sentences if sentence)


def compared(other_s: float | Seconds, chosen_s: float | Seconds) -> str:
    """How another time relates to the chosen one, in words."""
    change = float(other_s / chosen_s) - 1
    if abs(change) < 0.0005:
        return "as fast"
    if change >= 1:
        return f"{1 + change:.1f} times slower"
    return f"{abs(change) * 100:.1f} % {'slower' if change > 0 else 'faster'}"


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
        f"No batch size keeps {limit_s * 1e3:.4g} ms per output token (the best is "
        f"{ranking.max_tpot_s / ratio * 1e3:.4g} ms), so {ratio:g} times the best is allowed."
    )


def _placement(evaluator: Evaluator, ranking: Ranking, chosen: Point) -> str:
    space = evaluator.space
    if len(space.devices) == 1:
        return ""
    on_cpu, total = int(space.layers[chosen.placement, 0]), int(space.layers[0].sum())
    parts = []
    for where, layers_on_cpu in (("the CPU", total), ("GPUs", 0)):
        if on_cpu == layers_on_cpu:
            continue
        placements = space.layers[:, 0] == layers_on_cpu
        other = best_point(evaluator, ranking.max_tpot_s, placements[:, None, None])
        if other is None:
            parts.append(f"all on {where} would break the memory or the limits")
        else:
            times = compared(evaluator.at(other).costs[0], evaluator.at(chosen).costs[0])
            parts.append(f"all on {where} would be {times}")
    return f"{total - on_cpu} of {total} layers are on GPUs: {' and '.join(parts)}."


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
    of_larger = np.arange(len(space.batches)) == larger
    start = f"Batch {batch} and not {space.batches[larger]}: "
    shortage = int(evaluator.excess_bytes[:, larger].min())
    if shortage > 0:
        return f"{start}that needs {readable_bytes(shortage)} more memory than there is."
    other = best_point(evaluator, ranking.max_tpot_s, of_larger)
    if other is not None:
        return f"{start}that would be {compared(evaluator.at(other).costs[0], evaluator.at(chosen).costs[0])}."
    fits = (evaluator.excess_bytes[:, larger] <= 0).any(axis=-1)
    tpot_s = float(evaluator.decode_s[fits, :, larger].min())
    if ranking.max_tpot_s is not None and tpot_s > ranking.max_tpot_s:
        limit_ms = ranking.max_tpot_s * 1e3
        return f"{start}a token would take {tpot_s * 1e3:.4g} ms, over the limit of {limit_ms:.4g} ms."
    return f"{start}that can't keep the memory and the limits together."


def _chunk(evaluator: Evaluator, chosen: Point) -> str:
    chunks = evaluator.space.chunks
    if len(chunks) == 1:
        return ""
    fastest_s = evaluator.prefill_s[chosen.placement].min(axis=0)
    others = np.delete(np.arange(len(chunks)), chosen.chunk)
    other = others[fastest_s[others].argmin()]
    chosen_s = evaluator.prefill_s[chosen.placement, chosen.prefill_threads, chosen.chunk]
    times = compared(fastest_s[other], chosen_s)
    if evaluator.excess_bytes[chosen.placement, chosen.batch, other] > 0:
        times += " but would not fit the memory"
    return f"Prompts go through {chunks[chosen.chunk]} tokens at a time: {chunks[other]} would be {times}."
