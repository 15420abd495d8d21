from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import filelock
import pytest
from msgspec.structs import replace

from autotune.errors import StoreError
from autotune.records import Result
from autotune.store import cache, entry, files
from autotune.store.entry import Entry
from autotune.store.schema import decode_result
from tests.builders import build_result
from tests.store.conftest import KEY, Layers, permissions_bind

OLD, NEW = build_result(tune_time_s=1.0), build_result(tune_time_s=2.0)


def read() -> Entry | None:
    return cache.read(KEY.host, KEY.model, KEY.workload)


def saved() -> Result | None:
    found = read()
    return None if found is None else decode_result(found)


def names_below(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.name != ".lock")


def as_file(layer: Path, raw: bytes) -> Path:
    """Put bytes where the entry belongs."""
    path = Path(KEY.path_in(str(layer)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
    return path


def encoded(result: Result, layers: Layers) -> bytes:
    """The bytes that `cache.write` saves for a result; nothing stays in the cache."""
    path = Path(cache.write(result, {}))
    raw = path.read_bytes()
    path.unlink()
    return raw


# Reading and writing


def test_an_empty_cache_is_a_miss(layers: Layers) -> None:
    """Nor does looking create any folder."""
    assert read() is None
    assert not layers.named.exists()


def test_what_was_written_is_read(layers: Layers) -> None:
    """With the request it was made for, in the first layer, under its own key; nothing else is left there."""
    request = {"workload": "server", "prompt": 128, "max_tpot_ms": 50.0, "format": None}
    path = cache.write(OLD, request)
    found = read()
    assert found is not None
    assert found.request == request
    assert found.path == path == KEY.path_in(str(layers.named))
    assert saved() == OLD
    assert names_below(layers.named) == [Path(path).name]


def test_a_new_result_replaces_the_old_one(layers: Layers) -> None:
    """One entry per key."""
    cache.write(OLD, {})
    cache.write(NEW, {})
    assert saved() == NEW


@pytest.mark.parametrize(
    "other",
    [
        build_result(host_fingerprint="1" * 32),
        build_result(model_digest="1" * 32),
        build_result(workload="chat"),
    ],
)
def test_hosts_models_and_workloads_have_entries_of_their_own(layers: Layers, other: Result) -> None:
    """A result isn't an answer to another question."""
    cache.write(other, {})
    assert read() is None
    cache.write(OLD, {})
    assert saved() == OLD


def test_a_result_that_json_cannot_hold_is_not_saved(layers: Layers) -> None:
    """An infinity would become null, which no reader takes for a number; the old entry stays."""
    cache.write(OLD, {})
    with pytest.raises(StoreError, match="could not be read back"):
        cache.write(replace(NEW, tune_time_s=math.inf), {})
    assert saved() == OLD


def test_a_result_above_the_limit_is_not_saved(layers: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a reader would refuse isn't written."""
    cache.write(OLD, {})
    monkeypatch.setattr(cache, "MAX_BYTES", 1000)
    with pytest.raises(StoreError, match="the cache takes 1000"):
        cache.write(NEW, {})
    monkeypatch.undo()


def test_unknown_keys_are_refused(layers: Layers) -> None:
    """They would become a path."""
    with pytest.raises(ValueError, match="as host fingerprint"):
        cache.read("../..", KEY.model, KEY.workload)


# Layers


def test_a_good_entry_of_an_earlier_layer_wins(layers: Layers) -> None:
    """$AUTOTUNE_CACHE, the user's folder, the system's, in this order."""
    old, new = encoded(OLD, layers), encoded(NEW, layers)
    as_file(layers.system, old)
    assert saved() == OLD
    as_file(layers.user, new)
    assert saved() == NEW
    as_file(layers.named, old)
    assert saved() == OLD


def test_a_folder_that_cannot_be_written_falls_back_to_the_next(layers: Layers) -> None:
    """With one warning that names the folder and the reason; the result is found there afterwards."""
    layers.named.write_text("a file where the cache should be")  # refuses root as well
    with pytest.warns(cache.StoreWarning) as caught:
        path = cache.write(OLD, {})
    assert [str(warning.message) for warning in caught] == [
        f"the result was saved in {layers.user}, for it could not be in {layers.named}: Not a directory"
    ]
    assert path == KEY.path_in(str(layers.user))
    assert saved() == OLD


def test_a_write_protected_folder_falls_back_to_the_next(layers: Layers) -> None:
    """Permissions are respected and reported."""
    layers.named.mkdir()
    layers.named.chmod(0o555)
    with permissions_bind(), pytest.warns(cache.StoreWarning, match="Permission denied"):
        path = cache.write(OLD, {})
    assert path == KEY.path_in(str(layers.user))


def test_without_any_writable_folder_the_error_names_all_reasons(layers: Layers) -> None:
    """The user sees which folders were tried; the system's is never written."""
    layers.named.write_text("")
    layers.user.parent.write_text("")
    with pytest.raises(StoreError) as caught:
        cache.write(OLD, {})
    assert f"{layers.named}: Not a directory; {layers.user}: Not a directory" in str(caught.value)
    assert not layers.system.exists()


def test_without_any_folder_the_error_says_what_to_set(layers: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service without a home folder needs AUTOTUNE_CACHE."""
    for name, value in {"AUTOTUNE_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "nowhere"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreError, match="no home folder, and AUTOTUNE_CACHE is not set"):
        cache.write(OLD, {})


def test_a_result_is_never_saved_where_an_older_one_hides_it(layers: Layers) -> None:
    """If the first layer has an entry that can't be replaced, a later layer would not be read."""
    path = Path(cache.write(OLD, {}))
    path.parent.chmod(0o555)
    with permissions_bind(), pytest.raises(StoreError, match="Permission denied"):
        cache.write(NEW, {})
    path.parent.chmod(0o755)
    assert saved() == OLD
    assert not layers.user.exists()


def test_an_unreadable_entry_is_a_miss_with_a_warning(layers: Layers) -> None:
    """It isn't moved aside: it may be fine for those who may read it. The next layer is tried."""
    raw = encoded(OLD, layers)
    path = as_file(layers.named, b"secret")
    path.chmod(0)
    as_file(layers.user, raw)
    with permissions_bind(), pytest.warns(cache.StoreWarning, match="can't be read \\(Permission denied\\)"):
        assert saved() == OLD
    assert path.read_bytes() == b"secret"


# Bad entries


def damaged(raw: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "torn": raw[: len(raw) // 2],
        "zeros": bytes(len(raw)),
        "tampered": raw.replace(b'"recommended_batch_size":4', b'"recommended_batch_size":8', 1),
        "newer": raw.replace(b'"schema_version":2', b'"schema_version":3', 1),
        "foreign": b'{"some": "other file"}\n',
        "other key": raw.replace(b'"workload":"server"', b'"workload":"chat"', 1),
    }


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        ("empty", "torn"),
        ("torn", "torn"),
        ("zeros", "format"),
        ("tampered", "checksum"),
        ("newer", "schema"),
        ("foreign", "format"),
        ("other key", "checksum"),
    ],
)
def test_a_bad_entry_is_moved_aside_and_is_a_miss(layers: Layers, damage: str, kind: str) -> None:
    """The reason stands in the new name and in the warning; the bytes are kept; a new result can be written."""
    bad = damaged(encoded(OLD, layers))[damage]
    path = as_file(layers.named, bad)
    with pytest.warns(cache.StoreWarning, match="ignored a saved result"):
        assert read() is None
    assert not path.exists()
    (aside,) = (layers.named / "quarantine").iterdir()
    assert aside.name.startswith(f"{KEY.host}.{KEY.model}.server.{kind}.")
    assert aside.read_bytes() == bad
    assert read() is None  # and without another warning
    cache.write(NEW, {})
    assert saved() == NEW


def test_an_entry_filed_under_the_wrong_name_is_bad(layers: Layers) -> None:
    """A file copied by hand to another host's folder isn't that host's result."""
    other = build_result(host_fingerprint="1" * 32)
    as_file(layers.named, encoded(other, layers))
    with pytest.warns(cache.StoreWarning, match="filed for another host"):
        assert read() is None


def test_behind_a_bad_entry_the_next_layer_is_read(layers: Layers) -> None:
    """One damaged file doesn't hide a good one."""
    raw = encoded(OLD, layers)
    as_file(layers.named, raw[:-9])
    as_file(layers.user, raw)
    with pytest.warns(cache.StoreWarning):
        assert saved() == OLD


def test_an_entry_above_the_limit_is_not_even_read(layers: Layers) -> None:
    """Its size alone condemns it: a sparse file of a terabyte takes no memory and no time."""
    path = as_file(layers.named, b"")
    os.truncate(path, 2**40)
    with pytest.warns(cache.StoreWarning, match="1099511627776 bytes where at most"):
        assert read() is None
    assert not path.exists()


def a_folder(path: Path) -> None:
    (path / "full").mkdir(parents=True)


def a_loop(path: Path) -> None:
    path.symlink_to(path.name)


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("make", [a_folder, a_loop, a_pipe])
def test_what_is_no_file_is_moved_aside(layers: Layers, make: Callable[[Path], None]) -> None:
    """A folder, a symlink loop or a pipe in the entry's place neither blocks nor breaks anything."""
    path = Path(KEY.path_in(str(layers.named)))
    path.parent.mkdir(parents=True)
    make(path)
    with pytest.warns(cache.StoreWarning, match="regular file|leads to itself"):
        assert read() is None
    assert not os.path.lexists(path)
    cache.write(OLD, {})
    assert saved() == OLD


@pytest.mark.parametrize("make", [a_loop, a_pipe])
def test_a_write_replaces_what_is_no_file(layers: Layers, make: Callable[[Path], None]) -> None:
    """Also where nobody has read before."""
    path = Path(KEY.path_in(str(layers.named)))
    path.parent.mkdir(parents=True)
    make(path)
    cache.write(OLD, {})
    assert saved() == OLD


def test_a_symlink_to_a_good_entry_is_followed(layers: Layers, tmp_path: Path) -> None:
    """Files that an orchestrator mounts are often links."""
    target = tmp_path / "elsewhere.json"
    target.write_bytes(encoded(OLD, layers))
    path = as_file(layers.named, b"")
    path.unlink()
    path.symlink_to(target)
    assert saved() == OLD


def test_a_bad_entry_that_cannot_be_moved_is_a_miss(layers: Layers) -> None:
    """A read-only layer with a damaged file only costs a warning."""
    path = as_file(layers.system, b"damaged")
    path.parent.chmod(0o555)
    with permissions_bind(), pytest.warns(cache.StoreWarning, match="could not be moved aside: Permission denied"):
        assert read() is None
    assert path.read_bytes() == b"damaged"


def test_a_bad_entry_that_a_writer_is_replacing_is_left_to_it(layers: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader never waits for the lock."""
    path = as_file(layers.named, b"damaged")
    with filelock.FileLock(path.parent / ".lock"), pytest.warns(cache.StoreWarning, match="could not be moved aside"):
        assert read() is None
    assert path.exists()


def test_an_entry_that_turns_good_is_not_moved_aside(layers: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that comes between a reader's look and its move isn't undone: the reader gets the new entry."""
    path, raw = as_file(layers.named, b"damaged"), encoded(NEW, layers)
    as_file(layers.named, b"damaged")
    lock = cache._lock

    def lock_after_a_writer(path_locked: str, timeout_s: float) -> filelock.BaseFileLock:
        path.write_bytes(raw)
        return lock(path_locked, timeout_s)

    monkeypatch.setattr(cache, "_lock", lock_after_a_writer)
    assert saved() == NEW
    assert path.read_bytes() == raw


def test_an_entry_that_another_reader_moved_first_is_a_miss(layers: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two readers may find the same bad entry."""
    path = as_file(layers.named, b"damaged")
    lock = cache._lock

    def lock_after_a_reader(path_locked: str, timeout_s: float) -> filelock.BaseFileLock:
        path.unlink()
        return lock(path_locked, timeout_s)

    monkeypatch.setattr(cache, "_lock", lock_after_a_reader)
    with pytest.warns(cache.StoreWarning, match="No such file"):
        assert read() is None


# Writes that fail


def test_a_held_lock_is_waited_for_only_so_long(layers: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that hangs doesn't hang the others: they use the next layer."""
    path = as_file(layers.named, b"")
    path.unlink()
    monkeypatch.setattr(cache, "LOCK_TIMEOUT_S", 0.05)
    with filelock.FileLock(path.parent / ".lock"), pytest.warns(cache.StoreWarning, match=r"\.lock"):
        assert cache.write(OLD, {}) == KEY.path_in(str(layers.user))


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_write_changes_nothing(
    layers: Layers, monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException]
) -> None:
    """Ctrl-C during the write: the old entry stays, no temporary file is left and the lock is free."""
    cache.write(OLD, {})

    def interrupted(descriptor: int) -> None:
        raise interruption

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        with pytest.raises(interruption):
            cache.write(NEW, {})
    assert saved() == OLD
    assert len(names_below(layers.named)) == 1
    cache.write(NEW, {})
    assert saved() == NEW


def test_a_file_system_that_cannot_sync_folders_still_takes_the_entry(
    layers: Layers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry is in place by then."""

    def unsupported(folder: str) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(files, "_sync_folder", unsupported)
    cache.write(OLD, {})
    assert saved() == OLD


def test_the_limit_is_far_above_real_results() -> None:
    """A campaign of 2000 points with 200 samples each fits."""
    samples_bytes = 2000 * 200 * len("0.00012345678901234567,")
    assert 4 * samples_bytes < entry.MAX_BYTES
