"""Fleets of equal hosts: results that another host of the same hardware class measured, taken over by this one."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from autotune.errors import AutotuneError, ResultNotFoundError, StoreError
from autotune.host.detect import detect
from autotune.host.hardware_class import hardware_class
from autotune.host.kernels import find_kernels
from autotune.pipeline import conclude_again
from autotune.records import Host, Origin, Result, Versions
from autotune.store import cache, manage
from autotune.store.manage import Stored
from autotune.store.schema import decode_result


class AdoptionWarning(UserWarning):
    """Warns that an imported result's figures may not hold here, or that one in a folder could not be imported."""


class Imported(NamedTuple):
    """A result that an import saved, or found better than what it could have saved.

    Attributes:
        path: Where it is in the cache; None: a result that this host measured itself stays in its place.
        result: As it was exported, or as it is for this host now.
    """

    path: str | None
    result: Result


def import_(source: str, *, as_is: bool = False) -> list[Imported]:
    """Save a result that `manage.export` wrote to a file, or all in a folder that are of this host's hardware class.

    This host's own are saved as they are. One of another host of its class becomes this host's: decided again from its
    measurements and runs for the memory that there is here now, marked as imported, and answering the same wish. In a
    folder the best of several for one model and workload counts: this host's own, one that was measured and not
    replayed, one that was run, the latest; what this host measured itself and holds already gives way only to what it
    measured later.

    Args:
        source: File or folder.
        as_is: Save under the host that measured it, whichever that is, and replace what is there.

    Returns:
        What became of each; from a file there is one.

    Raises:
        StoreError: The file is no intact result, or of another class, or was decided from a recording, or the cache
            can't be written.
        ResultNotFoundError: The folder has none of this host's class, or with ``as_is`` none at all.
        MemoryLimitError, ConstraintError: No configuration fits this host as it is now. Nothing is changed.
    """
    host = detect()
    if not Path(source).is_dir():
        stored = manage.read_file(source)
        return [_save(stored) if as_is else _take(stored, host)]
    found = manage.read_folder(source)
    if not as_is:
        return _take_all(_choose(found, host, source), host, source)
    if not found:
        raise ResultNotFoundError(f"{source} holds no saved result")
    return [_save(stored) for stored in found]


def adopt(saved: Result, host: Host) -> Result:
    """A result of another host of the same hardware class as this host's own; nothing is measured.

    Software that differs is no obstacle; there is an `AdoptionWarning` about it, which stays with the result and with
    what is decided from it.

    Args:
        saved: As the other host saved it.
        host: This host as it is now.

    Raises:
        StoreError: It is of another class, or was decided from a recording.
        MemoryLimitError, ConstraintError: No configuration fits this host as it is now.
    """
    if saved.provenance == "replayed":
        raise StoreError(
            f"the result was decided from a recording of {saved.host.label}, and not measured on it: tune here, or one "
            "such host and export"
        )
    theirs, ours = hardware_class(saved.host), hardware_class(host)
    if theirs != ours:
        raise StoreError(
            f"the result is of hardware class {theirs} and this host of {ours}: tune here, "
            f"or import it with --as-is for hosts like {saved.host.label}"
        )
    origin = saved.origin or Origin(saved.host.label, theirs, saved.measured_at, saved.host.versions)
    origin = replace(origin, doubts=tuple(_differences(saved, origin, host)))
    result = conclude_again(replace(saved, origin=origin), saved.workload, host)
    for doubt in origin.doubts:
        warnings.warn(doubt, AdoptionWarning, stacklevel=2)
    return result


def _take_all(chosen: Sequence[Stored], host: Host, source: str) -> list[Imported]:
    """Each of several, as far as that is possible; one that isn't doesn't keep the others from it.

    Raises:
        AutotuneError: Why the first isn't, where none is.
    """
    taken, refused = [], []
    for stored in chosen:
        ours = cache.read_as(decode_result, host.fingerprint.cheap, stored.entry.key.model, stored.entry.key.workload)
        if ours is not None and ours.provenance == "measured" and not _is_later(stored, ours, host):
            taken.append(Imported(None, ours))
            continue
        try:
            taken.append(_take(stored, host))
        except AutotuneError as error:
            refused.append(error)
    if not taken:
        raise refused[0]
    for refusal in refused:
        warnings.warn(f"left out a result in {source}: {refusal}", AdoptionWarning, stacklevel=2)
    return taken


