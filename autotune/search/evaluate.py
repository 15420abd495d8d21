"""What configurations do under a workload: one vectorised evaluator for ranking, study and default alike."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autotune.costmodel.steps import Seconds, StepCosts
from autotune.model import memory
from autotune.records import Candidate, Figures, Model, Workload
from autotune.search.space import Point, Space, build_space


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
        decode_s: One decode step, shape (P, T, B).
        prefill_s: One prompt's prefill, shape (P, T, C).
        excess_bytes: See :class:`Evaluation`, shape (P, B, C): threads need no memory of their own.
        total_bytes: Likewise.
        available_bytes: Per device.
        overhead_bytes: The runtime's own memory per device.
    """

    model: Model
    workload: Workload
    space: Space
    decode_s: Seconds
    prefill_s: Seconds
    excess_bytes: NDArray[np.int64]
    total_bytes: NDArray[np.int64]
    available_bytes: Mapping[str, int]
    overhead_bytes: Mapping[str, int]

    def at(self, point: Point) -> Evaluation:
        """Evaluates one point, or many whose index arrays broadcast."""
        placement, decode_threads, prefill_threads, batch, chunk = point
        workload = self.workload
        tpot_s = self.decode_s[placement, decode_threads, batch]
        ttft_s = self.prefill_s[placement, prefill_threads, chunk]
        sequences = self.space.batches[batch]
        # Prompts go through one after the other; each gives its sequence's first token.
        requests_s = sequences * ttft_s + (workload.output_tokens - 1) * tpot_s
        tokens = sequences * workload.output_tokens
        return Evaluation(
            tpot_s=tpot_s,
            ttft_s=ttft_s,
            tokens_per_s=tokens / requests_s,
            costs=(tpot_s if workload.name == "chat" else requests_s / tokens, ttft_s),
            excess_bytes=self.excess_bytes[placement, batch, chunk],
            total_bytes=self.total_bytes[placement, batch, chunk],
        )

    def violations(self, value: Evaluation, max_tpot_s: float | None) -> dict[str, NDArray[np.float64]]:
        """By how much each constraint is broken, relative to its limit; kept where not positive.

        Args:
            value: Figures of some points.
            max_tpot_s: The workload's limit on TPOT, after relaxation.
        """
        # Subtract before dividing: a difference of floats has the right sign, their ratio may round to 1.
        violations = {"memory": value.excess_bytes / max(1, *self.available_bytes.values())}
        if max_tpot_s is not None:
            violations["tpot"] = (value.tpot_s - max_tpot_s) / max_tpot_s
        if self.workload.max_ttft_s is not None:
            violations["ttft"] = (value.ttft_s - self.workload.max_ttft_s) / self.workload.max_ttft_s
        return violations

    def feasible(self, value: Evaluation, max_tpot_s: float | None) -> NDArray[np.bool_]:
        """Whether every constraint is kept; arguments as for :meth:`violations`."""
        kept = [violation <= 0 for violation in self.violations(value, max_tpot_s).values()]
        return functools.reduce(np.logical_and, kept)

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
                memory=memory.plan(
                    self.model,
                    configuration,
                    self.workload.context_tokens,
                    self.available_bytes,
                    self.overhead_bytes,
                ),
            ),
        )


