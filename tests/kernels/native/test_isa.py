"""Which paths machines have, and why not."""

import builtins
import platform

import llvmlite.binding as llvm
import pytest

from ternary_kernels.native import isa
from ternary_kernels.native.isa import AMX, PATHS, runnable, this_machine

AVX2 = {"avx2", "fma", "f16c", "bmi2"}
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}


def names(machine, flags):
    return [path.name for path in runnable(machine, flags)]


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", AVX512 | {"avx512_vnni", "avx_vnni", "sse2"}, ["avx512_vnni", "avx_vnni", "avx2", "generic"]),
        ("x86_64", AVX512 | {"avx512_vnni"}, ["avx512_vnni", "avx2", "generic"]),
        ("x86_64", AVX512 | {"avx512_vnni", "avx512vbmi"}, ["avx512_vbmi", "avx512_vnni", "avx2", "generic"]),
        ("x86_64", AVX512 | {"avx512vbmi"}, ["avx2", "generic"]),
        ("x86_64", AVX512, ["avx2", "generic"]),
        ("x86_64", AVX2 | {"avx_vnni"}, ["avx_vnni", "avx2", "generic"]),
        ("AMD64", AVX2, ["avx2", "generic"]),
        ("x86_64", AVX2 - {"f16c"}, ["generic"]),
        ("x86_64", set(), ["generic"]),
        ("aarch64", {"asimd", "asimddp"}, ["neon_dot", "generic"]),
        ("arm64", {"asimd", "asimddp"}, ["neon_dot", "generic"]),
        ("aarch64", {"asimd"}, ["generic"]),
        ("aarch64", AVX512 | {"avx512_vnni"}, ["generic"]),
        ("x86_64", {"asimd", "asimddp"}, ["generic"]),
        ("riscv64", set(), ["generic"]),
    ],
)
def test_a_machine_has_the_paths_of_its_architecture_and_flags_best_first(machine, flags, expected):
    assert names(machine, flags) == expected


def test_what_is_missing_is_named():
    by_name = {path.name: path for path in PATHS}
    assert by_name["avx512_vnni"].missing("x86_64", AVX512) == "avx512_vnni needs avx512_vnni, which this CPU lacks"
    assert by_name["avx2"].missing("x86_64", {"fma", "bmi2"}) == "avx2 needs avx2, f16c, which this CPU lacks"
    assert by_name["neon_dot"].missing("riscv64", ()) == "neon_dot needs a CPU of aarch64 or arm64, this is riscv64"
    assert AMX.missing("x86_64", AVX512 | {"avx512_vnni"}) == "amx needs amx_tile, amx_int8, which this CPU lacks"
    assert AMX.missing("aarch64", ()) == "amx needs a CPU of x86_64 or AMD64, this is aarch64"
    assert AMX.missing("x86_64", AVX512 | {"avx512_vnni", "amx_tile", "amx_int8"}) is None


@pytest.mark.parametrize("path", [*PATHS, AMX], ids=lambda path: path.name)
def test_each_flag_has_its_feature_and_llvm_knows_it(path, capfd):
    """LLVM only warns of an unknown feature, and compiles without."""
    assert len(path.flags) == len(path.features)
    llvm.initialize_all_targets()
    triple = "aarch64-unknown-linux-gnu" if "aarch64" in path.machines else "x86_64-unknown-linux-gnu"
    features = ",".join(f"+{feature}" for feature in path.features)
    llvm.Target.from_triple(triple).create_target_machine(features=features)
    assert "not a recognized feature" not in capfd.readouterr().err


def test_this_machine_is_what_the_system_says_it_is():
    machine, flags = this_machine()
    assert machine == platform.machine()
    assert {"sse2", "asimd", "fp"} & flags
    assert isa.best() is runnable(machine, flags)[0]


def listing(monkeypatch, tmp_path, text):
    """The system's listing of CPUs says this; None: there is none."""
    real, path = builtins.open, tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    monkeypatch.setattr(builtins, "open", lambda name, *args, **kwargs: real(path, *args, **kwargs))


@pytest.mark.parametrize("key", ["flags\t\t", "Features\t"])
def test_flags_are_those_of_the_first_cpu_listed(monkeypatch, tmp_path, key):
    listing(monkeypatch, tmp_path, f"processor\t: 0\nbugs\t: avx\n{key}: one two\n\nprocessor\t: 1\n{key}: three\n")
    assert this_machine() == (platform.machine(), {"one", "two"})


@pytest.mark.parametrize("text", [None, "", "processor\t: 0\nisa\t: rv64imafdc\n"])
def test_without_a_listing_of_flags_llvm_is_asked(monkeypatch, tmp_path, text):
    """As on macOS: what it finds has Linux' names, and means the same paths on a machine that has a listing too."""
    machine, flags = this_machine()
    listing(monkeypatch, tmp_path, text)
    found = this_machine()
    assert found[0] == machine
    assert found[1] <= {flag for path in PATHS for flag in path.flags}
    assert runnable(*found) == runnable(machine, flags)
