"""The reference engine, as the search sees it: runs configurations in a process of its own and survives its death."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from autotune.bench.child import Child, Death
from autotune.bench.cold_memory import last_level_bytes
from autotune.bench.gpu_run import visible_gpu
from autotune.engine.messages import (
    Answer,
    Event,
    Measure,
    Overhead,
    Patience,
    Prepare,
    Ready,
    Setup,
    TellOverhead,
    Usage,
    Working,
    event_decoder,
)
from autotune.engine.stages import Kernels
from autotune.errors import BenchmarkError
from autotune.host.topology import pin_order
from autotune.records import Configuration, Host, Model, PartRun, Phase, RunFailure, Workload
from autotune.records.measurement import FailureKind
from autotune.records.runs import part_of

_PATIENCE = Patience()
_NAME = "the engine's process"

_START_S = 60.0
"""How long a process may take to import what it needs, from a slow disk."""

_EXIT_S = 1.0
_ROOM_SHARE = 0.9
"""Of the usable memory, for weights: as much as a configuration may plan with for everything."""

_MAX_FAILURES = 5
"""After so many processes in a row that failed, no other one is started."""


class ReferenceEngine:
    """Runs configurations of a model with random weights in a child process; implements ``Engine``.

    What goes wrong in the process (a crash, a hang, too little memory) becomes a ``RunFailure``, and the next call
    starts another one.

    Args:
        model: What to run.
        host: This host: gives CPUs to pin to, and GPUs.
        kernels_for: The kernels to run a configuration with.
        seed: Of the weights.
        torch_devices: Where torch finds each GPU, ``{"cuda:0": "cpu"}`` in tests; None: the host's usable GPUs, which
            are then all that the process sees.
        modules: Modules for the process to import, whose kernels register themselves.

    Attributes:
        name: Of the runtime.
        reused_layers: Layers whose weights are another layer's, as last told.
    """

    name = "reference engine"

    def __init__(
        self,
        model: Model,
        host: Host,
        kernels_for: Callable[[Configuration], Kernels],
        *,
        seed: int = 0,
        torch_devices: Mapping[str, str] | None = None,
        modules: Sequence[str] = (),
    ) -> None:
        gpus = host.gpus.usable if torch_devices is None else {}
        self._setup = Setup(
            model=model,
            seed=seed,
            cpus=pin_order(host.cpu.cores, host.limits.usable_threads),
            room_bytes=int(_ROOM_SHARE * host.memory.usable_bytes),
            cache_bytes=last_level_bytes(host.cpu),
            gpus={device: device for device in gpus} if torch_devices is None else dict(torch_devices),
            nvml_gpus={device: visible_gpu(gpu) for device, gpu in gpus.items()},
            modules=tuple(modules),
            patience=_PATIENCE,
        )
        self._environment = {}
        if gpus:
            self._environment = {
                "CUDA_VISIBLE_DEVICES": ",".join(self._setup.nvml_gpus.values()),
                "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            }
        self._kernels_for = kernels_for
        self._capacity = 0
        self._child: Child[Event] | None = None
        self._stack = ExitStack()
        self._failures: list[str] = []
        """Of the processes in a row that failed last, why."""
        self._memory_bytes: dict[str, int] = {}
        self.reused_layers = 0

    def __enter__(self) -> Self:
        """Start the process.

        Raises:
            BenchmarkError: It can't be started, or died before it was ready.
        """
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process: at once after an error, else as soon as it has let go of its devices."""
        try:
            if self._child is not None and kind is None:
                self._child.finish(_EXIT_S)
        finally:
            self._end()

    def prepare(self, configuration: Configuration, workload: Workload) -> RunFailure | None:
        """Bring weights and KV caches to where a configuration has them."""
        answer = self._ask(configuration, workload, "decode", Prepare)
        return answer if isinstance(answer, RunFailure) else None

    def measure(
        self, configuration: Configuration, workload: Workload, phase: Phase, *, at_least: int, at_most_s: float
    ) -> PartRun | RunFailure:
        """Run one half of a configuration several times; loading and warming up don't count as ``at_most_s``."""
        answer = self._ask(configuration, workload, phase, Measure, at_least=at_least, at_most_s=at_most_s)
        assert isinstance(answer, PartRun | RunFailure)
        return answer

    def memory_used(self) -> dict[str, int]:
        """Bytes per device that a process of this engine held at its peak, as last told."""
        return dict(self._memory_bytes)

    def overhead_share(self, configuration: Configuration, workload: Workload) -> float | None:
        """Share of a decode step that is spent outside the kernels; None: unknown."""
        answer = self._ask(configuration, workload, "decode", TellOverhead)
        return answer.share if isinstance(answer, Overhead) else None

    def _ask(
        self, configuration: Configuration, workload: Workload, phase: Phase, kind: type[Prepare], **more: float
    ) -> Answer:
        """The process' answer to a request, or what became of the process instead."""
        part = part_of(configuration, workload, phase)
        if len(self._failures) >= _MAX_FAILURES:
            how = f"{len(self._failures)} times in a row, the last time with: {self._failures[-1]}"
            return RunFailure(part, "crashed", f"{_NAME} failed {how}; it is not started again")
        if workload.context_tokens > self._capacity:
            if self._capacity:
                self._end()  # it has laid out its KV caches for fewer slots
            self._capacity = workload.context_tokens
        try:
            request = kind(part, self._kernels_for(configuration), self._capacity, **more)
            answer = self._tell(request)
        except _LostError as lost:
            answer = RunFailure(part, lost.kind, str(lost))
        except BenchmarkError as error:
            answer = RunFailure(part, "crashed", str(error))
        except BaseException:
            self._end()  # an answer that came later would be taken for that to another request
            raise
        if isinstance(answer, RunFailure) and answer.kind != "unsupported":
            # What state it left a process in is anyone's guess, above all a GPU's.
            self._end()
            self._failures.append(answer.message)
        else:
            self._failures.clear()
        return answer

    def _tell(self, request: Prepare) -> Answer:
        """Send a request, and wait for its answer.

        Raises:
            _LostError: The process died of it or hung.
            BenchmarkError: There was none, and it can't be started.
        """
        had_one = self._child is not None
        child = self._child or self._start()
        child.send(request)
        try:
            answer = self._listen(child, "starting", self._setup.patience.floor_s)
        except _LostError as lost:
            if had_one and not lost.was_at_work:
                return self._tell(request)  # it died while it had nothing to do: no part is to blame
            raise
        assert not isinstance(answer, Ready)
        return answer

    def _start(self) -> Child[Event]:
        """Start a process and wait until it is ready.

        Raises:
            BenchmarkError: It can't be started, or died before it was ready.
        """
        try:
            child = self._stack.enter_context(Child(_NAME, "autotune.engine.worker", event_decoder, self._environment))
            child.send(self._setup)
            self._listen(child, "starting", _START_S)
        except BaseException as error:
            self._end()
            if isinstance(error, _LostError):
                raise BenchmarkError(f"could not start the engine: {error}") from error
            raise
        self._child = child
        return child

    def _end(self) -> None:
        """End the process, if there is one."""
        self._child = None
        self._stack.close()

    def _listen(self, child: Child[Event], what: str, allowed_s: float) -> Ready | Answer:
        """The next answer of the process; ``what`` it is doing may take ``allowed_s`` until it says something else.

        Raises:
            _LostError: It died or hung.
        """
        was_at_work = False
        while True:
            try:
                event = child.hear(allowed_s)
            except TimeoutError:
                words = f"while {what}, {_NAME} said nothing for {allowed_s:.3g} s, so it was ended"
                raise _LostError("hung", words, was_at_work=True) from None
            match event:
                case None:
                    by_itself = child.ends(_EXIT_S)
                    self._end()
                    death = child.death() if by_itself else Death("crashed", "stopped making sense, so it was ended")
                    raise _LostError(death.kind, f"while {what}, {_NAME} {death.how}", was_at_work=was_at_work)
                case Working():
                    was_at_work = True
                    what, allowed_s = event.what, event.allowed_s
                case Usage():
                    self.reused_layers = event.reused_layers
                    for device, used_bytes in event.memory_bytes.items():
                        self._memory_bytes[device] = max(used_bytes, self._memory_bytes.get(device, 0))
                case _:
                    return event


class _LostError(Exception):
    """Raised when the process died or hung; ``was_at_work``: not before it took up what was asked."""

    def __init__(self, kind: FailureKind, message: str, *, was_at_work: bool) -> None:
        super().__init__(message)
        self.kind = kind
        self.was_at_work = was_at_work
