"""Replacing a file whole or not at all. Light: the cache's writer and the recordings' share it."""

# pathlib takes longer to import than writing a small file takes.
# ruff: noqa: PTH105, PTH108, PTH120, PTH123

from __future__ import annotations

import contextlib
import os


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


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
