"""A child process that its parent talks to in lines of JSON: how it starts, how it is heard, how it ends."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Generic, NamedTuple, Self, TypeVar

import msgspec

from autotune.errors import BenchmarkError
from autotune.records import Record
from autotune.records.measurement import FailureKind

_LAST_WORDS_BYTES = 1 << 14
_BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")

_encoder = msgspec.json.Encoder()

Event = TypeVar("Event")


class Death(NamedTuple):
    """How a child ended.

    Attributes:
        kind: What that makes of what it was doing.
        how: In words that follow the child's name: ``exited with status 1: ...``.
    """

    kind: FailureKind
    how: str


class Child(Generic[Event]):
    """A child process, which lives within a ``with`` block: when that is left, for whatever reason, it is gone.

    Args:
        name: What it is, for people: ``the benchmark's worker``.
        module: What it runs, as ``python -m`` does.
        decoder: Reads the lines that it writes to its standard output.
        environment: Variables that it gets beside this process' own.
        arguments: Words after the module's name.
        python: The interpreter that runs it; None: this one.
        path: Where that looks for modules beside its own places, as PYTHONPATH has it; None: where this one does.
    """

    def __init__(
        self,
        name: str,
        module: str,
        decoder: msgspec.json.Decoder[Event],
        environment: Mapping[str, str],
        *,
        arguments: Sequence[str] = (),
        python: str | None = None,
        path: str | None = None,
    ) -> None:
        self._name = name
        self._module = module
        self._decoder = decoder
        self._environment = environment
        self._arguments = arguments
        self._python = python or sys.executable
        self._path = path
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        """Start it.

        Raises:
            BenchmarkError: It can't be started.
        """
        path = os.pathsep.join(path or str(Path.cwd()) for path in sys.path) if self._path is None else self._path
        self._errors = tempfile.TemporaryFile()
        try:
            self._process = subprocess.Popen(
                [self._python, "-P", "-m", self._module, *self._arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={**os.environ, **dict.fromkeys(_BLAS_THREADS, "1"), **self._environment, "PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C reaches the parent alone, which then ends the child
            )
        except OSError as error:
            self._errors.close()
            raise BenchmarkError(f"could not start {self._name} {self._python}: {error.strerror}") from error
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Also on Ctrl-C: nothing of the child may stay behind.
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):  # what it never read
            self._process.stdin.close()  # type: ignore[union-attr]
        with self._errors as errors:
            errors.seek(max(errors.seek(0, os.SEEK_END) - _LAST_WORDS_BYTES, 0))
            self._words = errors.read().decode(errors="replace").strip().splitlines()

    def send(self, message: Record) -> None:
        """Write a line to its standard input; what comes after its death is lost."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its exit status says why
            self._process.stdin.write(_encoder.encode(message) + b"\n")
            self._process.stdin.flush()

    def hear(self, timeout_s: float) -> Event | None:
        """The next thing that it says; None: it will say nothing any more.

        Raises:
            TimeoutError: It said nothing for so long.
        """
        try:
            return self._events.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError(f"{self._name} said nothing for {timeout_s:g} s") from None

    def finish(self, timeout_s: float) -> None:
        """Close its standard input, by which it knows that nothing more comes, and wait for its end for so long."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self.ends(timeout_s)

    def ends(self, timeout_s: float) -> bool:
        """Whether it ends by itself within so much time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        return self._process.returncode is not None

    def death(self) -> Death:
        """How it ended, once the block is left, if it did by itself."""
        status = self._process.returncode
        if status == -signal.SIGKILL:
            return Death("out_of_memory", "was killed (SIGKILL), as the system does when memory runs out")
        if status < 0:
            return Death("crashed", f"died of signal {-status} ({signal.strsignal(-status)})")
        words = self._words[-1] if self._words else "it said nothing"
        return Death("crashed", f"exited with status {status}: {words}")

    def _read(self, stream: IO[bytes]) -> None:
        # A line that the child's death cut off, or that something else printed, which need not even be text.
        with stream, contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
            for line in stream:
                self._events.put(self._decoder.decode(line))
        self._events.put(None)
