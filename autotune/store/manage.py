"""What users do with the cache by hand: list, forget, export, import."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from autotune.errors import ResultNotFoundError, StoreError
from autotune.records.result import Result
from autotune.store import cache, paths
from autotune.store.entry import BadEntry, Entry, Key, parse
from autotune.store.schema import decode_result


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


def export(host_fingerprint: str, model_digest: str, workload: str, destination: str | Path) -> None:
    """Write one entry to a file, byte for byte as it is saved: `import_` takes it, on any host.

    Raises:
        ResultNotFoundError: Where there is no such entry.
        StoreError: Where the file can't be written.
    """
    entry = cache.read(host_fingerprint, model_digest, workload)
    if entry is None:
        raise ResultNotFoundError(f"there is no saved result to export for workload {workload} of this model")
    try:
        Path(destination).write_bytes(entry.raw)
    except OSError as error:
        raise StoreError(f"the saved result could not be written to {destination}: {error.strerror}") from error


def import_(source: str | Path) -> str:
    """Check a file that `export` wrote and save it under the host, model and workload that it is for.

    An entry that is already there is replaced.

    Returns:
        The path of the file in the cache.

    Raises:
        StoreError: Where the file is no intact saved result, or no folder takes it. Nothing is changed.
    """
    try:
        entry = parse(cache.read_file(str(source)), str(source))
        decode_result(entry)
    except BadEntry as bad:
        raise StoreError(f"nothing was imported: {source} {bad}") from bad
    except OSError as error:
        raise StoreError(f"nothing was imported: {source} can't be read ({error.strerror})") from error
    return cache.store(entry.key, entry.raw)


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
