"""The tables of docs/hardware.md, as `autotune requirements` prints them: `python -m tests.guides.tables` writes them.

They stand between comments: ``<!-- table: NAME -->`` and ``<!-- end of NAME -->``.
"""

from __future__ import annotations

import subprocess
import sys

from autotune.cli.requirements import SPEED_HEAD
from tests.guides.guide import ROOT

HARDWARE = ROOT / "docs" / "hardware.md"


def printed(*options: str) -> str:
    """What `autotune requirements --markdown` prints with more options."""
    words = [sys.executable, "-m", "autotune", "requirements", "--markdown", *options]
    return subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def between(text: str, name: str) -> str:
    """A table as it stands in a guide, with the lines around it."""
    return text.split(f"<!-- table: {name} -->\n")[1].split(f"<!-- end of {name} -->\n")[0]


def main() -> None:
    """Write both tables."""
    memory, head, speeds = printed("--results", "results").partition(f"{SPEED_HEAD[0]}\n")
    text = HARDWARE.read_text()
    for name, table in (("memory", memory.rstrip("\n") + "\n"), ("speeds", head + speeds)):
        begin = f"<!-- table: {name} -->\n"
        text = text.replace(f"{begin}{between(text, name)}", f"{begin}\n{table}\n" if table else begin)
    HARDWARE.write_text(text)


if __name__ == "__main__":
    main()
