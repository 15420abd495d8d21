"""The parent's side of a worker: starts it, listens, and survives its crash, its hang and its death."""

from __future__ import annotations

import time
from collections.abc import Callable

from autotune.bench.child import Child, Death
from autotune.bench.ledger import Ledger
from autotune.bench.messages import Event, Idle, Job, Select, Started, event_decoder
from autotune.errors import BenchmarkError

_POLL_S = 0.1
_EXIT_S = 1.0
"""How long a worker may take to exit after its last word."""

_HANG_FACTOR = 20
_HANG_FLOOR_S = 1.0
"""What runs longer than this plus 20 times what was expected hangs."""

_COMPILE_S = 20.0
"""How long what may compile code first is waited for: far more than any kernel takes, on any host."""


class Supervisor:
    """Runs one worker process, from its start to its end.

    A worker that dies or hangs turns the tasks that were at stake into failures in the ledger.

    Args:
        job: What the worker can do.
        ledger: Knows what was selected of that, and books what the worker reports.
        select: Called when all that is done, and returns what was selected beside it; nothing ends the worker.
        patience_s: How long something may run of which nothing is known yet.
        tick: Called about ten times a second.
    """

    def __init__(
        self,
        job: Job,
        ledger: Ledger,
        select: Callable[[], dict[int, float]],
        patience_s: float,
        tick: Callable[[], None],
    ) -> None:
        self._job = job
        self._ledger = ledger
        self._select = select
        self._patience_s = patience_s
        self._tick = tick
        self._at_stake: tuple[int, ...] = ()
        self._idle = False

    def run(self) -> None:
        """Start the worker and return when it is gone.

        Raises:
            BenchmarkError: It couldn't be started, or died before it came to the first task.
        """
        with Child("the benchmark's worker", "autotune.bench.worker", event_decoder, self._visible_gpu()) as worker:
            worker.send(self._job)
            worker.send(Select(self._ledger.selected))
            by_itself = self._listen(worker)
        if by_itself and not self._ledger.finished:
            self._blame(worker.death())

    def _visible_gpu(self) -> dict[str, str]:
        """Show the worker the GPU of its job alone: a MIG instance can't be used otherwise."""
        if self._job.visible_gpu is None:
            return {}
        return {"CUDA_VISIBLE_DEVICES": self._job.visible_gpu, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}

    def _listen(self, worker: Child[Event]) -> bool:
        """Book events until the worker is done, hangs or its time is up; whether it ended by itself."""
        hung_at = self._job.end
        next_tick = 0.0
        while (now := time.monotonic()) < self._job.end:
            if now >= next_tick:
                self._tick()
                next_tick = now + _POLL_S
            try:
                event = worker.hear(min(_POLL_S, self._job.end - now))
            except TimeoutError:
                if now < hung_at:
                    continue
                self._ledger.fail(self._at_stake, "hung", "nothing came back in time, so the worker was ended")
                return False
            if event is None:
                return worker.ends(min(_EXIT_S, max(self._job.end - now, 0.0)))
            self._ledger.take(event)
            if isinstance(event, Started):
                self._at_stake, self._idle = event.at_stake, False
                hung_at = time.monotonic() + self._allowed_s(event) if event.at_stake else self._job.end
            elif isinstance(event, Idle):
                self._at_stake, self._idle = (), True
                hung_at = self._job.end
                worker.send(Select(self._select()))
        return False

    def _allowed_s(self, event: Started) -> float:
        if event.expected_s is None:
            return max(self._patience_s, _COMPILE_S) if event.compiles else self._patience_s
        return _HANG_FLOOR_S + _HANG_FACTOR * event.expected_s

    def _blame(self, death: Death) -> None:
        """The worker died by itself: what was at stake takes the blame; nothing does if it had just nothing to do."""
        if self._idle:
            return
        if not self._at_stake:
            raise BenchmarkError(f"before it came to any task, the benchmark's worker {death.how}")
        self._ledger.fail(self._at_stake, death.kind, f"the worker {death.how}")
