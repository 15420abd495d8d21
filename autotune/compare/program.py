"""A version of autotune that can be run: where it is, and a process of it that runs what it is asked to."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import msgspec

from autotune.bench.child import Child
from autotune.compare.protocol import (
    PROTOCOL,
    About,
    Done,
    Event,
    Failed,
    Ready,
    Run,
    Samples,
    Start,
    Stop,
    event_decoder,
)
from autotune.errors import BenchmarkError, UsageError

_GREETING_S = 600.0
"""How long a side may be silent at first: where nothing is saved it compiles and times kernels."""
_PATIENCE_S = 180.0
"""How long it may be silent later. Its own engine notices much sooner what hangs."""
_EXIT_S = 1.0


class LackOfMemoryError(Exception):
    """Raised when a side has no memory for what it is to run; the other may hold some. Private to this package."""


class Program(NamedTuple):
    """An interpreter, and the autotune that it finds.

    Attributes:
        name: ``BASE`` or ``HEAD``, and as the user called it.
        python: The interpreter.
        path: Its PYTHONPATH; empty: it looks in its own places; None: where this process looks.
    """

    name: str
    python: str
    path: str | None


def find_program(side: str, given: str) -> Program | None:
    """The autotune that a user names, in one of three ways.

    - A Python executable. If it is the one that runs this, it finds what this finds; others only what is installed for
      them, whatever PYTHONPATH says: it would lead both sides to the same version.
    - A virtual environment's folder.
    - A checkout's folder: its own code is run, by the interpreter of its ``.venv`` if there is one, else by this one.

    Args:
        side: ``BASE`` or ``HEAD``.
        given: What the user said.

    Returns:
        None: it is nothing of that kind.

    Raises:
        UsageError: It is a file that looks like one, but can't be executed; or it is empty.
    """
    if not given:  # a job's variable that isn't set; as a path it would be the current folder
        raise UsageError(f"{side} is empty: expected what to run, or records")
    path, name = Path(given), f"{side} ({given})"
    if (path / "autotune" / "__main__.py").is_file():
        own = path / ".venv" / "bin" / "python"
        places = os.pathsep.join(str(folder.absolute()) for folder in (path, path / "kernels"))
        return Program(name, str(own.absolute()) if own.exists() else sys.executable, places)
    if path.is_dir():
        python = path / "bin" / "python"
        return Program(name, str(python.absolute()), "") if python.exists() else None
    if not path.is_file() or path.suffix == ".json":
        return None
    if not os.access(path, os.X_OK):
        raise UsageError(f"{name}: expected a Python executable or a record (.json), got a file that is neither")
    # Not resolved: a virtual environment's interpreter is a link to the one that it was made from.
    own_one = os.path.abspath(given) == os.path.abspath(sys.executable)  # noqa: PTH100
    return Program(name, os.path.abspath(given), None if own_one else "")  # noqa: PTH100


class Side:
    """A process of a program that runs what it is asked to, within a ``with`` block.

    Args:
        program: What to run.
        model: As the user named it.
        workload: ``chat``, ``server`` or ``offline``.
        weight_format: To say or override the model's own.

    Attributes:
        name: For people.
        about: What it said that it is; there once the block is entered.
    """

    def __init__(self, program: Program, model: str, workload: str, weight_format: str | None) -> None:
        self.name = program.name
        self.about: About
        words = ["sample", model, "--workload", workload]
        if weight_format is not None:
            words += ["--format", weight_format]
        self._child: Child[Event] = Child(
            program.name, "autotune", event_decoder, {}, arguments=words, python=program.python, path=program.path
        )
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Start it, and wait until it is ready: where nothing is saved it times kernels first.

        Raises:
            BenchmarkError: It can't be started, died, or speaks another version of the protocol.
        """
        self._stack.enter_context(self._child)
        try:
            self.about = self._greeted()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._child.finish(_EXIT_S)
        finally:
            self._stack.close()

    def start(self, asked: Start) -> None:
        """Have it start an engine, in place of the one there is.

        Raises:
            LackOfMemoryError: The memory that is free now doesn't hold it.
            BenchmarkError: It could not, died or said nothing for long.
        """
        self._child.send(asked)
        match self._hear("at the start of an engine"):
            case Failed(message, True):
                raise LackOfMemoryError(f"{self.name}: {message}")
            case event:
                self._expect_done(event)

    def run(self, asked: Run) -> tuple[float, ...]:
        """A run's samples.

        Raises:
            BenchmarkError: It could not run that, died or said nothing for long.
        """
        self._child.send(asked)
        match self._hear(f"while running {asked.phase}"):
            case Samples(samples_s) if samples_s and min(samples_s) > 0:
                return samples_s
            case Failed(message):
                raise BenchmarkError(f"{self.name}: {message}")
            case _:
                raise BenchmarkError(f"{self.name}: expected samples of a run, all above 0 s, got something else")

    def stop(self) -> None:
        """Have it end its engine.

        Raises:
            BenchmarkError: It died or said nothing for long.
        """
        self._child.send(Stop())
        self._expect_done(self._hear("at the end of an engine"))

    def _expect_done(self, event: Event) -> None:
        if isinstance(event, Failed):
            raise BenchmarkError(f"{self.name}: {event.message}")
        if not isinstance(event, Done):
            raise BenchmarkError(f"{self.name}: expected to hear that it is done, got something else")

    def _greeted(self) -> About:
        ready = self._hear(
            "before it was ready (an autotune without `sample` can be compared by its records)", _GREETING_S
        )
        if not isinstance(ready, Ready):
            raise BenchmarkError(f"{self.name}: expected a side of a comparison, got something else")
        if ready.protocol != PROTOCOL:
            raise BenchmarkError(
                f"{self.name} speaks version {ready.protocol} of the protocol, this autotune version {PROTOCOL}: "
                "run `autotune compare` of the other side, or compare records of both"
            )
        try:
            return msgspec.json.decode(ready.about, type=About)
        except msgspec.MsgspecError as error:
            raise BenchmarkError(f"{self.name} says what this autotune can't read: {error}") from error

    def _hear(self, when: str, patience_s: float | None = None) -> Event:
        """The next thing that it says.

        Raises:
            BenchmarkError: It says nothing any more.
        """
        try:
            event = self._child.hear(patience_s or _PATIENCE_S)
        except TimeoutError as error:
            raise BenchmarkError(f"{error} {when}") from None
        if event is not None:
            return event
        by_itself = self._child.ends(_EXIT_S)
        self._stack.close()
        how = self._child.death().how if by_itself else "stopped making sense, so it was ended"
        raise BenchmarkError(f"{self.name} stopped {when}: it {how}")
