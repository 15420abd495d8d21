"""A tune whose configuration was run, and the database that keeps the search, as a user meets them."""

from __future__ import annotations

import contextlib
import re
import shutil
import sqlite3
from pathlib import Path

import pytest

from autotune.records import part_of
from tests.cli.shop import Answer, Shop, assert_one_sentence

# The main job


@pytest.fixture
def run_shop(confirmed: tuple[Path, Answer], tmp_path: Path) -> Shop:
    """The small model and a cache with a result that was run, to change at will."""
    shutil.copytree(confirmed[0], tmp_path, dirs_exist_ok=True)
    return Shop(tmp_path)


def test_a_tune_runs_what_it_predicts(confirmed: tuple[Path, Answer]) -> None:
    """The document says what was run and what was measured; progress tells of both halves of the work."""
    _, answer = confirmed
    assert answer.code == 0, answer.err
    found = answer.result.confirmation
    assert found is not None
    assert answer.document["request"]["confirm"] is answer.result.confirmed is True
    assert found.workload == answer.result.workload
    assert found.trials[0].origin == "predicted best"
    parts = {run.part for run in found.runs}
    for trial in found.trials:
        if trial.state == "complete":
            assert {part_of(trial.configuration, found.workload, phase) for phase in ("decode", "prefill")} <= parts
    told = [line.partition(":")[0] for line in answer.err.splitlines()]
    assert list(dict.fromkeys(told)) == ["timing", "running"]


def test_the_answer_of_a_confirmed_tune_is_kept(run_shop: Shop, confirmed: tuple[Path, Answer]) -> None:
    """Byte for byte, for the same wish, for less time and for one that is content with predictions."""
    before = run_shop.state()
    for options in ("--budget 12", "--budget 4", "--budget 3 --no-confirm", "--budget 3 --quick"):
        assert run_shop.run("small.json", *options.split(), "--json") == Answer(0, confirmed[1].out, ""), options
    assert run_shop.state() == before


def test_the_summary_has_what_was_run(run_shop: Shop, confirmed: tuple[Path, Answer]) -> None:
    """The measured figures below the predicted ones, and what the runs told."""
    answer = run_shop.run("show", "small.json")
    assert answer.code == 0, answer.err
    assert len(re.findall(r"^  measured ", answer.err, re.MULTILINE)) == 2
    for label in ("run", "corrected"):
        assert re.search(rf"^{label} ", answer.err, re.MULTILINE), label
    explained = run_shop.run("explain", "small.json")
    assert confirmed[1].result.decision.reasons[0] in " ".join(explained.err.split())
    assert re.search(r"^corrected ", explained.err, re.MULTILINE)


def test_a_prediction_does_not_answer_who_wants_it_run(thorough_shop: Shop) -> None:
    """What was timed is not timed again."""
    saved = thorough_shop.run("show", "small.json", "--json").result
    answer = thorough_shop.run("small.json", "--budget", "4", "--json")
    assert answer.code == 0, answer.err
    assert not re.search(r"^timing", answer.err, re.MULTILINE)
    assert answer.result.campaign == saved.campaign
    assert answer.result.confirmation is not None


def test_retune_keeps_what_was_run(run_shop: Shop, confirmed: tuple[Path, Answer]) -> None:
    """For the same wish the choice stays; for another one the runs still correct the predictions."""
    result = confirmed[1].result
    assert result.confirmation is not None
    again = run_shop.run("retune", "small.json", "--json")
    assert again.result.device_config == result.device_config
    assert again.result.confirmation == result.confirmation
    other = run_shop.run("retune", "small.json", "--workload", "chat", "--json")
    assert not other.result.confirmed
    assert other.result.confirmation is not None
    assert other.result.confirmation.runs == result.confirmation.runs


# Where the search is kept


def studies_in(shop: Shop) -> tuple[int, int]:
    """How many studies and trials a database holds."""
    with contextlib.closing(sqlite3.connect(shop.folder / "study.db")) as database:
        counts = [database.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0] for table in ("studies", "trials")]
    return counts[0], counts[1]


def test_a_search_is_kept_and_a_later_one_starts_from_it(thorough_shop: Shop, thorough: tuple[Path, bytes]) -> None:
    """In tables that Optuna's dashboard reads; from the same measurements, no sample of it is lost.

    New measurements are of another time, and so is what is run then.
    """
    options = ("--budget", "4", "--storage", "sqlite:///study.db", "--json")
    first = thorough_shop.run("small.json", *options)
    assert first.code == 0, first.err
    found = first.result.confirmation
    assert found is not None
    assert found.storage == "sqlite:///study.db"
    studies, trials = studies_in(thorough_shop)
    assert studies == 1
    assert trials >= len(found.trials) > 0
    thorough_shop.entries()[0].write_bytes(thorough[1])
    again = thorough_shop.run("small.json", *options)
    assert again.code == 0, again.err
    later = again.result.confirmation
    assert later is not None
    held = {run.part: set(run.samples_s) for run in later.runs}
    assert all(set(run.samples_s) <= held[run.part] for run in found.runs)
    assert studies_in(thorough_shop)[0] == 1
    assert thorough_shop.run("small.json", *options, "--force").code == 0
    assert studies_in(thorough_shop)[0] == 2


BAD_STORAGES: dict[str, tuple[str, int, str]] = {
    "a path": ("study.db", 2, "--storage must be the URL of a database"),
    "nothing": ("", 2, "--storage must be the URL of a database"),
    "no such kind": ("bogus://me:secret@host/database", 2, "bogus://me:***@host/database"),
    "no driver": ("oracle://me:secret@host/database", 2, "oracle://me:***@host/database"),
    "no port": ("postgresql://me:secret@host:port/database", 2, "--storage must be the URL of a database"),
    "no folder": ("sqlite:///missing/study.db", 8, "sqlite:///missing/study.db can't be used"),
    "read-only": ("sqlite:////proc/study.db", 8, "sqlite:////proc/study.db can't be used"),
}


@pytest.mark.parametrize("name", BAD_STORAGES)
def test_a_database_that_cannot_be_used_gets_one_sentence(name: str, empty: Shop) -> None:
    """Before anything is timed, and without the password; nothing is saved."""
    url, code, expected = BAD_STORAGES[name]
    answer = empty.run("small.json", "--storage", url)
    assert_one_sentence(answer, code)
    assert expected in answer.err
    assert "secret" not in answer.err
    assert empty.entries() == []


def test_a_file_that_is_no_database_is_told_and_stays_as_it_is(empty: Shop) -> None:
    """It may be something that its owner wants to keep."""
    content = "this is no database, but a text that is longer than the header of one. " * 20
    path = empty.write("study.db", content)
    answer = empty.run("small.json", "--storage", "sqlite:///study.db")
    assert_one_sentence(answer, 8)
    assert "sqlite:///study.db can't be used: file is not a database" in answer.err
    assert path.read_text() == content
