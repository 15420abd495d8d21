"""Compiled code and its cache: one compilation for all processes, and nothing but sound files of this user is run."""

import ctypes
import os
import signal
import stat
import threading

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir

from ternary_kernels.native import activations, amx, compiler, crew, isa, rowwise
from ternary_kernels.native.codecs import Q6, Q8, TQ2, Half, TwoBit
from ternary_kernels.native.compiler import CACHE_VARIABLE, compile_object, load
from ternary_kernels.native.crew import callable_at
from ternary_kernels.native.emit import POINTER, Emitter
from ternary_kernels.native.isa import AMX, PATHS

GENERIC = PATHS[-1]
BY_NAME = {path.name: path for path in (*PATHS, AMX)}
ARM = "aarch64-unknown-linux-gnu"
OTHER_USER = 12_345


def build_seven(emitter):
    """A kernel that stores 7 where its argument points."""
    emitter.store(emitter.index(7), emitter.argument(0, POINTER))


def build_eight(emitter):
    emitter.store(emitter.index(8), emitter.argument(0, POINTER))


def result(address):
    """What the kernel at an address stores."""
    found = np.zeros(1, np.int64)
    words = (ctypes.c_int64 * 1)(found.ctypes.data)
    callable_at(address)(ctypes.addressof(words), 0, 1)
    return int(found[0])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def forget(monkeypatch):
    """Makes this process one that has loaded nothing yet."""
    linkers = []

    def forget():
        linkers.append(llvm.create_lljit_compiler())
        monkeypatch.setattr(compiler, "_linker", lambda: linkers[-1])
        monkeypatch.setattr(compiler, "_loaded", {})

    compiler._linker()
    forget()
    return forget


@pytest.fixture
def compiled(monkeypatch):
    """The modules that were compiled, one by one."""
    names = []
    real = compile_object

    def count(name, *arguments):
        names.append(name)
        return real(name, *arguments)

    monkeypatch.setattr(compiler, "compile_object", count)
    return names


def load_seven():
    return result(load("seven", {"kernel": build_seven}, GENERIC)["kernel"])


# Loading


def test_a_module_is_compiled_once_and_linked_once(folder, forget, compiled):
    kernels = {"seven": build_seven, "eight": build_eight}
    first, second = load("both", kernels, GENERIC), load("both", kernels, GENERIC)
    assert first == second
    assert [result(first[name]) for name in kernels] == [7, 8]
    assert compiled == ["both"]


def test_another_process_takes_what_was_compiled(folder, forget, compiled):
    assert load_seven() == 7
    (file,) = folder.iterdir()
    before = file.stat()
    forget()
    assert load_seven() == 7
    assert compiled == ["seven"]
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_ctrl_c_waits_until_a_module_is_linked(folder, forget, compiled):
    """Within llvmlite it would leave half an object behind, whose end prints a traceback."""

    def build(emitter):
        signal.raise_signal(signal.SIGINT)
        build_seven(emitter)

    usual = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        load("seven", {"kernel": build}, GENERIC)
    assert signal.getsignal(signal.SIGINT) is usual
    assert load_seven() == 7
    assert compiled == ["seven"]


def test_a_thread_beside_the_main_one_compiles_as_well(folder, forget, compiled):
    """Only the main thread is interrupted by Ctrl-C, and only it may hold it back."""
    found = []
    thread = threading.Thread(target=lambda: found.append(load_seven()))
    thread.start()
    thread.join()
    assert found == [7]


def test_each_instruction_set_has_its_own_code(folder, forget, compiled):
    for path in isa.runnable(*isa.this_machine()):
        assert result(load("seven", {"kernel": build_seven}, path)["kernel"]) == 7
    names = [path.name for path in isa.runnable(*isa.this_machine())]
    assert sorted(file.name.split(".")[1] for file in folder.iterdir()) == sorted(names)


