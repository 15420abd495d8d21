"""The engine's process: it owns the weights and runs parts, one request after the other.

Started as ``python -m autotune.engine.worker``; reads a ``Setup`` and then requests from standard input, writes events
to standard output, and exits when standard input closes, so that it never outlives its parent.
"""

from __future__ import annotations

import gc
import importlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from autotune.bench import numerics
from autotune.bench.parent import Parent
from autotune.engine.gauge import MemoryGauge
from autotune.engine.messages import (
    Answer,
    Event,
    Measure,
    Overhead,
    Patience,
    Prepare,
    Prepared,
    Ready,
    TellOverhead,
    Usage,
    Working,
    request_decoder,
    setup_decoder,
)
from autotune.engine.sampling import Sampler
from autotune.engine.stages import Kernels
from autotune.model.memory import kv_cache_bytes, model_bytes
from autotune.model.work import decode_work, prefill_work
from autotune.records import Model, Part, PartRun, RunFailure, median

if TYPE_CHECKING:
    from autotune.engine.transformer import RunningPart, Transformer

_SLOW_LOAD_BYTES_PER_S = 0.5e9
_SLOW_OPERATIONS_PER_S = 2e9
"""What any host does with the slowest kernels on one thread: until something was timed, all that is known."""

_TIMED_STEPS = 10
"""How many steps with a clock around each kernel are waited for: no fewer than a part makes."""

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory")
"""What torch says of GPUs and of the CPU, in errors that are no MemoryError."""

Send = Callable[[Event], None]
Build = Callable[[int], "Transformer"]
"""Makes the model with so many KV slots per sequence, without weights yet."""


class Worker:
    """Answers requests; keeps what consecutive requests have in common.

    Args:
        model: What is run.
        patience: How long things may take.
        build: Makes it.
        gauge: Tells the memory that is held.
        send: Takes the events.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        model: Model,
        patience: Patience,
        build: Build,
        gauge: MemoryGauge,
        send: Send,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model = model
        self._patience = patience
        self._build = build
        self._gauge = gauge
        self._send = send
        self._clock = clock
        self._transformer: Transformer | None = None
        self._placement: tuple[tuple[tuple[str, int], ...], str] | None = None
        self._bound: tuple[Part, Kernels] | None = None
        self._running: RunningPart | None = None
        self._warm: dict[Part, Kernels] = {}
        """What was run since the weights were last moved: its code is compiled, its memory was touched."""
        self._gpus: frozenset[str] = frozenset()
        self._samples_s: dict[Part, list[float]] = {}

    def answer(self, request: Prepare) -> None:
        """Do what is asked, and say what came of it; an error that a kernel raises is a value."""
        try:
            answer = self._answer(request)
        except Exception as error:  # whatever a kernel raises: another configuration may still run
            answer = _failure(request.part, error)
        reused = self._transformer.reused_layers if self._transformer else 0
        self._send(Usage(self._gauge.read(self._gpus), reused))
        self._send(answer)

    def close(self) -> None:
        """Give all memory back and end the threads."""
        if self._transformer is not None:
            self._transformer.close()

    def _answer(self, request: Prepare) -> Answer:
        self._transformer = self._transformer or self._build(request.capacity)
        self._place(self._transformer, request.part)
        running = self._bind(self._transformer, request)
        match request:
            case Measure():
                return self._measure(running, request)
            case TellOverhead():
                self._warm_up(running, request)
                self._say("timing each kernel", _TIMED_STEPS * self._expected_s(request.part), self._patience.floor_s)
                return Overhead(running.overhead_share())
        return Prepared()

    def _place(self, transformer: Transformer, part: Part) -> None:
        """Bring the weights to where a part has them, if they aren't there."""
        placement = part.device_layers, part.head_device
        if self._placement == placement:
            return
        # What runs on weights that move, or fail to, is of no use any more.
        self._placement = self._running = None
        self._warm.clear()
        self._gpus |= _gpus(part)
        seconds = model_bytes(self._model) / _SLOW_LOAD_BYTES_PER_S
        self._say("loading weights", seconds, self._patience.gpu_s if _gpus(part) else self._patience.floor_s)
        transformer.place(dict(part.device_layers), part.head_device)
        self._placement = placement

    def _bind(self, transformer: Transformer, request: Prepare) -> RunningPart:
        """The part, ready to run once it is warm; the last one is kept."""
        part, wanted = request.part, (request.part, request.kernels)
        if self._running is None or self._bound != wanted:
            self._running, self._bound = None, wanted  # before another takes as much memory
            if part.phase == "decode" or _gpus(part):
                # A step is short, so that new scratch memory shows; and graphs are new.
                self._warm.pop(part, None)
            slots = request.capacity * (part.size if part.phase == "decode" else 1)
            cache_bytes = kv_cache_bytes(self._model, len(self._model.layers), slots)
            self._say("preparing kernels", cache_bytes / _SLOW_LOAD_BYTES_PER_S, self._compile_s(part))
            self._running = transformer.part(*wanted)
        return self._running

    def _warm_up(self, running: RunningPart, request: Prepare) -> None:
        part = request.part
        if self._warm.get(part) != request.kernels:
            self._say("warming up", self._expected_s(part), self._compile_s(part))
            running.warm_up()
            self._warm[part] = request.kernels

    def _measure(self, running: RunningPart, request: Measure) -> PartRun:
        """Sample the part."""
        part = request.part
        self._warm_up(running, request)
        earlier_s = self._samples_s.setdefault(part, [])
        sampler = Sampler(
            running.sample,
            earlier_s,
            lambda expected_s: self._say("running", expected_s, self._patience.floor_s),
            clock=self._clock,
        )
        # Garbage collection would stop the threads in the middle of a sample.
        gc.collect()
        gc.disable()
        try:
            taken = sampler.take(request.at_least, request.at_most_s, self._expected_s(part))
        finally:
            gc.enable()
        earlier_s.extend(taken.total_s)
        return PartRun(part, taken.total_s, taken.device_s)

    def _say(self, what: str, expected_s: float, grace_s: float) -> None:
        self._send(Working(what, grace_s + self._patience.factor * expected_s))

    def _compile_s(self, part: Part) -> float:
        return self._patience.gpu_s if _gpus(part) else self._patience.compile_s

    def _expected_s(self, part: Part) -> float:
        """Seconds of a step or prompt, at most: from what was run with the same placement, scaled up to more work.

        More rows at once never take longer than as many passes of fewer, and each of these never longer than one of
        more rows; fewer threads never take longer than in proportion.
        """
        operations = _operations(self._model, part)
        scaled_s = [
            median(samples_s)
            * max(1.0, operations / _operations(self._model, other))
            * (max(1.0, other.size / part.size) if part.phase == other.phase == "prefill" else 1.0)
            * max(1.0, other.threads / part.threads)
            for other, samples_s in self._samples_s.items()
            if samples_s and (other.device_layers, other.head_device) == (part.device_layers, part.head_device)
        ]
        return min(scaled_s, default=operations / _SLOW_OPERATIONS_PER_S)


