"""Instruction sets that kernels are compiled for, best first, and which of them a machine has."""

from __future__ import annotations

import platform
from collections.abc import Collection
from functools import cache
from typing import Literal, NamedTuple

Dot = Literal["vpdpbusd.512", "vpdpbusd.256", "pmaddubsw", "sdot", "multiply"]


class Isa(NamedTuple):
    """One instruction set a kernel can be compiled for: a path.

    Attributes:
        name: Its name, for people and for the cache.
        machines: Machine names (``uname -m``) it exists on; empty: any.
        flags: What the CPU must have, as Linux names it in /proc/cpuinfo.
        features: LLVM's names of the same.
        vector_bytes: Width of its vectors.
        registers: How many vectors its registers hold.
        dot: How four products of bytes are added to a 32-bit sum.
        half: Whether it converts half precision in hardware.
    """

    name: str
    machines: tuple[str, ...]
    flags: tuple[str, ...]
    features: tuple[str, ...]
    vector_bytes: int
    registers: int
    dot: Dot
    half: bool

    @property
    def floats(self) -> int:
        """32-bit lanes of a vector."""
        return self.vector_bytes // 4

    def missing(self, machine: str, flags: Collection[str]) -> str | None:
        """Why a machine can't run it; None if it can.

        Args:
            machine: ``x86_64``, ``aarch64``.
            flags: What its CPU has, as Linux names it.
        """
        if self.machines and machine not in self.machines:
            return f"{self.name} needs a CPU of {' or '.join(self.machines)}, this is {machine}"
        absent = [flag for flag in self.flags if flag not in flags]
        return f"{self.name} needs {', '.join(absent)}, which this CPU lacks" if absent else None


_X86 = ("x86_64", "AMD64")
_ARM = ("aarch64", "arm64")
_AVX2 = ("avx2", "fma", "f16c", "bmi2")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl")

_AVX512_VNNI = Isa(
    name="avx512_vnni",
    machines=_X86,
    flags=(*_AVX512, "avx512_vnni"),
    features=(*_AVX512, "avx512vnni"),
    vector_bytes=64,
    registers=32,
    dot="vpdpbusd.512",
    half=True,
)

PATHS: tuple[Isa, ...] = (
    # Indexes 64 bytes at once, which look-ups gain from.
    _AVX512_VNNI._replace(
        name="avx512_vbmi",
        flags=(*_AVX512_VNNI.flags, "avx512vbmi"),
        features=(*_AVX512_VNNI.features, "avx512vbmi"),
    ),
    _AVX512_VNNI,
    Isa(
        name="avx_vnni",
        machines=_X86,
        flags=(*_AVX2, "avx_vnni"),
        features=(*_AVX2, "avxvnni"),
        vector_bytes=32,
        registers=16,
        dot="vpdpbusd.256",
        half=True,
    ),
    Isa(
        name="avx2",
        machines=_X86,
        flags=_AVX2,
        features=_AVX2,
        vector_bytes=32,
        registers=16,
        dot="pmaddubsw",
        half=True,
    ),
    Isa(
        name="neon_dot",
        machines=_ARM,
        flags=("asimd", "asimddp"),
        features=("neon", "dotprod"),
        vector_bytes=16,
        registers=32,
        dot="sdot",
        half=True,
    ),
    Isa(
        name="generic",
        machines=(),
        flags=(),
        features=(),
        vector_bytes=16,
        registers=16,
        dot="multiply",
        half=False,
    ),
)
"""All paths, best first; the last runs anywhere."""

AMX = _AVX512_VNNI._replace(
    name="amx",
    flags=(*_AVX512_VNNI.flags, "amx_tile", "amx_int8"),
    features=(*_AVX512_VNNI.features, "amx-tile", "amx-int8"),
)
"""Tiles of 16 rows by 64 bytes, beside the vectors of AVX-512: for products with many tokens."""


def runnable(machine: str, flags: Collection[str]) -> tuple[Isa, ...]:
    """The paths a machine can run, best first.

    Args:
        machine: ``x86_64``, ``aarch64``.
        flags: What its CPU has, as Linux names it.
    """
    return tuple(isa for isa in PATHS if isa.missing(machine, flags) is None)


def this_machine() -> tuple[str, frozenset[str]]:
    """Machine name and CPU flags of the machine this runs on, as Linux names them."""
    machine = platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as listing:  # noqa: PTH123 - no file to resolve
            for line in listing:
                name, _, flags = line.partition(":")
                if name.strip() in ("flags", "Features"):
                    return machine, frozenset(flags.split())
    except OSError:
        pass
    return machine, _llvm_flags()


def _llvm_flags() -> frozenset[str]:
    """The same where there is no /proc/cpuinfo: what LLVM found, by Linux' names."""
    import llvmlite.binding as llvm

    found = {name for name, has in llvm.get_host_cpu_features().items() if has}
    linux = {flag: feature for isa in PATHS for flag, feature in zip(isa.flags, isa.features, strict=True)}
    return frozenset(flag for flag, feature in linux.items() if feature in found)


@cache
def best() -> Isa:
    """The best path of this machine."""
    return runnable(*this_machine())[0]
