"""A folder of records: nothing is lost, nothing conflicts, and what is no record is left out by name."""

from __future__ import annotations

import math
import os
import re
import subprocess
import warnings
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from autotune.errors import ResultNotFoundError, StoreError
from autotune.history import store
from autotune.history.store import RecordWarning
from autotune.records import median
from autotune.records.history import Job
from autotune.store import cache
from autotune.store.seal import BadEntry, seal
from tests.builders import build_confirmed_result
from tests.history.records import build_record, fill

ROOT = Path(__file__).parents[2]
VERSION_1 = Path(__file__).with_name("version-1.json")
NAME = r"20260102T030405Z-0a1b2c3-server-[0-9a-f]{8}\.json"


def names_in(folder: Path) -> list[str]:
    """What lies in a folder, hidden or not."""
    return [path.name for path in folder.iterdir()]


# Writing


def test_a_record_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    """Every field, below a folder for its model, under a name that says when, of which commit and for what."""
    record = build_record()
    (path,) = fill(tmp_path / "new" / "results", record)
    assert re.fullmatch(NAME, Path(path).name)
    assert Path(path).parent == tmp_path / "new" / "results" / "synthetic-model"
    assert store.read(path) == record
    assert names_in(Path(path).parent) == [Path(path).name]


def test_names_are_in_utc_and_say_where_there_is_no_commit(tmp_path: Path) -> None:
    """So that they sort by time wherever they were made."""
    (path,) = fill(tmp_path, build_record(recorded_at="2026-01-02T03:04:05+05:30", commit=None))
    assert Path(path).name.startswith("20260101T213405Z-nogit-server-")


@given(st.text())
def test_any_name_of_a_model_makes_a_folder_inside_the_results(name: str) -> None:
    """One that all file systems take and that isn't hidden."""
    assert re.fullmatch(r"[A-Za-z0-9_-]([A-Za-z0-9._-]{0,79})", store.slug(name))


@pytest.mark.parametrize(
    "pool", [partial(ThreadPoolExecutor, 50), partial(ProcessPoolExecutor, 2, get_context("spawn"))]
)
def test_writers_at_once_lose_nothing(pool: Callable[[], Executor], tmp_path: Path) -> None:
    """Fifty records of the same second, commit and workload, from threads or processes, all are there."""
    records = [build_record(tags={"number": str(number)}) for number in range(50)]
    with pool() as writers:
        paths = list(writers.map(store.write, [tmp_path] * 50, records))
    assert len(set(paths)) == 50
    assert {one.path: one.record.tags["number"] for one in store.read_tree(tmp_path)} == {
        path: str(number) for number, path in enumerate(paths)
    }


def test_a_name_that_is_taken_is_not_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one that is written nor one that another job is just writing."""
    draws = iter(["00000000", "00000000", "11111111", "22222222"])
    monkeypatch.setattr("secrets.token_hex", lambda _: next(draws))
    (first,) = fill(tmp_path, build_record())
    being_written = Path(first.replace("00000000", "11111111"))
    (being_written.parent / f".{being_written.name}.writing").touch()
    (second,) = fill(tmp_path, build_record(tags={}))
    assert "22222222" in second
    assert store.read(first).tags == {"runner": "ci-1"}
    assert not being_written.exists()


def test_a_folder_where_all_names_are_taken_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a sentence, not with an endless loop."""
    monkeypatch.setattr("secrets.token_hex", lambda _: "00000000")
    fill(tmp_path, build_record())
    with pytest.raises(StoreError, match="expected a free name, got 8 that are taken"):
        fill(tmp_path, build_record())