def _gpus(part: Part) -> frozenset[str]:
    return frozenset({part.head_device, *(device for device, _ in part.device_layers)}) - {"cpu"}


def _operations(model: Model, part: Part) -> int:
    if part.phase == "decode":
        return decode_work(model, part.size, part.context).operations
    return prefill_work(model, part.context).operations


def _failure(part: Part, error: Exception) -> RunFailure:
    kind, message = numerics.failure_of(error)
    if any(words in message for words in _OUT_OF_MEMORY):
        kind = "out_of_memory"
    return RunFailure(part, kind, message.strip().splitlines()[0])


def main() -> None:
    """Answer the requests that come down standard input."""
    parent = Parent()
    setup = parent.hear(setup_decoder)
    if setup is None:
        return
    for module in setup.modules:
        importlib.import_module(module)
    from autotune.engine import transformer, weights

    def build(capacity: int) -> Transformer:
        return transformer.Transformer(
            setup.model,
            weights.RandomWeights(setup.seed),
            capacity=capacity,
            cpus=setup.cpus,
            gpus=setup.gpus,
            room_bytes=setup.room_bytes,
            cache_bytes=setup.cache_bytes,
        )

    def send(event: Event) -> None:
        if isinstance(event, Working):
            parent.expect(event.allowed_s)
        parent.send(event)

    worker = Worker(setup.model, setup.patience, build, MemoryGauge(setup.gpus, setup.nvml_gpus), send)
    parent.send(Ready())
    while (request := parent.hear(request_decoder)) is not None:
        worker.answer(request)
        parent.expect(None)
    worker.close()


if __name__ == "__main__":
    main()
