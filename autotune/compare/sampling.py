"""A side of a comparison: `autotune sample` runs what it is asked to with this version's code."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

import autotune
from autotune.bench.parent import Parent
from autotune.compare.protocol import (
    PROTOCOL,
    About,
    Done,
    Event,
    Failed,
    Ready,
    Request,
    Run,
    Samples,
    Start,
    request_decoder,
)
from autotune.confirmation import open_engine
from autotune.costmodel.points import timed_devices
from autotune.engine.reference import ReferenceEngine
from autotune.errors import BenchmarkError
from autotune.evidence import Evidence, recall
from autotune.host.detect import detect
from autotune.loader import load_result
from autotune.model import memory
from autotune.model.sizes import readable_bytes
from autotune.options import Options
from autotune.pipeline import obtain
from autotune.records import Host, Phase, Result, RunFailure
from autotune.room import room_on
from autotune.search.variants import format_of

_AT_LEAST: dict[Phase, int] = {"prefill": 1, "decode": 3}
"""Samples in a run. Decode steps are short; a prompt may take seconds."""


def serve(model: str, workload: str, weight_format: str | None) -> None:
    """Say what this version is and would run, then do what is asked until standard input closes.

    Where nothing is saved, kernels are timed first, quickly; nothing is saved by that.

    Args:
        model: Path of a config.json or GGUF file, or the name of a preset.
        workload: ``chat``, ``server`` or ``offline``.
        weight_format: To say or override the model's own.

    Raises:
        AutotuneError: As for ``pipeline.tune``.
    """
    parent = Parent()
    saved = load_result(model, workload, weight_format)
    result = saved or obtain(
        model, Options(workload=workload, format=weight_format, confirm=False), budget_s=None, quick=True
    )
    host = detect()
    about = _about(result, host, saved=saved is not None)
    parent.send(Ready(PROTOCOL, msgspec.Raw(msgspec.json.encode(about))))
    with _Player(recall(result, host), result) as player:
        while True:
            try:
                asked = parent.hear(request_decoder)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                parent.send(Failed(f"it can't read what it is asked to do: {error}"))
                continue
            if asked is None:
                return
            parent.send(player.answer(asked))


def _about(result: Result, host: Host, *, saved: bool) -> About:
    return About(
        autotune=host.versions.autotune,
        python=host.versions.python,
        kernels=host.versions.kernels,
        folder=str(Path(autotune.__file__).parents[1]),
        host_label=host.label,
        hardware_class=host.fingerprint.hardware_class,
        model_name=result.model.name,
        weight_format=format_of(result.model),
        model_bytes=memory.model_bytes(result.model),
        workload=result.workload,
        configuration=result.decision.chosen.configuration,
        origin="saved" if saved else "predicted",
    )


class _Player:
    """Does what is asked, with one engine at most; within a ``with`` block.

    Args:
        evidence: Says which kernels to run with.
        result: What the side would run for the model.
    """

    def __init__(self, evidence: Evidence, result: Result) -> None:
        self._evidence, self._result = evidence, result
        self._stack = ExitStack()
        self._running: tuple[ReferenceEngine, Start] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def answer(self, asked: Request) -> Event:
        """Do it, or say why not."""
        try:
            match asked:
                case Start():
                    return self._start(asked)
                case Run():
                    return self._run(asked)
        except BenchmarkError as error:
            return Failed(str(error))
        self._stop()
        return Done()

    def _start(self, asked: Start) -> Done | Failed:
        self._stop()
        obstacle = _lacks(self._result, asked)
        if obstacle is not None:
            return obstacle
        engine = self._stack.enter_context(open_engine(self._evidence, self._result.model))
        failure = engine.prepare(asked.configuration, asked.workload)
        if failure is None and engine.reused_layers:
            self._stop()
            return Failed(f"{engine.reused_layers} layers had another one's weights", lacks_memory=True)
        if failure is not None:
            self._stop()
            return Failed(f"it could not load it: {failure.message}", lacks_memory=failure.kind == "out_of_memory")
        self._running = engine, asked
        return Done()

    def _run(self, asked: Run) -> Samples | Failed:
        if self._running is None:
            return Failed("it was asked to run before anything was started")
        engine, (configuration, workload) = self._running[0], msgspec.structs.astuple(self._running[1])
        found = engine.measure(
            configuration, workload, asked.phase, at_least=_AT_LEAST[asked.phase], at_most_s=asked.seconds
        )
        if isinstance(found, RunFailure):
            return Failed(f"it could not run {asked.phase}: {found.message}", found.kind == "out_of_memory")
        return Samples(found.samples_s)

    def _stop(self) -> None:
        self._running = None
        self._stack.close()


def _lacks(result: Result, asked: Start) -> Failed | None:
    """What a configuration needs and the host doesn't have now; None: it has all."""
    timed = tuple(timed_devices(result.campaign))
    unknown = {asked.configuration.head_device, *asked.configuration.device_layers} - set(timed)
    if unknown:
        return Failed(f"it has timed nothing on {', '.join(sorted(unknown))}")
    room = room_on(detect(), result.campaign, timed)
    for use in memory.plan(result.model, asked.configuration, asked.workload.context_tokens, room):
        if use.total_bytes > use.available_bytes:
            need, there = readable_bytes(use.total_bytes), readable_bytes(use.available_bytes)
            message = f"the configuration needs {need} on {use.device}, where {there} may be planned with now"
            return Failed(message, lacks_memory=True)
    return None
