"""A synthetic model in place of the real one: it runs nothing, or misbehaves.

What a configuration's kernels are called says how: at once when the part is made, or when it is run ("late-"). It
writes down what is asked of it, a line each, where the environment's ``STANDIN_LOG`` says.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

STEP_S = {"decode": 0.25, "prefill": 2.0}
"""Synthetic seconds; none of them pass."""
OVERHEAD = 0.0625
REUSED_LAYERS = 3


def _note(*words: object) -> None:
    if "STANDIN_LOG" in os.environ:
        with Path(os.environ["STANDIN_LOG"]).open("a") as log:
            print(*words, file=log)


def raising(error: Exception) -> Callable[[], None]:
    """A fault that raises this."""

    def fault() -> None:
        raise error

    return fault


def _babble() -> None:
    print("not an event", flush=True)
    os.write(1, b'{"type": "run"\n\xff\n')


def _hang() -> None:
    _note("reached")
    threading.Event().wait()


def _hog() -> None:
    """Never let go of the interpreter."""
    _note("reached")
    ctypes.PyDLL(None).sleep(3600)


def _interrupt_events() -> None:
    """Write to the events' own file what is none."""
    for number in range(3, 32):
        try:
            if str(Path(f"/proc/self/fd/{number}").readlink()).startswith("pipe:"):
                os.write(number, b"{half a line\n")
        except OSError:
            continue


FAULTS: dict[str, Callable[[], None]] = {
    "fine": lambda: None,
    "crashing": lambda: ctypes.string_at(0) and None,
    "aborting": os.abort,
    "exiting": lambda: os._exit(3),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hanging": _hang,
    "hogging": _hog,
    "exhausting": raising(MemoryError("no room for 7 elephants")),
    "exhausting a GPU": raising(RuntimeError("CUDA out of memory. Tried to allocate 7 GiB.\nSee documentation")),
    "raising": raising(RuntimeError("out of luck")),
    "refusing": raising(ValueError("expected an even k_in, got 257")),
    "babbling": _babble,
    "garbling": _interrupt_events,
}


class Transformer:
    """Places nothing, but notes it."""

    reused_layers = REUSED_LAYERS

    def __init__(
        self, model: Any, weights: Any, *, capacity: int, cpus: Any, gpus: Any, room_bytes: int, cache_bytes: int
    ) -> None:
        _note("capacity", capacity)
        _note("cpus", *cpus)
        _note("gpus", *(f"{device}={place}" for device, place in gpus.items()))
        _note("environment", *(os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")))

    def close(self) -> None:
        """Note it."""
        _note("close")

    def place(self, device_layers: Mapping[str, int], head_device: str) -> None:
        """Note it."""
        _note("place", *(f"{device}={count}" for device, count in device_layers.items()), head_device)
        if "misplaced" in device_layers:
            raise MemoryError("no room for the weights")

    def part(self, part: Any, kernels: Any) -> Running:
        """A part with the fault that its kernels name."""
        _note("part", part.phase, part.size)
        name = kernels.backends["cpu"]
        late = name.startswith("late-")
        fault = FAULTS[name.removeprefix("late-")]
        if not late:
            fault()
        return Running(part, fault if late else FAULTS["fine"])


class Running:
    """A part that takes no time and says it took some."""

    def __init__(self, part: Any, fault: Callable[[], None]) -> None:
        self._part = part
        self._fault = fault

    def warm_up(self) -> None:
        """Note it."""
        _note("warm up", self._part.phase)

    def sample(self) -> tuple[float, dict[str, float]]:
        """As long as ever; an eighth of it between the devices."""
        self._fault()
        _note("sample", self._part.phase)
        total_s = STEP_S[self._part.phase]
        devices = [device for device, _ in self._part.device_layers]
        return total_s, {device: total_s * 0.875 / len(devices) for device in devices}

    def overhead_share(self) -> float:
        """Always the same."""
        self._fault()
        return OVERHEAD
