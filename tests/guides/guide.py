"""A guide as a test sees it: its blocks of code, its links, and the headings that links lead to."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
GUIDES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

_FENCE = re.compile(r"^```(\w*)\s*$")
_COMMENT = re.compile(r"^<!-- (not run|exit):\s*(.*?)\s*-->$")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$")
_OPERATORS = ("|", ">", ">>", "<", "2>", "2>&1", "&&", "||", ";")


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        line: Of its first line of code in the guide.
        language: The word after the fence.
        code: What is between the fences.
        not_run: Why no test runs it; None: it is run.
        exit_code: What each of its commands ends with.
    """

    line: int
    language: str
    code: str
    not_run: str | None
    exit_code: int


class Command(NamedTuple):
    """One command of a block.

    Attributes:
        line: Where it begins in the guide.
        text: As a shell takes it, lines joined.
        block: Where it is.
    """

    line: int
    text: str
    block: Block

    def autotune(self) -> Iterator[list[str]]:
        """The words after ``autotune``, for each of the command's programs that is it."""
        words: list[str] = []
        for word in [*shlex.split(self.text, comments=True), ";"]:
            if word not in _OPERATORS:
                words.append(word)
                continue
            program, words = words, []
            while program and "=" in program[0]:  # variables of the environment
                del program[0]
            if program[:1] == ["autotune"]:
                yield program[1:]
            elif program[1:3] == ["-m", "autotune"]:
                yield program[3:]


def blocks(guide: Path) -> Iterator[Block]:
    """The fenced blocks of a guide, with what the comment right above says of each.

    Raises:
        AssertionError: A fence isn't closed, or a comment stands above nothing.
    """
    language, first, above, code = None, 0, ("", ""), list[str]()
    for number, line in enumerate(guide.read_text().splitlines(), start=1):
        fence, comment = _FENCE.match(line), _COMMENT.match(line)
        if language is not None:
            if not fence:
                code.append(line)
                continue
            kind, said = above
            yield Block(
                line=first,
                language=language,
                code="\n".join(code),
                not_run=said if kind == "not run" else None,
                exit_code=int(said) if kind == "exit" else 0,
            )
            language, above, code = None, ("", ""), []
        elif fence:
            language, first = fence[1], number + 1
        else:
            assert not above[0], f"{guide.name}:{number}: expected a block below the comment, got {line!r}"
            above = (comment[1], comment[2]) if comment else ("", "")
    assert language is None, f"{guide.name}: the block at line {first} has no end"


def commands(guide: Path) -> Iterator[Command]:
    """The commands of a guide's ``sh`` blocks, in order."""
    for block in blocks(guide):
        if block.language == "sh":
            text, first = "", block.line
            for number, line in enumerate(block.code.splitlines(), start=block.line):
                first = first if text else number
                text += line.strip()
                if text.endswith("\\"):
                    text = text[:-1]
                elif text and not text.startswith("#"):
                    yield Command(first, text, block)
                    text = ""
                else:
                    text = ""


def spoken_of(guide: Path) -> Iterator[str]:
    """What a guide's running text shows as a command of ours, in backticks."""
    for span in re.findall(r"`(autotune [^`]+)`", " ".join(_prose(guide))):
        yield span.replace("\\|", "|")


def links(guide: Path) -> Iterator[tuple[str, str]]:
    """Path and anchor of each link that leads to a file of the repository or within the guide."""
    for target in _LINK.findall("\n".join(_prose(guide))):
        if "://" not in target and not target.startswith("mailto:"):
            path, _, anchor = target.partition("#")
            yield path, anchor


def anchors(guide: Path) -> set[str]:
    """The anchors that a forge gives a guide's headings."""
    found: dict[str, int] = {}
    names = set()
    for line in _prose(guide):
        if heading := _HEADING.match(line):
            name = re.sub(r"[^\w\- ]", "", heading[1].strip().lower()).replace(" ", "-")
            count = found[name] = found.get(name, -1) + 1
            names.add(f"{name}-{count}" if count else name)
    return names


def table(guide: Path, first_head: str) -> list[list[str]]:
    """The rows of the first table whose first column has that head, as cells."""
    lines = guide.read_text().splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith(f"| {first_head} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


def _prose(guide: Path) -> Iterator[str]:
    """The lines outside of fenced blocks."""
    inside = False
    for line in guide.read_text().splitlines():
        if line.startswith("```"):
            inside = not inside
        elif not inside:
            yield line
