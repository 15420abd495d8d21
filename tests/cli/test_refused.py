"""Where the cache or the output can't be written: the result is still printed, and the exit code says so."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.shop import BUDGET, Answer, Shop, assert_one_sentence

# Where nothing can be written


def test_a_result_that_cannot_be_saved_is_printed(shop: Shop, tuned: tuple[Path, Answer]) -> None:
    """With a warning that says why, and exit code 8: also for root, below a file there can be no folder."""
    shutil.copytree(shop.cache, shop.folder / "spare")
    shutil.rmtree(shop.cache)
    shop.cache.write_text("a file where a folder should be")
    blocked = {"XDG_CACHE_HOME": str(shop.cache), "AUTOTUNE_CACHE": str(shop.cache / "below")}
    answer = shop.run("small.json", *BUDGET, "--json", "--quiet", **blocked)
    assert answer.code == 8
    assert re.fullmatch(r"autotune: warning: the result was not saved: [^\n]*Not a directory[^\n]*\n", answer.err), (
        answer.err
    )
    assert answer.result.campaign.measurements()
    assert shop.cache.read_text() == "a file where a folder should be"


def test_a_result_goes_to_the_next_folder_if_the_first_is_not_writable(shop: Shop) -> None:
    """With a warning; it is saved, so the exit code is 0. Afterwards it is found there."""
    shop.write("blocked", "a file where a folder should be")
    answer = shop.run("cache", "import", shop.entries()[0], AUTOTUNE_CACHE=str(shop.folder / "blocked"))
    assert answer.code == 0
    assert answer.err.startswith("autotune: warning: the result was saved in ")
    shown = shop.run("show", "small.json", AUTOTUNE_CACHE=str(shop.folder / "blocked"))
    assert str(shop.folder / "xdg" / "bitnet-autotune") in shown.err


# Where output can't be written


def test_a_reader_that_goes_away_leaves_no_traceback(shop: Shop) -> None:
    """As `| head -c 1` does, for documents, for plain lines and for help."""
    for arguments in (
        ("small.json", "--json", "--budget", "1", "--no-confirm"),
        ("schema",),
        ("cache", "path"),
        ("--help",),
    ):
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "wb") as pipe:
            answer = shop.run(*arguments, stdout=pipe)
        assert (answer.code, answer.err) == (1, ""), arguments


def test_a_pipe_to_head_works(shop: Shop) -> None:
    """The reader gets what it wants; nobody complains."""
    with shop.start("small.json", "--json", "--budget", "1", "--no-confirm") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1) == b"{"
        process.stdout.close()
        assert process.stderr.read() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no /dev/full")
def test_a_full_disk_is_told(shop: Shop) -> None:
    """A document that wasn't written is no success."""
    for arguments in (("small.json", "--json", "--budget", "1", "--no-confirm"), ("cache", "path"), ("--version",)):
        with Path("/dev/full").open("wb") as full:
            answer = shop.run(*arguments, stdout=full)
        assert_one_sentence(answer, 1)
        assert "No space left on device" in answer.err


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_reason_to_stop(redirection: str, shop: Shop) -> None:
    """As some job schedulers start programs; what has no stream of its own goes nowhere."""
    printed = shop.entries()[0].read_bytes() if redirection == "2>&-" else b""
    command = [sys.executable, "-m", "autotune", "small.json", "--budget", "1", "--no-confirm"]
    for options, expected in (([], b""), (["--json"], printed), (["--max-batch", "2"], b"")):
        done = subprocess.run(
            ["/bin/sh", "-c", f'exec "$@" {redirection}', "sh", *command, *options],
            cwd=shop.folder,
            env=shop.environment(),
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, expected), done.stderr
