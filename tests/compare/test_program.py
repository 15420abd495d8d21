"""What can be run as a side, and what goes wrong with a side."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from autotune.compare.interleave import Wish, compare_programs
from autotune.compare.program import Program, find_program
from autotune.errors import BenchmarkError, MemoryLimitError, UsageError
from autotune.records import Configuration
from tests.compare.sides import ABOUT, CONFIGURATION, script, side

WISH = Wish("model", "server", None, None, 0.03, 60.0)
OTHER = Configuration({"cpu": 2}, "cpu", 1, 1, 8, 64)


def program(path: Path, name: str = "BASE") -> Program:
    found = find_program(name, str(path))
    assert found is not None
    return found


def test_this_interpreter_finds_what_this_process_finds() -> None:
    """As it may have been told by PYTHONPATH."""
    assert find_program("BASE", sys.executable) == Program(f"BASE ({sys.executable})", sys.executable, None)


def test_another_interpreter_finds_only_what_is_installed_for_it(tmp_path: Path) -> None:
    """PYTHONPATH would lead both sides to the same version. A link to an interpreter is another environment."""
    link = tmp_path / "python"
    link.symlink_to(sys.executable)
    assert find_program("HEAD", str(link)) == Program(f"HEAD ({link})", str(link), "")


def test_a_virtual_environment_is_named_by_its_folder(tmp_path: Path) -> None:
    """As it was made."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    assert find_program("HEAD", str(tmp_path)) == Program(f"HEAD ({tmp_path})", str(python), "")


@pytest.mark.parametrize("with_environment", [True, False])
def test_of_a_checkout_its_own_code_is_run(tmp_path: Path, with_environment: bool) -> None:
    """By the interpreter of its .venv, or by this one, which then needs to have what it depends on."""
    (tmp_path / "autotune").mkdir()
    (tmp_path / "autotune" / "__main__.py").touch()
    python = tmp_path / ".venv" / "bin" / "python"
    if with_environment:
        python.parent.mkdir(parents=True)
        python.symlink_to(sys.executable)
    found = program(tmp_path)
    assert found.python == (str(python) if with_environment else sys.executable)
    assert found.path == os.pathsep.join((str(tmp_path), str(tmp_path / "kernels")))


def test_what_is_no_program_may_be_a_record(tmp_path: Path) -> None:
    """A folder, a JSON file, a commit."""
    (tmp_path / "one.json").touch()
    for given in (tmp_path, tmp_path / "one.json", "0a1b2c3", tmp_path / "nowhere"):
        assert find_program("BASE", str(given)) is None


def test_a_variable_that_is_not_set_is_refused() -> None:
    """As a path it is the current folder, which in a checkout would be compared with itself."""
    with pytest.raises(UsageError, match=r"^BASE is empty"):
        find_program("BASE", "")


def test_a_file_that_cannot_be_executed_is_refused(tmp_path: Path) -> None:
    """It is no record either, by its name."""
    (tmp_path / "python").touch()
    with pytest.raises(UsageError, match=r"HEAD \(.*\): expected a Python executable or a record"):
        find_program("HEAD", str(tmp_path / "python"))


def test_a_slower_side_is_worse_and_the_faster_one_better(tmp_path: Path) -> None:
    """Synthetic sides in processes of their own; a field that this version doesn't know is skipped."""
    plain, slow = program(side(tmp_path / "plain")), program(side(tmp_path / "slow", seed=1, slower=1.1), "HEAD")
    found = compare_programs(plain, slow, WISH)
    assert (found.mode, found.verdict) == ("interleaved", "worse")
    (compared,) = found.compared
    assert [change.verdict for change in compared.changes] == ["worse", "same", compared.changes[2].verdict]
    assert len(found.rounds) == compared.runs[0]
    assert compare_programs(slow, plain, WISH).verdict == "better"


def test_both_run_the_configuration_of_base(tmp_path: Path) -> None:
    """So that code is compared, and not two decisions; that the other would decide otherwise is said."""
    base, head = program(side(tmp_path / "base")), program(side(tmp_path / "head", configuration=OTHER), "HEAD")
    found = compare_programs(base, head, WISH)
    assert found.compared[0].configuration == (CONFIGURATION, CONFIGURATION)
    assert found.notes[0] == "both run the saved configuration of BASE"
    assert "HEAD would choose another one (saved)" in found.notes[1]


