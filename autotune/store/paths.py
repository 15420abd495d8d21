"""The layers of folders that results lie in. Light: the cached answer's path runs through here."""

# pathlib takes longer to import than finding, reading and verifying a result takes.
# ruff: noqa: PTH100, PTH111, PTH117, PTH118

from __future__ import annotations

import os

SYSTEM_LAYER = "/var/lib/bitnet-autotune"
"""Read-only to autotune: whoever provisions a machine or builds an image puts results here."""

LAYOUT = "v2"
"""Folder below a layer. It changes with the schema version, so that two versions never share a file."""


def layers() -> tuple[str, ...]:
    """Folders that are read, the first one first: ``$AUTOTUNE_CACHE``, the user's cache folder, the system's.

    ``$AUTOTUNE_CACHE`` comes before the others and doesn't replace them: on a read-only one, a new result
    still has a place to go.
    """
    return (*writable_layers(), SYSTEM_LAYER)


def writable_layers() -> tuple[str, ...]:
    """Folders that a result may be written to, the first one first."""
    named = os.environ.get("AUTOTUNE_CACHE")
    folders = [os.path.abspath(os.path.expanduser(named))] if named else []
    user = _user_cache_folder()
    if user is not None and user not in folders:
        folders.append(user)
    return tuple(folders)


def entry_path(layer: str, host: str, model: str, workload: str) -> str:
    """File of one result in a layer; the arguments are `entry.Key`'s."""
    return f"{layer}/{LAYOUT}/{host}/{model}.{workload}.json"


def _user_cache_folder() -> str | None:
    """Below ``$XDG_CACHE_HOME``, by default ``~/.cache``; None without a home folder.

    Source: XDG Base Directory Specification, which has relative paths ignored. platformdirs gives the same
    folder, but its import costs more than all the rest of the look-up; a test holds the two together.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        base = os.path.expanduser("~/.cache")
    return os.path.join(base, "bitnet-autotune") if os.path.isabs(base) else None
