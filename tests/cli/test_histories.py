"""`autotune record` and `autotune history` as a CI job meets them."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import pty
import struct
import termios
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from autotune import pipeline
from autotune.cli.run import main
from autotune.history import store, surroundings
from autotune.history.surroundings import Checkout
from autotune.records import Result
from tests.builders import build_confirmed_result, build_workload
from tests.cli.shop import Shop
from tests.history.records import AT, COMMIT, build_record, fill

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def as_in_a_process() -> Iterator[None]:
    """Warnings are printed, and the command's way to do so is taken back."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        yield


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with three records."""
    fill(
        tmp_path / "results",
        build_record(recorded_at="2026-01-01T10:00:00+00:00"),
        build_record(recorded_at="2026-01-02T10:00:00+00:00", commit="f" * 40, tags={}),
        build_record(recorded_at="2026-01-03T10:00:00+00:00", model_name="other", workload=build_workload(name="chat")),
    )
    return tmp_path / "results"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the tuner was asked for; it answers with a synthetic result at once."""
    calls: list[dict[str, Any]] = []

    def tune(model: str, options: object, **named: Any) -> Result:
        calls.append({"model": model, "options": options, **named})
        return build_confirmed_result(created_at=datetime.now(UTC).isoformat() if named["force"] else AT)

    monkeypatch.setattr(pipeline, "tune", tune)
    return calls


# record


def test_a_record_is_made_of_what_was_measured_here(shop: Shop) -> None:
    """In a process, from the model to the file whose path is printed; what it is of is printed as well."""
    answer = shop.run("record", "small.json", "--cached", "--budget", "4", "--no-confirm", "--tag", "runner=ci-1")
    assert answer.code == 0, answer.err
    record = store.read(shop.folder / os.fsdecode(answer.out.removesuffix(b"\n")))
    (entry,) = shop.entries()
    assert (
        json.loads(entry.read_bytes())["result"]["campaign"]["measured_at"] == record.measured_at <= record.recorded_at
    )
    assert (record.model_name, record.workload.name, record.tags) == ("small", "server", {"runner": "ci-1"})
    assert record.hardware_class
    assert "small, server: predicted" in answer.err


