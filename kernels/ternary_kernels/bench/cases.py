"""What is to be timed: every kernel that runs here, on every shape and format asked for, and the peer beside it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import product
from typing import NamedTuple

import msgspec

from ternary_kernels.bench.shapes import Shape
from ternary_kernels.formats import FORMATS, get_format
from ternary_kernels.native.isa import this_machine
from ternary_kernels.registry import available

HEAD_FORMATS = ("F16", "Q8_0", "Q6_K")
PEER = "ggml"
PEER_TERNARY = "TQ2_0"
"""The peer's fastest ternary format."""

HEAD_SITE = ("head",)
_SLICE_BYTES = 64 << 20
_SLICE_ROWS = 256
_REFERENCE_KERNEL = "numpy"


class UsageError(ValueError):
    """What was asked for can't be timed; the message says why in a sentence."""


class Runnable(NamedTuple):
    """A kernel that runs a format here, and the instruction set it uses; None: it doesn't choose one."""

    kernel: str
    format: str
    path: str | None


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One product to time."""

    kernel: str
    path: str | None
    """Instruction set that the kernel uses; None if it doesn't choose one."""
    format: str
    sites: tuple[str, ...]
    """The sites of a model's layer that have this shape; none for a shape of the user's."""
    n_out: int
    k_in: int
    m: int
    threads: int
    cold: bool
    """Whether weights come from memory at every call; otherwise the same ones are used again."""


def peer_format(format_name: str) -> str:
    """The peer's format that one of ours is compared with: the same, or for all ternary ones its fastest."""
    return PEER_TERNARY if for_layers(format_name) else format_name


def for_layers(format_name: str) -> bool:
    """Whether a format holds the ternary weights of layers, if only nearly."""
    held = get_format(format_name)
    return held.ternary or held.lossy


class Wanted(NamedTuple):
    """What a user asks for.

    Attributes:
        layers: Shapes for ternary formats.
        heads: Shapes for the other formats; only 64 MiB of their rows are timed.
        free: Shapes for any format.
        formats: Names of formats; None: all that are of use there and run here.
        kernels: Names of kernels; None: all, but numpy's only for formats that no other kernel runs.
        tokens: Values of m.
        threads: Thread counts.
        memory: Whether weights are cold, for each way of timing them.
    """

    layers: tuple[Shape, ...]
    heads: tuple[Shape, ...]
    free: tuple[Shape, ...]
    formats: tuple[str, ...] | None
    kernels: tuple[str, ...] | None
    tokens: tuple[int, ...]
    threads: tuple[int, ...]
    memory: tuple[bool, ...]


def runnable() -> tuple[tuple[Runnable, ...], dict[str, str]]:
    """Kernels that run here, those expected to be fastest first; and why the others don't, by their names."""
    found = available(*this_machine())
    runs = tuple(Runnable(entry.kernel, entry.format, entry.path) for entry in found if entry.reason is None)
    running = {run.kernel for run in runs}
    return runs, {entry.kernel: entry.reason for entry in found if entry.kernel not in running and entry.reason}


def expand(
    wanted: Wanted, runs: Sequence[Runnable], reasons: Mapping[str, str], peer_formats: Collection[str]
) -> tuple[list[Case], list[str]]:
    """All cases, in the order of their first samples: few tokens first, and side by side what is compared.

    Args:
        wanted: What the user asks for.
        runs: Kernels that run here.
        reasons: Why others don't.
        peer_formats: What the peer multiplies; none without it.

    Returns:
        The cases, and notes about what was left out.

    Raises:
        UsageError: A name is unknown or doesn't run here, a format named holds none of the shapes, or nothing is
            left to time.
    """
    _check_names(wanted, runs, reasons)
    products: dict[tuple[Runnable, Shape], None] = {}
    notes: dict[str, str] = {}
    for shape, formats in _formats_by_shape(wanted, runs):
        for run in _competitors(formats, wanted, runs, peer_formats):
            try:
                held = _sliced(shape, run.format) if shape in wanted.heads else shape
                get_format(run.format).size_bytes(held.n_out, held.k_in)
            except ValueError as error:
                notes.setdefault(f"{shape} left out: {error}", run.format)
            else:
                products[run, held] = None
    for name in wanted.formats or ():
        if all(run.format != name for run, _ in products):
            why = next((note for note, held in notes.items() if held == name), "no shape or no kernel for it")
            raise UsageError(f"--format {name}: nothing to time, {why}")
    if not products:
        raise UsageError(f"nothing to time: {next(iter(notes), 'no kernel for any of these shapes')}")
    cases = [
        Case(**run._asdict(), **shape._asdict(), m=m, threads=threads, cold=cold)
        for m, threads in product(wanted.tokens, wanted.threads)
        for run, shape in products
        for cold in wanted.memory
    ]
    return cases, list(notes)


def _check_names(wanted: Wanted, runs: Sequence[Runnable], reasons: Mapping[str, str]) -> None:
    for name in wanted.formats or ():
        try:
            get_format(name)
        except ValueError as error:
            raise UsageError(f"--format: {error}") from None
    known = dict.fromkeys(run.kernel for run in runs)
    for name in wanted.kernels or ():
        if name in reasons:
            raise UsageError(f"--kernel {name}: {reasons[name]}")
        if name not in known:
            raise UsageError(f"--kernel: expected one of {', '.join([*known, *reasons])}, got {name!r}")


def _formats_by_shape(wanted: Wanted, runs: Sequence[Runnable]) -> list[tuple[Shape, list[str]]]:
    """The formats that each shape is timed in."""
    running = {run.format for run in runs if not wanted.kernels or run.kernel in wanted.kernels}
    ternary = [name for name in FORMATS if for_layers(name) and name in running]
    others = [name for name in HEAD_FORMATS if name in running]
    if wanted.formats is not None:
        ternary = [name for name in wanted.formats if for_layers(name)]
        others = [name for name in wanted.formats if not for_layers(name)]
    free = ternary if wanted.formats is None else list(wanted.formats)
    return [
        *((shape, ternary) for shape in wanted.layers),
        *((shape, others) for shape in wanted.heads),
        *((shape, free) for shape in wanted.free),
    ]


def _competitors(
    formats: Sequence[str], wanted: Wanted, runs: Sequence[Runnable], peer_formats: Collection[str]
) -> list[Runnable]:
    """What multiplies a shape in these formats: our kernels, and the peer in the same formats and its ternary one."""
    ours = []
    for name in formats:
        able = [run for run in runs if run.format == name]
        if wanted.kernels is None:
            ours += [run for run in able if run.kernel != _REFERENCE_KERNEL] or able
        else:
            ours += [run for run in able if run.kernel in wanted.kernels]
    compared = dict.fromkeys((*formats, *(peer_format(name) for name in formats)))
    return ours + [Runnable(PEER, name, None) for name in compared if name in peer_formats]


def _sliced(shape: Shape, format_name: str) -> Shape:
    """A shape with as many of its rows as there is time for: they are alike."""
    row_bytes = get_format(format_name).size_bytes(1, shape.k_in)
    rows = max(_SLICE_BYTES // row_bytes // _SLICE_ROWS * _SLICE_ROWS, _SLICE_ROWS)
    return shape._replace(n_out=min(rows, shape.n_out))
