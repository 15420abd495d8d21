"""What the guides tell a reader to type is run, in order, where it can do no harm; their links and tables hold."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.cli import run
from autotune.cli.arguments import build_parser, parse
from autotune.cli.requirements import SPEED_HEAD, speed_row
from autotune.errors import BudgetError
from autotune.history.store import read_tree
from autotune.loader import load_result
from autotune.options import DEFAULT_BUDGET_S, Options
from autotune.store import cache
from tests.guides import tables
from tests.guides.guide import GUIDES, ROOT, Block, Command, anchors, blocks, commands, links, spoken_of, table
from tests.guides.tables import between

DOCS = ROOT / "docs"
TIME_LIMIT_S = 120
PREPARING_BUDGETS_S = (10.0, 24.0, 60.0)
"""The next one where the host is so busy, or so slow, that nothing could be run in the one before."""

by_name = pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)


@pytest.fixture(scope="session")
def tuned(tmp_path_factory: pytest.TempPathFactory, compiled: None) -> Path:
    """A cache that holds what the guides begin with: `autotune bitnet-b1.58-2B-4T` of this host.

    It is measured and run here, in less time than a user would give it; the entry says that it had the usual time, so
    that the command answers from it as it does when a reader types it again.
    """
    folder = tmp_path_factory.mktemp("tuned")
    model, result = "bitnet-b1.58-2B-4T", None
    for budget_s in PREPARING_BUDGETS_S:
        words = [sys.executable, "-m", "autotune", model, "--budget", str(budget_s), "--quiet"]
        done = subprocess.run(words, env=_environment(folder, folder), capture_output=True, text=True)
        assert done.returncode in (0, run.EXIT_CODES[BudgetError]), done.stderr
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AUTOTUNE_CACHE", str(folder / "cache"))
            result = load_result(model)
            if result is not None and result.confirmed:
                cache.write(result, Options().request(DEFAULT_BUDGET_S))
                return folder / "cache"
    pytest.fail(f"expected a result that was run, got {result and result.warnings} in {PREPARING_BUDGETS_S[-1]:g} s")


@pytest.fixture
def sandbox(tmp_path: Path, tuned: Path) -> Path:
    """A folder to work in, as in a clone of the repository, with programs, home and cache of its own."""
    shutil.copytree(tuned, tmp_path / "cache")
    for name, words in {"autotune": "-m autotune", "python": "", "python3": ""}.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {words} "$@"\n')
        program.chmod(0o755)
    clone = tmp_path / "clone"
    clone.mkdir()
    shutil.copytree(ROOT / "results", clone / "results")
    for name in ("autotune", "tests", "docs"):
        (clone / name).symlink_to(ROOT / name)
    return tmp_path


def _environment(folder: Path, cache_in: Path) -> dict[str, str]:
    """What a command of a guide finds: nothing of the user's."""
    kept = ("TERNARY_KERNELS_CACHE", "COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG", "LD_LIBRARY_PATH", "LANG")
    return {
        **{name: os.environ[name] for name in kept if name in os.environ},
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "XDG_CACHE_HOME": str(folder / "cache-home"),
        "AUTOTUNE_CACHE": str(cache_in / "cache"),
    }


def _run(words: list[str], sandbox: Path, expected: int, where: str) -> None:
    done = subprocess.run(
        words,
        cwd=sandbox / "clone",
        env=_environment(sandbox, sandbox),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=TIME_LIMIT_S,
    )
    said = f"{where}: {words[-1]}\nexpected exit code {expected}, got {done.returncode}\n{done.stderr}"
    assert done.returncode == expected, said
    assert "Traceback" not in done.stderr, said


@by_name
def test_everything_that_a_guide_says_to_type_does_what_it_should(guide: Path, sandbox: Path) -> None:
    """Commands and Python, in order, in one folder; each ends with 0 or the code that stands above it."""
    steps: list[Block | Command] = [*commands(guide), *(block for block in blocks(guide) if block.language == "python")]
    for step in sorted(steps, key=lambda step: step.line):
        where = f"{guide.name}:{step.line}"
        block = step.block if isinstance(step, Command) else step
        if block.not_run is None:
            language = ["bash", "-o", "pipefail", "-c"] if isinstance(step, Command) else ["python", "-c"]
            text = step.text if isinstance(step, Command) else step.code
            _run([*language, text], sandbox, block.exit_code, where)


