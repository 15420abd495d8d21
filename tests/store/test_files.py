"""Files that a user names as output."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from autotune.errors import StoreError, UsageError
from autotune.store.files import write_output


def test_it_replaces_the_file_that_a_link_names(tmp_path: Path) -> None:
    """The link stays, and nothing else is left."""
    (tmp_path / "table.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to("table.csv")
    write_output(str(tmp_path / "link.csv"), b"new", "the table")
    assert (tmp_path / "table.csv").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.csv", "table.csv"]


def test_what_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole or not at all."""
    path = tmp_path / "table.csv"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=f"^{path}: the table can't be written there: No space left on device$"):
        write_output(str(path), b"new", "the table")
    assert [each.read_text() for each in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("name", [os.devnull, "folder", "missing/table.csv"])
def test_what_is_no_file_is_not_replaced(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device stays a device."""
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    with pytest.raises(StoreError, match=f"^{name}: the table can't be written there: "):
        write_output(name, b"new", "the table")
    assert not Path(os.devnull).is_file()


def test_what_it_is_made_from_is_kept(tmp_path: Path) -> None:
    """By whatever name."""
    (tmp_path / "model.json").write_text("model")
    (tmp_path / "other name").symlink_to("model.json")
    with pytest.raises(UsageError, match="would replace what it is made from"):
        write_output(str(tmp_path / "other name"), b"new", "the table", keep=(None, str(tmp_path / "model.json")))
    assert (tmp_path / "model.json").read_text() == "model"
