from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autotune.progress import shown

ROOT = Path(__file__).parents[1]
SCRIPT = """
import sys, time
from autotune.progress import shown
with shown(quiet=False) as display:
    for step in range(11):
        display.progress(step / 10, step, 10)
        time.sleep(0.03)
    for step in range(4):
        display.running(step / 4, step)
        time.sleep(0.03)
    for step in range(6):
        display.measuring(step / 5, step, 5)
        time.sleep(0.03)
    if "stop" in sys.argv:
        raise SystemExit("stopped")
print("the summary", file=sys.stderr)
"""


def screen_after(output: str) -> list[str]:
    """The lines a terminal shows at the end: carriage return, line feed, erase line and cursor up are understood."""
    lines, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", output):
        if token == "\r":
            column = 0
        elif token == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif token.endswith("A") and token.startswith("\x1b"):
            row -= int(token[2:-1] or 1)
        elif token == "\x1b[2K":
            lines[row] = ""
        elif not token.startswith("\x1b"):
            lines[row] = lines[row].ljust(column)[:column] + token + lines[row][column + len(token) :]
            column += len(token)
    return lines


def in_a_terminal(*arguments: str) -> str:
    """All that the script sends to a terminal behind its standard error."""
    reader, writer = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "kernels")))}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments], stdin=subprocess.DEVNULL, stderr=writer, env=environment
    )
    os.close(writer)
    output = b""
    while True:
        try:
            piece = os.read(reader, 65536)
        except OSError:  # how Linux says that the other side is closed
            piece = b""
        if not piece:
            break
        output += piece
    os.close(reader)
    process.wait()
    return output.decode()


def test_a_terminal_gets_a_bar_that_grows() -> None:
    """One after the other for all that is done, on one line, each with what it is and how many of it were done."""
    output = in_a_terminal()
    assert "━" in output
    said = ("10 of 10 points", "3 configurations", "5 of 5 runs")
    assert [output.find(words) for words in said] == sorted(output.find(words) for words in said)
    assert all(words in output for words in (*said, "timing", "running", "measuring"))
    assert "\n" not in output.split("5 of 5 runs")[0]


@pytest.mark.parametrize(("arguments", "left"), [((), "the summary"), (("stop",), "stopped")], ids=["done", "stopped"])
def test_the_bar_leaves_nothing_behind(arguments: tuple[str, ...], left: str) -> None:
    """Only what is printed after it is on the screen, and the cursor is visible again; also after an error."""
    output = in_a_terminal(*arguments)
    assert [line for line in screen_after(output) if line.strip()] == [left]
    assert output.rfind("\x1b[?25h") > output.rfind("\x1b[?25l") >= 0


def test_elsewhere_there_are_plain_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One at once and one every five seconds, so a log stays short; nothing on standard output."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with shown(quiet=False) as display:
        assert display.progress is not None
        for now in (100.0, 100.1, 104.9, 105.1, 109.0, 110.2):
            display.progress((now - 100) / 20, int(now - 100), 128)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "timing: 0 of 128 points, 0% of the budget",
        "timing: 5 of 128 points, 25% of the budget",
        "timing: 10 of 128 points, 51% of the budget",
    ]


def test_what_comes_next_gets_a_line_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However short what came before was: runs and the grid of an exam are told apart from timing kernels."""
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    with shown(quiet=False) as display:
        assert display.progress is not None
        assert display.running is not None
        assert display.measuring is not None
        display.progress(1.0, 128, 128)
        for tried in (1, 2):
            display.running(0.25 * tried, tried)
        display.measuring(0.5, 3, 6)
    assert capsys.readouterr().err.splitlines() == [
        "timing: 128 of 128 points, 100% of the budget",
        "running: 1 configuration, 25% of the budget",
        "measuring: 3 of 6 runs, 50% of the budget",
    ]


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Nor is there anything to call."""
    with shown(quiet=True) as display:
        assert tuple(display) == (None, None, None)
    assert capsys.readouterr() == ("", "")
