"""The whole model on its devices: lays layers out as a configuration has them, and runs parts of configurations."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autotune.engine.cpu_pass import CpuPass
from autotune.engine.cpu_stage import CpuStage
from autotune.engine.stages import Array, Bound, Kernels, Pass, Stage
from autotune.engine.weights import HeldWeights, WeightSource
from autotune.records import Configuration, Model, Part
from ternary_kernels.team import Team

if TYPE_CHECKING:
    from autotune.engine.gpu_stage import Uploaded

Tokens = NDArray[np.int64]

_CPU = "cpu"
_CACHES = 4
"""What layers that take turns hold, in sizes of the last-level cache: enough for each to be cold again."""
_OVERHEAD_RUNS = 8


class Transformer:
    """A model whose layers can be moved between devices. It holds memory and threads until it is closed.

    Args:
        model: The model, in the formats that its file has.
        weights: Gives the weights.
        capacity: Slots of the KV cache per sequence.
        cpus: Logical CPUs that the threads are pinned to, in this order; None leaves placement to the system.
        gpus: Where torch finds each GPU: ``{"cuda:0": "cuda:0"}``.
        room_bytes: What weights on the CPU may take; None: whatever they take.
        cache_bytes: Size of the CPU's last-level cache.

    Attributes:
        reused_layers: Layers whose weights are another layer's, because memory doesn't hold all.
    """

    def __init__(
        self,
        model: Model,
        weights: WeightSource,
        *,
        capacity: int,
        cpus: Sequence[int] | None,
        gpus: Mapping[str, str] | None = None,
        room_bytes: int | None = None,
        cache_bytes: int = 0,
    ) -> None:
        self._model = model
        self._source = weights
        self._held = HeldWeights(weights, model)
        self._capacity = capacity
        self._cpus = cpus
        self._gpus = gpus or {}
        self._room_bytes = room_bytes
        self._cache_bytes = cache_bytes
        self._teams: dict[int, Team] = {}
        self._entered = ExitStack()
        self._stages: dict[_Place, Stage] = {}
        self._uploaded: dict[str, Uploaded] = {}
        """What is on each GPU: a stage of other layers takes over what both have."""
        self.reused_layers = 0

    def close(self) -> None:
        """Give all memory back and end the threads."""
        self._keep(())
        self._uploaded.clear()
        self._held = HeldWeights(self._source, self._model)
        self._entered.close()
        self._teams.clear()

    def place(self, device_layers: Mapping[str, int], head_device: str) -> None:
        """Bring each layer, the embedding and the head to its device; what is there already stays.

        Args:
            device_layers: Layers per device in the order data flows.
            head_device: Where the head is.

        Raises:
            MemoryError: A device doesn't hold its share; then nothing is placed.
            ValueError: The devices have other layers than the model, or there is no such device.
        """
        places = self._places(device_layers, head_device)
        self._keep(places)
        on_cpu = [place for place in places if place.device == _CPU]
        try:
            self.reused_layers = self._held.make_room(
                next((place.layers for place in on_cpu if place.layers), range(0)),
                embedding=any(place.embedding for place in on_cpu),
                head=any(place.head for place in on_cpu),
                room_bytes=self._room_bytes,
                least_bytes=_CACHES * self._cache_bytes,
            )
            for place in places:
                # Taken out and put back, so that they end in the order of the places.
                held = self._stages.pop(place, None)
                self._stages[place] = held or self._stage(place)
        except BaseException:
            self._keep(())
            self._uploaded.clear()
            raise

    def part(self, part: Part, kernels: Kernels) -> RunningPart:
        """A part, ready to be run: placed, with room in the KV cache and all of its passes bound.

        Its memory is given back when nothing refers to it any more.

        Raises:
            MemoryError: A device doesn't hold its share.
            ValueError: A kernel can't run there, or the part's tokens go beyond the KV cache.
        """
        self.place(dict(part.device_layers), part.head_device)
        rng = np.random.default_rng(0)
        if part.phase == "decode":
            self._reserve(part.size, part.context)
            passes = [Pass(part.size, part.size, part.context, last=True)]
        else:
            # A slot for each token of the prompt, and something in all of them: where memory is touched for the first
            # time it takes longer, which would be counted in the first sample.
            self._reserve(1, part.context - 1)
            passes = _pieces(part.context, part.size)
        vocabulary = self._model.vocab_size
        return RunningPart(
            [self._bind(step, rng.integers(0, vocabulary, step.rows), part.threads, kernels) for step in passes]
        )

    def generate(self, prompts: Tokens, count: int, configuration: Configuration, kernels: Kernels) -> Tokens:
        """Continue prompts greedily, as many at once as the configuration's batch; for checking.

        Args:
            prompts: int64, shape (sequences, tokens).
            count: Tokens to generate for each, at least 1.
            configuration: What to run.
            kernels: What to run it with.

        Returns:
            int64, shape (sequences, count).
        """
        self.place(configuration.device_layers, configuration.head_device)
        size = configuration.batch_size
        batches = (prompts[first : first + size] for first in range(0, len(prompts), size))
        return np.concatenate([self._continue(batch, count, configuration, kernels) for batch in batches])

    def _continue(self, prompts: Tokens, count: int, configuration: Configuration, kernels: Kernels) -> Tokens:
        sequences, length = prompts.shape
        self._reserve(sequences, 0)
        generated = np.empty((sequences, count), np.int64)
        for slot, prompt in enumerate(prompts):
            for step in _pieces(length, configuration.prefill_chunk, slot):
                tokens = prompt[step.context : step.context + step.rows]
                following = self._bind(step, tokens, configuration.prefill_threads, kernels).run()
            generated[slot, 0] = _wanted(following)[0]
        for turn in range(1, count):
            step = Pass(sequences, sequences, length + turn - 1, last=True)
            bound = self._bind(step, generated[:, turn - 1], configuration.decode_threads, kernels)
            generated[:, turn] = _wanted(bound.run())
        return generated

    def _places(self, device_layers: Mapping[str, int], head_device: str) -> list[_Place]:
        """The stages in the order data flows."""
        count = len(self._model.layers)
        if sum(device_layers.values()) != count:
            raise ValueError(f"{self._model.name}: expected {count} layers on the devices, got {dict(device_layers)}")
        first_device = next(iter(device_layers))
        embedding_device = _CPU if head_device == _CPU else first_device
        ends = list(accumulate(device_layers.values(), initial=0))
        places = [
            _Place(
                device,
                range(first, last),
                not first and device == embedding_device,
                last == count and device == head_device,
            )
            for device, first, last in zip(device_layers, ends, ends[1:], strict=False)
        ]
        if embedding_device != first_device:
            places.insert(0, _Place(embedding_device, range(0), embedding=True, head=False))
        if not places[-1].head:
            places.append(_Place(head_device, range(count, count), embedding=False, head=True))
        return places

    def _stage(self, place: _Place) -> Stage:
        device, layers, embedding, head = place
        if device == _CPU:
            return CpuStage(
                self._model,
                layers,
                device=device,
                teams=self._team,
                weights=self._held,
                embedding=embedding,
                head=head,
                capacity=self._capacity,
            )
        if device not in self._gpus:
            raise ValueError(f"no device {device!r}: expected one of {', '.join((_CPU, *self._gpus))}")
        # It imports torch, which takes seconds, and need not be there for a CPU.
        from autotune.engine.gpu_stage import GpuStage

        return GpuStage(
            self._model,
            layers,
            device=device,
            torch_device=self._gpus[device],
            weights=self._source,
            embedding=embedding,
            head=head,
            capacity=self._capacity,
            uploaded=self._uploaded.setdefault(device, {}),
        )

    def _keep(self, places: Sequence[_Place]) -> None:
        """Close all stages but those."""
        for place in [place for place in self._stages if place not in places]:
            self._stages.pop(place).close()

    def _team(self, threads: int) -> Team:
        if threads not in self._teams:
            self._teams[threads] = self._entered.enter_context(Team(threads, self._cpus))
        return self._teams[threads]

    def _reserve(self, sequences: int, tokens: int) -> None:
        for stage in self._stages.values():
            stage.reserve(sequences, tokens)

    def _bind(self, step: Pass, tokens: Tokens, threads: int, kernels: Kernels) -> _BoundPass:
        links = [(stage.device, stage.bind(step, threads, kernels)) for stage in self._stages.values()]
        return _BoundPass(tokens, links)


class RunningPart:
    """A part whose passes are bound, to be run any number of times.

    Args:
        passes: Of decode one step, of prefill the pieces of the prompt.
    """

    def __init__(self, passes: Sequence[_BoundPass]) -> None:
        self._passes = passes

    def warm_up(self) -> None:
        """Run the first and the last pass once: what is compiled late is compiled then, and threads are awake."""
        for bound in dict.fromkeys((0, len(self._passes) - 1)):
            self._passes[bound].run()

    def sample(self) -> tuple[float, dict[str, float]]:
        """Run a decode step of all sequences, always at the same position, or a whole prompt, piece by piece.

        Returns:
            The seconds it took, and of these the seconds on each device.
        """
        clock = time.perf_counter
        device_s = dict.fromkeys((device for device, _ in self._passes[0].links), 0.0)
        start = now = clock()
        for tokens, links in self._passes:
            given: Array | None = tokens
            for device, run in links:
                assert given is not None
                given = run(given)
                before, now = now, clock()
                device_s[device] += now - before
        return now - start, device_s

    def overhead_share(self) -> float:
        """Share of the time that is spent outside kernels: products, attention and small operations.

        A pass on a GPU is one graph; all of it counts as kernels.
        """
        clock = time.perf_counter
        kernels_s, start = 0.0, clock()
        for _ in range(_OVERHEAD_RUNS):
            for tokens, links in self._passes:
                given: Array | None = tokens
                for _, run in links:
                    assert given is not None
                    if isinstance(run, CpuPass):
                        given, run_s = run.timed(given)
                    else:
                        begin = clock()
                        given = run(given)
                        run_s = clock() - begin
                    kernels_s += run_s
        return 1 - kernels_s / (clock() - start)


class _BoundPass(NamedTuple):
    """A pass bound on all stages.

    Attributes:
        tokens: What goes in, int64, shape (rows,).
        links: Each stage's device and its share of the pass, in the order data flows.
    """

    tokens: Tokens
    links: Sequence[tuple[str, Bound]]

    def run(self) -> Array | None:
        """The next token of each sequence; None if none is wanted."""
        given: Array | None = self.tokens
        for _, run in self.links:
            assert given is not None
            given = run(given)
        return given


class _Place(NamedTuple):
    """Which stage: what of the model is on which device."""

    device: str
    layers: range
    embedding: bool
    head: bool


def _wanted(tokens: Array | None) -> Tokens:
    assert tokens is not None, "a pass without the last token was asked for the next"
    return tokens


def _pieces(length: int, chunk: int, slot: int = 0) -> list[Pass]:
    """A prompt's passes: whole chunks, then a shorter one if need be."""
    return [
        Pass(min(chunk, length - start), 1, start, last=start + chunk >= length, slot=slot)
        for start in range(0, length, chunk)
    ]
