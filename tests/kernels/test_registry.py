"""Which kernels can run where: the whole grid, on this machine and on others, with llvmlite and without."""

import subprocess
import sys

import pytest

from ternary_kernels import registry
from ternary_kernels.formats import FORMATS
from ternary_kernels.matmul import KERNELS, MODULES, get_kernel
from ternary_kernels.native import amx
from ternary_kernels.native.amx import unusable
from ternary_kernels.native.isa import AMX, this_machine
from ternary_kernels.registry import available
from ternary_kernels.team import Team

AVX2 = {"avx2", "fma", "f16c", "bmi2"}
NATIVE = {"I2_S", "I2_S_ARM", "TL1", "TL2", "TQ2_0", "F16", "F32", "Q8_0", "Q6_K"}
TILES = {"I2_S", "I2_S_ARM"}

MACHINES = [
    ("x86_64", AVX2, "avx2"),
    ("x86_64", set(), "generic"),
    ("aarch64", {"asimd", "asimddp"}, "neon_dot"),
    ("aarch64", {"asimd"}, "generic"),
    ("riscv64", set(), "generic"),
]


def test_the_grid_is_every_kernel_and_format_fastest_kernels_first():
    found = available(*this_machine())
    assert [(entry.kernel, entry.format) for entry in found] == [
        (kernel, name) for kernel in ("native", "amx", "numpy") for name in FORMATS
    ]
    assert list(MODULES) == ["native", "amx", "numpy"]


def test_an_entry_has_a_reason_or_can_run():
    for entry in available(*this_machine()):
        exists = (entry.kernel, entry.format) in KERNELS
        if exists and entry.kernel != "amx":
            assert entry.reason is None, entry
        assert (entry.path is not None) == (entry.reason is None and entry.kernel != "numpy"), entry
        if not exists:
            assert entry.reason in (
                f"there is no {entry.kernel} kernel for {entry.format}",
                AMX.missing(*this_machine()),
            )


def test_numpy_multiplies_every_format_on_any_machine():
    for machine, flags, _ in MACHINES:
        entries = [entry for entry in available(machine, flags) if entry.kernel == "numpy"]
        assert [(entry.path, entry.reason) for entry in entries] == [(None, None)] * len(FORMATS)


@pytest.mark.parametrize(("machine", "flags", "path"), MACHINES)
def test_other_machines_take_their_own_path(machine, flags, path):
    native = {entry.format: entry for entry in available(machine, flags) if entry.kernel == "native"}
    assert {name for name, entry in native.items() if entry.reason is None} == NATIVE
    assert {native[name].path for name in NATIVE} == {path}
    for name in set(FORMATS) - NATIVE:
        assert (native[name].path, native[name].reason) == (None, f"there is no native kernel for {name}")


@pytest.mark.parametrize(
    ("machine", "flags", "reason"),
    [
        ("x86_64", AVX2, "amx needs avx512f, avx512bw, avx512dq, avx512vl, avx512_vnni, amx_tile, amx_int8, which"),
        ("x86_64", set(AMX.flags) - {"amx_int8"}, "amx needs amx_int8, which this CPU lacks"),
        ("aarch64", {"asimd", "asimddp"}, "amx needs a CPU of x86_64 or AMD64, this is aarch64"),
    ],
)
def test_a_machine_without_tiles_is_told_so_for_every_format(machine, flags, reason):
    entries = [entry for entry in available(machine, flags) if entry.kernel == "amx"]
    assert len(entries) == len(FORMATS)
    assert all(entry.path is None and entry.reason.startswith(reason) for entry in entries)


def test_a_machine_with_tiles_uses_them_for_the_formats_there_are_kernels_for():
    entries = {entry.format: entry for entry in available("x86_64", AMX.flags) if entry.kernel == "amx"}
    assert {name for name, entry in entries.items() if entry.reason is None} == TILES
    assert {entries[name].path for name in TILES} == {"amx"}
    assert entries["F16"].reason == "there is no amx kernel for F16"


def test_what_can_run_here_can_be_made_and_takes_the_path_it_said():
    """AMX also needs the system's leave."""
    with Team(1) as team:
        for entry in available(*this_machine()):
            if entry.reason is not None:
                continue
            if entry.kernel == "amx" and unusable():
                continue
            kernel = get_kernel(entry.kernel, entry.format)(entry.format, 256, 512, 1, team)
            used = getattr(kernel, "isa", None)
            assert (used is None) == (entry.path is None)
            assert used is None or used.name == entry.path


WITHOUT_LLVMLITE = """
import sys

sys.modules["llvmlite"] = None  # as where it isn't installed: importing it fails
import numpy as np

from ternary_kernels.activations import quantize
from ternary_kernels.formats import FORMATS, get_format
from ternary_kernels.matmul import get_kernel
from ternary_kernels.registry import available
from ternary_kernels.team import Team

for entry in available("x86_64", {"avx2", "fma", "f16c", "bmi2", "amx_tile"}):
    if entry.kernel == "numpy":
        assert (entry.path, entry.reason) == (None, None), entry
    else:
        assert entry.path is None, entry
        assert entry.reason.startswith(f"the {entry.kernel} kernels need llvmlite, which can't be imported ("), entry
        assert entry.reason.endswith("): pip install llvmlite"), entry
for kernel in ("native", "amx"):
    try:
        get_kernel(kernel, "I2_S")
    except ValueError as error:
        print(error)
x = quantize(np.ones((2, 256), np.float32))
with Team(2) as team:
    out = get_kernel("numpy", "I2_S")("I2_S", 3, 256, 2, team)(
        x, get_format("I2_S").pack(np.ones((3, 256), np.int8)), np.empty((2, 3), np.float32)
    )
assert np.allclose(out, 256)
assert not any(name.startswith("llvmlite.") for name in sys.modules)
"""


def test_without_llvmlite_numpys_kernels_work_and_the_others_say_what_to_install():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_LLVMLITE],
        cwd=registry.__file__.rpartition("ternary_kernels")[0],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    messages = done.stdout.splitlines()
    assert len(messages) == 2
    for kernel, message in zip(("native", "amx"), messages, strict=True):
        assert message.startswith(f"kernel '{kernel}': ")
        assert message.endswith("it needs llvmlite")


def test_a_system_that_keeps_tiles_to_itself_is_told(monkeypatch):
    """The CPU has them, but the system refuses: they can't be used."""
    machine = ("x86_64", frozenset(AMX.flags))
    monkeypatch.setattr(registry, "this_machine", lambda: machine)
    monkeypatch.setattr(amx, "unusable", lambda: "the system refuses it (arch_prctl: error 22)")
    found = {entry.reason for entry in available(*machine) if entry.kernel == "amx" and entry.format == "I2_S"}
    assert found == {"the system refuses it (arch_prctl: error 22)"}
