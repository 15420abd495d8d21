"""The split between the CPU and GPUs: the curve over it, and why layers and head are where they are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autotune.model import memory
from autotune.model.sizes import readable_bytes
from autotune.records import SplitFigures
from autotune.search.contest import Contest
from autotune.search.evaluate import Evaluator
from autotune.search.space import Point, Space
from autotune.search.wording import compared, milliseconds


def split_curve(contest: Contest) -> tuple[SplitFigures, ...]:
    """The best with 0, 1, ... and all layers on GPUs; empty where there is no GPU."""
    evaluator = contest.evaluator
    space = evaluator.space
    if len(space.devices) == 1:
        return ()
    best = contest.best_of_each(space.gpu_layers)
    # Of what is needed beyond the memory, the least that any placement with so many layers on GPUs does with.
    least_excess = np.full(int(space.layers[0, 0]) + 1, np.iinfo(np.int64).max)
    np.minimum.at(least_excess, space.gpu_layers, evaluator.excess_bytes.min(axis=(1, 2)))
    curve = []
    for gpu_layers, excess in enumerate(least_excess.tolist()):
        point = best.get(gpu_layers)
        if point is None:
            curve.append(SplitFigures(gpu_layers, None, None, None, "memory" if excess > 0 else "limits"))
        else:
            value = evaluator.at(point)
            tokens_per_s, tpot_s = float(value.tokens_per_s), float(value.tpot_s)
            curve.append(SplitFigures(gpu_layers, space.configuration(point), tokens_per_s, tpot_s, None))
    return tuple(curve)


def explain_split(contest: Contest, chosen: Point) -> tuple[str, ...]:
    """Why the strategy, the number of GPU layers and the head's device; empty where there is no GPU."""
    space = contest.evaluator.space
    if len(space.devices) == 1:
        return ()
    if not space.gpu_layers[chosen.placement]:
        return (_cpu_alone(contest, chosen),)
    return tuple(
        sentence
        for sentence in (_strategy(contest, chosen), _gpu_layers(contest, chosen), _head(contest, chosen))
        if sentence
    )


def _cpu_alone(contest: Contest, chosen: Point) -> str:
    evaluator = contest.evaluator
    space = evaluator.space
    with_gpus = space.gpu_layers > 0
    other = contest.best_of_each(np.where(with_gpus, 0, -1)).get(0)
    if other is None:
        return f"All layers are on the CPU: with any on {_gpus(space)} it would {_break(evaluator, with_gpus)}."
    return (
        f"All layers are on the CPU: the best with a GPU, {_placed(space, other)}, would be "
        f"{_compared(contest, other, chosen)}, where handing over takes "
        f"{milliseconds(evaluator.decode.handover_s[other.placement, other.batch])} of a decode step's "
        f"{milliseconds(evaluator.at(other).tpot_s)}."
    )


def _strategy(contest: Contest, chosen: Point) -> str:
    space = contest.evaluator.space
    all_layers = space.gpu_layers == len(contest.evaluator.model.layers)
    parts = [f"all on the CPU {_would(contest, chosen, space.gpu_layers == 0)}"]
    if not all_layers[chosen.placement]:
        parts.append(f"all on {_gpus(space)} {_would(contest, chosen, all_layers & (space.heads > 0))}")
    return _sentence(f"{_placed(space, chosen, verb=True)}: {' and '.join(parts)}")


def _gpu_layers(contest: Contest, chosen: Point) -> str:
    """What one layer more or fewer on GPUs would be; none at all is told elsewhere."""
    space = contest.evaluator.space
    count = int(space.gpu_layers[chosen.placement])
    parts = [
        f"one layer {change} on {_gpus(space)} {_would(contest, chosen, space.gpu_layers == other)}"
        for change, other in (("more", count + 1), ("fewer", count - 1))
        if 0 < other <= len(contest.evaluator.model.layers)
    ]
    return _sentence(" and ".join(parts))


def _head(contest: Contest, chosen: Point) -> str:
    """What the same layers with the head elsewhere would be, where that is possible, or lacks memory on a GPU."""
    evaluator = contest.evaluator
    space = evaluator.space
    head, same = space.heads[chosen.placement], (space.layers == space.layers[chosen.placement]).all(axis=1)
    elsewhere = same & (space.heads != head)
    (placement,) = np.flatnonzero(elsewhere)
    other = contest.best_of_each(np.where(elsewhere, 0, -1)).get(0)
    if other is None and (head or evaluator.excess_bytes[placement].min() <= 0):
        return ""
    places = [_place(space.devices[device]) for device in (head, space.heads[placement])]
    return f"The head is on {places[0]}: on {places[1]} it {_would(contest, chosen, elsewhere)}."


def _would(contest: Contest, chosen: Point, placements: NDArray[np.bool_]) -> str:
    """What the best of some placements would be, or what it would break."""
    other = contest.best_of_each(np.where(placements, 0, -1)).get(0)
    if other is None:
        return f"would {_break(contest.evaluator, placements)}"
    return f"would be {_compared(contest, other, chosen)}"


def _break(evaluator: Evaluator, placements: NDArray[np.bool_]) -> str:
    """What keeps all of some placements from being feasible: the memory that the least needy one lacks, or limits."""
    excess = evaluator.excess_bytes[placements]
    least = int(excess.argmin())
    if excess.flat[least] <= 0:
        return "break the limits"
    row, batch, chunk = (int(index) for index in np.unravel_index(least, excess.shape))
    point = Point(int(np.flatnonzero(placements)[row]), 0, 0, batch, chunk)
    configuration = evaluator.space.configuration(point)
    uses = memory.plan(evaluator.model, configuration, evaluator.workload.context_tokens, evaluator.room)
    lacks = {use.device: use.total_bytes - use.available_bytes for use in uses}
    device = max(lacks, key=lambda device: lacks[device])
    return f"lack {readable_bytes(lacks[device])} of {_place(device)}'s memory"


def _compared(contest: Contest, other: Point, chosen: Point) -> str:
    at = contest.evaluator.at
    return compared(at(other).costs[0], at(chosen).costs[0])


def _placed(space: Space, point: Point, *, verb: bool = False) -> str:
    """``5 of 8 layers and the head on cuda:0``, or with a verb ``1 of 8 layers is on cuda:0``."""
    on_gpus = {
        device: int(count)
        for device, count in zip(space.devices[1:], space.layers[point.placement, 1:], strict=True)
        if count
    }
    total = int(space.layers[0, 0])
    count = sum(on_gpus.values())
    layers = f"{count} of {total} layers"
    if count == total:
        layers = f"all {total} layers" if total > 1 else "the only layer"
    head = " and the head" if space.heads[point.placement] else ""
    are = ""
    if verb:
        are = " are" if head or count > 1 else " is"
    if len(on_gpus) == 1:
        return f"{layers}{head}{are} on {next(iter(on_gpus))}"
    shares = ", ".join(f"{count} on {device}" for device, count in on_gpus.items())
    return f"{layers}{head}{are} on GPUs ({shares})"


def _gpus(space: Space) -> str:
    return space.devices[1] if len(space.devices) == 2 else "GPUs"


def _place(device: str) -> str:
    return "the CPU" if device == "cpu" else device


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""
