"""What is timed: every operation runs on cold memory, as much of it as it should read."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from autotune.bench.campaign import window_bytes
from autotune.bench.plan import Task, plan
from autotune.bench.subjects import Subjects
from autotune.records import Point
from ternary_kernels.arena import Arena
from ternary_kernels.team import Team
from tests.builders import NUMPY, build_model, build_workload


class CountingArena(Arena):
    """Remembers how much was taken of it."""

    taken_bytes = 0

    def take(self, size_bytes):
        self.taken_bytes += size_bytes
        return super().take(size_bytes)


@pytest.fixture(scope="module")
def tasks(host):
    return plan((build_model(),), host, build_workload(), NUMPY, quick=True)


@pytest.fixture(scope="module")
def arena():
    return CountingArena(80 << 20)


@pytest.fixture(scope="module")
def subjects(tasks, arena):
    counts = sorted({task.point.threads for task in tasks})
    teams = {count: Team(count).__enter__() for count in counts}
    yield Subjects(build_model(), arena, teams)
    for team in reversed(teams.values()):
        team.__exit__(None, None, None)


@pytest.mark.parametrize("op", ["matmul", "attention", "layer_ops", "read", "peak"])
def test_every_call_reads_its_own_window_of_cold_memory_and_meets_no_odd_number(subjects, arena, tasks, op):
    """Invalid operations and overflows would raise an error here; they would be slow, or fast, for no good reason."""
    chosen = [task for task in tasks if task.point.op == op]
    assert chosen
    for task in chosen:
        call = subjects.build(task)
        for _ in range(2):
            before = arena.taken_bytes
            with np.errstate(invalid="raise", over="raise", divide="raise"):
                call()
            assert arena.taken_bytes - before == window_bytes(task)


@pytest.mark.parametrize(("weight_format", "row_bytes", "tail"), [("F16", 512, 0), ("I2_S", 64, 32)])
def test_of_a_sliced_site_only_the_slice_is_read(subjects, arena, weight_format, row_bytes, tail):
    task = Task(Point("matmul", "cpu", "numpy", 1, 2, weight_format, 100_000, 256), rows=1024)
    call = subjects.build(task)
    before = arena.taken_bytes
    call()
    assert arena.taken_bytes - before == window_bytes(task) == 1024 * row_bytes + tail


def test_all_members_of_a_team_read_and_together_they_read_everything(subjects, arena, monkeypatch):
    """The read ceiling: shares that overlap or leave gaps would give a wrong bandwidth."""
    task = Task(Point("read", "cpu", "numpy", max(subjects._teams), k_in=1 << 20))
    reduce, seen = np.bitwise_or.reduce, []

    class Spy:
        @staticmethod
        def reduce(words, axis):
            seen.append((words.ctypes.data, words.nbytes))
            return reduce(words, axis=axis)

    monkeypatch.setattr(np, "bitwise_or", Spy)
    subjects.build(task)()
    seen.sort()
    assert len(seen) == task.point.threads
    assert sum(size for _, size in seen) == 1 << 20
    assert all(start + size == after for (start, size), (after, _) in itertools.pairwise(seen))


@pytest.mark.parametrize(
    ("kernel", "weight_format", "k_in", "sentence"),
    [
        ("abacus", "I2_S", 256, "no kernel 'abacus' for format 'I2_S'"),
        ("numpy", "I2_S", 100, "k_in to be a multiple of 128, got 100"),
    ],
)
def test_what_cannot_be_built_is_refused_in_a_sentence(subjects, kernel, weight_format, k_in, sentence):
    with pytest.raises(ValueError, match=sentence):
        subjects.build(Task(Point("matmul", "cpu", kernel, 1, 1, weight_format, 256, k_in)))


@pytest.mark.parametrize("op", ["upload", "download", "handover"])
def test_a_transfer_has_no_meaning_on_the_cpu(subjects, op):
    with pytest.raises(ValueError, match=f"^{op}: expected a point on a GPU, got one on cpu$"):
        subjects.build(Task(Point(op, "cpu", "pinned", 1, k_in=64)))