@by_name
def test_what_a_guide_shows_of_a_recorded_result_is_what_is_printed(
    guide: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Line by line, but for what it leaves out with three dots: nothing in it depends on the host."""
    monkeypatch.chdir(ROOT)
    before: Block | None = None
    for block in blocks(guide):
        if block.language == "console" and before is not None and before.code.startswith("autotune explain results/"):
            assert run.main(shlex.split(before.code)[1:]) == 0
            printed = capfd.readouterr().err.splitlines()
            missing = [line for line in block.code.splitlines() if line not in (*printed, "...")]
            assert not missing, f"{guide.name}:{block.line}: not printed by now: {missing[0]}"
        before = block


@by_name
def test_what_a_guide_does_not_have_run_says_why_and_can_be_typed(guide: Path) -> None:
    """Our own commands among it are taken by the parser."""
    for block in blocks(guide):
        assert block.not_run != "", f"{guide.name}:{block.line}: expected the reason why this is not run"
        assert block.language in ("sh", "python", "console", "text", "json", "toml", "yaml", "html", "rust", ""), (
            f"{guide.name}:{block.line}: {block.language}"
        )
    for command in commands(guide):
        for words in command.autotune():
            assert _is_taken(words), f"{guide.name}:{command.line}: the parser doesn't take `{command.text}`"


@by_name
def test_options_that_a_guide_speaks_of_exist(guide: Path) -> None:
    """Every option in backticks is one of the command's that it is shown with."""
    _, tree = build_parser()
    for spoken in spoken_of(guide):
        words = re.sub(r"[\[\]]", " ", spoken).split()[1:]
        parser = tree.choices.get(words[0], tree.choices["tune"])
        known = set(parser._option_string_actions) | {"--version", "--help"}
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for each in action.choices.values():
                    known |= set(each._option_string_actions)
        for word in words:
            option = word.partition("=")[0]
            assert not option.startswith("--") or option in known, f"{guide.name}: `{spoken}` has no {option}"


@by_name
def test_links_lead_somewhere(guide: Path) -> None:
    """To a file of the repository, and to a heading of it where an anchor is named."""
    for path, anchor in links(guide):
        target = (guide.parent / path) if path else guide
        assert target.exists(), f"{guide.name}: {path} doesn't exist"
        if anchor:
            assert anchor in anchors(target), f"{guide.name}: {path} has no heading for #{anchor}"


def test_every_guide_can_be_reached_from_the_first_page() -> None:
    """From README.md, through links."""
    reached, waiting = set[Path](), [GUIDES[0]]
    while waiting:
        guide = waiting.pop()
        if guide not in reached:
            reached.add(guide)
            targets = ((guide.parent / path).resolve() for path, _ in links(guide) if path.endswith(".md"))
            waiting += [target for target in targets if target.is_file()]
    assert {guide.name for guide in GUIDES} <= {guide.name for guide in reached}


def test_exit_codes_are_those_of_the_help() -> None:
    """docs/troubleshooting.md has each code with the meaning that `autotune --help` prints, and no other."""
    parser, _ = build_parser()
    told = {int(code): meaning for code, meaning, *_ in table(DOCS / "troubleshooting.md", "code")}
    assert told == _printed_codes(parser.epilog or "")
    assert set(told) == {0, run.EXIT_SYSTEM, run.EXIT_INTERRUPTED, *run.EXIT_CODES.values()}


def test_the_requirements_are_those_that_the_command_prints() -> None:
    """Word for word; `python -m tests.guides.tables` writes them anew."""
    assert between(tables.HARDWARE.read_text(), "memory").strip("\n") == tables.printed().strip("\n")


def test_speeds_are_those_of_records() -> None:
    """Each row is of a record in results/, and each model that was run and recorded there has one."""
    found = [stored.record for stored in read_tree(ROOT / "results")]
    rows = {speed_row(record): record.model_name for record in found if record.measured is not None}
    shown = [row for row in between(tables.HARDWARE.read_text(), "speeds").splitlines() if row not in (*SPEED_HEAD, "")]
    assert shown
    assert set(shown) <= set(rows)
    assert {rows[row] for row in shown} == set(rows.values())


def _is_taken(words: list[str]) -> bool:
    """Whether the parser takes a command line; ``--help`` and ``--version`` end it, with 0."""
    try:
        parse(words)
    except SystemExit as ending:
        return ending.code == 0
    return True


def _printed_codes(epilog: str) -> dict[int, str]:
    """The codes of a help text that prints them in two columns, with their meaning."""
    lines = [line for line in epilog.splitlines() if line.startswith(" ")]
    # Numbers have up to three digits and are aligned on the right.
    middle = next(match.end(1) for line in lines if (match := re.match(r" +\d+  .*? {2,}(\d+)  ", line))) - 3
    codes: dict[int, str] = {}
    for column in ([line[:middle] for line in lines], [line[middle:] for line in lines]):
        code = 0
        for cell in filter(str.strip, column):
            if numbered := re.match(r" *(\d+)  (.*)", cell):
                code, text = int(numbered[1]), numbered[2].strip()
                codes[code] = text
            else:
                codes[code] += f" {cell.strip()}"
    return codes
