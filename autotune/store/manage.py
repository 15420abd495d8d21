"""What users do with the cache by hand: list, forget, export; and reading what was exported, to import it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from autotune.errors import StoreError
from autotune.host.hardware_class import hardware_class, slug
from autotune.records.result import Result
from autotune.store import cache, paths
from autotune.store.entry import Entry, Key, parse
from autotune.store.files import replace_named, write_output
from autotune.store.schema import decode_result
from autotune.store.seal import BadEntry


@dataclass(frozen=True)
class Stored:
    """One good entry of the cache."""

    entry: Entry
    result: Result


def list_entries() -> Iterator[Stored]:
    """Every good entry of every layer, of this host and of others, in the order in which they are read.

    Bad ones are set aside with a `cache.StoreWarning`.
    """
    for layer, key in _find():
        stored = cache.read_layer(layer, key, lambda entry: Stored(entry, decode_result(entry)))
        if stored is not None:
            yield stored


def forget(
    model_digest: str | None = None, workload: str | None = None, host_fingerprint: str | None = None
) -> list[str]:
    """Delete the entries that match, good or bad, in every layer; None matches all.

    Returns:
        The paths of the files deleted.

    Raises:
        StoreError: Where a matching entry can't be deleted (the others are).
    """
    wanted = (host_fingerprint, model_digest, workload)
    forgotten, kept = [], []
    for layer, key in _find():
        if all(want in (None, has) for want, has in zip(wanted, (key.host, key.model, key.workload), strict=True)):
            path = key.path_in(layer)
            try:
                Path(path).unlink(missing_ok=True)
                forgotten.append(path)
            except OSError as error:
                kept.append(f"{path}: {error.strerror}")
    if kept:
        total = len(kept) + len(forgotten)
        raise StoreError(f"{len(kept)} of {total} saved results could not be deleted ({'; '.join(kept)})")
    return forgotten


def export(entry: Entry, destination: str, keep: Iterable[str] = ()) -> str:
    """Write an entry to a file, byte for byte as it is saved, whole or not at all.

    In a folder (an existing one, or a new one where the name ends with a slash) the file is named
    ``<hardware class>.<model>.<workload>[.<format>].json``: a fleet's folder holds one per class.

    Args:
        entry: As it was read from the cache.
        destination: File or folder.
        keep: Files that must not be replaced by it: the model's.

    Returns:
        The path of the file.

    Raises:
        UsageError: The file is one of those to keep.
        StoreError: Where the file can't be written, or the entry is not of this version's shape.
    """
    into_folder = destination.endswith("/") or (bool(destination) and Path(destination).is_dir())
    if not into_folder:
        write_output(destination, entry.raw, "the saved result", keep)
        return destination
    path = str(Path(destination, _fleet_name(entry)))
    try:
        Path(destination).mkdir(parents=True, exist_ok=True)
        replace_named(path, entry.raw)  # other hosts may be reading it, or writing theirs
    except OSError as error:
        raise StoreError(f"the saved result could not be written to {path}: {error.strerror}") from error
    return path


def read_file(source: str) -> Stored:
    """Check a file that `export` wrote, and read it.

    Raises:
        StoreError: Where it is no intact saved result.
    """
    try:
        return _read(source)
    except BadEntry as bad:
        raise StoreError(f"nothing was imported: {source} {bad}") from bad
    except OSError as error:
        raise StoreError(f"nothing was imported: {source} can't be read ({error.strerror})") from error


def read_folder(source: str) -> list[Stored]:
    """The intact saved results among a folder's ``.json`` files, sorted by name.

    Files that are something else are left alone; damaged ones and those of other versions with a `cache.StoreWarning`.

    Raises:
        StoreError: Where the folder can't be read.
    """
    try:
        names = sorted(path for path in Path(source).iterdir() if path.name.endswith(".json"))
    except OSError as error:
        raise StoreError(f"nothing was imported: {source} can't be read ({error.strerror})") from error
    found = []
    for path in names:
        try:
            found.append(_read(str(path)))
        except BadEntry as bad:
            if bad.kind not in ("format", "file"):
                warnings.warn(f"left out {path}: it {bad}", cache.StoreWarning, stacklevel=2)
        except OSError as error:
            message = f"left out {path}: it can't be read ({error.strerror})"
            warnings.warn(message, cache.StoreWarning, stacklevel=2)
    return found


def _read(source: str) -> Stored:
    entry = parse(cache.read_file(source), source)
    return Stored(entry, decode_result(entry))


def _fleet_name(entry: Entry) -> str:
    """The name of an entry's file in a fleet's folder."""
    try:
        result = decode_result(entry)
    except BadEntry as bad:
        raise StoreError(f"the saved result could not be exported: {entry.path} {bad}") from bad
    named_format = entry.request.get("format")
    parts = [hardware_class(result.host), slug(result.model.name), entry.key.workload]
    if isinstance(named_format, str):
        parts.append(slug(named_format))
    return ".".join((*parts, "json"))


def _find() -> Iterator[tuple[str, Key]]:
    """All files in all layers that are named as entries are."""
    for layer in paths.layers():
        for path in sorted(Path(layer, paths.LAYOUT).glob("*/*.*.json")):
            model, _, workload = path.name.removesuffix(".json").partition(".")
            try:
                key = Key(path.parent.name, model, workload)
            except ValueError:
                continue  # somebody else's file
            yield layer, key