def test_what_other_sources_left_is_not_run_but_replaced(folder, forget, compiled, tmp_path, monkeypatch):
    """Else every version of this package would leave its files for good. Other modules' files stay."""
    load("eight", {"kernel": build_eight}, GENERIC)
    load_seven()
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "emit.py").write_text("# changed")
    monkeypatch.setattr(compiler, "_SOURCES", sources)
    compiler._sources_digest.cache_clear()
    forget()
    load_seven()
    (sources / "emit.py").write_text("# changed again")
    compiler._sources_digest.cache_clear()
    forget()
    load_seven()
    monkeypatch.undo()
    compiler._sources_digest.cache_clear()
    assert compiled == ["eight", "seven", "seven", "seven"]
    assert sorted(file.name.split(".")[0] for file in folder.iterdir()) == ["eight", "seven"]


SEVERAL = """
import sys

import numpy as np

from ternary_kernels import oracle
from ternary_kernels.activations import quantize
from ternary_kernels.formats import get_format
from ternary_kernels.native.products import NativeRows
from ternary_kernels.team import Team

rng = np.random.default_rng(0)
weights, x = rng.integers(-1, 2, (9, 384), np.int8), quantize(rng.standard_normal((40, 384), np.float32))
packed = get_format("I2_S").pack(weights, 0.5)
print("ready", flush=True)
sys.stdin.readline()
with Team(2) as team:
    for m in (1, 40):
        some = type(x)(x.values[:m], x.scale[:m])
        out = NativeRows("I2_S", 9, 384, m, team)(some, packed, np.empty((m, 9), np.float32))
        assert np.array_equal(out, oracle.matmul(some, weights, 0.5))
print("right")
"""


def finish(process, message=None):
    """Wait for a child, and return what it printed."""
    out, err = process.communicate(message, timeout=120)
    assert process.returncode == 0, err
    return out


