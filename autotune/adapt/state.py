"""What a tuner has learnt, as a small file: a process that starts anew goes on where the last one was."""

from __future__ import annotations

import os
from typing import Annotated, Final, Literal

import msgspec

from autotune.adapt.drift import Learnt
from autotune.adapt.moves import Kind
from autotune.adapt.rules import History
from autotune.errors import StoreError
from autotune.records import Configuration, Record, Result
from autotune.store.cache import read_file
from autotune.store.files import replace_named
from autotune.store.seal import BadEntry

FORMAT: Final = "bitnet-autotune adaptation"

VERSION: Final = 1
# Version history.
# 1: the first.


class Asked(Record, frozen=True):
    """What the last observations in a row asked for."""

    kind: Kind | None = None
    times: Annotated[int, msgspec.Meta(ge=0)] = 0


class Key(Record, frozen=True):
    """Which result was adapted."""

    host: str
    model: str
    workload: str
    created_at: str


class State(Record, frozen=True, kw_only=True):
    """All that a tuner can't work out from its result."""

    format: Literal["bitnet-autotune adaptation"] = FORMAT
    version: Literal[1] = VERSION
    result: Key
    configuration: Configuration
    history: History
    asked: Asked
    learnt: Learnt

    @staticmethod
    def key_of(result: Result) -> Key:
        """What tells a result from others."""
        return Key(result.host.fingerprint.cheap, result.model.source_digest, result.workload.name, result.created_at)


class _Head(msgspec.Struct):
    """What tells a state of any version from other JSON."""

    format: str
    version: int


def write_state(path: str | os.PathLike[str], state: State) -> None:
    """Write a state whole or not at all.

    Raises:
        StoreError: It can't be written; the old one stays as it is.
    """
    name = os.fspath(path)
    try:
        replace_named(name, msgspec.json.encode(state) + b"\n")
    except OSError as error:
        raise StoreError(f"{name}: what was learnt can't be written: {error.strerror or error}") from error


def read_state(path: str | os.PathLike[str], result: Result) -> State:
    """Read a state of a result.

    Raises:
        StoreError: There is no such file, it can't be read, is damaged, of another version or of another result.
    """
    name = os.fspath(path)
    try:
        state = _decode(read_file(name))
    except BadEntry as bad:
        raise StoreError(f"{name}: expected what an adaptive tuner saved, but it {bad}") from bad
    except OSError as error:
        raise StoreError(f"{name}: what was learnt can't be read: {error.strerror or error}") from error
    expected = State.key_of(result)
    for field in Key.__struct_fields__:
        wanted, got = getattr(expected, field), getattr(state.result, field)
        if wanted != got:
            raise StoreError(
                f"{name}: expected what was learnt of the result with {field} {wanted}, got that of another with {got}"
            )
    return state


def _decode(raw: bytes) -> State:
    try:
        head = msgspec.json.decode(raw, type=_Head)
    except msgspec.MsgspecError as error:
        raise BadEntry("format", f"is cut short, damaged or something else: {error}") from error
    if head.format != FORMAT:
        raise BadEntry("format", f"is something else: its format is {head.format!r}, not {FORMAT!r}")
    if head.version != VERSION:
        age = "a newer" if head.version > VERSION else "an older"
        raise BadEntry(
            "schema", f"has version {head.version}, written by {age} autotune; this one reads version {VERSION}"
        )
    try:
        return msgspec.json.decode(raw, type=State)
    except msgspec.MsgspecError as error:
        raise BadEntry("schema", f"holds what no tuner writes: {error}") from error
