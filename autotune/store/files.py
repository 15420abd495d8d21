"""Replacing a file whole or not at all. Light: all that writes files shares it."""

# pathlib takes longer to import than writing a small file takes.
# ruff: noqa: PTH105, PTH108, PTH110, PTH113, PTH120, PTH121, PTH123

from __future__ import annotations

import contextlib
import os

from autotune.errors import StoreError, UsageError

TYPE_CHECKING = False  # typing takes longer to import than this module
if TYPE_CHECKING:
    from collections.abc import Iterable


def replace_file(path: str, raw: bytes, temporary: str) -> None:
    """Write a file so that whoever reads it sees the old bytes or the new ones, also after a power cut.

    Args:
        path: The file; its folder must exist.
        raw: Its new content.
        temporary: A name in the same folder that no other writer uses meanwhile.

    Raises:
        OSError: It could not be written; what was there before is untouched.
    """
    try:
        with open(temporary, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    # The file is in place. What is left makes it outlast a power cut, where the file system can do that.
    with contextlib.suppress(OSError):
        _sync_folder(os.path.dirname(path) or ".")


def replace_named(name: str, raw: bytes) -> None:
    """As `replace_file`, of what a name leads to: a symbolic link stays one. Any number of writers may do so at once.

    Raises:
        OSError: As for `replace_file`.
    """
    import secrets  # it takes longer to import than this module

    path = os.path.realpath(name)
    replace_file(path, raw, f"{path}.{secrets.token_hex(4)}.writing")


def write_output(name: str, raw: bytes, what: str, keep: Iterable[str | None] = ()) -> None:
    """Write a file that a user named, whole or not at all; what a symbolic link names is replaced, not the link.

    Args:
        name: The file; one that is there is replaced.
        raw: Its new content.
        what: That in words, for messages: ``the report``.
        keep: Files that must not be replaced by it: what it was made from.

    Raises:
        UsageError: It is one of those to keep, or has no name.
        StoreError: It is no file (a folder, a device), or can't be written; what was there is as it was.
    """
    path = os.path.realpath(name)
    if not name:
        raise UsageError(f"{what} needs a file to be written to, got an empty name")
    if os.path.lexists(path) and not os.path.isfile(path):
        raise StoreError(f"{name}: {what} can't be written there: expected a file, or a new name")
    for kept in keep:
        if kept is not None and os.path.exists(path) and os.path.exists(kept) and os.path.samefile(path, kept):
            raise UsageError(f"{name}: {what} would replace what it is made from: name another file")
    try:
        replace_named(path, raw)
    except OSError as error:
        raise StoreError(f"{name}: {what} can't be written there: {error.strerror or error}") from error


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