def test_what_cannot_be_read_back_is_not_written(tmp_path: Path) -> None:
    """An infinity is no JSON, and a time without a zone is none, nor one that no calendar has in UTC."""
    times = "2026-01-02T03:04:05", "9999-12-31T23:59:59-12:00"
    for broken in (build_record(tune_time_s=math.inf), *(build_record(recorded_at=time) for time in times)):
        with pytest.raises(StoreError, match="the record was not written, it could not be read back"):
            fill(tmp_path, broken)
    assert not names_in(tmp_path)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No half record, and no name that is taken."""
    (first,) = fill(tmp_path, build_record())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=f"{tmp_path}: records can't be written there: No space left on device"):
        fill(tmp_path, build_record())
    assert names_in(tmp_path / "synthetic-model") == [Path(first).name]


def test_git_merges_branches_that_both_added_records(tmp_path: Path) -> None:
    """Two jobs of the same second, commit, model and workload: the merge has both and asks nobody."""

    def git(*words: str) -> None:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main")
        done = subprocess.run(["git", *identity, *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr + done.stdout

    git("init")
    git("commit", "--allow-empty", "-m", "start")
    for branch in ("one", "two"):
        git("checkout", "-b", branch, "main")
        fill(tmp_path / "results", build_record(tags={"branch": branch}))
        git("add", "results")
        git("commit", "-m", branch)
    git("merge", "--no-edit", "one")
    assert {one.record.tags["branch"] for one in store.read_tree(tmp_path / "results")} == {"one", "two"}


# Whether it can be written


def test_a_folder_that_can_be_written_to_is_left_as_it_was(tmp_path: Path) -> None:
    """Also one that isn't there yet: it is made when there is something to put in it."""
    store.check_writable(tmp_path)
    store.check_writable(tmp_path / "not" / "yet")
    assert not names_in(tmp_path)


