"""Samples are long enough for the clock, interleaved, and end in time; on a clock that only the candidates move."""

from __future__ import annotations

import gc
import itertools

import pytest

from ternary_kernels.bench.sampling import MIN_SAMPLE_S, Candidate, sample


class Clock:
    """Synthetic time."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make(clock):
    """Builds a candidate whose calls take a given time and are written down."""
    log = []

    def build(name, call_s, *, cold=True, fails_at=None, after=None):
        calls = itertools.count(1)

        def call():
            log.append(name)
            clock.now += call_s
            if next(calls) == fails_at:
                raise ValueError("expected 1, got 2")

        return Candidate(call, cold, after)

    build.log = log
    return build


def test_short_calls_are_batched_until_a_sample_is_long_enough_and_long_ones_are_not(clock, make):
    short, long = make("short", 1e-6), make("long", 5e-3)
    sample([short, long], 0.1, clock=clock, preempted=lambda: 0)
    assert short.calls * 1e-6 >= MIN_SAMPLE_S
    assert short.calls * 1e-6 < 2 * MIN_SAMPLE_S
    assert long.calls == 1
    assert short.samples_s == pytest.approx([1e-6] * len(short.samples_s))
    assert long.samples_s == pytest.approx([5e-3] * len(long.samples_s))


def test_sampling_ends_within_its_time_and_uses_it(clock, make):
    candidates = [make("a", 2e-3), make("b", 3e-3), make("c", 1e-5)]
    sample(candidates, 1.0, clock=clock, preempted=lambda: 0)
    assert 0.9 < clock.now <= 1.01
    assert min(len(candidate.samples_s) for candidate in candidates) > 50


def test_the_first_round_keeps_the_order_and_later_ones_are_shuffled(clock, make):
    names = [f"c{number}" for number in range(6)]
    sample([make(name, 2e-3) for name in names], 1.0, clock=clock, preempted=lambda: 0)
    samples = [name for name, _ in itertools.groupby(make.log)]
    rounds = [samples[start : start + 6] for start in range(0, 60, 6)]
    assert rounds[0] == names
    assert any(order != names for order in rounds[1:])


def test_the_order_follows_from_the_seed(make, clock):
    logs = []
    for seed in (1, 1, 2):
        make.log.clear()
        clock.now = 0.0
        sample([make(str(number), 2e-3) for number in range(5)], 0.5, seed=seed, clock=clock, preempted=lambda: 0)
        logs.append(list(make.log))
    assert logs[0] == logs[1] != logs[2]


def test_long_samples_take_part_in_fewer_rounds_but_do_take_part(clock, make):
    short, long = make("short", 2e-3), make("long", 0.3)
    sample([short, long], 20.0, clock=clock, preempted=lambda: 0)
    assert len(long.samples_s) > 5
    assert len(short.samples_s) > 3 * len(long.samples_s)


def test_what_cannot_be_drawn_for_long_is_drawn_in_the_end(clock, make):
    long = make("long", 1.0)
    sample([long], 30.0, clock=clock, preempted=lambda: 0)
    assert len(long.samples_s) > 15


def test_warm_weights_are_used_once_before_each_sample_and_cold_ones_only_where_a_call_is_short(clock, make):
    warm, cold, short = make("warm", 0.02, cold=False), make("cold", 0.02), make("short", 0.005)
    sample([warm, cold, short], 1.0, clock=clock, preempted=lambda: 0)
    calls = {name: make.log.count(name) for name in ("warm", "cold", "short")}
    assert calls["warm"] == 2 * len(warm.samples_s)
    assert calls["cold"] == 1 + len(cold.samples_s)
    assert calls["short"] == 2 * len(short.samples_s)


def test_a_candidate_that_fails_is_out_with_its_reason_and_the_others_go_on(clock, make):
    bad, good = make("bad", 2e-3, fails_at=5), make("good", 2e-3)
    sample([bad, good], 0.5, clock=clock, preempted=lambda: 0)
    assert bad.error == "ValueError: expected 1, got 2"
    assert make.log.count("bad") == 5
    assert len(good.samples_s) > 50


def test_what_follows_a_sample_is_done_after_each_and_not_timed(clock, make):
    rests = []

    def rest():
        rests.append(clock.now)
        clock.now += 0.01

    candidate = make("a", 2e-3, after=rest)
    sample([candidate], 0.5, clock=clock, preempted=lambda: 0)
    assert len(rests) == len(candidate.samples_s) > 5
    assert max(candidate.samples_s) == pytest.approx(2e-3)


@pytest.mark.parametrize(("call_s", "retaken"), [(2e-3, True), (0.05, False)], ids=["short", "long"])
def test_a_short_sample_that_lost_a_cpu_is_taken_again_and_a_long_one_is_only_counted(clock, make, call_s, retaken):
    losses = itertools.accumulate(itertools.cycle([0, 1, 0, 0]))  # every other sample that is tried is disturbed
    candidate = make("a", call_s)
    sample([candidate], 2.0, clock=clock, preempted=lambda: next(losses))
    assert (candidate.disturbed == 0) == retaken
    assert candidate.disturbed <= len(candidate.samples_s)


def test_on_a_machine_that_is_never_quiet_samples_are_kept_and_counted(clock, make):
    candidate = make("a", 2e-3)
    sample([candidate], 0.5, clock=clock, preempted=itertools.count().__next__)
    assert candidate.disturbed == len(candidate.samples_s) > 5
    assert make.log.count("a") == 6 * len(candidate.samples_s)


def test_without_time_for_all_the_first_have_their_turn(clock, make):
    candidates = [make(str(number), 0.1) for number in range(10)]
    sample(candidates, 0.5, clock=clock, preempted=lambda: 0)
    assert [bool(candidate.samples_s) for candidate in candidates] == [True] * 3 + [False] * 7


def test_garbage_is_not_collected_meanwhile_and_is_afterwards(make, clock):
    states = []
    candidate = Candidate(lambda: (states.append(gc.isenabled()), clock.__setattr__("now", clock.now + 0.01)), True)
    sample([candidate], 0.1, clock=clock, preempted=lambda: 0)
    assert set(states) == {False}
    assert gc.isenabled()