@pytest.mark.parametrize(
    ("wanted", "ran"),
    [("base", (CONFIGURATION,) * 2), ("head", (OTHER,) * 2), ("own", (CONFIGURATION, OTHER))],
)
def test_whose_configuration_can_be_said(tmp_path: Path, wanted: str, ran: tuple[Configuration, ...]) -> None:
    """With each its own the decision is compared as well."""
    base, head = program(side(tmp_path / "base")), program(side(tmp_path / "head", configuration=OTHER), "HEAD")
    found = compare_programs(base, head, WISH._replace(configuration_from=wanted))  # type: ignore[arg-type]
    assert found.compared[0].configuration == ran
    assert found.compared[0].alike == (wanted != "own")


def test_a_saved_configuration_counts_before_a_predicted_one(tmp_path: Path) -> None:
    """Where BASE was never tuned here and HEAD was."""
    base = program(side(tmp_path / "base", origin="predicted"))
    head = program(side(tmp_path / "head", configuration=OTHER), "HEAD")
    found = compare_programs(base, head, WISH)
    assert found.compared[0].configuration == (OTHER, OTHER)
    assert found.notes[0] == "both run the saved configuration of HEAD"
    assert found.notes[2].startswith("BASE chose kernels by a quick benchmark")


def test_other_lengths_and_the_same_code_are_said(tmp_path: Path) -> None:
    """Both ran one of the workloads; and a version compared with itself can't be slower."""
    longer = ABOUT.workload.__class__("server", 256, 64, 512, 8, 0.1, None)
    found = compare_programs(
        program(side(tmp_path / "base")), program(side(tmp_path / "head", workload=longer), "HEAD"), WISH
    )
    assert found.compared[0].workload == ABOUT.workload
    assert "those of BASE; the other side's differ" in found.notes[1]
    assert found.notes[-1] == "both sides run the same autotune, in /somewhere"


def test_a_side_that_dies_in_a_round_is_named(tmp_path: Path) -> None:
    """With its last words."""
    base = program(side(tmp_path / "base"))
    head = program(side(tmp_path / "head", dies_after=5), "HEAD")
    with pytest.raises(
        BenchmarkError, match=r"^HEAD \(.*\) stopped while running \w+: it exited with status 1: it fell over$"
    ):
        compare_programs(base, head, WISH)


def test_another_protocol_is_refused_by_name(tmp_path: Path) -> None:
    """Whatever else it says about itself."""
    head = program(side(tmp_path / "head", protocol=2), "HEAD")
    with pytest.raises(BenchmarkError, match=r"^HEAD \(.*\) speaks version 2 of the protocol, this autotune version 1"):
        compare_programs(program(side(tmp_path / "base")), head, WISH)


def test_an_autotune_without_the_command_says_what_it_says(tmp_path: Path) -> None:
    """And that records can be compared."""
    old = program(script(tmp_path / "old", "#!/bin/sh\necho 'autotune: error: unrecognized arguments' >&2\nexit 2\n"))
    with pytest.raises(BenchmarkError, match=r"by its records\): it exited with status 2: autotune: error: unrec"):
        compare_programs(old, old, WISH)


def test_an_interpreter_that_is_gone_cannot_be_started(tmp_path: Path) -> None:
    """Its script names another one that isn't there."""
    gone = program(script(tmp_path / "gone", "#!/nowhere/python\n"))
    with pytest.raises(BenchmarkError, match=r"^could not start BASE .*: No such file or directory$"):
        compare_programs(gone, gone, WISH)


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ('{"type":"samples","samples_s":[]}', "expected a side of a comparison"),
        ('{"type":"ready","protocol":1,"about":{"autotune":7}}', "says what this autotune can't read"),
        ("no JSON", "stopped making sense"),
        ('{"type":"failed","message":"\\0377"}', "stopped making sense"),  # no UTF-8
    ],
)
def test_something_else_is_no_side(tmp_path: Path, said: str, complaint: str) -> None:
    """Whatever it says instead of what a side says first."""
    strange = program(script(tmp_path / "strange", f"#!/bin/sh\nprintf '%b\\n' '{said}'\nread line\n"))
    with pytest.raises(BenchmarkError, match=complaint):
        compare_programs(strange, strange, WISH)