def _take(stored: Stored, host: Host) -> Imported:
    if _is_own(stored, host):
        return _save(stored)
    entry = stored.entry
    try:
        result = adopt(stored.result, host)
    except AutotuneError as error:
        raise type(error)(f"nothing was imported from {entry.path}: {error}") from error
    # The same wish, but that what was run may no longer be what is chosen.
    request = {**entry.request, "confirm": entry.request.get("confirm") is True and result.confirmed}
    return Imported(cache.write(result, request), result)


def _save(stored: Stored) -> Imported:
    return Imported(cache.store(stored.entry.key, stored.entry.raw), stored.result)


def _choose(found: Sequence[Stored], host: Host, source: str) -> list[Stored]:
    """The best of this host's class for each model and workload.

    Raises:
        ResultNotFoundError: There is none.
    """
    ours = hardware_class(host)
    classes = Counter(hardware_class(stored.result.host) for stored in found)
    best: dict[tuple[str, str], Stored] = {}
    for stored in found:
        if _is_own(stored, host) or hardware_class(stored.result.host) == ours:
            key = stored.entry.key.model, stored.entry.key.workload
            best[key] = max(best.get(key, stored), stored, key=lambda each: _merit(each, host))
    if not best:
        there = ", ".join(f"{count} of {name}" for name, count in sorted(classes.items())) or "no saved result at all"
        raise ResultNotFoundError(
            f"{source} holds nothing of this host's hardware class {ours}, but {there}: tune one such host and export"
        )
    return list(best.values())


def _merit(stored: Stored, host: Host) -> tuple[bool, bool, bool, str]:
    result = stored.result
    return _is_own(stored, host), result.provenance != "replayed", result.confirmed, result.measured_at


def _is_own(stored: Stored, host: Host) -> bool:
    return stored.entry.key.host == host.fingerprint.cheap


def _is_later(stored: Stored, ours: Result, host: Host) -> bool:
    return _is_own(stored, host) and stored.result.measured_at > ours.measured_at


def _differences(saved: Result, origin: Origin, host: Host) -> Iterable[str]:
    """What may keep an imported result's figures from holding, a sentence each.

    The host that measured it counts, and not one that it was imported by in between.
    """
    changed = [] if origin.versions is None else list(_changed(origin.versions, host.versions))
    if changed:
        yield (
            f"measured on {origin.host_label} with other software than here ({', '.join(changed)}): "
            "`autotune confirm` tells whether its figures hold"
        )
    here = {(found.kernel, found.format): found.reason for found in find_kernels(host)}
    used = {
        (kernel, site.format) for site in saved.kernels for kernel in (*site.decode.values(), *site.prefill.values())
    }
    for kernel, name in sorted(used):
        reason = here.get((kernel, name), "this version doesn't have it")
        if reason is not None:
            yield f"measured on {origin.host_label} with the kernel {kernel} for {name}, which can't run here: {reason}"


def _changed(there: Versions, here: Versions) -> Iterable[str]:
    """What of the software differs, ``numpy 2.4.6 there, 2.4.7 here``."""
    pairs = {"autotune": (there.autotune, here.autotune), "Python": (there.python, here.python)}
    for name in sorted({*there.libraries, *here.libraries}):
        pairs[name] = there.libraries.get(name, "none"), here.libraries.get(name, "none")
    for name, (theirs, ours) in pairs.items():
        if theirs != ours:
            yield f"{name} {theirs} there, {ours} here"
    if there.kernels != here.kernels:
        yield "the kernels' sources"
    if there.measuring_policy != here.measuring_policy:
        yield "the way of measuring"
