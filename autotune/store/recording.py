"""A recorded host as a file: what was detected and all that was measured, so that tuning runs again without it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final, Literal

import msgspec

from autotune.errors import StoreError
from autotune.model.sites import holds
from autotune.records import Campaign, Host, Measurement, Record
from autotune.records.measurement import Op
from autotune.store.cache import read_file
from autotune.store.files import replace_named
from autotune.store.seal import BadEntry
from ternary_kernels.formats import FORMATS

FORMAT: Final = "bitnet-autotune recording"

VERSION: Final = 2
# Version history. What a version added has defaults, so older ones are read.
# 1: the first.
# 2: the host's hardware class.

_PLAUSIBLE_S = (1e-12, 1e6)
"""Seconds that a call may take: what lies outside is no time, and squares of it no number."""

_SIZES: dict[Op, tuple[str, ...]] = {
    "matmul": ("m", "n_out", "k_in"),
    "attention": ("m",),
    "layer_ops": ("m",),
    "read": ("k_in",),
    "peak": ("m", "n_out", "k_in"),
    "upload": ("k_in",),
    "download": ("k_in",),
    "handover": ("k_in",),
}
"""Fields of a point that can't be 0 for an operation."""

_BEGINNING = b'{"format":"bitnet-autotune recording",'


class Recording(Record, frozen=True, kw_only=True):
    """A host and what was measured on it."""

    format: Literal["bitnet-autotune recording"] = FORMAT
    version: Literal[1, 2] = VERSION
    recorded_at: str
    """UTC, ISO 8601."""
    synthetic: bool
    """Whether the times were made up by a law; False: a benchmark took them on this very host."""
    note: str
    """What it is, in words; of a synthetic one the law that its times follow."""
    host: Host
    campaigns: tuple[Campaign, ...]
    """One per model, in the order in which a replay looks for the model's points."""


class _Head(msgspec.Struct):
    """What tells a recording of any version from other JSON."""

    format: str
    version: int


def check_writable(path: str | os.PathLike[str]) -> None:
    """Find out before minutes of measuring whether a recording could be written.

    Raises:
        StoreError: It couldn't: the folder is missing or can't be written to, or what has that name is no recording.
    """
    name = os.fspath(path)
    target = os.path.realpath(name)
    folder = os.path.dirname(target)  # noqa: PTH120 (the module works on names)
    if os.path.isdir(target) or not os.path.isdir(folder) or not os.access(folder, os.W_OK):  # noqa: PTH112
        raise StoreError(f"{name}: the recording can't be written: expected a file in a folder that can be")
    if os.path.lexists(target) and not _is_recording(target):
        raise StoreError(
            f"{name}: the recording would replace what is no recording: expected a new name, or a recording's"
        )


def _is_recording(path: str) -> bool:
    """Whether a file begins like a recording of any version; nothing but a regular file does."""
    try:
        return os.path.isfile(path) and read_file(path).startswith(_BEGINNING)  # noqa: PTH113
    except (BadEntry, OSError):
        return False


def write(path: str | os.PathLike[str], recording: Recording) -> None:
    """Write a recording whole or not at all; what a symbolic link names is replaced, not the link.

    Raises:
        StoreError: The file can't be written (the old one stays as it is), or the recording holds what JSON can't.
    """
    name = os.fspath(path)
    raw = msgspec.json.encode(recording) + b"\n"
    try:
        _decode(raw)
    except BadEntry as bad:
        raise StoreError(f"{name}: the recording was not written, it could not be read back: it {bad}") from bad
    try:
        replace_named(name, raw)
    except OSError as error:
        raise StoreError(f"{name}: the recording can't be written: {error.strerror or error}") from error


def read(path: str | os.PathLike[str]) -> Recording:
    """Read a recording.

    Raises:
        StoreError: There is no such file, it can't be read, is cut short, holds something else or times that can't
            be, or a newer autotune wrote it.
    """
    name = os.fspath(path)
    try:
        return _decode(read_file(name))
    except BadEntry as bad:
        raise StoreError(f"{name}: expected a recording that `autotune host --record` wrote, but it {bad}") from bad
    except OSError as error:
        raise StoreError(f"{name}: the recording can't be read: {error.strerror or error}") from error


def _decode(raw: bytes) -> Recording:
    try:
        head = msgspec.json.decode(raw, type=_Head)
    except msgspec.MsgspecError as error:
        if raw.startswith(_BEGINNING) or _BEGINNING.startswith(raw):
            raise BadEntry("torn", f"is cut short or damaged: {error}") from error
        raise BadEntry("format", "is something else: no JSON object with a format and a version") from error
    if head.format != FORMAT:
        raise BadEntry("format", f"is something else: its format is {head.format!r}, not {FORMAT!r}")
    if not 1 <= head.version <= VERSION:
        age = "a newer" if head.version > VERSION else "an older"
        raise BadEntry(
            "schema", f"has version {head.version}, written by {age} autotune; this one reads up to version {VERSION}"
        )
    try:
        recording = msgspec.json.decode(raw, type=Recording)
    except msgspec.MsgspecError as error:
        raise BadEntry("schema", f"holds what this autotune can't read: {error}") from error
    for wrong in _implausible(recording):
        raise BadEntry("schema", f"holds what no benchmark writes: {wrong}")
    return recording


def _implausible(recording: Recording) -> Iterator[str]:
    """What the fields' types allow and predictions can't be made from: recordings are edited and made up as well."""
    usable, threads = recording.host.gpus.usable, recording.host.limits.usable_threads
    if threads < 1:
        yield f"expected at least one usable thread, got {threads} - at `$.host.limits.usable_threads`"
    for number, campaign in enumerate(recording.campaigns):
        where = f"$.campaigns[{number}]"
        for index, run in enumerate(campaign.gpus):
            if not run.devices or not usable.keys() >= set(run.devices):
                known, given = ", ".join(usable) or "none", ", ".join(run.devices) or "none"
                yield f"expected usable GPUs of its host ({known}), got {given} - at `{where}.gpus[{index}].devices`"
        for index, found in enumerate(campaign.outcomes):
            if isinstance(found, Measurement) and (wrong := _wrong_in(found)):
                yield f"{wrong} - at `{where}.outcomes[{index}]`"


def _wrong_in(found: Measurement) -> str | None:
    point, (least_s, most_s) = found.point, _PLAUSIBLE_S
    if not found.samples_s:
        return "expected samples, got none"
    for sample_s in found.samples_s:
        if not least_s <= sample_s <= most_s:
            return f"expected samples of {least_s:g} to {most_s:g} s, got {sample_s:g}"
    for name in ("threads", "sequences", *_SIZES[point.op]):
        size = getattr(point, name)
        if size < 1:
            return f"expected {name} of at least 1 for {point.op}, got {size}"
    if point.op == "matmul" and not (point.format in FORMATS and holds(point.format, point.n_out, point.k_in)):
        return f"expected a matrix in a weight format that can hold it, got {point.format} {point.n_out} x {point.k_in}"
    return None
