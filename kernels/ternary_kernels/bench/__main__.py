"""Times the kernels on this host: ``python -m ternary_kernels.bench --help``."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Sequence

import msgspec

from ternary_kernels.arena import Arena
from ternary_kernels.bench import ceilings, hardware
from ternary_kernels.bench.arguments import Arguments, Parser, make_parser, parse
from ternary_kernels.bench.cases import Case, UsageError, Wanted, expand, runnable
from ternary_kernels.bench.ggml import TYPES, Ggml, PeerError
from ternary_kernels.bench.measure import Bench, window_bytes
from ternary_kernels.bench.report import Machine, Peer, Report, to_rows
from ternary_kernels.bench.shapes import MODELS
from ternary_kernels.bench.table import show
from ternary_kernels.native.isa import this_machine

_LIBRARIES = ("bitnet-autotune", "numpy", "llvmlite")
_INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark.

    Args:
        argv: Arguments; None: the process' own.

    Returns:
        Exit code: 0, or 130 if it was interrupted. What can't be timed as asked for ends the process with 2.
    """
    parser = make_parser()
    cpus = hardware.usable_cpus()
    arguments = parse(parser, argv, len(cpus))
    try:
        report = _run(arguments, parser, cpus)
    except MemoryError as error:
        parser.error(f"not enough memory: {error}")
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return _INTERRUPTED
    show(report)
    if arguments.json is None:
        print("samples were not written: name a file with --json")
    else:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
        print(f"samples were written to {arguments.json}")
    return 0


def _run(arguments: Arguments, parser: Parser, cpus: Sequence[int]) -> Report:
    notes: list[str] = []
    ggml = None
    if arguments.peer:
        try:
            ggml = Ggml(cpus, arguments.ggml)
        except PeerError as error:
            if arguments.ggml is not None:
                parser.error(f"argument --ggml: {error}")
            notes.append(str(error))
        else:
            unused = ", ".join(ggml.unused(this_machine()[1]))
            if unused:
                notes.append(f"ggml: this build does without {unused}, which this CPU has; --ggml takes another build")
    runs, reasons = runnable()
    notes += [f"kernel {kernel}: {reason}" for kernel, reason in reasons.items()]
    try:
        cases, left_out = expand(_wanted(arguments), runs, reasons, TYPES if ggml else ())
        size_bytes = _arena_bytes(arguments, cases)
    except UsageError as error:
        parser.error(str(error))
    limits = ceilings.load()
    print(f"{len(cases)} cases, {arguments.seconds:g} s of samples after checking each kernel", file=sys.stderr)
    arena = Arena(size_bytes)
    with Bench(arena, cpus, arguments.threads, limits, ggml) as bench:
        timings, measured, faults = bench.run(cases, arguments.seconds, seed=arguments.seed)
    paths = {case.path: None for case in cases if case.path is not None}
    return Report(
        machine=Machine(hardware.cpu_name(), platform.machine(), tuple(paths), tuple(cpus)),
        versions=_versions(),
        peer=Peer("ggml", ggml.version, ggml.features) if ggml else None,
        arena_bytes=arena.size_bytes,
        seconds=arguments.seconds,
        seed=arguments.seed,
        arithmetic=limits.arithmetic,
        ceilings=tuple(measured),
        rows=to_rows(timings, measured),
        notes=(*notes, *left_out, *faults),
    )


def _wanted(arguments: Arguments) -> Wanted:
    models = [MODELS[name] for name in arguments.model]
    return Wanted(
        layers=tuple(dict.fromkeys(shape for model in models for shape in model.shapes)),
        heads=tuple(dict.fromkeys(model.head for model in models)),
        free=tuple(arguments.shape),
        formats=None if arguments.format is None else tuple(dict.fromkeys(arguments.format)),
        kernels=None if arguments.kernel is None else tuple(dict.fromkeys(arguments.kernel)),
        tokens=tuple(arguments.m),
        threads=tuple(arguments.threads),
        memory=arguments.memory,
    )


def _arena_bytes(arguments: Arguments, cases: Sequence[Case]) -> int:
    """Memory to rotate through.

    Raises:
        UsageError: There isn't as much, or it doesn't hold the largest matrix twice.
    """
    size_bytes = hardware.arena_bytes() if arguments.arena_mib is None else arguments.arena_mib << 20
    available = hardware.available_bytes()
    if size_bytes > available:
        raise UsageError(f"--arena-mib: expected at most {available >> 20}, which is available, got {size_bytes >> 20}")
    largest = max(map(window_bytes, cases))
    if 2 * largest > size_bytes:
        raise UsageError(
            f"expected memory for the largest matrix twice, {2 * largest / 2**20:.1f} MiB, "
            f"got {size_bytes / 2**20:.1f} MiB for weights to rotate through"
        )
    return size_bytes


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    sys.exit(main())
