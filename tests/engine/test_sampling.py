"""When sampling ends, and what counts: on a synthetic clock, which only steps move on."""

from __future__ import annotations

import itertools

import pytest

from autotune.bench import disturbance
from autotune.engine.sampling import Sampler


class Steps:
    """Steps that last as long as they are told to; the last time goes on for ever."""

    def __init__(self, *times_s):
        self.now = 100.0
        self.runs = 0
        self._times_s = itertools.chain(times_s, itertools.repeat(times_s[-1]))

    def run(self):
        self.runs += 1
        time_s = next(self._times_s)
        self.now += time_s
        return time_s, {"cpu": 0.75 * time_s, "cuda:0": 0.25 * time_s}

    def clock(self):
        return self.now


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch):
    monkeypatch.setattr(disturbance, "preemptions", lambda: 0)


def take(steps, at_least=1, at_most_s=0.0, expected_s=1.0, earlier_s=(), announced=None):
    sampler = Sampler(steps.run, earlier_s, ([] if announced is None else announced).append, clock=steps.clock)
    return sampler.take(at_least, at_most_s, expected_s)


NOISY = [1.0, 1.5] * 50


@pytest.mark.parametrize(
    ("at_least", "at_most_s", "count"),
    [(1, 0.0, 1), (4, 0.0, 4), (4, 2.0, 4), (1, 1.9, 1), (1, 2.0, 2), (2, 10.0, 8)],
    ids=["one", "at least", "at least beyond the time", "no room for another", "just room", "until the time is up"],
)
def test_sampling_goes_on_until_there_are_enough_and_the_time_is_up(at_least, at_most_s, count):
    """And no sample is begun that would end after that if it took as long as the last one."""
    taken = take(Steps(*NOISY), at_least, at_most_s)
    assert taken.total_s == tuple(NOISY[:count])


def test_sampling_ends_once_the_median_is_known():
    assert len(take(Steps(0.5), 1, 1000.0).total_s) == 6, "fewer can't give a 95 % interval"
    assert len(take(Steps(0.5), 9, 1000.0).total_s) == 9
    wavering = take(Steps(1.0, 1.1, 1.0, 1.1, 1.0), 1, 1000.0).total_s
    assert 6 < len(wavering) < 20


def test_every_sample_tells_where_its_time_went():
    taken = take(Steps(1.0, 2.0, 4.0), 3)
    assert taken.device_s == {"cpu": (0.75, 1.5, 3.0), "cuda:0": (0.25, 0.5, 1.0)}


def test_short_steps_are_taken_together_until_a_sample_is_long_enough():
    steps = Steps(1e-4)
    taken = take(steps, 3)
    assert taken.total_s == pytest.approx((1e-4,) * 3)
    assert taken.device_s["cpu"] == pytest.approx((0.75e-4,) * 3)
    together = (steps.runs - 1) / 3
    assert together * 1e-4 >= 1e-3, "the clock's resolution doesn't count"
    assert together < 20


def test_what_lies_ahead_is_announced_in_blocks():
    """The expected time of a first sample is all that is known; then what the last one took."""
    announced = []
    take(Steps(7.0, 4.0), 3, expected_s=5.0, announced=announced)
    assert announced == [5.0, 7.0, 4.0]
    announced = []
    take(Steps(0.0625), 16, expected_s=0.1, announced=announced)
    assert announced == [0.5, 0.5], "the parent isn't woken for each step"


# Disturbed samples


@pytest.fixture
def preempted(monkeypatch):
    """The system interrupts the process all the time."""
    counter = itertools.count()
    monkeypatch.setattr(disturbance, "preemptions", lambda: next(counter))


USUAL = (1.0,) * 6


@pytest.mark.usefixtures("preempted")
@pytest.mark.parametrize(
    ("times_s", "kept"),
    [((1.5, 1.01), 1.01), ((1.5, 1.4, 1.02), 1.02), ((1.5, 1.4, 1.3, 1.0), 1.3)],
    ids=["once", "twice", "not thrice"],
)
def test_a_slow_sample_is_taken_again_if_the_process_was_interrupted(times_s, kept):
    assert take(Steps(*times_s), at_most_s=9.0, earlier_s=USUAL).total_s[0] == kept


@pytest.mark.usefixtures("preempted")
def test_only_slow_samples_are_taken_again():
    assert take(Steps(1.04), earlier_s=USUAL).total_s == (1.04,)


def test_slow_samples_count_where_nothing_disturbed_them():
    assert take(Steps(1.5), at_most_s=1.0, earlier_s=USUAL).total_s == (1.5,)


@pytest.mark.usefixtures("preempted")
def test_what_is_slow_is_not_known_from_a_few_samples():
    assert take(Steps(9.0), earlier_s=USUAL[:5]).total_s == (9.0,)


@pytest.mark.usefixtures("preempted")
def test_no_sample_is_taken_again_when_the_time_is_up():
    steps = Steps(1.5, 1.0)
    assert take(steps, at_most_s=1.0, earlier_s=USUAL).total_s == (1.5,)
