"""Ctrl-C and other signals: gone within a moment, no child left, nothing half-written."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator

import msgspec
import psutil
import pytest

from autotune import cli
from autotune.records import PartRun
from tests.cli.shop import Shop


def children(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def wait_until(happened: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.005)


def is_gone(process: psutil.Process) -> bool:
    """Ended, though perhaps nobody has asked for its exit status yet."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


@contextlib.contextmanager
def tuning(shop: Shop, *, budget: str = "30") -> Iterator[tuple[subprocess.Popen[bytes], list[psutil.Process]]]:
    """A tune that is under way in a session of its own, and its worker."""
    with shop.start(
        "small.json", "--force", "--budget", budget, "--no-confirm", "--json", start_new_session=True
    ) as process:
        try:
            wait_until(lambda: children(process), "the start of the worker")
            yield process, children(process)
        finally:
            process.kill()


@pytest.mark.parametrize("moment", ["at once", "while the worker starts", "while it samples", "while it decides"])
def test_ctrl_c_stops_at_once(moment: str, shop: Shop) -> None:
    """One sentence, exit code 130, no process left, and the cache as it was."""
    before = shop.state()
    with tuning(shop, budget="1" if moment == "while it decides" else "30") as (process, workers):
        if moment == "while the worker starts":
            time.sleep(0.1)
        elif moment == "while it samples":
            time.sleep(1)
        elif moment == "while it decides":
            wait_until(lambda: all(map(is_gone, workers)), "the end of the worker")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=5)
    # A process that dies of SIGINT has exit code 130 to a shell as well.
    assert process.returncode in (cli.EXIT_INTERRUPTED, -signal.SIGINT)
    assert out == b""
    lines = [line for line in err.decode().splitlines() if not line.startswith("timing: ")]
    assert lines == ["autotune: stopped by Ctrl-C"]
    wait_until(lambda: all(map(is_gone, workers)), "the end of the worker")
    assert shop.state() == before


def test_an_impatient_second_ctrl_c_changes_nothing(shop: Shop) -> None:
    """Still one sentence, and no process left."""
    with tuning(shop) as (process, workers):
        for _ in range(5):
            process.send_signal(signal.SIGINT)
            time.sleep(0.01)
        _, err = process.communicate(timeout=5)
    assert process.returncode in (cli.EXIT_INTERRUPTED, -signal.SIGINT)
    assert "Traceback" not in err.decode()
    wait_until(lambda: all(map(is_gone, workers)), "the end of the worker")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP], ids=lambda number: number.name)
def test_a_worker_does_not_outlive_its_parent(number: signal.Signals, shop: Shop) -> None:
    """However the parent ends; and the cache stays as it was."""
    before = shop.state()
    with tuning(shop) as (process, workers):
        time.sleep(0.5)
        process.send_signal(number)
        process.communicate(timeout=5)
        assert process.returncode == -number
        wait_until(lambda: all(map(is_gone, workers)), "the end of the worker")
    assert shop.state() == before


# While configurations run


def samples_in(shop: Shop) -> list[PartRun]:
    """What a search has left in its database so far."""
    with contextlib.closing(sqlite3.connect(shop.folder / "study.db")) as database:
        try:
            rows = [
                row
                for table in ("trial_user_attributes", "study_user_attributes")
                for row in database.execute(f"SELECT value_json FROM {table} WHERE key LIKE 'run %'")
            ]
        except sqlite3.OperationalError:  # there are no tables yet, or they are being written
            return []
    return [msgspec.json.decode(value, type=PartRun) for (value,) in rows]


RUNNING = ("small.json", "--budget", "12", "--storage", "sqlite:///study.db", "--json")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_a_search_that_is_stopped_goes_on(number: signal.Signals, empty: Shop) -> None:
    """No process is left, the prediction is saved meanwhile, kernels aren't timed again, and no sample is lost."""
    with empty.start(*RUNNING, start_new_session=True) as process:
        try:
            wait_until(lambda: samples_in(empty), "the first run")
            engines = children(process)
            process.send_signal(number)
            out, err = process.communicate(timeout=10)
        finally:
            process.kill()
    wait_until(lambda: all(map(is_gone, engines)), "the end of the engine")
    assert out == b""
    told = [line for line in err.decode().splitlines() if not line.startswith(("timing: ", "running: "))]
    if number == signal.SIGINT:
        assert process.returncode in (cli.EXIT_INTERRUPTED, -signal.SIGINT)
        assert told == ["autotune: stopped by Ctrl-C"]
    else:
        assert (process.returncode, told) == (-number, [])
    predicted = empty.run("show", "small.json", "--json").result
    assert not predicted.confirmed
    before = samples_in(empty)
    answer = empty.run(*RUNNING)
    assert answer.code == 0, answer.err
    assert "timing: " not in answer.err
    assert answer.result.campaign == predicted.campaign
    found = answer.result.confirmation
    assert found is not None
    held = {run.part: set(run.samples_s) for run in found.runs}
    assert before
    assert all(set(run.samples_s) <= held[run.part] for run in before)
