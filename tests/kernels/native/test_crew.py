"""Members that wait in compiled code: every call is done by all of them, whatever happened before it."""

import ctypes
import itertools
import threading
import time

import numpy as np
import pytest

from ternary_kernels.memory import LINE_BYTES, address, aligned
from ternary_kernels.native import compiler
from ternary_kernels.native.emit import I64, POINTER, Variable
from ternary_kernels.native.isa import PATHS
from ternary_kernels.native.words import Words
from ternary_kernels.team import Team

MOST_MEMBERS = 8
TIMEOUT_S = 60
PATIENCE_S = 0.05
"""Far longer than a member waits in compiled code before it parks."""


def build_count(emitter):
    """Adds a number to each member's own line of memory, and notes how many members there are."""
    own = emitter.at(emitter.argument(0, POINTER), emitter.mul(emitter.member, 64))
    emitter.store(emitter.add(emitter.load(I64, own), emitter.argument(1)), own)
    emitter.store(emitter.members, own, 8)


def build_slow(emitter):
    """Keeps the members but the caller busy for a while, then does the same: the caller must wait for them."""
    spins = Variable(emitter, emitter.index(0))
    with emitter.loop(0, emitter.mul(emitter.member, 200_000)) as index:
        emitter.pause()
        spins.set(emitter.add(spins.get(), index))
    build_count(emitter)


@pytest.fixture(scope="module")
def kernels():
    builds = {"count": build_count, "slow": build_slow}
    return compiler.load("test_crew", builds, PATHS[-1])


class Counter:
    """Calls a counting kernel, and knows what each member's count must be."""

    def __init__(self, kernels, team):
        self.team, self._kernels = team, kernels
        self._lines = np.zeros((MOST_MEMBERS, 8), np.int64)
        self._words = Words(2)
        self._words.point(0, self._lines)
        self._total = 0

    def call(self, number=1, kernel="count"):
        """Call it, and check at once that all members have done their part, once, and no other."""
        self._words[1] = number
        self.team.run_compiled(self._kernels[kernel], self._words.address)
        self._total += number
        found = self._lines.copy()
        threads = self.team.threads
        assert found[:threads, 0].tolist() == [self._total] * threads
        assert found[:threads, 1].tolist() == [threads] * threads
        assert not found[threads:].any()


@pytest.fixture(params=[1, 2, 3, 5], ids=lambda threads: f"{threads}threads")
def counter(request, kernels):
    with Team(request.param) as team:
        yield Counter(kernels, team)


def test_hundreds_of_calls_that_follow_each_other(counter):
    """More threads than cores too: whoever is waited for gets its turn."""
    for number in range(500):
        counter.call(number)


def test_calls_of_both_kinds_in_turn(counter):
    """A task of Python's takes the members out of compiled code and back."""
    for _ in range(50):
        counter.call()
        members = []
        counter.team.run(members.append)
        assert sorted(members) == list(range(counter.team.threads))
        counter.call()
        counter.call()


@pytest.mark.parametrize("pause_s", [PATIENCE_S, 0.002, 0.001, 0.0005])
def test_members_that_parked_are_woken(counter, pause_s):
    """After a pause in which all have parked, and after ones in which they are about to."""
    for _ in range(max(2, int(0.05 / pause_s))):
        counter.call()
        counter.call()
        time.sleep(pause_s)


IMPATIENT = """
import ctypes
import sys

import numpy as np

from ternary_kernels.native import compiler, crew
from ternary_kernels.native.emit import I64, POINTER
from ternary_kernels.native.isa import PATHS
from ternary_kernels.team import Team


def build(emitter):
    own = emitter.at(emitter.argument(0, POINTER), emitter.mul(emitter.member, 64))
    emitter.store(emitter.add(emitter.load(I64, own), 1), own)


load = compiler.load
compiler.load = lambda name, kernels, isa: load("test_impatient_" + name, kernels, isa)
crew._PATIENCE = int(sys.argv[1])
kernel = load("test_one_more", {"kernel": build}, PATHS[-1])["kernel"]
lines = np.zeros((3, 8), np.int64)
words = (ctypes.c_int64 * 1)(lines.ctypes.data)
with Team(3) as team:
    for calls in range(1, 3001):
        team.run_compiled(kernel, ctypes.addressof(words))
        assert lines[:, 0].tolist() == [calls] * 3, (calls, lines[:, 0])
print("right")
"""


