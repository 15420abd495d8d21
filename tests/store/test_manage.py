from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from autotune.errors import ResultNotFoundError, StoreError
from autotune.store import cache, manage
from autotune.store.entry import encode, parse
from autotune.store.schema import decode_result
from tests.builders import build_host, build_result
from tests.store.conftest import KEY, Layers, permissions_bind

OTHER_HOST = "1" * 32
OTHER_MODEL = "2" * 32


def fill() -> None:
    """Three entries: two workloads on one host, and another model on another host."""
    cache.write(build_result(), {})
    cache.write(build_result(workload="chat"), {})
    cache.write(build_result(host_fingerprint=OTHER_HOST, model_digest=OTHER_MODEL), {})


def keys() -> list[tuple[str, str, str]]:
    listed = (stored.entry.key for stored in manage.list_entries())
    return [(key.host, key.model, key.workload) for key in listed]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# Listing


def test_an_empty_cache_lists_nothing(layers: Layers) -> None:
    """Folders need not exist."""
    assert list(manage.list_entries()) == []


def test_entries_of_all_layers_and_hosts_are_listed(layers: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with its whole result, in the order in which layers are read."""
    fill()
    monkeypatch.setenv("AUTOTUNE_CACHE", str(layers.user))
    cache.write(build_result(tune_time_s=9.0), {})
    monkeypatch.setenv("AUTOTUNE_CACHE", str(layers.named))
    assert keys() == [
        (KEY.host, KEY.model, "chat"),
        (KEY.host, KEY.model, "server"),
        (OTHER_HOST, OTHER_MODEL, "server"),
        (KEY.host, KEY.model, "server"),
    ]
    last = list(manage.list_entries())[-1]
    assert last.entry.path.startswith(str(layers.user))
    assert last.result == build_result(tune_time_s=9.0)


def test_bad_and_foreign_files_are_not_listed(layers: Layers) -> None:
    """Bad entries are set aside as when they are read; what isn't named as an entry is left alone."""
    fill()
    folder = Path(KEY.path_in(str(layers.named))).parent
    foreign = [folder / "notes.json", folder / f"{KEY.model}.training.json", layers.named / "v1" / "a" / "b.c.json"]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    Path(KEY.path_in(str(layers.named))).write_bytes(b"damaged")
    with pytest.warns(cache.StoreWarning, match="does not begin as a saved result does"):
        listed = keys()
    assert listed == [(KEY.host, KEY.model, "chat"), (OTHER_HOST, OTHER_MODEL, "server")]
    assert all(path.exists() for path in foreign)


# Forgetting


def test_forgetting_by_model_workload_and_host(layers: Layers) -> None:
    """What is left open matches all."""
    fill()
    assert manage.forget(KEY.model, "chat", KEY.host) == [KEY.path_in(str(layers.named)).replace("server", "chat")]
    assert keys() == [(KEY.host, KEY.model, "server"), (OTHER_HOST, OTHER_MODEL, "server")]
    assert len(manage.forget(workload="server", host_fingerprint=OTHER_HOST)) == 1
    assert manage.forget(OTHER_MODEL) == []
    assert len(manage.forget()) == 1
    assert keys() == []


def test_a_bad_entry_is_forgotten_by_its_name(layers: Layers) -> None:
    """Its content need not be readable."""
    fill()
    Path(KEY.path_in(str(layers.named))).write_bytes(b"damaged")
    assert len(manage.forget(KEY.model)) == 2
    assert not (layers.named / "quarantine").exists()


def test_what_cannot_be_deleted_is_an_error_that_names_it(layers: Layers) -> None:
    """The others are deleted nevertheless."""
    fill()
    path = Path(KEY.path_in(str(layers.named)))
    path.parent.chmod(0o555)
    with permissions_bind(), pytest.raises(StoreError, match=r"2 of 3 saved results .*Permission denied"):
        manage.forget()
    path.parent.chmod(0o755)
    assert keys() == [(KEY.host, KEY.model, "chat"), (KEY.host, KEY.model, "server")]


# Export and import


def test_an_exported_entry_comes_back_byte_for_byte(layers: Layers, tmp_path: Path) -> None:
    """Under its own host, model and workload, whatever the file is called: so it can be sent to another machine."""
    cache.write(build_result(), {"workload": "server"})
    before = snapshot(layers.named)
    manage.export(KEY.host, KEY.model, KEY.workload, tmp_path / "for-the-fleet.json")
    manage.forget()
    assert manage.import_(tmp_path / "for-the-fleet.json") == KEY.path_in(str(layers.named))
    assert snapshot(layers.named) == before
    found = cache.read(KEY.host, KEY.model, KEY.workload)
    assert found is not None
    assert found.request == {"workload": "server"}


def test_an_import_replaces_the_entry_that_is_there(layers: Layers, tmp_path: Path) -> None:
    """The user asked for this one."""
    cache.write(build_result(tune_time_s=1.0), {})
    manage.export(KEY.host, KEY.model, KEY.workload, tmp_path / "one.json")
    cache.write(build_result(tune_time_s=2.0), {})
    manage.import_(tmp_path / "one.json")
    assert cache.read_as(decode_result, KEY.host, KEY.model, KEY.workload) == build_result(tune_time_s=1.0)


def test_nothing_saved_is_nothing_to_export(layers: Layers, tmp_path: Path) -> None:
    """No empty file is left."""
    with pytest.raises(ResultNotFoundError, match="no saved result to export"):
        manage.export(KEY.host, KEY.model, KEY.workload, tmp_path / "none.json")
    assert not (tmp_path / "none.json").exists()


def test_an_export_that_cannot_be_written_is_an_error(layers: Layers, tmp_path: Path) -> None:
    """It names the file and the reason."""
    cache.write(build_result(), {})
    with pytest.raises(StoreError, match=r"could not be written to .*missing/one\.json: No such file"):
        manage.export(KEY.host, KEY.model, KEY.workload, tmp_path / "missing" / "one.json")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda raw: b"", "is cut short after 0 bytes"),
        (lambda raw: raw[:-100], "is cut short"),
        (lambda raw: raw.replace(b"synthetic-host", b"synthetic-hast"), "does not match its checksum"),
        (lambda raw: raw.replace(b'_version":1', b'_version":2', 1), "schema version 2, written by a newer autotune"),
        (lambda raw: b'{"model_type": "bitnet"}', "does not begin as a saved result does"),
    ],
)
def test_a_bad_file_is_not_imported(layers: Layers, tmp_path: Path, change: object, reason: str) -> None:
    """One sentence says what is wrong with it; the cache, the old entry and the file itself stay as they are."""
    assert callable(change)
    cache.write(build_result(), {})
    manage.export(KEY.host, KEY.model, KEY.workload, tmp_path / "one.json")
    before = snapshot(layers.named)
    bad = tmp_path / "bad.json"
    bad.write_bytes(change((tmp_path / "one.json").read_bytes()))
    with pytest.raises(StoreError, match="nothing was imported") as caught:
        manage.import_(bad)
    assert reason in str(caught.value)
    assert snapshot(layers.named) == before
    assert bad.exists()


def test_a_forged_file_is_not_imported(layers: Layers, tmp_path: Path) -> None:
    """A right checksum over a result of another host than the key says."""
    path = Path(cache.write(build_result(), {}))
    forged = build_result(host=build_host(OTHER_HOST))
    original = parse(path.read_bytes(), "")
    raw = encode(KEY, original.request_json, original.device_config_json, msgspec.json.encode(forged))
    (tmp_path / "forged.json").write_bytes(raw)
    before = snapshot(layers.named)
    with pytest.raises(StoreError, match="another host, model or workload than its key says"):
        manage.import_(tmp_path / "forged.json")
    assert snapshot(layers.named) == before


def test_a_missing_file_and_a_folder_are_not_imported(layers: Layers, tmp_path: Path) -> None:
    """Each with its reason."""
    with pytest.raises(StoreError, match=r"none\.json can't be read \(No such file or directory\)"):
        manage.import_(tmp_path / "none.json")
    with pytest.raises(StoreError, match="is not a regular file"):
        manage.import_(tmp_path)
    (tmp_path / "huge.json").touch()
    os.truncate(tmp_path / "huge.json", 2**40)
    with pytest.raises(StoreError, match="where at most"):
        manage.import_(tmp_path / "huge.json")
