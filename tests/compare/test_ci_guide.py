"""The workflow in docs/ci.md: what can be known of it without GitHub."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from autotune.cli.arguments import parse
from tests.guides.guide import ROOT, blocks

(WORKFLOW,) = (yaml.safe_load(block.code) for block in blocks(ROOT / "docs" / "ci.md") if block.language == "yaml")
JOBS: dict[str, Any] = WORKFLOW["jobs"]
SCRIPTS = [
    re.sub(r"\$\{\{.*?\}\}", "0a1b2c3", step["run"]) for job in JOBS.values() for step in job["steps"] if "run" in step
]


def commands(script: str) -> list[list[str]]:
    """The words after ``autotune`` of each command that is it."""
    found = []
    for line in script.replace("\\\n", " ").splitlines():
        for command in re.split(r"&&|\|\||;|>>?", line):
            words = shlex.split(command) if "'" not in command or command.count("'") % 2 == 0 else []
            if words and Path(words[0]).name == "autotune":
                found.append(words[1:])
    return found


def test_it_runs_for_pull_requests_and_on_the_main_branch() -> None:
    """A job for each, with no more permissions than it needs; YAML 1.1 reads the key ``on`` as true."""
    assert set(WORKFLOW[True]) == {"pull_request", "push"}
    assert {name: job["permissions"]["contents"] for name, job in JOBS.items()} == {
        "compare": "read",
        "record": "write",
    }
    for job in JOBS.values():
        assert {"if", "runs-on", "timeout-minutes", "steps"} <= set(job)
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step)
            assert "run" in step or re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])


def test_a_record_does_not_start_the_workflow_again() -> None:
    """It is committed to the branch that starts it."""
    assert WORKFLOW[True]["push"]["paths-ignore"] == ["results/**"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_bash(script: str) -> None:
    """As far as bash can tell without running them."""
    assert subprocess.run(["bash", "-n", "-c", script], capture_output=True).stderr == b""


def test_a_push_that_is_refused_fails_the_job(tmp_path: Path) -> None:
    """And one that is taken doesn't; git is a stand-in that refuses so many pushes, in GitHub's own shell."""
    (script,) = (script for script in SCRIPTS if "git push" in script)
    git, count = tmp_path / "git", tmp_path / "count"
    git.write_text('#!/bin/sh\n[ "$1" = push ] || exit 0\necho >> "$COUNT"\n[ $(wc -l < "$COUNT") -gt "$REFUSED" ]\n')
    git.chmod(0o755)
    for refused, code in ((0, 0), (2, 0), (3, 1)):
        count.unlink(missing_ok=True)
        words = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "COUNT": str(count), "REFUSED": str(refused)}
        assert subprocess.run(["bash", "-e", "-c", script], env=words, capture_output=True).returncode == code


def test_base_is_what_the_merge_is_made_with() -> None:
    """The checked out merge's first parent, so two commits are fetched; and code of a fork finds no token."""
    (checkout,) = (step for step in JOBS["compare"]["steps"] if step.get("uses", "").startswith("actions/checkout@"))
    assert checkout["with"] == {"fetch-depth": 2, "persist-credentials": False}
    assert any("git worktree add ../base HEAD^1" in script for script in SCRIPTS)


def test_every_command_of_ours_is_taken() -> None:
    """By the parser; all steps of the guide are there."""
    taken = [parse(words) for script in SCRIPTS for words in commands(script)]
    names = [words[0] for script in SCRIPTS for words in commands(script)]
    assert names == ["host", "tune", "compare", "record", "history"]
    assert all(callable(args.run) for args in taken)


def test_what_is_compared_was_tuned() -> None:
    """The same model and workload, with the version that is BASE."""
    tune, compare = (words for script in SCRIPTS for words in commands(script) if words[0] in ("tune", "compare"))
    tuned, compared = parse(tune), parse(compare)
    assert (tuned.model, tuned.workload) == (compared.model, compared.workload)
    assert f"{compared.base}/bin/autotune tune" in "\n".join(SCRIPTS)
    assert compared.markdown


def test_the_class_of_hardware_is_where_the_script_looks() -> None:
    """In what `autotune host --json` prints, and it is part of the cache's key."""
    (script,) = (script for script in SCRIPTS if "class=" in script)
    from autotune.host.detect import detect

    host = detect()
    assert '["host"]["fingerprint"]["hardware_class"]' in script
    assert host.fingerprint.hardware_class
    (cache,) = (step for step in JOBS["compare"]["steps"] if step.get("uses", "").startswith("actions/cache@"))
    assert "steps.host.outputs.class" in cache["with"]["key"]
    assert cache["with"]["path"] == WORKFLOW["env"]["AUTOTUNE_CACHE"]