def test_a_call_that_meets_members_as_they_park_is_done_by_all(child, tmp_path, monkeypatch):
    """They park at once here, so that nearly every call does; one that was missed would be waited for for ever."""
    monkeypatch.setenv(compiler.CACHE_VARIABLE, str(tmp_path))
    process = child(IMPATIENT, "2")
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert (out, err) == ("right\n", "")


def test_the_caller_waits_for_the_slowest_member(counter):
    for _ in range(3):
        counter.call(kernel="slow")
        time.sleep(0.002)


def test_several_teams_live_side_by_side(kernels):
    with Team(2) as first, Team(3) as second, Team(1) as third:
        counters = [Counter(kernels, team) for team in (first, second, third)]
        for number, counter in itertools.product(range(100), counters):
            counter.call(number)


def test_teams_of_several_threads_at_once(kernels):
    """Each with its own caller; none takes another's work."""
    errors = []

    def work():
        try:
            with Team(2) as team:
                counter = Counter(kernels, team)
                for number in range(100):
                    counter.call(number)
        except BaseException as error:
            errors.append(error)

    callers = [threading.Thread(target=work) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(TIMEOUT_S)
        assert not caller.is_alive()
    assert errors == []


def team_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("team-")]


@pytest.mark.parametrize("pause_s", [0, PATIENCE_S])
def test_threads_end_with_the_team_awake_or_parked(kernels, pause_s):
    before = len(team_threads())
    with Team(3) as team:
        Counter(kernels, team).call()
        time.sleep(pause_s)
        assert len(team_threads()) == before + 2
    assert len(team_threads()) == before


def test_threads_end_with_the_team_after_an_error_too(kernels):
    before = len(team_threads())
    team = Team(3)

    def fail(member):
        raise KeyboardInterrupt

    def call(error):
        with team:
            counter = Counter(kernels, team)
            counter.call()
            with pytest.raises(KeyboardInterrupt):
                team.run(fail)
            counter.call()
            raise error

    for error in (ZeroDivisionError, KeyboardInterrupt):
        with pytest.raises(error):
            call(error)
        assert len(team_threads()) == before


def test_a_team_can_be_entered_again(kernels):
    team = Team(3)
    for _ in range(5):
        with team:
            counter = Counter(kernels, team)
            for number in range(5):
                counter.call(number)


def test_a_team_outside_its_block_refuses(kernels):
    """Without its threads it would do the caller's part and return as if all were done; or wait for ever."""
    team = Team(3)
    counter = Counter(kernels, team)
    with pytest.raises(RuntimeError, match="expected a call within its with block, got 1 of 3 members"):
        counter.call()
    with team:
        Counter(kernels, team).call()
    with pytest.raises(RuntimeError, match="expected a call within its with block, got 1 of 3 members"):
        counter.call()


# Arguments and memory


def test_arguments_are_words_and_addresses_and_arrays_are_kept():
    """An array that is given up by its owner stays until another takes its place."""
    words = Words(3)
    words[0] = -5
    held = (ctypes.c_int64 * 3).from_address(words.address)
    first = np.arange(4.0)
    words.point(1, first)
    assert list(held) == [-5, first.ctypes.data, 0]
    del first
    again = np.frombuffer((ctypes.c_double * 4).from_address(held[1]))
    assert again.tolist() == [0, 1, 2, 3]
    other = np.zeros(4)
    words.point(1, other)
    words.point(1, other)
    assert held[1] == address(other) == other.ctypes.data


@pytest.mark.parametrize("size_bytes", [1, 63, 64, 4096, 100_001])
def test_memory_starts_at_a_cache_line_and_has_its_size(size_bytes):
    memory = [aligned(size_bytes) for _ in range(5)]
    assert all(address(block) % LINE_BYTES == 0 for block in memory)
    assert {block.nbytes for block in memory} == {size_bytes}
