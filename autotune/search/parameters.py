"""A search space as Optuna sees it: each axis a whole number from 0, by which neighbours are neighbours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from autotune.search.space import Point, Space


def axes(space: Space) -> dict[str, int]:
    """The parameters of a trial, and the last value of each.

    Where a placement is a split of the layers and a place for the head these are two: by splits that are neighbours, so
    are the times.
    """
    last = {axis: length - 1 for axis, length in zip(Point._fields, space.shape, strict=True)}
    splits = last.pop("placement") // 2
    return {"split": splits, "head_on_cpu": int(splits > 0), **last}


def point_at(space: Space, parameters: Mapping[str, int]) -> Point:
    """The point that a trial's parameters name; without layers on GPUs the head is on the CPU, whatever they say."""
    rest = dict(parameters)
    split, head_on_cpu = rest.pop("split"), rest.pop("head_on_cpu")
    return Point(placement=split + head_on_cpu * (space.shape[0] // 2) if split else 0, **rest)


def parameters_of(space: Space, point: Point) -> dict[str, int]:
    """The reverse."""
    values = {axis: int(index) for axis, index in point._asdict().items()}
    splits, placement = space.shape[0] // 2, values.pop("placement")
    head_on_cpu = int(placement > splits)
    return {"split": placement - head_on_cpu * splits, "head_on_cpu": head_on_cpu, **values}


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keeps Optuna's log off the terminal; its level is as before afterwards."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)
