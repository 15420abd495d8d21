"""GPU kernels that misbehave, for worker processes to import: each fault at once, and only when timed ("late-")."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ternary_kernels.cuda.product import Weights
from ternary_kernels.cuda.torch_products import TorchTernary

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _hang() -> None:
    threading.Event().wait()


def _raise(error: Exception) -> Callable[[], None]:
    def fault() -> None:
        raise error

    return fault


_ADVICE = "\nCUDA kernel errors might be asynchronously reported.\nFor debugging consider CUDA_LAUNCH_BLOCKING=1"

FAULTS: dict[str, Callable[[], None]] = {
    "exiting": lambda: os._exit(3),
    "hanging": _hang,
    "exhausting": _raise(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 elephants.")),
    "raising": _raise(RuntimeError("out of luck\nand words")),
    "refusing": _raise(ValueError("expected an even k_in, got 256")),
    "losing": _raise(RuntimeError("CUDA error: unspecified launch failure" + _ADVICE)),
}


def _is_timed(product: TorchTernary, weights: Weights) -> bool:
    """Whether it is the arena's bytes that are multiplied, and not those of the check against the oracle."""
    return weights.scales is product._unit_scales


def _define(name: str, fault: Callable[[], None], late: bool) -> None:
    class Faulty(TorchTernary):
        kernel = name
        formats = ("I2_S",)

        def _multiply(self, x: Any, weights: Any, out: Any) -> None:
            if not late or _is_timed(self, weights):
                fault()
            super()._multiply(x, weights, out)


for _name, _fault in FAULTS.items():
    _define(_name, _fault, late=False)
    _define(f"late-{_name}", _fault, late=True)


class Wrong(TorchTernary):
    """Off by one in one element, at more than one token."""

    kernel = "wrong"
    formats = ("I2_S",)

    def _multiply(self, x: Any, weights: Any, out: Any) -> None:
        super()._multiply(x, weights, out)
        if self.m > 1:
            out[-1, -1] += 1


class Unfinished(TorchTernary):
    """Leaves its last row as it was."""

    kernel = "unfinished"
    formats = ("I2_S",)

    def _multiply(self, x: Any, weights: Any, out: Any) -> None:
        last = out[:, -1].clone()
        super()._multiply(x, weights, out)
        out[:, -1] = last


class Instant(TorchTernary):
    """Right where it is checked; does nothing, and so is faster than any, where it is timed."""

    kernel = "instant"
    formats = ("I2_S",)

    def _multiply(self, x: Any, weights: Any, out: Any) -> None:
        if not _is_timed(self, weights):
            super()._multiply(x, weights, out)


class LosingLater(TorchTernary):
    """Loses the device once it has been timed for a while."""

    kernel = "losing-later"
    formats = ("I2_S",)
    calls = 0

    def _multiply(self, x: Any, weights: Any, out: Any) -> None:
        self.calls += _is_timed(self, weights)
        if self.calls > 9:
            raise RuntimeError("CUDA error: an illegal memory access was encountered" + _ADVICE)
        super()._multiply(x, weights, out)


class LosingForGood(TorchTernary):
    """Loses the device when it is timed, and so that no further process finds it."""

    kernel = "losing-for-good"
    formats = ("I2_S",)

    def _multiply(self, x: Any, weights: Any, out: Any) -> None:
        if _is_timed(self, weights):
            Path(os.environ["LOST"]).touch()
            raise RuntimeError("CUDA error: device-side assert triggered" + _ADVICE)
        super()._multiply(x, weights, out)


if os.environ.get("CUDA_VISIBLE_DEVICES") == "GPU-synthetic" and Path(os.environ.get("LOST", "/no")).exists():
    raise RuntimeError("no CUDA-capable device is detected")