@pytest.mark.parametrize(
    ("asked", "answer", "complaint"),
    [
        (
            "run",
            '{"type":"failed","message":"it could not run decode: no memory"}',
            "^BASE .*: it could not run decode",
        ),
        ("run", '{"type":"samples","samples_s":[]}', "expected samples of a run, all above 0 s"),
        ("run", '{"type":"samples","samples_s":[0.1, 0]}', "expected samples of a run, all above 0 s"),
        ("run", '{"type":"done"}', "expected samples of a run, all above 0 s"),
        ("start", '{"type":"failed","message":"it has no such device"}', "^BASE .*: it has no such device"),
        ("stop", '{"type":"samples","samples_s":[1]}', "expected to hear that it is done"),
    ],
)
def test_another_answer_than_asked_for_is_a_failure(tmp_path: Path, asked: str, answer: str, complaint: str) -> None:
    """What a side can't do, it says; samples of nothing are none."""
    head = program(answering(tmp_path / "side", asked, answer))
    with pytest.raises(BenchmarkError, match=complaint):
        compare_programs(head, head, WISH)


def answering(path: Path, asked: str, answer: str) -> Path:
    """A synthetic side with another answer to one kind of request."""
    text = side(path).read_text()
    return script(
        path, text.replace("    print(json", f"    if asked['type'] == {asked!r}: answer = {answer}\n    print(json")
    )


LACKS = 'json.loads(\'{"type": "failed", "message": "it needs 9 GiB", "lacks_memory": true}\')'


def test_where_the_memory_holds_one_they_run_one_after_the_other(tmp_path: Path) -> None:
    """In each round; and that is said. The synthetic HEAD starts only where BASE has stopped."""
    held = tmp_path / "held"
    base, head = side(tmp_path / "base"), side(tmp_path / "head", slower=1.1)
    hold = f"""    import pathlib
    held = pathlib.Path({str(held)!r})
    if asked["type"] == "start" and held.exists(): answer = {LACKS}
    elif asked["type"] == "start": held.touch()
    elif asked["type"] == "stop": held.unlink(missing_ok=True)
    print(json"""
    for path in (base, head):
        script(path, path.read_text().replace("    print(json", hold))
    found = compare_programs(program(base), program(head, "HEAD"), WISH)
    assert found.verdict == "worse"
    assert any(note.startswith("the memory doesn't hold both sides at once") for note in found.notes)


def test_where_the_memory_holds_none_nothing_is_compared(tmp_path: Path) -> None:
    """The side says what it needs."""
    path = side(tmp_path / "base")
    script(path, path.read_text().replace("    print(json", f"    answer = {LACKS}\n    print(json"))
    starving = program(path)
    with pytest.raises(BenchmarkError):  # it doesn't even stop
        compare_programs(starving, starving, WISH)
    path = side(tmp_path / "head")
    lacks = f"    if asked['type'] == 'start': answer = {LACKS}\n    print(json"
    starving = program(script(path, path.read_text().replace("    print(json", lacks)))
    with pytest.raises(MemoryLimitError, match=r"^BASE \(.*\): it needs 9 GiB$"):
        compare_programs(starving, starving, WISH)


def test_a_side_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while that no round takes."""
    monkeypatch.setattr("autotune.compare.program._GREETING_S", 0.05)
    silent = program(script(tmp_path / "silent", "#!/bin/sh\nread line\n"))
    with pytest.raises(BenchmarkError, match=r"said nothing for 0.05 s before it was ready"):
        compare_programs(silent, silent, WISH)


def test_two_models_of_one_name_are_not_compared(tmp_path: Path) -> None:
    """A preset may change between versions."""
    sides = program(side(tmp_path / "base")), program(side(tmp_path / "head", model_bytes=10**9 + 1))
    with pytest.raises(UsageError, match=r"isn't the same model for both: it has 1,000,000,000 bytes .* 1,000,000,001"):
        compare_programs(*sides, WISH)


@pytest.mark.parametrize("budget_s", [0.0, -1.0, float("nan"), 1e9])
def test_a_budget_that_is_no_time_is_refused(tmp_path: Path, budget_s: float) -> None:
    """Before anything is started."""
    gone = Program("BASE", "/nowhere", "")
    with pytest.raises(UsageError, match="--budget"):
        compare_programs(gone, gone, WISH._replace(budget_s=budget_s))
