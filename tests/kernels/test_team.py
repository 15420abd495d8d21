"""Teams of threads: all members work, errors come out, and nothing of the process' state is left changed."""

import os
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

from ternary_kernels.team import Team, share

TIMEOUT_S = 30
NO_SUCH_CPU = 1 << 16

needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system has no CPU affinity")


def usable_cpus():
    return sorted(os.sched_getaffinity(0))


def blas_threads():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


@pytest.fixture
def two_blas_threads():
    """BLAS with two threads, on a single core too, so that holding it to one shows."""
    with threadpool_limits(2, user_api="blas"):
        assert blas_threads() == {2}
        yield


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_member_runs_the_task_at_once(threads):
    """Each waits for all others inside the task: one after the other they would time out."""
    everyone = threading.Barrier(threads, timeout=TIMEOUT_S)
    seen = {}

    def task(member):
        seen[member] = threading.get_ident()
        everyone.wait()

    with Team(threads) as team:
        for _ in range(3):
            seen.clear()
            team.run(task)
            assert sorted(seen) == list(range(threads))
            assert len(set(seen.values())) == threads
            assert seen[0] == threading.get_ident()


@pytest.mark.parametrize("culprit", [0, 1, 2])
@pytest.mark.parametrize("error", [ZeroDivisionError("one member"), KeyboardInterrupt()])
def test_an_error_in_one_member_comes_out_after_all_are_done_and_the_team_works_on(culprit, error):
    done = []
    raised = threading.Event()

    def task(member):
        if member == culprit:
            raised.set()
            raise error
        assert raised.wait(TIMEOUT_S)
        done.append(member)

    with Team(3) as team:
        with pytest.raises(type(error)) as caught:
            team.run(task)
        assert caught.value is error
        assert sorted([*done, culprit]) == [0, 1, 2]
        again = []
        team.run(again.append)
        assert sorted(again) == [0, 1, 2]


def test_several_errors_come_out_as_one_and_none_is_left_over():
    def task(member):
        raise ValueError(member)

    with Team(3) as team:
        with pytest.raises(ValueError, match="0"):
            team.run(task)
        team.run(lambda member: None)


def test_threads_end_with_the_team_even_after_an_error():
    before = threading.active_count()
    during = []

    def fail():
        during.append(threading.active_count())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), Team(3):
        fail()
    assert during == [before + 2]
    assert threading.active_count() == before


def test_a_team_can_be_entered_again():
    team = Team(2)
    for _ in range(2):
        with team:
            members = []
            team.run(members.append)
            assert sorted(members) == [0, 1]


def test_a_team_without_its_threads_refuses_to_run():
    """It would do the caller's part of the work and return as if all were done."""
    team = Team(3)
    with pytest.raises(RuntimeError, match="within its with block, got 1 of 3 members"):
        team.run(lambda member: None)
    with team:
        pass
    with pytest.raises(RuntimeError, match="got 1 of 3 members"):
        team.run(lambda member: None)


@pytest.mark.parametrize(
    ("threads", "cpus", "message"),
    [
        (0, None, "expected at least 1 thread, got 0"),
        (-2, None, "expected at least 1 thread, got -2"),
        (3, [0, 1], "expected a CPU for each of 3 threads, got 2"),
        (1, [], "expected a CPU for each of 1 threads, got 0"),
    ],
)
def test_a_team_that_cannot_be_is_refused(threads, cpus, message):
    with pytest.raises(ValueError, match=message):
        Team(threads, cpus)


# Pinning


@needs_affinity
def test_each_member_is_pinned_to_its_cpu_and_the_caller_let_go_after():
    before = os.sched_getaffinity(0)
    cpus = [usable_cpus()[-1], usable_cpus()[0]]
    masks = {}
    with Team(2, cpus) as team:
        team.run(lambda member: masks.update({member: os.sched_getaffinity(0)}))
    assert masks == {0: {cpus[0]}, 1: {cpus[1]}}
    assert os.sched_getaffinity(0) == before


@needs_affinity
def test_without_cpus_no_member_is_pinned():
    masks = []
    with Team(2) as team:
        team.run(lambda member: masks.append(os.sched_getaffinity(0)))
    assert masks == [os.sched_getaffinity(0)] * 2


