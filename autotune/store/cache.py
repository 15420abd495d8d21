"""Reading and writing the cache: a bad entry is a miss, and a write happens whole or not at all.

`read` is the cached answer's path and imports neither msgspec nor filelock; `write` may.
"""

# pathlib takes longer to import than finding, reading and verifying a result takes.
# ruff: noqa: PTH103, PTH105, PTH118, PTH120

from __future__ import annotations

import errno
import os
import stat
import warnings

from autotune.errors import StoreError
from autotune.store import paths
from autotune.store.entry import MAX_BYTES, Entry, Key, encode, parse
from autotune.store.files import replace_file
from autotune.store.seal import BadEntry

TYPE_CHECKING = False  # typing takes longer to import than this module
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeVar

    from filelock import BaseFileLock

    from autotune.records.result import Result

    T = TypeVar("T")

LOCK_TIMEOUT_S = 10.0
"""How long a writer waits for another one, which holds the lock for as long as an fsync takes."""


class StoreWarning(UserWarning):
    """Warns that a saved result was ignored, or that a new one went to another folder than the first."""


def read(host_fingerprint: str, model_digest: str, workload: str) -> Entry | None:
    """The verified entry of a host, model and workload, from the first layer that has a good one.

    Takes no lock. A bad entry is a miss; it is moved to its layer's ``quarantine`` with a `StoreWarning`.

    Raises:
        ValueError: Where the arguments don't make a `Key`.
    """
    return read_as(lambda entry: entry, host_fingerprint, model_digest, workload)


def read_as(decode: Callable[[Entry], T], host_fingerprint: str, model_digest: str, workload: str) -> T | None:
    """What ``decode`` makes of the entry that `read` gives; one that it raises `BadEntry` for is bad."""
    key = Key(host_fingerprint, model_digest, workload)
    for layer in paths.layers():
        value = read_layer(layer, key, decode)
        if value is not None:
            return value
    return None


def read_layer(layer: str, key: Key, decode: Callable[[Entry], T]) -> T | None:
    """As `read_as`, from one layer only."""
    path = key.path_in(layer)
    try:
        return decode(_load(path, key))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except BadEntry as bad:
        return _set_aside(layer, key, decode, bad)
    except OSError as error:
        # The file may be fine: this process isn't allowed to read it, or has too many files open.
        warnings.warn(f"ignored a saved result: {path} can't be read ({error.strerror})", StoreWarning, stacklevel=2)
        return None


def read_file(path: str) -> bytes:
    """The bytes of a regular file of at most `entry.MAX_BYTES`.

    Raises:
        BadEntry: Where it is no regular file, or larger.
        OSError: Where it can't be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would block
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise BadEntry("file", "is a symbolic link that leads to itself") from None
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise BadEntry("file", "is not a regular file")
        if status.st_size > MAX_BYTES:
            raise BadEntry("size", f"has {status.st_size} bytes where at most {MAX_BYTES} were expected")
        with open(descriptor, "rb", buffering=0, closefd=False) as file:
            return file.readall()
    finally:
        os.close(descriptor)


def write(result: Result, request: Mapping[str, object]) -> str:
    """Save a result under its own host, model and workload; returns the path of the file.

    Args:
        result: What was found.
        request: What the user asked for, as a plain dictionary: `Entry.request` gives it back.

    Raises:
        StoreError: Where no folder can be written to, or the result holds what JSON can't (an infinity).
    """
    return store(*document(result, request))


def document(result: Result, request: Mapping[str, object]) -> tuple[Key, bytes]:
    """A result as it is saved and printed, and what it is filed under.

    Args:
        result: What was found.
        request: What the user asked for.

    Raises:
        StoreError: Where the result holds what JSON can't (an infinity).
    """
    import msgspec

    from autotune.store.schema import decode_result

    key = Key(result.host.fingerprint.cheap, result.model.source_digest, result.workload.name)
    raw = encode(
        key,
        msgspec.json.encode(dict(request)),
        msgspec.json.encode(result.device_config),
        msgspec.json.encode(result),
    )
    try:
        decode_result(parse(raw, path=""))
    except BadEntry as bad:
        raise StoreError(f"the result was not saved, it could not be read back: it {bad}") from bad
    return key, raw


def store(key: Key, raw: bytes) -> str:
    """Put an encoded entry into the first layer that takes it; returns the path of the file.

    Layers that refuse are named in one `StoreWarning`. After a return, `read` gives this entry: where a
    layer refuses but holds an older one, later layers are not tried, for they would be read after it.

    Raises:
        StoreError: Where no layer takes it; the entries that were there are untouched.
    """
    if len(raw) > MAX_BYTES:
        raise StoreError(f"the result was not saved: it has {len(raw)} bytes and the cache takes {MAX_BYTES}")
    refused = []
    for layer in paths.writable_layers():
        try:
            path = _put(layer, key, raw)
        except OSError as error:
            refused.append(f"{layer}: {error.strerror or error}")
            if read_layer(layer, key, lambda entry: entry) is not None:
                break
            continue
        if refused:
            message = f"the result was saved in {layer}, for it could not be in {'; '.join(refused)}"
            warnings.warn(message, StoreWarning, stacklevel=2)
        return path
    reason = "; ".join(refused) or "no home folder, and AUTOTUNE_CACHE is not set"
    raise StoreError(f"the result was not saved: no cache folder takes it ({reason})")


def _load(path: str, key: Key) -> Entry:
    entry = parse(read_file(path), path)
    if entry.key != key:
        raise BadEntry("key", "was filed for another host, model or workload")
    return entry


def _set_aside(layer: str, key: Key, decode: Callable[[Entry], T], bad: BadEntry) -> T | None:
    """Move a bad entry out of the way; returns the good one where a writer has replaced it meanwhile."""
    import time

    path = key.path_in(layer)
    try:
        with _lock(path, timeout_s=0):
            try:
                return decode(_load(path, key))
            except BadEntry as still_bad:
                bad = still_bad
            # Whole file names, for they must not collide; the time, for a directory can't be replaced.
            name = f"{key.host}.{key.model}.{key.workload}.{bad.kind}.{time.time_ns()}"
            moved_to = f"{layer}/quarantine/{name}"
            os.makedirs(os.path.dirname(moved_to), exist_ok=True)
            os.replace(path, moved_to)
        outcome = f"it is now {moved_to}"
    except OSError as error:  # also filelock's Timeout: somebody is just replacing it
        outcome = f"it could not be moved aside: {error.strerror or error}"
    warnings.warn(f"ignored a saved result: {path} {bad} ({outcome})", StoreWarning, stacklevel=2)
    return None


def _put(layer: str, key: Key, raw: bytes) -> str:
    path = key.path_in(layer)
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    with _lock(path, timeout_s=LOCK_TIMEOUT_S):
        # The lock makes one name enough: what a killed writer left in it, the next one overwrites.
        replace_file(path, raw, f"{folder}/.writing")
    return path


def _lock(path: str, timeout_s: float) -> BaseFileLock:
    """The lock that all who change an entry's folder take. The kernel frees it when its holder dies."""
    from filelock import FileLock

    return FileLock(os.path.join(os.path.dirname(path), ".lock"), timeout=timeout_s)
