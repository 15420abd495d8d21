"""Signs of disturbance, from the running system and from what other systems show."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from autotune.bench import disturbance

PATIENCE_S = 10


def test_this_systems_cpu_times_grow():
    before = disturbance.cpu_times()
    if before is None:
        pytest.skip("the system doesn't say")
    threading.Event().wait(0.05)
    stolen, total = disturbance.cpu_times()
    assert stolen >= before[0]
    assert total > before[1]
    assert 0 <= disturbance.steal_fraction(before, (stolen, total)) <= 1


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("cpu  10 1 5 100 2 3 4 25 0 0\ncpu0 9 9 9 9 9 9 9 9 9 9\n", (25, 150)),
        ("cpu  10 1 5 100\n", None),
        ("", None),
        ("intr whatever it says\n", None),
    ],
    ids=["with steal", "old kernel", "empty", "garbage"],
)
def test_cpu_times_are_read_from_the_first_line_or_unknown(monkeypatch, tmp_path, text, times):
    """Guest time, the last two fields, is part of user time already."""
    stat = tmp_path / "stat"
    stat.write_text(text)
    monkeypatch.setattr(disturbance, "_STAT", stat)
    assert disturbance.cpu_times() == times


def test_without_the_file_cpu_times_are_unknown(monkeypatch, tmp_path):
    monkeypatch.setattr(disturbance, "_STAT", tmp_path / "missing")
    assert disturbance.cpu_times() is None


@pytest.mark.parametrize(
    ("before", "after", "share"),
    [((10, 100), (15, 200), 0.05), (None, (1, 2), None), ((1, 2), None, None), ((1, 2), (1, 2), None)],
    ids=["5 of 100", "unknown before", "unknown after", "no time passed"],
)
def test_steal_is_a_share_of_the_time_that_passed_or_unknown(before, after, share):
    assert disturbance.steal_fraction(before, after) == share


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no CPU affinity")
def test_a_busy_neighbour_on_the_same_cpu_shows_as_preemptions():
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(usable)})
    try:
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as neighbour:
            before, give_up = disturbance.preemptions(), time.monotonic() + PATIENCE_S
            while disturbance.preemptions() == before and time.monotonic() < give_up:
                pass
            neighbour.kill()
    finally:
        os.sched_setaffinity(0, usable)
    assert disturbance.preemptions() > before


def test_where_the_system_does_not_count_preemptions_there_are_none(monkeypatch):
    monkeypatch.setattr(disturbance, "resource", None)
    assert disturbance.preemptions() == 0