@needs_affinity
@pytest.mark.parametrize("place", [0, 1])
def test_a_cpu_that_cannot_be_used_is_refused_and_leaves_nothing_behind(two_blas_threads, place):
    """Be it the caller's or another member's; the team can't hang waiting for a thread that died."""
    cpus = [usable_cpus()[0]] * 2
    cpus[place] = NO_SUCH_CPU
    before, threads = os.sched_getaffinity(0), threading.active_count()
    with pytest.raises(ValueError, match=f"expected CPUs that can be used, got CPU {NO_SUCH_CPU}"), Team(2, cpus):
        pytest.fail("entered")
    assert os.sched_getaffinity(0) == before
    assert threading.active_count() == threads
    assert blas_threads() == {2}


def test_where_the_system_cannot_pin_the_team_works_unpinned(monkeypatch):
    """As on macOS."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    members = []
    with Team(2, [0, 1]) as team:
        team.run(members.append)
    assert sorted(members) == [0, 1]


# BLAS


def test_blas_keeps_to_one_thread_while_the_team_lives(two_blas_threads):
    with Team(2) as team:
        seen = []
        team.run(lambda member: seen.append(blas_threads()))
        assert seen == [{1}, {1}]
    assert blas_threads() == {2}


def test_blas_has_its_threads_back_after_an_error(two_blas_threads):
    with pytest.raises(ZeroDivisionError), Team(2):
        raise ZeroDivisionError
    assert blas_threads() == {2}


def test_teams_may_live_within_each_other(two_blas_threads):
    """As in a benchmark over thread counts: each gives back what it found."""
    cpus = usable_cpus() if hasattr(os, "sched_getaffinity") else None
    before = set(cpus) if cpus else None
    with Team(1, cpus and cpus[:1]) as outer:
        with Team(2, cpus and [cpus[-1], cpus[0]]) as inner:
            members = []
            inner.run(members.append)
            outer.run(members.append)
            assert sorted(members) == [0, 0, 1]
        assert blas_threads() == {1}
        if cpus:
            assert os.sched_getaffinity(0) == set(cpus[:1])
    assert blas_threads() == {2}
    if cpus:
        assert os.sched_getaffinity(0) == before


# Scratch memory


def test_scratch_memory_has_the_shape_asked_for_and_can_be_written():
    with Team(1) as team:
        block = team.scratch(0, (3, 4, 5))
        block[:] = 7
        assert block.shape == (3, 4, 5)
        assert block.dtype == np.float32
        assert block.flags.c_contiguous
        assert block.sum() == 7 * 60


@pytest.mark.parametrize("shape", [(1,), (3,), (16,), (1000, 3), (123_457,)])
def test_scratch_memory_starts_at_a_cache_line(shape):
    """Compiled kernels' vectors would else lie across two."""
    with Team(2) as team:
        for member in (None, 0, 1, 0):
            assert team.scratch(member, shape).ctypes.data % 64 == 0


def test_a_member_gets_the_same_memory_again_until_it_needs_more():
    with Team(1) as team:
        first = team.scratch(0, (10, 10))
        smaller = team.scratch(0, (5, 3))
        assert smaller.ctypes.data == first.ctypes.data
        smaller[:] = 3
        assert first.reshape(-1)[:15].tolist() == [3] * 15
        larger = team.scratch(0, (1025, 1024))  # more than the least there is
        assert not np.shares_memory(larger, first)
        assert np.shares_memory(team.scratch(0, (10, 10)), larger)


def test_members_and_the_shared_memory_do_not_overlap():
    with Team(2) as team:
        blocks = [team.scratch(member, (100,)) for member in (None, 0, 1)]
        for number, block in enumerate(blocks):
            block[:] = number
        assert [set(block.tolist()) for block in blocks] == [{0}, {1}, {2}]


def test_a_team_keeps_no_memory_after_it_ended():
    team = Team(1)
    with team:
        before = team.scratch(0, (100,))
    with team:
        assert not np.shares_memory(team.scratch(0, (100,)), before)


# Shares


@given(total=st.integers(0, 500), members=st.integers(1, 40), multiple=st.integers(1, 16))
def test_shares_partition_the_rows_exactly_and_evenly(total, members, multiple):
    shares = [share(total, members, index, multiple) for index in range(members)]
    assert [row for first, last in shares for row in range(first, last)] == list(range(total))
    assert all(first % multiple == 0 or first == total for first, _ in shares)
    units = [-(-(last - first) // multiple) for first, last in shares]
    assert max(units) - min(units) <= 1


def test_fewer_rows_than_members_leave_some_without():
    shares = [share(9, 4, index, 8) for index in range(4)]
    assert sorted(last - first for first, last in shares) == [0, 0, 1, 8]
