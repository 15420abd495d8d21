"""Which kernels can run on a machine, by which instruction set, and if not, why."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from typing import NamedTuple

from ternary_kernels.formats import FORMATS
from ternary_kernels.matmul import KERNELS, MODULES
from ternary_kernels.native.isa import AMX, runnable, this_machine


class Availability(NamedTuple):
    """Whether one kernel can multiply weights of one format on a machine.

    Attributes:
        kernel: The kernel's name.
        format: The format's name.
        path: Instruction set it would use; None for numpy, which finds out for itself, and where it can't run.
        reason: Why it can't run; None if it can.
    """

    kernel: str
    format: str
    path: str | None
    reason: str | None


def available(architecture: str, isa: Collection[str]) -> tuple[Availability, ...]:
    """Every kernel and format there are, kernels that are expected to be faster first.

    Args:
        architecture: Machine name as the system gives it: ``x86_64``, ``aarch64``.
        isa: Instruction-set extensions of its CPU, as Linux names them: ``avx2``.
    """
    found = []
    for kernel in MODULES:
        path, reason = _path(kernel, architecture, isa)
        for name in FORMATS:
            missing = reason
            if missing is None and (kernel, name) not in KERNELS:
                missing = f"there is no {kernel} kernel for {name}"
            found.append(Availability(kernel, name, None if missing else path, missing))
    return tuple(found)


def _path(kernel: str, architecture: str, isa: Collection[str]) -> tuple[str | None, str | None]:
    """Instruction set of a kernel on a machine, and why there is none."""
    try:
        for module in MODULES[kernel]:
            importlib.import_module(module)
    except ImportError as error:
        return None, f"the {kernel} kernels need llvmlite, which can't be imported ({error}): pip install llvmlite"
    if kernel == "numpy":
        return None, None
    if kernel == "amx":
        missing = AMX.missing(architecture, isa) or _refused()
        return (None, missing) if missing else (AMX.name, None)
    return runnable(architecture, isa)[0].name, None


def _refused() -> str | None:
    """Why the system keeps AMX from this process, if this machine has it: what other machines do isn't known here."""
    from ternary_kernels.native import amx

    return amx.unusable() if AMX.missing(*this_machine()) is None else None
