"""What configurations do under a workload: one vectorised evaluator for ranking, study and default alike."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from autotune.costmodel.steps import Seconds, StepCosts
from autotune.model import memory
from autotune.model.memory import Room
from autotune.model.sites import on_gpu
from autotune.records import Candidate, Configuration, Figures, Model, Workload
from autotune.search.space import Index, Point, Space, build_space
from autotune.search.times import BARRED_S, StepTimes, decode_times, prefill_times

Time = TypeVar("Time", float, Seconds)

_UNUSED_BYTES = -(2**62)
"""Stands for what a device needs beyond its memory where it isn't used: less than any other."""


@dataclass(frozen=True)
class Evaluation:
    """Figures at one or many points; all arrays broadcast against each other.

    Attributes:
        tpot_s: Time per output token: one decode step of the whole batch.
        ttft_s: Time to the first token: the prefill of one prompt, whose head gives it.
        tokens_per_s: Output tokens per second over whole requests of a full batch.
        costs: What the workload minimises, most important first: TPOT for ``chat``, else the time per output token
            over whole requests (the reciprocal of ``tokens_per_s``); then TTFT.
        excess_bytes: Memory beyond what is available, on the device that lacks most; it fits if not positive.
        total_bytes: Memory needed on all devices together.
    """

    tpot_s: Seconds
    ttft_s: Seconds
    tokens_per_s: Seconds
    costs: tuple[Seconds, ...]
    excess_bytes: NDArray[np.int64]
    total_bytes: NDArray[np.int64]


@dataclass(frozen=True)
class Evaluator:
    """Step times and memory of every point in a space, kept as the few small tables that they depend on.

    Attributes:
        decode: Times of one decode step, over batch sizes.
        prefill: Times of one prompt's prefill, over chunks.
        excess_bytes: See :class:`Evaluation`, shape (P, B, C): threads need no memory of their own.
        total_bytes: Likewise.
        room: The memory there is.
    """

    model: Model
    workload: Workload
    space: Space
    decode: StepTimes
    prefill: StepTimes
    excess_bytes: NDArray[np.int64]
    total_bytes: NDArray[np.int64]
    room: Room

    def at(self, point: Point) -> Evaluation:
        """Evaluates one point, or many whose index arrays broadcast."""
        placement, decode_threads, prefill_threads, batch, chunk = point
        return self.taking(
            point, self.decode.at(placement, decode_threads, batch), self.prefill.at(placement, prefill_threads, chunk)
        )

    def taking(self, point: Point, tpot_s: Seconds | float, ttft_s: Seconds | float) -> Evaluation:
        """Figures at points that take so long, as measured and not as predicted; all broadcast."""
        return self._evaluation(
            self.space.batches[point.batch],
            np.asarray(tpot_s),
            np.asarray(ttft_s),
            self.excess_bytes[point.placement, point.batch, point.chunk],
            self.total_bytes[point.placement, point.batch, point.chunk],
        )

    @functools.cached_property
    def fastest(self) -> Evaluation:
        """Every placement, batch size and chunk with its fastest threads: figures that broadcast to (P, B, C)."""
        return self._evaluation(
            self.space.batches[:, None],
            self.decode.fastest_s[:, :, None],
            self.prefill.fastest_s[:, None, :],
            self.excess_bytes,
            self.total_bytes,
        )

    def _evaluation(
        self,
        sequences: Index,
        tpot_s: Seconds,
        ttft_s: Seconds,
        excess_bytes: NDArray[np.int64],
        total_bytes: NDArray[np.int64],
    ) -> Evaluation:
        workload = self.workload
        requests_s = serving_time_s(workload, sequences, tpot_s, ttft_s)
        tokens = sequences * workload.output_tokens
        return Evaluation(
            tpot_s=tpot_s,
            ttft_s=ttft_s,
            tokens_per_s=tokens / requests_s,
            costs=(tpot_s if workload.name == "chat" else requests_s / tokens, ttft_s),
            excess_bytes=excess_bytes,
            total_bytes=total_bytes,
        )

    def violations(self, value: Evaluation, max_tpot_s: float | None) -> dict[str, NDArray[np.float64]]:
        """By how much each constraint is broken, relative to its limit; kept where not positive.

        Args:
            value: Figures of some points.
            max_tpot_s: The workload's limit on TPOT, after relaxation.
        """
        # Subtract before dividing: a difference of floats has the right sign, their ratio may round to 1.
        violations = {"memory": value.excess_bytes / max(1, *self.room.available_bytes.values())}
        if max_tpot_s is not None:
            violations["tpot"] = (value.tpot_s - max_tpot_s) / max_tpot_s
        if self.workload.max_ttft_s is not None:
            violations["ttft"] = (value.ttft_s - self.workload.max_ttft_s) / self.workload.max_ttft_s
        return violations

    def feasible(self, value: Evaluation, max_tpot_s: float | None) -> NDArray[np.bool_]:
        """Whether every constraint is kept; arguments as for :meth:`violations`."""
        kept = (value.excess_bytes <= 0) & (value.tpot_s < BARRED_S) & (value.ttft_s < BARRED_S)
        if max_tpot_s is not None:
            kept = kept & (value.tpot_s <= max_tpot_s)
        if self.workload.max_ttft_s is not None:
            kept = kept & (value.ttft_s <= self.workload.max_ttft_s)
        return kept

    def candidate(self, point: Point) -> Candidate:
        """One point as a configuration with its predicted figures."""
        configuration = self.space.configuration(point)
        value = self.at(point)
        return Candidate(
            configuration=configuration,
            predicted=Figures(
                tokens_per_s=float(value.tokens_per_s),
                tpot_s=float(value.tpot_s),
                ttft_s=float(value.ttft_s),
                memory=memory.plan(self.model, configuration, self.workload.context_tokens, self.room),
            ),
        )


