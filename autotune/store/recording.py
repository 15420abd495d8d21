"""A recorded host as a file: what was detected and all that was measured, so that tuning runs again without it."""

from __future__ import annotations

import os
import secrets
from typing import Final, Literal

import msgspec

from autotune.errors import StoreError
from autotune.records import Campaign, Host, Record
from autotune.store.cache import read_file
from autotune.store.entry import BadEntry
from autotune.store.files import replace_file

FORMAT: Final = "bitnet-autotune recording"

VERSION: Final = 1
# Version history.
# 1: the first.

_BEGINNING = b'{"format":"bitnet-autotune recording",'


class Recording(Record, frozen=True, kw_only=True):
    """A host and what was measured on it."""

    format: Literal["bitnet-autotune recording"] = FORMAT
    version: Literal[1] = VERSION
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
        StoreError: It couldn't: the folder is missing or can't be written to, or there is a folder of that name.
    """
    target = os.path.realpath(os.fspath(path))
    folder = os.path.dirname(target)  # noqa: PTH120 (the module works on names)
    if os.path.isdir(target) or not os.path.isdir(folder) or not os.access(folder, os.W_OK):  # noqa: PTH112
        raise StoreError(f"{os.fspath(path)}: the recording can't be written: expected a file in a folder that can be")


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
    target = os.path.realpath(name)
    try:
        replace_file(target, raw, f"{target}.{secrets.token_hex(4)}.writing")
    except OSError as error:
        raise StoreError(f"{name}: the recording can't be written: {error.strerror or error}") from error


def read(path: str | os.PathLike[str]) -> Recording:
    """Read a recording.

    Raises:
        StoreError: There is no such file, it can't be read, is cut short, holds something else, or a newer autotune
            wrote it.
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
            raise BadEntry("torn", f"is cut short or damaged, in {len(raw)} bytes") from error
        raise BadEntry("format", "is something else: no JSON object with a format and a version") from error
    if head.format != FORMAT:
        raise BadEntry("format", f"is something else: its format is {head.format!r}, not {FORMAT!r}")
    if head.version != VERSION:
        age = "a newer" if head.version > VERSION else "an older"
        raise BadEntry(
            "schema", f"has version {head.version}, written by {age} autotune; this one reads version {VERSION}"
        )
    try:
        return msgspec.json.decode(raw, type=Recording)
    except msgspec.MsgspecError as error:
        raise BadEntry("schema", f"holds what this autotune can't read: {error}") from error
