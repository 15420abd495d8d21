"""What if a setting were another one: what saved measurements predict, and why that is slower or faster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from autotune.conclusion import noise_of
from autotune.errors import UsageError
from autotune.model.sizes import readable_bytes
from autotune.outlook import Outlook, Prospect
from autotune.records import Configuration, Figures, Measured, Result
from autotune.search.evaluate import Evaluator
from autotune.search.objective import cost_s
from autotune.search.space import Point
from autotune.search.wording import compared, milliseconds
from autotune.search.workload import LARGEST_BATCH

Indices = NDArray[np.intp]

_WORTH_SAYING = 1e-3
"""Relative gain from which on another setting is said to go better with what was asked for."""


class Wish(NamedTuple):
    """Settings to ask about; None stays as it was chosen.

    Attributes:
        decode_threads: CPU threads.
        prefill_threads: CPU threads.
        batch_size: Sequences decoded together.
        prefill_chunk: Prompt tokens processed at once.
        gpu_layers: Layers on all GPUs together; they go where they are fastest.
    """

    decode_threads: int | None = None
    prefill_threads: int | None = None
    batch_size: int | None = None
    prefill_chunk: int | None = None
    gpu_layers: int | None = None


class Answer(NamedTuple):
    """What is predicted of a wish.

    Attributes:
        chosen: The configuration that the result chose.
        asked: The same with the settings asked for.
        verdict: How they compare in what the workload is after, in words.
        reasons: Why, a sentence each.
        bound_by: What limits the decode step of the one asked for.
        better: The best with the settings asked for, where another setting goes better with them; else None.
    """

    chosen: Prospect
    asked: Prospect
    verdict: str
    reasons: tuple[str, ...]
    bound_by: str
    better: Prospect | None


def what_if(result: Result, wish: Wish) -> Answer:
    """Compares the chosen configuration with one of other settings; nothing is timed.

    Raises:
        UsageError: A setting that this host, model or workload can't have.
    """
    _check(result, wish)
    outlook = Outlook(
        result,
        threads={count for count in (wish.decode_threads, wish.prefill_threads) if count is not None},
        batches={size for size in (wish.batch_size,) if size is not None},
        chunks={size for size in (wish.prefill_chunk,) if size is not None},
    )
    configuration = _configuration(outlook, wish)
    chosen, asked = outlook.chosen, outlook.at(configuration)
    same = configuration == chosen.configuration
    return Answer(
        chosen=chosen,
        asked=asked,
        verdict="it is the chosen configuration" if same else f"{_verdict(result, asked, chosen)}{_but(asked)}",
        reasons=tuple(_reasons(outlook, asked, chosen, wish)),
        bound_by=outlook.bound_by(configuration),
        better=_better(outlook, asked, wish),
    )


def _but(asked: Prospect) -> str:
    return "; but it is not possible, see why" if asked.obstacles else ""


def _check(result: Result, wish: Wish) -> None:
    limits, workload, layers = result.host.limits, result.workload, len(result.model.layers)
    for phase, threads in (("decode", wish.decode_threads), ("prefill", wish.prefill_threads)):
        if threads is not None and not 1 <= threads <= limits.usable_threads:
            raise UsageError(
                f"{phase} threads must be 1 to {limits.usable_threads}, which is what {result.host.label} may use "
                f"(limit: {limits.decided_by}), got {threads}"
            )
    if wish.batch_size is not None and not 1 <= wish.batch_size <= LARGEST_BATCH:
        raise UsageError(f"--batch must be 1 to {LARGEST_BATCH}, got {wish.batch_size}")
    if wish.prefill_chunk is not None and not 1 <= wish.prefill_chunk <= workload.prompt_tokens:
        raise UsageError(
            f"--chunk must be 1 to {workload.prompt_tokens}, the workload's prompt tokens, got {wish.prefill_chunk}"
        )
    if wish.gpu_layers is None:
        return
    if not 0 <= wish.gpu_layers <= layers:
        raise UsageError(
            f"--gpu-layers must be 0 to {layers}, the layers of {result.model.name}, got {wish.gpu_layers}"
        )
    if wish.gpu_layers and not result.decision.split_curve:
        raise UsageError(f"--gpu-layers {wish.gpu_layers} can't be predicted: no GPU was timed on {result.host.label}")


def _configuration(outlook: Outlook, wish: Wish) -> Configuration:
    """The chosen configuration with the settings asked for.

    Where the CPU had nothing to do its threads were not chosen, so where it gets something they are the fastest.
    """
    settings = {name: value for name, value in wish._asdict().items() if value is not None and name != "gpu_layers"}
    configuration = replace(outlook.result.decision.chosen.configuration, **settings)
    evaluator, space = outlook.evaluator, outlook.evaluator.space
    point = space.point(configuration)
    if wish.gpu_layers is None or wish.gpu_layers == space.gpu_layers[point.placement]:
        return configuration
    points = point._replace(placement=np.flatnonzero(space.gpu_layers == wish.gpu_layers))
    if not space.works[point.placement, 0]:
        if wish.decode_threads is None:
            points = points._replace(decode_threads=evaluator.decode.fastest_threads[points.placement, point.batch])
        if wish.prefill_threads is None:
            points = points._replace(prefill_threads=evaluator.prefill.fastest_threads[points.placement, point.chunk])
    value = evaluator.at(points)
    # The fastest that fits, or where none does, the one that lacks least.
    best = np.lexsort((value.costs[1], value.costs[0], np.maximum(value.excess_bytes, 0)))[0]
    first = Point(*(int(np.broadcast_to(index, value.tpot_s.shape)[best]) for index in points))
    return space.configuration(space.plain(first))


def _verdict(result: Result, asked: Prospect, chosen: Prospect) -> str:
    """How what was asked for compares, as predicted and, where both were run, as measured."""
    workload, noise = result.workload, noise_of(result.campaign)
    pairs: list[tuple[str, Figures | Measured, Figures | Measured]] = [("predicted", asked.predicted, chosen.predicted)]
    if asked.measured is not None and chosen.measured is not None:
        pairs.insert(0, ("measured", asked.measured, chosen.measured))
    texts = []
    for how, other, own in pairs:
        other_s, own_s = cost_s(workload, other), cost_s(workload, own)
        text = f"{how}: {compared(other_s, own_s)}"
        if workload.name == "chat":
            text += f", {milliseconds(other_s)} per token instead of {milliseconds(own_s)}"
        else:
            text += f", {other.tokens_per_s:.4g} tokens/s instead of {own.tokens_per_s:.4g}"
        texts.append(text + (f", within the noise of {noise:.1%}" if abs(other_s / own_s - 1) <= noise else ""))
    return "; ".join(texts)


def _reasons(outlook: Outlook, asked: Prospect, chosen: Prospect, wish: Wish) -> Iterator[str]:
    """Why, a sentence each: where time is lost or won, memory, what speaks against it, what is not known."""
    new, old = asked.configuration, chosen.configuration
    if new != old:
        yield from _times(asked, chosen)
        yield from _memory(asked.predicted, chosen.predicted)
    if wish.decode_threads or wish.prefill_threads:
        space = outlook.evaluator.space
        if not space.works[space.point(new).placement, 0]:
            yield "The CPU has neither layers nor the head, so its threads change nothing."
    yield from asked.obstacles
    caveats = [f"{caveat[0].upper()}{caveat[1:].rstrip('.')}." for caveat in outlook.caveats(new)]
    yield from caveats
    if caveats:
        yield "The 95 % ranges hold how far predictions between timed points were off, and not what is extrapolated."


def _times(asked: Prospect, chosen: Prospect) -> Iterator[str]:
    (new, old), (ours, theirs) = (asked.predicted, chosen.predicted), (asked.configuration, chosen.configuration)
    if ours.batch_size != theirs.batch_size:
        each = [figures.tpot_s / one.batch_size for figures, one in ((new, ours), (old, theirs))]
        yield (
            f"A decode step takes {milliseconds(new.tpot_s)} with batch {ours.batch_size} and "
            f"{milliseconds(old.tpot_s)} with {theirs.batch_size}: {milliseconds(each[0])} per token of all sequences "
            f"instead of {milliseconds(each[1])}, {compared(*each)}."
        )
    elif compared(new.tpot_s, old.tpot_s) != "as fast":
        yield (
            f"A decode step takes {milliseconds(new.tpot_s)} instead of {milliseconds(old.tpot_s)}, "
            f"{compared(new.tpot_s, old.tpot_s)}."
        )
    if compared(new.ttft_s, old.ttft_s) != "as fast":
        yield (
            f"A prompt takes {milliseconds(new.ttft_s)} instead of {milliseconds(old.ttft_s)}, "
            f"{compared(new.ttft_s, old.ttft_s)}."
        )


def _memory(asked: Figures, chosen: Figures) -> Iterator[str]:
    needs = [{use.device: use.total_bytes for use in figures.memory} for figures in (asked, chosen)]
    changes = []
    for device in dict.fromkeys([*needs[1], *needs[0]]):
        sizes = [own.get(device, 0) for own in needs]
        new, old = (readable_bytes(size) if size else "nothing" for size in sizes)
        if new != old:
            changes.append(f"{new} on {device} instead of {old}")
    if changes:
        yield f"It needs {' and '.join(changes)}."


def _better(outlook: Outlook, asked: Prospect, wish: Wish) -> Prospect | None:
    """The best with the settings asked for, where it is faster than with all else as chosen, or alone is feasible."""
    best = _best(outlook, wish)
    if best is None or best.configuration == asked.configuration:
        return None
    workload = outlook.result.workload
    gain = cost_s(workload, asked.predicted) / cost_s(workload, best.predicted) - 1
    allowed = bool(asked.obstacles) and not best.obstacles
    return best if allowed or gain > _WORTH_SAYING else None


def _best(outlook: Outlook, wish: Wish) -> Prospect | None:
    """The best feasible configuration with the settings asked for; None: none is feasible."""
    evaluator, limit_s = outlook.evaluator, outlook.contest.max_tpot_s
    space = evaluator.space
    placements = _indices(space.gpu_layers, wish.gpu_layers)
    batches = _indices(space.batches, wish.batch_size)
    if wish.batch_size is None:
        batches = batches[space.batches[batches] <= outlook.result.workload.max_batch]
    chunks = _indices(space.chunks, wish.prefill_chunk)
    decode_threads = _threads(evaluator, wish.decode_threads, placements[:, None], batches, prefill=False)
    prefill_threads = _threads(evaluator, wish.prefill_threads, placements[:, None], chunks, prefill=True)
    value = evaluator.at(
        Point(
            placements[:, None, None], decode_threads[:, :, None], prefill_threads[:, None, :], batches[:, None], chunks
        )
    )
    cost = np.where(evaluator.feasible(value, limit_s), value.costs[0], np.inf)
    if not np.isfinite(cost).any():
        return None
    # Of those with the lowest first cost, the one with the lowest next one.
    ties = cost <= cost.min() * (1 + outlook.contest.tie)
    row, batch, chunk = np.unravel_index(np.where(ties, value.costs[1], np.inf).argmin(), cost.shape)
    point = Point(
        int(placements[row]),
        int(decode_threads[row, batch]),
        int(prefill_threads[row, chunk]),
        int(batches[batch]),
        int(chunks[chunk]),
    )
    return outlook.at(space.configuration(point))


def _indices(axis: NDArray[np.int64], wanted: int | None) -> Indices:
    """Where an axis has the value asked for; everywhere, if none was."""
    return np.arange(len(axis)) if wanted is None else np.flatnonzero(axis == wanted)


def _threads(
    evaluator: Evaluator, wanted: int | None, placements: Indices, columns: Indices, *, prefill: bool
) -> Indices:
    """Index of the threads asked for, or of the fastest, shape (placements, columns)."""
    times = evaluator.prefill if prefill else evaluator.decode
    fastest = times.fastest_threads[placements, columns]
    return fastest if wanted is None else np.full_like(fastest, _indices(evaluator.space.threads, wanted)[0])
