"""From written instructions to callable addresses: LLVM's optimiser, its linker, and a cache of object files."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm
from llvmlite import ir

from ternary_kernels.native.emit import Build, Emitter
from ternary_kernels.native.isa import Isa

CACHE_VARIABLE = "TERNARY_KERNELS_CACHE"
"""Environment variable that names the folder of the object files; empty: keep none."""

_SOURCES = Path(__file__).parent
_DIGEST_BYTES = 32

_loaded: dict[str, llvm.ResourceTracker] = {}
"""What is linked into this process, by module and instruction set: code is unloaded when its tracker goes."""
_lock = threading.Lock()


def load(name: str, kernels: Mapping[str, Build], isa: Isa) -> dict[str, int]:
    """Compile kernels for an instruction set, or take them from the cache, and link them into this process.

    Any number of processes may do this at once: files are complete before they get their names, and one whose checksum
    is wrong counts as absent. Only files are trusted that nobody else can have written.

    Args:
        name: Of the module: the kernels must follow from it, the instruction set and this package's sources.
        kernels: What writes each kernel, by its name.
        isa: The instruction set; to run the kernels, this machine must have it.

    Returns:
        Address of each kernel, valid as long as the process lives.

    Raises:
        KeyboardInterrupt: Ctrl-C came meanwhile; what was begun is finished first.
    """
    linked = f"{name}.{isa.name}"
    with _lock, _uninterrupted():
        if linked not in _loaded:
            path = _cache_file(linked)
            image = _read(path) if path else None
            if image is None:
                image = compile_object(name, kernels, isa)
                if path:
                    _write(path, image)
                    _drop_outdated(path, linked)
            builder = llvm.JITLibraryBuilder().add_object_img(image).add_current_process()
            for kernel in kernels:
                builder.export_symbol(kernel)
            _loaded[linked] = builder.link(_linker(), linked)
        return {kernel: _loaded[linked][kernel] for kernel in kernels}


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back: raised within llvmlite it would leave half an object, and a traceback at its end."""
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield
        return
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
        if came:
            signal.raise_signal(signal.SIGINT)


def compile_object(name: str, kernels: Mapping[str, Build], isa: Isa, triple: str | None = None) -> bytes:
    """Compile kernels to an object file.

    Args:
        name: Of the module.
        kernels: What writes each kernel, by its name.
        isa: The instruction set.
        triple: The system to compile for; default: this process'.
    """
    module = ir.Module(name)
    module.triple = triple or llvm.get_process_triple()
    for kernel, build in kernels.items():
        emitter = Emitter(module, kernel, isa)
        build(emitter)
        emitter.finish()
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    machine = llvm.Target.from_triple(module.triple).create_target_machine(
        features=",".join(f"+{feature}" for feature in isa.features), opt=3, reloc="pic", codemodel="small"
    )
    # Loops are unrolled where a kernel is written; LLVM's own guesses only make them slower to compile.
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_unrolling = options.loop_vectorization = options.slp_vectorization = options.loop_interleaving = False
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(parsed, passes)
    return bytes(machine.emit_object(parsed))


@cache
def _linker() -> llvm.LLJIT:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.create_lljit_compiler()


@cache
def _sources_digest() -> str:
    """Digest of what decides the machine code, beside the module's name and the instruction set."""
    digest = hashlib.sha256(f"{llvmlite.__version__} {llvm.llvm_version_info} {llvm.get_process_triple()}".encode())
    for source in sorted(_SOURCES.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _cache_file(name: str) -> Path | None:
    """Where a module's object file is kept; None if no folder is safe."""
    named = os.environ.get(CACHE_VARIABLE)
    if named == "":
        return None
    with suppress(OSError, RuntimeError):  # the latter where nobody knows the user's home
        base = Path(named) if named else _user_caches() / "ternary-kernels"
        base.mkdir(parents=True, exist_ok=True, mode=0o700)
        if _only_mine(base):
            return base / f"{name}.{_sources_digest()}.o"
    return None


def _user_caches() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def _only_mine(folder: Path) -> bool:
    """Whether nobody else can write there: what lies there is run."""
    if not hasattr(os, "getuid"):
        return True
    found = folder.stat()
    return found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _read(path: Path) -> bytes | None:
    with suppress(OSError):
        held = path.read_bytes()
        digest, image = held[:_DIGEST_BYTES], held[_DIGEST_BYTES:]
        if hashlib.sha256(image).digest() == digest:
            return image
    return None


def _write(path: Path, image: bytes) -> None:
    """Keep an object file; a folder that can't take it costs only time."""
    with suppress(OSError):
        descriptor, temporary = tempfile.mkstemp(prefix=path.name, dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(hashlib.sha256(image).digest() + image)
            Path(temporary).replace(path)
        except OSError:
            Path(temporary).unlink(missing_ok=True)


def _drop_outdated(path: Path, linked: str) -> None:
    """Delete what other sources or an interrupted process left of the same module; whoever misses it compiles it."""
    with suppress(OSError):
        for other in path.parent.glob(f"{linked}.*"):
            if other != path:
                other.unlink(missing_ok=True)
