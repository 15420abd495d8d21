from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

import msgspec
import pytest

from autotune.errors import StoreError, UsageError
from autotune.host.hardware_class import hardware_class
from autotune.store import cache, manage, paths
from autotune.store.entry import Entry, encode, parse
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


def saved(workload: str = KEY.workload) -> Entry:
    entry = cache.read(KEY.host, KEY.model, workload)
    assert entry is not None
    return entry


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
    foreign = [
        folder / "notes.json",
        folder / f"{KEY.model}.training.json",
        layers.named / paths.LAYOUT / "a" / "b.c.json",
    ]
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


# Export, and reading what was exported


def test_an_exported_entry_comes_back_byte_for_byte(layers: Layers, tmp_path: Path) -> None:
    """With its own host, model, workload and request, whatever the file is called."""
    cache.write(build_result(), {"workload": "server"})
    path = tmp_path / "for-the-fleet.json"
    assert manage.export(saved(), str(path)) == str(path)
    assert path.read_bytes() == saved().raw
    read = manage.read_file(str(path))
    assert (read.entry.key, read.entry.raw, read.result) == (KEY, saved().raw, build_result())
    assert read.entry.request == {"workload": "server"}


@pytest.mark.parametrize("name", ["fleet", "fleet/", "new/fleet/"])
def test_in_a_folder_a_file_is_named_by_class_model_and_workload(layers: Layers, tmp_path: Path, name: str) -> None:
    """A folder that is there, or one that a slash says to make."""
    (tmp_path / "fleet").mkdir()
    cache.write(build_result(), {"format": None})
    path = Path(manage.export(saved(), f"{tmp_path}/{name}"))
    assert path == tmp_path / name / f"{hardware_class(build_host())}.synthetic-model.server.json"
    assert path.read_bytes() == saved().raw
    assert [found.entry.key for found in manage.read_folder(str(path.parent))] == [KEY]


def test_a_file_s_name_tells_a_format_that_was_asked_for(layers: Layers, tmp_path: Path) -> None:
    """The result with it and that without are two, and so are the files."""
    cache.write(build_result(), {"format": None})
    first = manage.export(saved(), str(tmp_path))
    cache.write(build_result(), {"format": "I2_S"})
    second = manage.export(saved(), str(tmp_path))
    assert Path(second).name == Path(first).name.replace(".server.json", ".server.i2_s.json")
    assert len(manage.read_folder(str(tmp_path))) == 2


def test_a_file_in_a_folder_is_replaced(layers: Layers, tmp_path: Path) -> None:
    """And nothing else is left there."""
    cache.write(build_result(tune_time_s=1.0), {})
    manage.export(saved(), f"{tmp_path}/fleet/")
    cache.write(build_result(tune_time_s=2.0), {})
    manage.export(saved(), f"{tmp_path}/fleet/")
    (read,) = manage.read_folder(f"{tmp_path}/fleet")
    assert read.result.tune_time_s == 2.0
    assert len(list((tmp_path / "fleet").iterdir())) == 1


def test_an_export_that_cannot_be_written_is_an_error(layers: Layers, tmp_path: Path) -> None:
    """It names the file and the reason."""
    cache.write(build_result(), {})
    with pytest.raises(UsageError, match="the saved result needs a file to be written to, got an empty name"):
        manage.export(saved(), "")  # which is not the working directory
    with pytest.raises(StoreError, match=r"missing/one\.json: the saved result can't be written there: No such file"):
        manage.export(saved(), str(tmp_path / "missing" / "one.json"))
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"could not be written to .*file/haswell-2t-8g-cpu-.*json: "):
        manage.export(saved(), f"{tmp_path}/file/")


