"""A child's view of the parent that started it: requests come in, events go out, and it ends when its parent does."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import threading
import time
from queue import SimpleQueue
from typing import TypeVar

import msgspec

from autotune.records import Record

_OVERTIME_S = 1.0
_GRACE_S = 0.5
"""How long a child that has nothing to do may take to exit by itself once its parent is gone."""

_encoder = msgspec.json.Encoder()

Request = TypeVar("Request")


class Parent:
    """The other end of standard input and output; to be made once, before any thread is pinned.

    Standard output then is for events alone: what a kernel prints goes to standard error. When standard input closes,
    the process ends, whatever it is at.
    """

    def __init__(self) -> None:
        self._events = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)
        self._lines: SimpleQueue[bytes | None] = SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def hear(self, decoder: msgspec.json.Decoder[Request]) -> Request | None:
        """The next request; None: there will be none any more."""
        line = self._lines.get()
        return None if line is None else decoder.decode(line)

    def send(self, event: Record) -> None:
        """Tell the parent something."""
        # The process ends in a moment if it is gone.
        with contextlib.suppress(BrokenPipeError):
            self._events.write(_encoder.encode(event) + b"\n")
            self._events.flush()

    def expect(self, allowed_s: float | None) -> None:
        """Exit a little after so much time, even if a kernel never lets go of the interpreter; None: don't."""
        if allowed_s is None:
            faulthandler.cancel_dump_traceback_later()
        else:
            faulthandler.dump_traceback_later(allowed_s + _OVERTIME_S, exit=True)

    def _read(self) -> None:
        # Not sys.stdin: a thread that waits in there makes the interpreter abort at its end.
        rest = b""
        while chunk := os.read(0, 1 << 16):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._lines.put(line)
        self._lines.put(None)
        time.sleep(_GRACE_S)
        os._exit(1)