def test_a_record_measures_anew_unless_told_otherwise(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    """What is saved may be of another commit; the options are those of `tune`."""
    words = ["record", "m.json", "--results", str(tmp_path), "--quiet"]
    assert main([*words, "--workload", "chat", "--budget", "9", "--max-tpot-ms", "50"]) == 0
    assert main([*words, "--cached", "--quick"]) == 0
    measured, cached = asked
    assert (measured["model"], measured["budget_s"], measured["force"], measured["quick"]) == ("m.json", 9, True, False)
    assert (measured["options"].workload, measured["options"].max_tpot_ms, measured["options"].confirm) == (
        ("chat", 50, True)
    )
    assert (cached["force"], cached["quick"], cached["options"].confirm) == (False, True, False)


def test_a_record_names_the_commit_only_of_what_was_measured_at_it(
    asked: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a saved result nobody knows it."""
    monkeypatch.setattr(surroundings, "find_checkout", lambda: Checkout(COMMIT, "main", dirty=False))
    words = ["record", "m.json", "--results", str(tmp_path), "--quiet"]
    assert main(words) == main([*words, "--cached"]) == 0
    found = {one.record.measured_at == AT: one.record for one in store.read_tree(tmp_path)}
    assert (found[False].commit, found[False].branch, found[False].dirty) == (COMMIT, "main", False)
    assert (found[True].commit, found[True].branch, found[True].dirty) == (None, None, None)


def test_a_record_is_printed_as_json_as_it_was_written(
    asked: list[dict[str, Any]], tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """The same bytes, so that what is piped into a file is a record."""
    assert main(["record", "m.json", "--results", str(tmp_path), "--json", "--quiet"]) == 0
    printed = capfdbinary.readouterr()
    (stored,) = store.read_tree(tmp_path)
    assert printed.out == Path(stored.path).read_bytes()
    assert printed.err == b""


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (("--results", "file"), 8, "file: records can't be written there: Not a directory"),
        (("--tag", "a=1", "--tag", "a=2"), 2, "--tag a was given twice: a record has one value for it"),
    ],
)
def test_what_cannot_be_recorded_is_not_measured(
    words: tuple[str, ...],
    code: int,
    expected: str,
    asked: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Captured,
) -> None:
    """Minutes of measuring would be lost."""
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert main(["record", "m.json", *words]) == code
    assert capfd.readouterr() == ("", f"autotune: {expected}\n")
    assert not asked


def test_a_model_that_cannot_be_read_leaves_no_folder(tmp_path: Path, capfd: Captured) -> None:
    """Nothing was measured, so nothing is there."""
    assert main(["record", "no.json", "--results", str(tmp_path / "results")]) == 3
    assert "no.json" in capfd.readouterr().err
    assert not (tmp_path / "results").exists()


# history


def listed(results: Path, capfd: Captured, *words: str) -> list[dict[str, Any]]:
    assert main(["history", "--results", str(results), "--json", *words]) == 0
    found: list[dict[str, Any]] = json.loads(capfd.readouterr().out)
    return found


def test_records_are_listed_for_a_person(results: Path, capfd: Captured) -> None:
    """The oldest first, one line each where there is no terminal; a bad file is warned of."""
    (results / "bad.json").write_text("{}")
    assert main(["history", "--results", str(results)]) == 0
    out, err = capfd.readouterr()
    assert [line[:10] for line in out.splitlines()[-3:]] == ["2026-01-01", "2026-01-02", "2026-01-03"]
    assert err == f"autotune: warning: left out what is no record: {results}/bad.json does not begin as a record does\n"


def test_many_records_are_listed_when_asked_for(tmp_path: Path, capfd: Captured) -> None:
    """A person is shown the latest, and told of the others."""
    fill(tmp_path, *(build_record(tags={"number": str(number)}) for number in range(53)))
    assert main(["history", "--results", str(tmp_path)]) == 0
    out, err = capfd.readouterr()
    assert out.count("2026-01-02") == 50
    assert "the latest 50 of 53 records" in err
    assert main(["history", "--results", str(tmp_path), "--last", "52"]) == 0
    out, err = capfd.readouterr()
    assert (out.count("2026-01-02"), err) == (52, "")


@pytest.mark.parametrize(
    ("words", "days"),
    [
        ((), [1, 2, 3]),
        (("--model", "other"), [3]),
        (("--workload", "server"), [1, 2]),
        (("--hardware-class", "zen*"), [1, 2, 3]),
        (("--commit", COMMIT[:7]), [1, 3]),
        (("--since", "2026-01-02"), [2, 3]),
        (("--since", "2026-01-02T11:00", "--until", "2026-01-03"), [3]),
        (("--until", "2026-01-02"), [1, 2]),
        (("--until", "9999-12-31"), [1, 2, 3]),
        (("--tag", "runner=ci-1"), [1, 3]),
        (("--last", "1"), [3]),
        (("--last", "1", "--workload", "server"), [2]),
    ],
)
def test_filters_narrow_what_is_listed(words: tuple[str, ...], days: list[int], results: Path, capfd: Captured) -> None:
    """All of them together."""
    for path in results.rglob("*.json"):
        record = store.read(path)
        path.unlink()
        fill(results, replace(record, hardware_class="zen4-8t-32g-cpu-01234567"))
    assert [int(row["recorded_at"][8:10]) for row in listed(results, capfd, *words)] == days


def test_tables_are_written_to_files(results: Path, tmp_path: Path, capfd: Captured) -> None:
    """Instead of the list; both at once, and nothing on standard output."""
    pytest.importorskip("pyarrow")
    table, parquet = tmp_path / "table.csv", tmp_path / "table.parquet"
    assert main(["history", "--results", str(results), "--csv", str(table), "--parquet", str(parquet)]) == 0
    assert capfd.readouterr() == ("", f"wrote {parquet}\nwrote {table}\n")
    assert [row["model"] for row in csv.DictReader(table.open())] == ["synthetic/model", "synthetic/model", "other"]
    assert parquet.read_bytes().startswith(b"PAR1")


def test_csv_can_be_piped(results: Path, capfd: Captured) -> None:
    """Nothing else is on standard output."""
    assert main(["history", "--results", str(results), "--csv", "-", "--last", "1"]) == 0
    out, err = capfd.readouterr()
    assert [row["tag.runner"] for row in csv.DictReader(out.splitlines())] == ["ci-1"]
    assert err == ""


def test_a_table_does_not_replace_a_record_that_it_is_made_from(results: Path, capfd: Captured) -> None:
    """As a mistyped pattern of the shell would have it."""
    (path, *_) = sorted(results.rglob("*.json"))
    before = path.read_bytes()
    assert main(["history", "--results", str(results), "--csv", str(path)]) == 2
    assert "the table would replace what it is made from" in capfd.readouterr().err
    assert path.read_bytes() == before


def test_a_folder_whose_name_is_no_text_can_be_listed(results: Path, capfd: Captured) -> None:
    """What can't be said of a path in UTF-8 is shown as a replacement character."""
    odd = results.rename(results.parent / os.fsdecode(b"odd \xff"))
    for words in (("--csv", "-"), ("--json",)):
        assert main(["history", "--results", str(odd), *words]) == 0
        assert "/odd \N{REPLACEMENT CHARACTER}/" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (("--results", "nowhere"), 9, "nowhere: expected a folder with records"),
        (("--results", "empty"), 9, "empty holds no record: `autotune record MODEL --results empty` adds one"),
        (("--results", "empty", "--last", "3"), 9, "empty holds no record: "),
        (("--model", "none"), 9, "results holds no record that matches all of what was asked for"),
        (("--workload", "chatty"), 2, "the workload must be one of chat, server, offline, got 'chatty'"),
        (("--last", "-1"), 2, "--last must be a whole number of at least 1, got -1"),
        (("--csv", "-", "--json"), 2, "--csv - and --json both print on standard output"),
        (("--parquet", "-"), 2, "--parquet needs the name of a file"),
        (("--csv", "new", "--parquet", "./new"), 2, "--csv and --parquet both name new: name two files"),
        (("--csv", "empty"), 8, "empty: the table can't be written there"),
        (("--csv", "no/table.csv"), 8, "no/table.csv: the table can't be written there: No such file or directory"),
    ],
)
def test_what_cannot_be_listed_gets_one_sentence(
    words: tuple[str, ...],
    code: int,
    expected: str,
    results: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Captured,
) -> None:
    """And its exit code."""
    monkeypatch.chdir(results.parent)
    Path("empty").mkdir()
    assert main(["history", *words]) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"autotune: {expected}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--since", "soon"), "expected a date such as 2026-01-31 or a time such as 2026-01-31T12:00, got 'soon'"),
        (("--tag", "runner"), "expected KEY=VALUE on one line, got 'runner'"),
        (("--tag", "=x"), "expected KEY=VALUE"),
        (("--tag", "a=b\nc"), "expected KEY=VALUE"),
        (("--last", "few"), "expected a whole number, got 'few'"),
    ],
)
def test_a_word_that_is_no_value_is_a_usage_error(words: tuple[str, ...], expected: str, capfd: Captured) -> None:
    """As argparse says it."""
    with pytest.raises(SystemExit, match="2"):
        main(["history", *words])
    assert expected in capfd.readouterr().err


def test_a_list_keeps_to_its_terminal(results: Path, tmp_path: Path) -> None:
    """In a process whose standard output is a terminal of 60 columns; the usual folder is called results."""
    shop = Shop(tmp_path)
    main_end, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    answer = shop.run("history", stdout=terminal)
    os.close(terminal)
    text = os.read(main_end, 65536).decode()
    os.close(main_end)
    assert answer.code == 0, answer.err
    assert max(map(len, text.splitlines())) <= 60
    assert "no room for" in text
