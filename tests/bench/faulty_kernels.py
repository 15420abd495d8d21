"""Kernels that misbehave, for worker processes to import: each fault at once, and only when timed ("late-")."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ternary_kernels.reference.products import NumpyI2S

CHECKED_ROWS = 128
"""The check against the oracle multiplies fewer rows than this, the products of the tests more."""

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _read_address_zero() -> None:
    ctypes.string_at(0)


def _tell() -> None:
    """Leave a sign that the fault was reached, for a test that waits for it."""
    if "REACHED" in os.environ:
        Path(os.environ["REACHED"]).touch()


def _hang() -> None:
    _tell()
    threading.Event().wait()


def _hang_holding_the_interpreter() -> None:
    _tell()
    ctypes.PyDLL(None).sleep(3600)


def _raise(error: Exception) -> Callable[[], None]:
    def fault() -> None:
        raise error

    return fault


FAULTS: dict[str, Callable[[], None]] = {
    "crashing": _read_address_zero,
    "aborting": os.abort,
    "exiting": lambda: os._exit(3),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hanging": _hang,
    "hogging": _hang_holding_the_interpreter,
    "exhausting": _raise(MemoryError("no room for 7 elephants")),
    "raising": _raise(RuntimeError("out of luck")),
    "refusing": _raise(ValueError("expected an even k_in, got 256")),
}


def _define(name: str, fault: Callable[[], None], late: bool) -> None:
    class Faulty(NumpyI2S):
        kernel = name

        def _multiply(self, x: Any, weights: Any, out: Any) -> None:
            if not late or self.n_out > CHECKED_ROWS:
                fault()
            super()._multiply(x, weights, out)


for _name, _fault in FAULTS.items():
    _define(_name, _fault, late=False)
    _define(f"late-{_name}", _fault, late=True)


class Wrong(NumpyI2S):
    """Off by one in one element, at more than one token."""

    kernel = "wrong"

    def _multiply(self, x: Any, weights: Any, out: Any) -> None:
        super()._multiply(x, weights, out)
        if self.m > 1:
            out[-1, -1] += 1


class Unfinished(NumpyI2S):
    """Leaves its last row as it was."""

    kernel = "unfinished"

    def _multiply(self, x: Any, weights: Any, out: Any) -> None:
        last = out[:, -1].copy()
        super()._multiply(x, weights, out)
        out[:, -1] = last


class Printing(NumpyI2S):
    """Right, but prints."""

    kernel = "printing"

    def _multiply(self, x: Any, weights: Any, out: Any) -> None:
        print("multiplying", flush=True)
        os.write(1, b"multiplying\n")
        super()._multiply(x, weights, out)


class Instant(NumpyI2S):
    """Right where it is checked; does nothing, and so is faster than any, where it is timed."""

    kernel = "instant"

    def _multiply(self, x: Any, weights: Any, out: Any) -> None:
        if self.n_out < CHECKED_ROWS:
            super()._multiply(x, weights, out)


class Compiling(NumpyI2S):
    """Takes seconds before its first call, as if it were compiled."""

    kernel = "compiling"

    def __init__(self, *args: Any) -> None:
        time.sleep(1.0)
        super().__init__(*args)


class Tiring(NumpyI2S):
    """Fails once it has been timed for a while."""

    kernel = "tiring"
    calls = 0

    def _multiply(self, x: Any, weights: Any, out: Any) -> None:
        self.calls += self.n_out > CHECKED_ROWS
        if self.calls > 9:
            raise RuntimeError("tired of it")
        super()._multiply(x, weights, out)


class Picky(NumpyI2S):
    """Refuses wide matrices when it is built, once the check is over."""

    kernel = "picky"

    def __init__(self, format_name: str, n_out: int, *args: Any) -> None:
        if n_out > CHECKED_ROWS:
            raise ValueError(f"picky: expected at most {CHECKED_ROWS} rows, got {n_out}")
        super().__init__(format_name, n_out, *args)
