"""Which commit and which CI job a record is of."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from autotune.history.surroundings import Checkout, SurroundingsWarning, find_checkout, find_job
from autotune.records.history import Job

HERE = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "GITHUB_", "CI_"))}


def git(*words: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main")
    return subprocess.run(["git", *identity, *words], env=HERE, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The working directory is a checkout with one commit, which is returned."""
    monkeypatch.chdir(tmp_path)
    Path("code.py").write_text("1\n")
    git("init")
    git("add", "code.py")
    git("commit", "-m", "start")
    return git("rev-parse", "HEAD").strip()


def test_a_checkout_has_a_commit_and_a_branch(checkout: str) -> None:
    """Files that git doesn't know, as new records are, don't make it dirty; a change does."""
    Path("record.json").write_text("{}")
    assert find_checkout(HERE) == Checkout(checkout, "main", dirty=False)
    Path("code.py").write_text("2\n")
    assert find_checkout(HERE) == Checkout(checkout, "main", dirty=True)


def test_a_folder_inside_a_checkout_belongs_to_it(checkout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the command runs."""
    Path("deep").mkdir()
    monkeypatch.chdir("deep")
    assert find_checkout(HERE).commit == checkout


def test_before_the_first_commit_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But a branch."""
    monkeypatch.chdir(tmp_path)
    git("init")
    assert find_checkout(HERE) == Checkout(None, "main", dirty=False)


def test_a_ci_job_names_the_branch_of_the_commit_that_it_checked_out(checkout: str) -> None:
    """Of a pull request the branch that is to be merged; and of another commit than the job's none."""
    git("checkout", "--detach")
    github = {"GITHUB_SHA": checkout, "GITHUB_REF_NAME": "7/merge", "GITHUB_HEAD_REF": "faster"}
    assert find_checkout(HERE).branch is None
    assert find_checkout({**HERE, **github}).branch == "faster"
    assert find_checkout({**HERE, **github, "GITHUB_HEAD_REF": ""}).branch == "7/merge"
    assert find_checkout({**HERE, **github, "GITHUB_SHA": "0" * 40}).branch is None
    assert find_checkout({**HERE, "CI_COMMIT_SHA": checkout, "CI_COMMIT_REF_NAME": "main"}).branch == "main"


def test_outside_of_a_checkout_and_without_git_all_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a warning: there is nothing to name."""
    monkeypatch.chdir(tmp_path)
    assert find_checkout({**HERE, "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}) == Checkout()
    assert find_checkout({"PATH": str(tmp_path)}) == Checkout()


def test_a_checkout_that_git_cannot_read_is_warned_of(checkout: str) -> None:
    """As that of another user is, which is usual in containers."""
    Path(".git/config").write_text("[core\n")
    with pytest.warns(SurroundingsWarning, match="git could not say which: .*config"):
        assert find_checkout(HERE) == Checkout()


def test_a_git_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    """A stand-in that sleeps for a minute."""
    slow = tmp_path / "git"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    with pytest.warns(SurroundingsWarning, match="timed out"):
        assert find_checkout({"PATH": f"{tmp_path}:{os.environ['PATH']}"}, timeout_s=0.05) == Checkout()


def test_a_job_of_github_actions_has_its_page() -> None:
    """That of the attempt."""
    variables = {
        "GITHUB_ACTIONS": "true",
        "GITHUB_WORKFLOW": "Speed",
        "GITHUB_JOB": "tune",
        "GITHUB_RUN_ID": "1658821493",
        "GITHUB_RUN_ATTEMPT": "3",
        "GITHUB_SERVER_URL": "https://github.com",
        "GITHUB_REPOSITORY": "octocat/model",
    }
    url = "https://github.com/octocat/model/actions/runs/1658821493"
    assert find_job(variables) == Job(name="Speed / tune", run_id="1658821493", attempt=3, url=f"{url}/attempts/3")
    del variables["GITHUB_RUN_ATTEMPT"]
    assert find_job(variables) == Job(name="Speed / tune", run_id="1658821493", attempt=None, url=url)
    assert find_job({"GITHUB_ACTIONS": "true"}) == Job(name=None, run_id=None, attempt=None, url=None)


def test_a_job_of_gitlab_has_its_page() -> None:
    """GitLab counts no attempts: a job that is run again is another job."""
    variables = {"GITLAB_CI": "true", "CI_JOB_NAME": "tune", "CI_JOB_ID": "7", "CI_JOB_URL": "https://gitlab.com/j/7"}
    assert find_job(variables) == Job(name="tune", run_id="7", attempt=None, url="https://gitlab.com/j/7")


def test_elsewhere_there_is_no_job() -> None:
    """On a developer's machine for example."""
    assert find_job(HERE | {"GITHUB_ACTIONS": "", "GITLAB_CI": ""}) is None


def test_a_variable_that_is_no_text_does_not_keep_a_record_from_being_written() -> None:
    """Its bytes are told as replacement characters: JSON has no others."""
    job = find_job({"GITLAB_CI": "true", "CI_JOB_NAME": os.fsdecode(b"tune \xff")})
    assert job is not None
    assert job.name == "tune \N{REPLACEMENT CHARACTER}"
