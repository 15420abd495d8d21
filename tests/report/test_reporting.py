"""`autotune report`: a file written whole or not at all, from a model or from a file with a saved result."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from autotune.cli.run import main
from tests.report.results import RECORDS


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """A file with a saved result."""
    return Path(shutil.copy(RECORDS[0], tmp_path / "saved.json"))


def test_the_page_is_written_to_the_file(
    record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a name to report.html, where one stands already too; and nothing else is left beside it."""
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(record)]) == 0
    assert main(["report", str(record), "-o", "report.html"]) == 0
    assert main(["report", str(record), "-o", str(tmp_path / "other.html")]) == 0
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err == f"wrote report.html\nwrote report.html\nwrote {tmp_path / 'other.html'}\n"
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.html", "report.html", "saved.json"]


def test_the_page_can_be_printed(record: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """On standard output, and nothing but it."""
    assert main(["report", str(record), "-o", "-"]) == 0
    found = capfdbinary.readouterr()
    assert found.out.startswith(b"<!DOCTYPE html>")
    assert found.out.rstrip().endswith(b"</html>")
    assert found.err == b""
    assert [path.name for path in tmp_path.iterdir()] == ["saved.json"]


def test_a_target_that_can_not_be_written_is_one_sentence(
    record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that isn't there, and one where the file is to be."""
    missing = tmp_path / "missing" / "report.html"
    for target, reason in (
        (missing, "the report can't be written there: No such file or directory"),
        (tmp_path, "the report can't be written there: expected a file, or a new name"),
    ):
        assert main(["report", str(record), "-o", str(target)]) == 8
        assert capsys.readouterr().err == f"autotune: {target}: {reason}\n"


def test_what_is_there_stays_if_writing_fails(
    record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk leaves the old page, and no half of a new one."""
    target = tmp_path / "report.html"
    target.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert main(["report", str(record), "-o", str(target)]) == 8
    assert "the report can't be written there: No space left on device" in capsys.readouterr().err
    assert target.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "saved.json"]


def test_the_result_itself_is_not_overwritten(record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever name is given to it."""
    before = record.read_bytes()
    (tmp_path / "link").symlink_to(record)
    for name in (record, tmp_path / "link"):
        assert main(["report", str(record), "-o", str(name)]) == 2
        assert "would replace what it is made from" in capsys.readouterr().err
    assert record.read_bytes() == before


def test_a_model_that_nothing_is_saved_for_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the command that makes the result."""
    monkeypatch.setenv("AUTOTUNE_CACHE", str(tmp_path))
    target = tmp_path / "report.html"
    assert main(["report", "bitnet-b1.58-2B-4T", "--workload", "chat", "-o", str(target)]) == 9
    assert "python -m autotune bitnet-b1.58-2B-4T --workload chat" in capsys.readouterr().err
    assert not target.exists()