@pytest.mark.parametrize("results", ["file", "file/below", os.devnull, "/proc/1/results"])
def test_a_folder_that_cannot_be_written_to_is_found_out_before(
    results: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file, a device, and a file system that takes none, whoever asks."""
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(StoreError, match=f"^{results}: records can't be written there: "):
        store.check_writable(results)
    with pytest.raises(StoreError, match=f"^{results}: records can't be written there: "):
        store.write(results, build_record())


# Reading one


RAW = store.encode(build_record())


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "is cut short after 0 bytes"),
        (RAW[:-1], "is cut short"),
        (RAW[:20], "is cut short"),
        (RAW.replace(b"ci-1", b"ci-2"), "does not match its checksum"),
        (RAW + b"}\n", "does not match its checksum"),
        (b'{"tokens_per_s": 12}\n', "does not begin as a record does"),
        (b"\x00\xff" * 9, "does not begin as a record does"),
        (
            seal(store.FORMAT, 2, b'"record":{}}\n'),
            "has schema version 2, written by a newer autotune; this one reads 1",
        ),
        (seal(store.FORMAT, 1, b'"other":{}}\n'), 'has no "record": where it was expected'),
        (seal(store.FORMAT, 1, b'"record":{}}\n'), "missing required field"),
        (seal(store.FORMAT, 1, RAW[RAW.index(b'"record"') :].replace(b'"tags"', b'"gats"')), "unknown field `gats`"),
        (
            seal(store.FORMAT, 1, RAW[RAW.index(b'"record"') :].replace(b"2026-01-02T", b"yesterday", 1)),
            "Invalid isoformat",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_record_is_refused_by_name(raw: bytes, reason: str, tmp_path: Path) -> None:
    """And with what is wrong with it."""
    path = tmp_path / "bad.json"
    path.write_bytes(raw)
    with pytest.raises(StoreError) as caught:
        store.read(path)
    assert str(caught.value).startswith(f"{path}: expected a record that `autotune record` wrote, but it ")
    assert reason in str(caught.value)


def test_a_file_that_cannot_be_opened_is_refused_by_name(tmp_path: Path) -> None:
    """Missing, or a folder."""
    with pytest.raises(StoreError, match=r"no\.json: the record can't be read: No such file"):
        store.read(tmp_path / "no.json")
    with pytest.raises(StoreError, match="is not a regular file"):
        store.read(tmp_path)


@given(st.data())
def test_a_record_with_one_changed_byte_is_never_read_as_another(data: st.DataObject) -> None:
    """Whichever byte it is."""
    at = data.draw(st.integers(0, len(RAW) - 1))
    raw = bytearray(RAW)
    raw[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BadEntry):
        store.decode(bytes(raw))


# Records that are there


def test_a_record_of_version_1_stays_readable() -> None:
    """A real one: whoever changes what records hold must still read it, or raise the version."""
    record = store.read(VERSION_1)
    assert (record.model_name, record.workload.name, record.tags) == (
        "bitnet_b1_58-large",
        "chat",
        {"runner": "two-threads"},
    )
    assert record.commit is not None
    assert record.job == Job(
        name="Speed / tune", run_id="1", attempt=1, url="https://github.com/example/model/actions/runs/1/attempts/1"
    )
    assert record.measured is not None
    assert record.measured.tpot_s == pytest.approx(median(record.decode_samples_s))
    assert record.measured.ttft_s == pytest.approx(median(record.prefill_samples_s))


def test_the_records_of_this_project_are_read() -> None:
    """Each that lies in results/, under the name that it should have."""
    for one in store.read_tree(ROOT / "results"):
        assert Path(one.path).parent.name == store.slug(one.record.model_name)
        assert re.fullmatch(
            r"\d{8}T\d{6}Z-([0-9a-f]{7}|nogit)-(chat|server|offline)-[0-9a-f]{8}\.json", Path(one.path).name
        )


# Reading a tree


def test_a_tree_is_read_whatever_else_lies_in_it(tmp_path: Path) -> None:
    """Each bad file costs one warning with its name; saved results, hidden folders and other files cost none."""
    paths = fill(tmp_path, build_record(), build_record(model_name="other"))
    _, saved = cache.document(build_confirmed_result(), {})
    for name, raw in {
        "torn.json": RAW[:100],
        "other/newer.json": seal(store.FORMAT, 9, b'"record":{}}\n'),
        "other/empty.json": b"",
        "saved.json": saved,
        "README.md": b"# Records\n",
        ".git/hidden.json": b"{}",
        ".hidden.json": b"{}",
        "other/.20260102.json.writing": RAW,
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(raw)
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "gone.json").symlink_to("nowhere")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = list(store.read_tree(f"{tmp_path}/"))
    assert [one.path for one in found] == sorted(paths)
    assert {one.category for one in caught} == {RecordWarning}
    assert sorted(str(one.message) for one in caught) == [
        f"left out what is no record: {tmp_path}/gone.json can't be read (No such file or directory)",
        f"left out what is no record: {tmp_path}/other/empty.json is cut short after 0 bytes",
        f"left out what is no record: {tmp_path}/other/newer.json has schema version 9, written by a newer autotune; "
        "this one reads 1",
        f"left out what is no record: {tmp_path}/torn.json is cut short after 100 bytes",
    ]


def test_a_folder_that_cannot_be_read_costs_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The records beside it are read."""
    fill(tmp_path, build_record(), build_record(model_name="locked"))
    scan = os.scandir

    def refused(path: str) -> object:
        if path.endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.warns(RecordWarning, match=f"left out a folder: {tmp_path}/locked can't be read"):
        found = list(store.read_tree(tmp_path))
    assert [one.record.model_name for one in found] == ["synthetic/model"]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    """With the command that makes one."""
    with pytest.raises(ResultNotFoundError, match="expected a folder with records: `autotune record MODEL --results"):
        list(store.read_tree(tmp_path / "results"))


def test_records_are_small(tmp_path: Path) -> None:
    """With as many samples as are kept at most, 15 kB."""
    samples_s = tuple(0.0123456789012345 + 1e-17 * number for number in range(200))
    record = replace(build_record(), decode_samples_s=samples_s, prefill_samples_s=samples_s)
    (path,) = fill(tmp_path, record)
    assert Path(path).stat().st_size < 15_000
