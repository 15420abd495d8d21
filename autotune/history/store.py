"""A folder of records that many CI jobs write to: one file per tune, below a folder per model.

Files are named by time, commit and workload, and by chance: ``20260102T030405Z-0a1b2c3-server-5f6e7d8c.json``. So jobs
that run at once write different files, and git merges never conflict, for no file is ever changed. Names are for
people; what counts is in the file.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import tempfile
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from autotune.errors import ResultNotFoundError, StoreError
from autotune.records.history import HistoryRecord
from autotune.store import seal
from autotune.store.cache import read_file
from autotune.store.entry import is_entry
from autotune.store.files import replace_file
from autotune.store.seal import BadEntry

FORMAT: Final = "bitnet-autotune record"

VERSION: Final = 1
# Version history. A version's first line stays readable to all others.
# 1: the first.

_FIELD = b'"record":'
_LONGEST_SLUG = 80
_DRAWS = 8


class RecordWarning(UserWarning):
    """Warns that a file in a folder of records was left out, and says why."""


class Stored(NamedTuple):
    """A record and the file that it was read from."""

    path: str
    record: HistoryRecord


def encode(record: HistoryRecord) -> bytes:
    """A record as the bytes of its file.

    Raises:
        StoreError: It holds what JSON can't (an infinity), or a time that is none.
    """
    raw = seal.seal(FORMAT, VERSION, _FIELD + msgspec.json.encode(record) + b"}\n")
    try:
        decode(raw)
    except BadEntry as bad:
        raise StoreError(f"the record was not written, it could not be read back: it {bad}") from bad
    return raw


def decode(raw: bytes) -> HistoryRecord:
    """A record from the bytes of its file.

    Raises:
        BadEntry: It is cut short, damaged, of a newer version, or something else altogether.
    """
    _, body = seal.unseal(raw, FORMAT, "a record", VERSION, oldest=1)
    if not body.startswith(_FIELD):
        raise BadEntry("format", f"has no {_FIELD.decode()} where it was expected")
    try:
        record = msgspec.json.decode(memoryview(body)[len(_FIELD) : -len(b"}\n")], type=HistoryRecord)
        for time in (record.recorded_at, record.measured_at):
            if datetime.fromisoformat(time).tzinfo is None:
                raise ValueError(f"expected a time with a zone, got {time!r}")
            datetime.fromisoformat(time).astimezone(UTC)
    except (ValueError, OverflowError) as error:  # msgspec's errors are some of the former
        raise BadEntry("schema", f"holds what this autotune can't read: {error}") from error
    return record


def write(results: str | os.PathLike[str], record: HistoryRecord) -> str:
    """Add a record to a folder, whole or not at all; returns the path of its file.

    Args:
        results: The folder; it is made where it is missing.
        record: What to add.

    Raises:
        StoreError: The folder can't be written to, or the record holds what JSON can't.
    """
    raw = encode(record)
    folder = Path(results) / slug(record.model_name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for _ in range(_DRAWS):
            if (path := _put(folder, _name(record), raw)) is not None:
                return str(path)
    except OSError as error:
        raise _refused(results, error) from error
    raise StoreError(f"{folder}: the record can't be written: expected a free name, got {_DRAWS} that are taken")


def check_writable(results: str | os.PathLike[str]) -> None:
    """Find out before minutes of measuring whether a record could be written; leaves nothing behind.

    Raises:
        StoreError: It couldn't.
    """
    folder = Path(results).absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent  # `write` will make what is missing
    try:
        # Tried and not asked for: permissions don't say what a read-only or full file system does.
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
    except OSError as error:
        raise _refused(results, error) from error


def read(path: str | os.PathLike[str]) -> HistoryRecord:
    """Read one record.

    Raises:
        StoreError: There is no such file, it can't be read, is cut short, changed, of a newer version, or no record.
    """
    name = os.fspath(path)
    try:
        return decode(read_file(name))
    except BadEntry as bad:
        raise StoreError(f"{name}: expected a record that `autotune record` wrote, but it {bad}") from bad
    except OSError as error:
        raise StoreError(f"{name}: the record can't be read: {error.strerror or error}") from error


def read_tree(results: str | os.PathLike[str]) -> Iterator[Stored]:
    """The records in a folder and all folders below it, by path.

    Whatever is named ``*.json`` and can't be read as a record is left out with a `RecordWarning`; saved results, which
    may lie there as well, are left out without. Hidden folders are not searched.

    Raises:
        ResultNotFoundError: There is no such folder.
    """
    top = os.fspath(results)
    if not os.path.isdir(top):  # noqa: PTH112 (a Path for each of thousands of files costs too much)
        raise ResultNotFoundError(
            f"{top}: expected a folder with records: `autotune record MODEL --results {top}` makes it"
        )
    for folder, inner, names in os.walk(top, onerror=_warn_of_folder):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in sorted(names):
            if name.endswith(".json") and not name.startswith("."):
                path = f"{folder.rstrip('/')}/{name}"
                if (record := _record_in(path)) is not None:
                    yield Stored(path, record)


def slug(model: str) -> str:
    """A model's name as the name of a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip(".-")[:_LONGEST_SLUG] or "model"


def _name(record: HistoryRecord) -> str:
    at = datetime.fromisoformat(record.recorded_at).astimezone(UTC)
    commit = "nogit" if record.commit is None else record.commit[:7]
    return f"{at:%Y%m%dT%H%M%SZ}-{commit}-{record.workload.name}-{secrets.token_hex(4)}.json"


def _put(folder: Path, name: str, raw: bytes) -> Path | None:
    """Write a file under a name that nobody else has; None where somebody has."""
    path, temporary = folder / name, folder / f".{name}.writing"
    try:
        # Whoever makes it owns the name: two that drew the same one at once are told apart here.
        temporary.touch(exist_ok=False)
    except FileExistsError:
        return None
    if path.exists():
        with contextlib.suppress(OSError):
            temporary.unlink()
        return None
    replace_file(str(path), raw, str(temporary))
    return path


def _record_in(path: str) -> HistoryRecord | None:
    try:
        raw = read_file(path)
        return None if is_entry(raw) else decode(raw)
    except BadEntry as bad:
        reason = str(bad)
    except OSError as error:
        reason = f"can't be read ({error.strerror or error})"
    warnings.warn(f"left out what is no record: {path} {reason}", RecordWarning, stacklevel=3)
    return None


def _warn_of_folder(error: OSError) -> None:
    warnings.warn(f"left out a folder: {error.filename} can't be read ({error.strerror})", RecordWarning, stacklevel=3)


def _refused(results: str | os.PathLike[str], error: OSError) -> StoreError:
    return StoreError(f"{os.fspath(results)}: records can't be written there: {error.strerror or error}")