def serving_time_s(workload: Workload, sequences: Any, tpot_s: Time, ttft_s: Time) -> Time:
    """Time of a full batch of whole requests.

    Prompts go through one after the other; each gives its sequence's first token.

    Args:
        workload: Its output tokens.
        sequences: The batch size, or an array of them.
        tpot_s: Time of a decode step of the batch.
        ttft_s: Time of one prompt's prefill.
    """
    total_s: Time = sequences * ttft_s + (workload.output_tokens - 1) * tpot_s
    return total_s


def build_evaluator(
    model: Model, workload: Workload, costs: StepCosts, room: Room, including: Iterable[Configuration] = ()
) -> Evaluator:
    """Adds up step times and memory for every placement.

    Args:
        model: Its layers are those that ``costs.layer_kinds`` describes.
        workload: Lengths and largest batch.
        costs: Step costs for the workload's prompt and output lengths.
        room: The memory there is on each device of ``costs``.
        including: Configurations whose placements must be in the space.

    Raises:
        ValueError: The cost table was made for a model with another number of layers.
    """
    if len(costs.layer_kinds) != len(model.layers):
        raise ValueError(
            f"expected step costs of {len(model.layers)} layers, as {model.name} has, got {len(costs.layer_kinds)}"
        )
    space = build_space(costs, workload, room.available_bytes, including)
    excess_bytes, total_bytes = _memory(model, workload, space, room)
    return Evaluator(
        model=model,
        workload=workload,
        space=space,
        decode=decode_times(space, costs),
        prefill=prefill_times(space, costs),
        excess_bytes=excess_bytes,
        total_bytes=total_bytes,
        room=room,
    )


def device_bytes(model: Model, workload: Workload, space: Space, room: Room) -> Iterator[NDArray[np.int64]]:
    """``memory.plan`` for all points: what each device needs, in the space's order, each of shape (P, B, C).

    A device that isn't used needs nothing.
    """
    gpus = space.gpu_layers > 0
    embeddings = np.where(space.heads == 0, 0, (space.layers > 0).argmax(axis=1))
    ends = np.cumsum(space.layers, axis=1)
    tokens = space.batches * workload.context_tokens
    rows = np.maximum(space.batches[:, None], space.chunks)
    # Per combination of layers and head that a device may have, shape (4, B, C).
    activations = np.stack(
        [
            memory.activation_bytes(
                model, rows, space.batches[:, None], workload.context_tokens, layers=layers, head=head
            )
            for layers in (False, True)
            for head in (False, True)
        ]
    )
    for device, name in enumerate(space.devices):
        held = on_gpu(model) if device else model
        before = np.cumsum([0, *(memory.weight_bytes(layer) for layer in held.layers)])
        layers, head, embedding = space.layers[:, device], space.heads == device, embeddings == device
        resident = before[ends[:, device]] - before[ends[:, device] - layers]
        of_ends = [[memory.ends_bytes(held, embedding=e, head=h) for h in (False, True)] for e in (False, True)]
        resident += np.array(of_ends)[embedding.astype(np.intp), head.astype(np.intp)]
        if device:
            used = layers > 0
            resident += room.overhead_on(name, gpus=True)
        else:
            # It drives the GPUs where it does nothing else.
            used = np.ones_like(gpus)
            overheads = [room.overhead_on(name, gpus=split) for split in (False, True)]
            resident += memory.vocabulary_bytes(model) + np.array(overheads)[gpus.astype(np.intp)]
        needed = activations[2 * (layers > 0) + head]
        needed += (resident[:, None] + memory.kv_cache_bytes(model, layers[:, None], tokens))[..., None]
        needed[~used] = 0
        yield needed


def _memory(model: Model, workload: Workload, space: Space, room: Room) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Excess and total bytes of all points, each of shape (P, B, C)."""
    shape = len(space.layers), len(space.batches), len(space.chunks)
    excess, total = np.full(shape, _UNUSED_BYTES), np.zeros(shape, np.int64)
    for device, needed in enumerate(device_bytes(model, workload, space, room)):
        total += needed
        used = (space.layers[:, device] > 0) | (device == 0)
        needed -= room.available_bytes[space.devices[device]]
        needed[~used] = _UNUSED_BYTES
        np.maximum(excess, needed, out=excess)
    return excess, total