def test_an_entry_of_another_shape_has_no_name_in_a_folder(layers: Layers, tmp_path: Path) -> None:
    """Of an intact document that this version can't read nobody knows the class; nothing is written."""
    cache.write(build_result(), {})
    entry = saved()
    raw = encode(KEY, entry.request_json, entry.device_config_json, b"{}")
    with pytest.raises(StoreError, match=r"could not be exported: odd\.json .*missing required field"):
        manage.export(parse(raw, "odd.json"), str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["named"]


def test_a_folder_s_other_files_are_left_alone_and_damaged_results_named(layers: Layers, tmp_path: Path) -> None:
    """What is something else gets no word; what was a result, is of a newer version or can't be read gets a warning."""
    cache.write(build_result(), {})
    fleet = tmp_path / "fleet"
    good = Path(manage.export(saved(), f"{fleet}/"))
    (fleet / "notes.json").write_text("{}")
    (fleet / "README.md").write_text("results")
    (fleet / "folder.json").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(manage.read_folder(str(fleet))) == 1
    (fleet / "cut.json").write_bytes(good.read_bytes()[:-100])
    (fleet / "new.json").write_bytes(re.sub(rb'_version":\d+', b'_version":99', good.read_bytes(), count=1))
    with pytest.warns(cache.StoreWarning) as caught:
        assert len(manage.read_folder(str(fleet))) == 1
    told = [str(warning.message) for warning in caught]
    assert [text.partition(": it ")[0] for text in told] == [f"left out {fleet}/{name}.json" for name in ("cut", "new")]
    assert "cut short" in told[0]
    assert "version 99, written by a newer autotune" in told[1]


def test_what_may_not_be_read_is_named(layers: Layers, tmp_path: Path) -> None:
    """A file in a folder with a warning, the folder itself as an error."""
    cache.write(build_result(), {})
    fleet = tmp_path / "fleet"
    Path(manage.export(saved(), f"{fleet}/")).chmod(0)
    with permissions_bind(), pytest.warns(cache.StoreWarning, match=r"it can't be read \(Permission denied\)"):
        assert manage.read_folder(str(fleet)) == []
    fleet.chmod(0)
    with permissions_bind(), pytest.raises(StoreError, match=r"fleet can't be read \(Permission denied\)"):
        manage.read_folder(str(fleet))
    fleet.chmod(0o755)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda raw: b"", "is cut short after 0 bytes"),
        (lambda raw: raw[:-100], "is cut short"),
        (lambda raw: raw.replace(b"synthetic-host", b"synthetic-hast"), "does not match its checksum"),
        (lambda raw: raw.replace(b'_version":', b'_version":9', 1), "written by a newer autotune"),
        (lambda raw: b'{"model_type": "bitnet"}', "does not begin as a saved result does"),
    ],
)
def test_a_bad_file_is_not_read(layers: Layers, tmp_path: Path, change: object, reason: str) -> None:
    """One sentence says what is wrong with it; the cache, the old entry and the file itself stay as they are."""
    assert callable(change)
    cache.write(build_result(), {})
    manage.export(saved(), str(tmp_path / "one.json"))
    before = snapshot(layers.named)
    bad = tmp_path / "bad.json"
    bad.write_bytes(change((tmp_path / "one.json").read_bytes()))
    with pytest.raises(StoreError, match="nothing was imported") as caught:
        manage.read_file(str(bad))
    assert reason in str(caught.value)
    assert snapshot(layers.named) == before
    assert bad.exists()


def test_a_forged_file_is_not_read(layers: Layers, tmp_path: Path) -> None:
    """A right checksum over a result of another host than the key says."""
    path = Path(cache.write(build_result(), {}))
    forged = build_result(host=build_host(OTHER_HOST))
    original = parse(path.read_bytes(), "")
    raw = encode(KEY, original.request_json, original.device_config_json, msgspec.json.encode(forged))
    (tmp_path / "forged.json").write_bytes(raw)
    before = snapshot(layers.named)
    with pytest.raises(StoreError, match="another host, model or workload than its key says"):
        manage.read_file(str(tmp_path / "forged.json"))
    assert snapshot(layers.named) == before


def test_a_missing_file_and_a_folder_are_not_read(layers: Layers, tmp_path: Path) -> None:
    """Each with its reason."""
    with pytest.raises(StoreError, match=r"none\.json can't be read \(No such file or directory\)"):
        manage.read_file(str(tmp_path / "none.json"))
    with pytest.raises(StoreError, match="is not a regular file"):
        manage.read_file(str(tmp_path))
    (tmp_path / "huge.json").touch()
    os.truncate(tmp_path / "huge.json", 2**40)
    with pytest.raises(StoreError, match="where at most"):
        manage.read_file(str(tmp_path / "huge.json"))