def build_evaluator(
    model: Model,
    workload: Workload,
    costs: StepCosts,
    *,
    available_bytes: Mapping[str, int],
    overhead_bytes: Mapping[str, int],
) -> Evaluator:
    """Adds up step times and memory for every placement.

    Args:
        model: Its layers are those that ``costs.layer_kinds`` describes.
        workload: Lengths and largest batch.
        costs: Step costs for the workload's prompt and output lengths.
        available_bytes: Memory that may be used per device of ``costs``.
        overhead_bytes: The runtime's own memory per device of ``costs``.

    Raises:
        ValueError: The cost table was made for a model with another number of layers.
    """
    if len(costs.layer_kinds) != len(model.layers):
        raise ValueError(
            f"expected step costs of {len(model.layers)} layers, as {model.name} has, got {len(costs.layer_kinds)}"
        )
    space = build_space(costs, workload, available_bytes)
    ends = np.cumsum(space.layers, axis=1)
    kinds = np.eye(costs.decode_layer_s.shape[1], dtype=np.int64)[costs.layer_kinds]
    counts = _between(kinds, ends - space.layers, ends)
    crossings = _crossings(space.layers)
    batches = len(space.batches)
    excess_bytes, total_bytes = _memory(model, workload, space, available_bytes, overhead_bytes)
    return Evaluator(
        model=model,
        workload=workload,
        space=space,
        decode_s=_step_s(
            space,
            counts,
            crossings,
            costs.decode_layer_s[..., :batches],
            costs.decode_ends_s[..., :batches],
            costs.decode_crossing_s[..., :batches],
        ),
        prefill_s=_step_s(
            space, counts, crossings, costs.prefill_layer_s, costs.prefill_ends_s, costs.prefill_crossing_s
        ),
        excess_bytes=excess_bytes,
        total_bytes=total_bytes,
        available_bytes=available_bytes,
        overhead_bytes=overhead_bytes,
    )


def _between(per_layer: NDArray[np.int64], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sums ``per_layer`` (L, ...) over the layers ``starts`` to ``ends``, each of shape (P, D)."""
    running = np.concatenate([np.zeros_like(per_layer[:1]), np.cumsum(per_layer, axis=0)])
    total: NDArray[np.int64] = running[ends] - running[starts]
    return total


def _crossings(layers: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often activations pass between the CPU and each device, shape (P, D).

    From one GPU to the next they go through the CPU's memory: a crossing of each.
    """
    used = layers > 0
    earlier = np.cumsum(used, axis=1) > 1
    later = np.cumsum(used[:, ::-1], axis=1)[:, ::-1] > 1
    return np.where(used, earlier.astype(np.int64) + later, 0)


def _step_s(
    space: Space,
    counts: NDArray[np.int64],
    crossings: NDArray[np.int64],
    layer_s: Seconds,
    ends_s: Seconds,
    crossing_s: Seconds,
) -> Seconds:
    """Time of a step per placement, shape (P, T, X).

    From the costs of a layer (D, G, T, X), both ends (D, T, X) and a crossing (D, X), and from the number of
    layers (P, D, G) and crossings (P, D). Both ends are taken to be on the head's device: the embedding, which
    lies with the first layer, only gathers a row per token.
    """
    layers_s = np.tensordot(counts.astype(np.float64), layer_s, axes=2)
    total_s: Seconds = layers_s + ends_s[space.heads] + (crossings @ crossing_s)[:, None, :]
    return total_s


def _memory(
    model: Model,
    workload: Workload,
    space: Space,
    available_bytes: Mapping[str, int],
    overhead_bytes: Mapping[str, int],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """``memory.plan`` for all points: excess and total bytes, each of shape (P, B, C)."""
    used = space.layers > 0
    device = np.arange(len(space.devices))
    last_layers = np.cumsum(space.layers, axis=1)
    per_layer = np.array([memory.weight_bytes(layer) for layer in model.layers])
    first, head = device == used.argmax(axis=1)[:, None], device == space.heads[:, None]
    ends = np.array([[memory.ends_bytes(model, embedding=e, head=h) for h in (False, True)] for e in (False, True)])
    overhead = np.array([overhead_bytes[name] for name in space.devices])
    resident = (
        _between(per_layer, last_layers - space.layers, last_layers)
        + ends[first.astype(np.intp), head.astype(np.intp)]
        + overhead
    )
    tokens = space.batches * workload.context_tokens
    cache = memory.kv_cache_bytes(model, space.layers[:, :, None], tokens)
    sequences = space.batches[:, None]
    rows = np.maximum(sequences, space.chunks)
    activations = memory.activation_bytes(model, rows, sequences, workload.context_tokens)
    needed = (resident[:, :, None] + cache)[..., None] + activations
    available = np.array([available_bytes[name] for name in space.devices])[:, None, None]
    idle = ~used[:, :, None, None]
    excess = np.where(idle, np.iinfo(np.int64).min, needed - available).max(axis=1)
    total = np.where(idle, 0, needed).sum(axis=1)
    return excess, total
