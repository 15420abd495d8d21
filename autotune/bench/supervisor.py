"""The parent's side of a worker: starts it, listens, and survives its crash, its hang and its death."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import msgspec

from autotune.bench.ledger import Ledger
from autotune.bench.messages import Event, Job, Started, encoder, event_decoder
from autotune.errors import BenchmarkError
from autotune.records.measurement import FailureKind

_POLL_S = 0.1
_EXIT_S = 1.0
"""How long a worker may take to exit after its last word."""

_HANG_FACTOR = 20
_HANG_FLOOR_S = 1.0
"""What runs longer than this plus 20 times what was expected hangs."""

_COMPILE_S = 20.0
"""How long what may compile code first is waited for: far more than any kernel takes, on any host."""

_BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


class Supervisor:
    """Runs one worker process, from its start to its end.

    A worker that dies or hangs turns the tasks that were at stake into failures in the ledger.

    Args:
        job: What the worker is to do.
        ledger: Where to book what it reports.
        patience_s: How long something may run of which nothing is known yet.
        tick: Called about ten times a second.
    """

    def __init__(self, job: Job, ledger: Ledger, patience_s: float, tick: Callable[[], None]) -> None:
        self._job = job
        self._ledger = ledger
        self._patience_s = patience_s
        self._tick = tick
        self._at_stake: tuple[int, ...] = ()
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()

    def run(self) -> None:
        """Start the worker and return when it is gone.

        Raises:
            BenchmarkError: It couldn't be started, or died before it came to the first task.
        """
        with tempfile.TemporaryFile() as errors:
            process = self._start(errors)
            try:
                by_itself = self._listen(process)
            finally:
                # Also on Ctrl-C: nothing of the worker may stay behind.
                process.kill()
                process.wait()
                with contextlib.suppress(BrokenPipeError):  # what it never read
                    process.stdin.close()  # type: ignore[union-attr]
            if by_itself and not self._ledger.finished:
                self._blame(process.returncode, errors)

    def _start(self, errors: IO[bytes]) -> subprocess.Popen[bytes]:
        paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "autotune.bench.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **dict.fromkeys(_BLAS_THREADS, "1"), **self._visible_gpu(), "PYTHONPATH": paths},
                start_new_session=True,  # Ctrl-C reaches the parent alone, which then ends the worker
            )
        except OSError as error:
            raise BenchmarkError(
                f"could not start the benchmark's worker {sys.executable}: {error.strerror}"
            ) from error
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once: its exit status says why
            process.stdin.write(encoder.encode(self._job) + b"\n")
            process.stdin.flush()
        threading.Thread(target=self._read, args=(process.stdout,), daemon=True).start()
        return process

    def _visible_gpu(self) -> dict[str, str]:
        """Show the worker the GPU of its job alone: a MIG instance can't be used otherwise."""
        if self._job.visible_gpu is None:
            return {}
        return {"CUDA_VISIBLE_DEVICES": self._job.visible_gpu, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}

    def _read(self, stream: IO[bytes]) -> None:
        with stream, contextlib.suppress(msgspec.DecodeError):  # a line that the worker's death cut off
            for line in stream:
                self._events.put(event_decoder.decode(line))
        self._events.put(None)

    def _listen(self, process: subprocess.Popen[bytes]) -> bool:
        """Book events until the worker is done, hangs or its time is up; whether it ended by itself."""
        hung_at = self._job.end
        next_tick = 0.0
        while (now := time.monotonic()) < self._job.end:
            if now >= next_tick:
                self._tick()
                next_tick = now + _POLL_S
            try:
                event = self._events.get(timeout=min(_POLL_S, self._job.end - now))
            except queue.Empty:
                if now < hung_at:
                    continue
                self._ledger.fail(self._at_stake, "hung", "nothing came back in time, so the worker was ended")
                return False
            if event is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(min(_EXIT_S, max(self._job.end - now, 0.0)))
                return process.returncode is not None
            self._ledger.take(event)
            if isinstance(event, Started):
                self._at_stake = event.at_stake
                hung_at = time.monotonic() + self._allowed_s(event) if event.at_stake else self._job.end
        return False

    def _allowed_s(self, event: Started) -> float:
        if event.expected_s is None:
            return max(self._patience_s, _COMPILE_S) if event.compiles else self._patience_s
        return _HANG_FLOOR_S + _HANG_FACTOR * event.expected_s

    def _blame(self, status: int, errors: IO[bytes]) -> None:
        """The worker died by itself: what was at stake takes the blame."""
        errors.seek(0)
        words = errors.read().decode(errors="replace").strip().splitlines()
        if status == -signal.SIGKILL:
            how = "was killed (SIGKILL), as the system does when memory runs out"
        elif status < 0:
            how = f"died of signal {-status} ({signal.strsignal(-status)})"
        else:
            how = f"exited with status {status}: {words[-1] if words else 'it said nothing'}"
        if not self._at_stake:
            raise BenchmarkError(f"before it came to any task, the benchmark's worker {how}")
        kind: FailureKind = "out_of_memory" if status == -signal.SIGKILL else "crashed"
        self._ledger.fail(self._at_stake, kind, f"the worker {how}")