def test_processes_that_start_at_once_all_get_right_results_and_leave_one_file_a_module(folder, child):
    processes = [child(SEVERAL) for _ in range(8)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [finish(process) for process in processes] == ["right\n"] * 8
    files = sorted(folder.iterdir())
    assert len(files) == 4  # few tokens, many tokens, their preparation, the crew
    assert all(file.suffix == ".o" for file in files)
    assert len({file.name.split(".")[0] for file in files}) == 4


KILLED = """
import os
import signal

from ternary_kernels.native import compiler
from ternary_kernels.native.emit import POINTER
from ternary_kernels.native.isa import PATHS


class Torn:
    def __init__(self, descriptor, mode):
        self.descriptor = descriptor

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def write(self, image):
        os.write(self.descriptor, image[: len(image) // 2])
        os.kill(os.getpid(), signal.SIGKILL)


os.fdopen = Torn
build = lambda emitter: emitter.store(emitter.index(7), emitter.argument(0, POINTER))
compiler.load("seven", {"kernel": build}, PATHS[-1])
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_what_a_process_killed_while_it_writes_leaves_does_no_harm(folder, forget, compiled, child):
    process = child(KILLED)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    (torn,) = folder.iterdir()
    assert torn.stat().st_size > 0
    assert load_seven() == 7
    forget()
    assert load_seven() == 7
    assert compiled == ["seven"]
    assert [file.suffix for file in folder.iterdir()] == [".o"]


# Bad files


@pytest.mark.parametrize(
    "spoil",
    [
        lambda held: b"",
        lambda held: held[:-1],
        lambda held: held[: len(held) // 2],
        lambda held: held[:20],
        lambda held: held + b"\0",
        lambda held: held[:100] + bytes([held[100] ^ 1]) + held[101:],
        lambda held: bytes([held[0] ^ 1]) + held[1:],
        lambda held: b"\x7fELF something else altogether" * 50,
    ],
    ids=["empty", "torn", "half", "no more than a part of the checksum", "longer", "a bit", "checksum", "foreign"],
)
def test_a_bad_file_is_replaced(folder, forget, compiled, spoil):
    load_seven()
    (file,) = folder.iterdir()
    sound = file.read_bytes()
    file.write_bytes(spoil(sound))
    for _ in range(2):
        forget()
        assert load_seven() == 7
    assert compiled == ["seven"] * 2
    assert file.read_bytes() == sound


def test_a_folder_in_a_files_place_costs_only_time(folder, forget, compiled):
    load_seven()
    (file,) = folder.iterdir()
    file.unlink()
    file.mkdir()
    (file / "held").touch()
    for _ in range(2):
        forget()
        assert load_seven() == 7
    assert compiled == ["seven"] * 3
    assert list(folder.iterdir()) == [file]


# Bad folders


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="the system has no such rights")
@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777, 0o1777])
def test_a_folder_that_others_can_write_to_is_not_used(folder, forget, compiled, mode):
    """What lies there is run: anybody could have put it there."""
    load_seven()
    (file,) = folder.iterdir()
    file.write_bytes(b"planted")
    folder.chmod(mode)
    forget()
    assert load_seven() == 7
    assert compiled == ["seven"] * 2
    assert file.read_bytes() == b"planted"
    assert list(folder.iterdir()) == [file]


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="the system has no such rights")
def test_a_folder_of_somebody_else_is_not_used(folder, forget, compiled, monkeypatch):
    if os.getuid() == 0:
        folder.mkdir(mode=0o700)
        os.chown(folder, OTHER_USER, -1)
    else:
        monkeypatch.setenv(CACHE_VARIABLE, "/usr")
    for _ in range(2):
        forget()
        assert load_seven() == 7
    assert compiled == ["seven"] * 2
    assert not folder.exists() or not list(folder.iterdir())


def test_where_nothing_can_be_kept_kernels_work_all_the_same(tmp_path, forget, compiled, monkeypatch):
    """No folder wanted, a file in its place, one below a file, and one that only the system writes to."""
    (tmp_path / "file").touch()
    folders = ["", str(tmp_path / "file"), str(tmp_path / "file" / "below"), "/proc", "/proc/nowhere"]
    for named in folders:
        monkeypatch.setenv(CACHE_VARIABLE, named)
        forget()
        assert load_seven() == 7, named
    assert compiled == ["seven"] * len(folders)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").stat().st_size == 0


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "HOME"])
def test_without_a_named_folder_it_is_the_users(tmp_path, forget, compiled, monkeypatch, variable):
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv(variable, str(tmp_path / "mine"))
    load_seven()
    base = tmp_path / "mine" / ("" if variable == "XDG_CACHE_HOME" else ".cache")
    assert [file.suffix for file in (base / "ternary-kernels").iterdir()] == [".o"]


def test_a_user_without_a_home_compiles_each_time(forget, compiled, monkeypatch):
    """As in a container that runs under a number without a name."""
    for variable in (CACHE_VARIABLE, "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(variable, raising=False)
    pwd = pytest.importorskip("pwd")

    def unknown(number):
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert load_seven() == 7


def test_where_there_are_no_owners_every_folder_counts_as_the_users(folder, forget, compiled, monkeypatch):
    """As on Windows."""
    monkeypatch.delattr(os, "getuid", raising=False)
    for _ in range(2):
        forget()
        assert load_seven() == 7
    assert compiled == ["seven"]


# Other machines


def kernels_for(path):
    """Every kind of kernel, for a path: by name, what writes it."""
    i2s, tq2 = TwoBit(path, 384, 32), TQ2(path, 512)
    held = {
        "i2s_prepare": activations.prepare(i2s),
        "i2s_few": rowwise.few_tokens(i2s, 384, 1),
        "i2s_many": rowwise.many_tokens(i2s, 384, 2, 1),
        "i2s_arm_few": rowwise.few_tokens(TwoBit(path, 192, 16), 192, 3),
        "tq2_few": rowwise.few_tokens(tq2, 512, 1),
        "tq2_many": rowwise.many_tokens(tq2, 512, 1, 0),
        "f16_few": rowwise.few_tokens(Half(path, 128), 128, 1),
        "f16_many": rowwise.many_tokens(Half(path, 100), 100, 2, 0),
        "q8_few": rowwise.few_tokens(Q8(path, 64), 64, 1),
        "q6_few": rowwise.few_tokens(Q6(path, 256), 256, 1),
    }
    crews = {
        "serve": crew._build_serve,
        "dispatch": crew._build_dispatch,
        "finish": crew._call_and_wait,
        "release": crew._publish,
    }
    return held | crews


def assembly(kernels, path, triple):
    """The instructions of kernels, as text, before LLVM's optimiser."""
    module = ir.Module("assembly")
    module.triple = triple
    for name, build in kernels.items():
        emitter = Emitter(module, name, path)
        build(emitter)
        emitter.finish()
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    parsed = llvm.parse_assembly(str(module))
    features = ",".join(f"+{feature}" for feature in path.features)
    machine = llvm.Target.from_triple(triple).create_target_machine(features=features, opt=2)
    return machine.emit_assembly(parsed)


@pytest.mark.parametrize(
    ("name", "triple", "machine"),
    [("neon_dot", ARM, 183), ("generic", ARM, 183), ("generic", "x86_64-unknown-linux-gnu", 62)],
)
def test_every_kernel_compiles_for_other_machines(name, triple, machine):
    """To a relocatable object of 64 bits: e_ident, e_type and e_machine of the ELF header."""
    image = compile_object("everything", kernels_for(BY_NAME[name]), BY_NAME[name], triple)
    assert image[:5] == b"\x7fELF\x02"
    assert int.from_bytes(image[16:18], "little") == 1
    assert int.from_bytes(image[18:20], "little") == machine
    with llvm.object_file.ObjectFileRef.from_data(image) as held:
        text = sum(section.size() for section in held.sections() if section.is_text())
    assert text > 1000


@pytest.mark.parametrize(
    ("name", "triple", "present", "absent"),
    [
        ("avx512_vnni", "x86_64-unknown-linux-gnu", ["vpdpbusd", "zmm", "prefetcht0", "vcvtph2ps"], ["vpmaddubsw"]),
        ("avx_vnni", "x86_64-unknown-linux-gnu", ["vpdpbusd", "ymm"], ["zmm", "vpmaddubsw"]),
        ("avx2", "x86_64-unknown-linux-gnu", ["vpmaddubsw", "vpmaddwd", "vfmadd"], ["zmm", "vpdpbusd"]),
        ("generic", "x86_64-unknown-linux-gnu", ["xmm"], ["ymm", "zmm"]),
        ("neon_dot", ARM, ["sdot", "fmla", "fcvtl"], []),
        ("generic", ARM, ["smull"], ["sdot"]),
    ],
)
def test_a_path_uses_its_own_instructions_and_no_other(name, triple, present, absent):
    written = {name: build for name, build in kernels_for(BY_NAME[name]).items() if name.startswith(("i2s", "f16"))}
    text = assembly(written, BY_NAME[name], triple)
    assert [word for word in present if word not in text] == []
    assert [word for word in absent if word in text] == []


def test_waiting_tells_the_core_so():
    """And where there is no such instruction it just looks again."""
    build = {"serve": crew._build_serve}
    assert "pause" in assembly(build, GENERIC, "x86_64-unknown-linux-gnu")
    assert "yield" in assembly(build, GENERIC, ARM)
    assert "sched_yield" in assembly(build, GENERIC, "riscv64-unknown-linux-gnu")


def test_amx_multiplies_tiles():
    codec = TwoBit(AMX, 384, 32)
    product = amx._product(codec, activations.row_bytes(codec), pairs=True)
    text = assembly({"product": product}, AMX, "x86_64-unknown-linux-gnu")
    assert all(word in text for word in ("tdpbusd", "tileloadd", "ldtilecfg", "tilerelease"))
