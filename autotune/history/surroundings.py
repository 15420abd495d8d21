"""What a command ran for: the git checkout and the CI job around it."""

from __future__ import annotations

import os
import subprocess
import warnings
from collections.abc import Mapping
from typing import NamedTuple

from autotune.records.history import Job

GIT_TIMEOUT_S = 10.0
"""A status of a large checkout on a slow disk takes seconds."""

_GIT = ("git", "-c", "core.fsmonitor=false", "status", "--porcelain=v2", "--branch", "--untracked-files=no")
_OUTSIDE = "not a git repository"


class SurroundingsWarning(UserWarning):
    """Warns that a record won't say which commit it is of, though there is a checkout."""


class Checkout(NamedTuple):
    """A git checkout; all None outside of one.

    Attributes:
        commit: All hex digits of the commit; None before the first one as well.
        branch: None where no branch is checked out and no CI job says which one it is for.
        dirty: Whether tracked files differ from the commit.
    """

    commit: str | None = None
    branch: str | None = None
    dirty: bool | None = None


def find_checkout(environment: Mapping[str, str] | None = None, timeout_s: float = GIT_TIMEOUT_S) -> Checkout:
    """The git checkout that the working directory lies in; all unknown outside of one, and where there is no git.

    CI services check a commit out, not a branch: then theirs is named, if the commit is the one they started the job
    for.

    Args:
        environment: Environment variables; None: the process'.
        timeout_s: How long git may take.
    """
    environment = os.environ if environment is None else environment
    # Git is asked in English, to tell "there is no checkout" from "it can't be read", and not to touch the index.
    asked = {**environment, "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            _GIT, env=asked, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False
        )
    except FileNotFoundError:
        return Checkout()
    except (OSError, subprocess.TimeoutExpired) as error:
        return _unreadable(str(error))
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        return Checkout() if _OUTSIDE in said else _unreadable(said.partition("\n")[0])
    lines = done.stdout.decode(errors="replace").splitlines()
    heads = dict(line[2:].split(" ", 1) for line in lines if line.startswith("# branch."))
    commit = heads.get("branch.oid", "(initial)")
    branch = heads.get("branch.head", "(detached)")
    return Checkout(
        commit=None if commit == "(initial)" else commit,
        branch=_branch_of_job(_texts(environment), commit) if branch == "(detached)" else branch,
        dirty=any(not line.startswith("#") for line in lines),
    )


def find_job(environment: Mapping[str, str] | None = None) -> Job | None:
    """The CI job that this process is part of: of GitHub Actions (and what is like it) or GitLab; else None.

    Source: docs.github.com "Variables reference", docs.gitlab.com "Predefined CI/CD variables reference".

    Args:
        environment: Environment variables; None: the process'.
    """
    found = _texts(os.environ if environment is None else environment)
    if found.get("GITHUB_ACTIONS") == "true":
        names = [found[name] for name in ("GITHUB_WORKFLOW", "GITHUB_JOB") if found.get(name)]
        attempt = found.get("GITHUB_RUN_ATTEMPT", "")
        base = [found.get(name) for name in ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY", "GITHUB_RUN_ID")]
        url = "{}/{}/actions/runs/{}".format(*base) if all(base) else None
        return Job(
            name=" / ".join(names) or None,
            run_id=found.get("GITHUB_RUN_ID"),
            attempt=int(attempt) if attempt.isdecimal() else None,
            url=f"{url}/attempts/{attempt}" if url and attempt.isdecimal() else url,
        )
    if found.get("GITLAB_CI"):
        return Job(
            name=found.get("CI_JOB_NAME"), run_id=found.get("CI_JOB_ID"), attempt=None, url=found.get("CI_JOB_URL")
        )
    return None


def _texts(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables as text; bytes that are none would keep a record from being written, after minutes of tuning."""
    return {name: os.fsencode(value).decode(errors="replace") for name, value in environment.items()}


def _branch_of_job(environment: Mapping[str, str], commit: str) -> str | None:
    """The branch that a CI job is for, if the checkout is what the job was started for."""
    if commit == environment.get("GITHUB_SHA"):
        # Of a pull request the head's branch; the other one is then called 7/merge.
        return environment.get("GITHUB_HEAD_REF") or environment.get("GITHUB_REF_NAME") or None
    if commit == environment.get("CI_COMMIT_SHA"):
        return environment.get("CI_COMMIT_REF_NAME") or None
    return None


def _unreadable(reason: str) -> Checkout:
    warnings.warn(
        f"the record won't name a commit, git could not say which: {reason}", SurroundingsWarning, stacklevel=3
    )
    return Checkout()
