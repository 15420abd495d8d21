"""The sampler, on synthetic candidates and a clock that only they move."""

from __future__ import annotations

import itertools
import random

import pytest

from autotune.bench import disturbance
from autotune.bench.sampler import (
    COARSE_INTERVAL,
    MAX_DRIFT,
    MIN_SAMPLE_S,
    MIN_SAMPLES,
    TARGET_INTERVAL,
    Candidate,
    Sampler,
    stopping,
)
from autotune.records import relative_median_interval

ROUNDING = 1e-9
REPEAT_SHARE = 0.1
"""What repeating blocks may take, of all the time."""


class Simulation:
    """A clock, candidates that spend time on it, and an observer that keeps what it is told.

    The control is a candidate of its own, the last one, which is not sampled.
    """

    def __init__(self):
        self.now = 100.0
        self.preemptions = 0
        self.candidates = []
        self.calls = []
        self.begun = []
        self.failures = {}
        self.blocks = []
        self.drift = None

    def add(self, duration_s, *, work=1.0, kind=None, **known):
        """A candidate; ``duration_s`` is seconds per call, or a function that gives them."""
        index = len(self.candidates)

        def call():
            self.calls.append(index)
            self.now += duration_s() if callable(duration_s) else duration_s

        self.candidates.append(Candidate(call, work, (index,) if kind is None else kind, **known))
        return index

    def run(self, seconds, control_s=2e-3, seed=0):
        self.control = self.add(control_s, done=True)
        self.deadline = self.now + seconds
        Sampler(self.candidates, self.control, self.deadline, self, clock=lambda: self.now, seed=seed).run()

    def started(self, index, expected_s):
        if index != self.control:
            self.begun.append((index, expected_s, self.now))

    def failed(self, index, error):
        self.failures[index] = error

    def committed(self, block, control_drift):
        self.blocks.append(list(block))
        self.drift = control_drift

    def samples(self, index):
        return [sample for block in self.blocks for sample in block if sample.index == index]

    def rounds(self):
        """Order of sampling, cut where a candidate comes again."""
        rounds = [[]]
        for index, _, _ in self.begun:
            if index in rounds[-1]:
                rounds.append([])
            rounds[-1].append(index)
        return rounds


@pytest.fixture
def simulation(monkeypatch):
    simulation = Simulation()
    monkeypatch.setattr(disturbance, "preemptions", lambda: simulation.preemptions)
    return simulation


def noisy(middle_s, spread=0.3):
    """Durations spread evenly around their middle, the same in each run."""
    draw = random.Random(str(middle_s))
    return lambda: middle_s * draw.uniform(1 - spread, 1 + spread)


def in_turn(durations_s, then_s):
    """These durations, and another one ever after."""
    durations = itertools.chain(durations_s, itertools.repeat(then_s))
    return lambda: next(durations)


@pytest.mark.parametrize("call_s", [1e-7, 3.3e-6, 4.7e-4, 0.99e-3, 1e-3, 5e-3])
def test_calls_are_batched_until_a_sample_lasts_a_millisecond(simulation, call_s):
    index = simulation.add(call_s)
    simulation.run(seconds=10)
    samples = simulation.samples(index)
    assert len(samples) == MIN_SAMPLES
    for sample in samples:
        assert sample.time_s == pytest.approx(call_s)
        assert sample.time_s * sample.calls >= MIN_SAMPLE_S * (1 - ROUNDING)
        # Not much longer either: time is short.
        assert sample.calls == 1 or sample.time_s * sample.calls < 2 * MIN_SAMPLE_S


def test_a_candidate_that_speeds_up_is_batched_anew(simulation):
    index = simulation.add(in_turn([2e-3] * 6, then_s=1e-4))  # one call before each sample isn't timed
    simulation.run(seconds=10)
    assert all(sample.time_s * sample.calls >= MIN_SAMPLE_S * (1 - ROUNDING) for sample in simulation.samples(index))
    assert [sample.calls for sample in simulation.samples(index)][:4] == [1, 1, 1, 12]


def test_a_short_call_is_preceded_by_one_that_is_not_timed_and_a_long_one_is_not(simulation):
    short, long = simulation.add(noisy(2e-3)), simulation.add(noisy(0.02))
    simulation.run(seconds=1)
    for index, calls_per_sample in ((short, 2), (long, 1)):
        warm_up = 1 if index == long else 0
        timed = sum(sample.calls for sample in simulation.samples(index))
        assert simulation.calls.count(index) == calls_per_sample * timed + warm_up


def test_the_first_round_keeps_the_order_given_and_later_ones_mix_all_candidates(simulation):
    count = 12
    for index in range(count):
        simulation.add(noisy(0.02 + index * 1e-4))
    simulation.run(seconds=4)
    rounds = simulation.rounds()
    assert len(rounds) > 10
    assert rounds[0] == list(range(count))
    assert all(sorted(order) == rounds[0] for order in rounds[1:-1])
    assert len({tuple(order) for order in rounds[:-1]}) == len(rounds) - 1


def test_the_order_depends_on_the_seed_alone(monkeypatch):
    def order(seed):
        simulation = Simulation()
        monkeypatch.setattr(disturbance, "preemptions", lambda: 0)
        for index in range(8):
            simulation.add(noisy(2e-3 + index * 1e-4))
        simulation.run(seconds=0.3, seed=seed)
        return [index for index, _, _ in simulation.begun]

    assert order(seed=1) == order(seed=1) != order(seed=2)


def test_candidates_that_have_converged_are_left_alone_and_the_others_go_on(simulation):
    steady, unsteady = simulation.add(2e-3), simulation.add(noisy(2e-3))
    simulation.run(seconds=1)
    assert len(simulation.samples(steady)) == MIN_SAMPLES
    assert len(simulation.samples(unsteady)) > 2 * MIN_SAMPLES


def test_sampling_ends_early_when_all_are_done(simulation):
    for _ in range(5):
        simulation.add(2e-3)
    simulation.run(seconds=3600)
    assert simulation.now < simulation.deadline - 3500
    assert all(candidate.done for candidate in simulation.candidates)


def test_long_samples_take_part_in_fewer_rounds(simulation):
    short, long = simulation.add(noisy(2e-3, spread=0.9)), simulation.add(noisy(0.3, spread=0.9))
    simulation.run(seconds=20)
    order = [index for index, _, _ in simulation.begun]
    twenty_rounds = order[: [at for at, index in enumerate(order) if index == short][19]]
    assert 1 <= twenty_rounds.count(long) < 10


def test_nothing_starts_that_is_not_expected_to_end_in_time(simulation):
    """The durations don't vary, so all that starts ends before the deadline, and the last control as well."""
    for index in range(40):
        simulation.add(0.05 + 0.01 * index, work=0.05 + 0.01 * index, kind=("a product",))
    simulation.run(seconds=3, control_s=0.08)
    assert all(at + (expected or 0.0) < simulation.deadline for _, expected, at in simulation.begun)
    assert simulation.now <= simulation.deadline
    assert sum(len(block) for block in simulation.blocks) == len(simulation.begun) > 0
    assert not simulation.samples(39)


def test_a_first_call_is_expected_to_take_what_less_work_of_its_kind_took_scaled_up(simulation):
    """One unit of work takes 10 ms. 64 units would take 0.64 s, warm-up and sample 1.28 s; 4096 units 82 s."""
    for work in (1, 64, 4096):
        simulation.add(0.01 * work, work=work, kind=("a product",))
    simulation.add(0.01, kind=("another",))
    simulation.run(seconds=3)
    expected = {index: expected for index, expected, _ in reversed(simulation.begun)}
    assert expected == {0: None, 1: pytest.approx(1.28), 3: None}
    assert 2 not in simulation.calls


def test_more_work_is_never_expected_to_take_less_time(simulation):
    """A product with fewer tokens than one that was timed may take as long: both stream all weights."""
    simulation.add(0.01, work=64, kind=("a product",))
    simulation.add(0.01, work=1, kind=("a product",))
    simulation.run(seconds=3)
    assert simulation.begun[1][:2] == (1, pytest.approx(0.02))


def test_a_candidate_that_raises_an_error_is_out_and_the_others_go_on(simulation):
    error = RuntimeError("out of luck")

    def fail_at(count):
        calls = itertools.count(1)

        def duration_s():
            if next(calls) == count:
                raise error
            return 2e-3

        return duration_s

    good, at_once, later = simulation.add(2e-3), simulation.add(fail_at(1)), simulation.add(fail_at(5))
    simulation.run(seconds=5)
    assert simulation.failures == {at_once: error, later: error}
    assert simulation.calls.count(at_once) == 1
    assert simulation.calls.count(later) == 5
    assert len(simulation.samples(good)) == MIN_SAMPLES
    assert not simulation.samples(at_once)


def test_a_block_during_which_the_control_moved_is_repeated(simulation):
    """The host slows down by 10 % in the middle of the second block, and stays like that."""
    slow_from = simulation.now + 1.0

    def on_this_host(duration_s):
        return lambda: duration_s * (1.1 if simulation.now > slow_from else 1.0)

    for index in range(20):
        simulation.add(on_this_host(0.05 + index * 1e-3))
    simulation.run(seconds=30, control_s=on_this_host(5e-3))
    discarded = [[sample.discarded for sample in block] for block in simulation.blocks]
    assert [set(counts) for counts in discarded] == [{0}, {1}, *[{0}] * (len(discarded) - 2)]
    for sample in simulation.blocks[1]:
        assert sample.time_s == pytest.approx(1.1 * (0.05 + sample.index * 1e-3))
    assert simulation.drift == pytest.approx(0.1, rel=0.1)


def test_a_steady_host_is_not_made_to_repeat_anything(simulation):
    for _ in range(20):
        simulation.add(noisy(0.05))
    simulation.run(seconds=20, control_s=noisy(5e-3, spread=0.4 * MAX_DRIFT))
    assert all(sample.discarded == 0 for block in simulation.blocks for sample in block)
    assert simulation.drift <= MAX_DRIFT


def test_on_a_host_that_never_holds_still_repeats_are_bounded_and_samples_count_all_the_same(simulation):
    seconds = 20
    for index in range(20):
        simulation.add(noisy(0.05 + index * 1e-3))
    readings = itertools.count()
    simulation.run(seconds, control_s=lambda: 12e-3 * (1.5 if next(readings) // 5 % 2 else 1.0))
    samples = [sample for block in simulation.blocks for sample in block]
    repeated_s = sum(sample.discarded * sample.time_s for sample in samples)
    assert 0 < repeated_s < 1.2 * REPEAT_SHARE * seconds
    assert all(simulation.samples(index) for index in range(20))
    assert sum(sample.time_s for sample in samples) > 0.7 * seconds
    assert simulation.drift > 5 * MAX_DRIFT


def test_a_candidate_that_fails_while_its_block_is_repeated_is_out(simulation):
    calls = itertools.count(1)

    def fails_at_third():
        if next(calls) == 3:
            raise RuntimeError("out of luck")
        return 0.05

    bad, good = simulation.add(fails_at_third), simulation.add(0.05)
    simulation.run(seconds=10, control_s=in_turn([5e-3] * 6, then_s=6e-3))
    assert list(simulation.failures) == [bad]
    assert simulation.samples(bad) == []
    assert [sample.discarded for sample in simulation.samples(good)] == [1, 0, 0, 0, 0, 0]


def test_a_block_of_which_nothing_is_left_is_not_repeated_for_ever(simulation):
    calls = itertools.count(1)

    def fails_at_third():
        if next(calls) == 3:
            raise RuntimeError("out of luck")
        return 0.05

    simulation.add(fails_at_third)
    readings = itertools.count()
    simulation.run(seconds=1e6, control_s=lambda: 5e-3 * (1.5 if next(readings) // 5 % 2 else 1.0))
    assert simulation.now < 110


def test_a_slow_sample_of_an_interrupted_process_is_taken_again(simulation):
    ordinary = itertools.cycle([0.02, 0.022])
    turns = itertools.count(1)

    def duration_s():
        if next(turns) == 10:
            simulation.preemptions += 1
            return 0.09
        return next(ordinary)

    index = simulation.add(duration_s)
    simulation.run(seconds=10)
    samples = simulation.samples(index)
    assert max(sample.time_s for sample in samples) < 0.03
    assert [sample.discarded for sample in samples][:10] == [0] * 8 + [1, 0]


def test_samples_that_stay_slow_are_retaken_twice_at_most(simulation):
    ordinary = itertools.cycle([0.02, 0.022])
    turns = itertools.count(1)

    def duration_s():
        simulation.preemptions += 1
        return next(ordinary) if next(turns) < 10 else 0.09

    index = simulation.add(duration_s)
    simulation.run(seconds=4)
    samples = simulation.samples(index)
    assert samples[8].time_s == pytest.approx(0.09)
    assert samples[8].discarded == 2
    assert max(sample.discarded for sample in samples) == 2


@pytest.mark.parametrize(("preempted", "slow"), [(True, False), (False, True)])
def test_slowness_alone_or_an_interruption_alone_is_no_reason_to_discard(simulation, preempted, slow):
    ordinary = itertools.cycle([0.02, 0.022])
    turns = itertools.count(1)

    def duration_s():
        simulation.preemptions += preempted
        return 0.09 if slow and next(turns) == 10 else next(ordinary)

    index = simulation.add(duration_s)
    simulation.run(seconds=5)
    samples = simulation.samples(index)
    assert len(samples) > 10
    assert all(sample.discarded == 0 for sample in samples)
    assert (max(sample.time_s for sample in samples) > 0.08) == slow


def test_a_worker_that_takes_over_starts_with_what_was_not_sampled_yet(simulation):
    """Seven samples tell how long the eighth will take, also before this process has run the candidate."""
    begun = simulation.add(noisy(0.05), samples_s=[0.04, 0.06] * 3 + [0.05], call_s=0.05)
    untouched = simulation.add(noisy(0.05))
    simulation.run(seconds=2)
    assert [index for index, _, _ in simulation.begun[:2]] == [untouched, begun]
    assert simulation.begun[1][1] == pytest.approx(0.1)
    assert simulation.candidates[begun].samples_s[:7] == [0.04, 0.06] * 3 + [0.05]


def test_without_time_for_a_single_sample_nothing_is_called_but_the_control(simulation):
    index = simulation.add(2e-3)
    simulation.run(seconds=0.01, control_s=2e-3)
    assert index not in simulation.calls
    assert simulation.blocks == []


@pytest.mark.parametrize(
    ("samples_s", "verdict"),
    [
        ([], None),
        ([1.0] * (MIN_SAMPLES - 1), None),
        ([1.0] * MIN_SAMPLES, "converged"),
        ([1.0, 1.0, 1.0, 1.03, 1.03, 1.03], "converged"),
        ([1.0, 1.0, 1.0, 1.06, 1.06, 1.06], None),
        ([1.0, 1.2] * 11, None),
        ([1.0, 1.2] * 12, "stable"),
        ([0.8 + 0.025 * step for step in range(16)] + [1.0, 1.01] * 4, None),
    ],
    ids=["none", "too few", "equal", "within 2 %", "beyond 2 %", "wide", "two levels", "narrowing"],
)
def test_stopping_rule(samples_s, verdict):
    """Converged: the median's interval is within 2 %, from 6 samples on. Stable: 8 more samples didn't narrow it."""
    assert stopping(samples_s) == verdict
    interval = relative_median_interval(samples_s)
    assert (verdict == "converged") == (interval is not None and interval <= TARGET_INTERVAL)


class TestRivals:
    """Candidates that do the same in different ways."""

    def pair(self, simulation, slow, fast, **known):
        """A slow and a fast one that know of each other; returns their indices."""
        first = simulation.add(slow, rivals=(len(simulation.candidates) + 1,))
        second = simulation.add(fast, rivals=(first,), **known)
        return first, second

    @pytest.mark.parametrize(("slower", "samples"), [(10.0, 1), (2.0, 2)])
    def test_who_is_clearly_slower_is_sampled_no_more(self, simulation, slower, samples):
        slow, fast = self.pair(simulation, slower * 2e-3, noisy(2e-3))
        simulation.run(seconds=2)
        assert len(simulation.samples(slow)) == samples
        assert len(simulation.samples(fast)) > MIN_SAMPLES

    def test_who_is_a_little_slower_is_sampled_to_the_end(self, simulation):
        slow, fast = self.pair(simulation, noisy(2.2e-3), noisy(2e-3))
        simulation.run(seconds=2)
        assert min(len(simulation.samples(index)) for index in (slow, fast)) > MIN_SAMPLES

    def test_who_waits_is_sampled_once_its_gates_are_known_and_not_all_lost(self, simulation):
        lost, _ = self.pair(simulation, 8e-3, 2e-3)
        kept, _ = self.pair(simulation, 2e-3, 2.2e-3)
        spared, _ = self.pair(simulation, 2e-3, 2e-3)
        waiting, _ = self.pair(simulation, 2e-3, 2e-3)
        simulation.candidates[spared].gates, simulation.candidates[waiting].gates = (lost,), (lost, kept)
        simulation.run(seconds=2)
        assert not simulation.samples(spared)
        assert len(simulation.samples(waiting)) == MIN_SAMPLES
        before = [index for index, _, _ in simulation.begun][
            : simulation.begun.index(next(begun for begun in simulation.begun if begun[0] == waiting))
        ]
        assert before.count(kept) >= 2

    def test_who_waits_for_what_fails_is_sampled(self, simulation):
        def fail():
            raise RuntimeError("out of luck")

        gate, rival = self.pair(simulation, 2e-3, fail)
        waiting = simulation.add(2e-3, gates=(gate,))
        simulation.run(seconds=2)
        assert set(simulation.failures) == {rival}
        assert len(simulation.samples(waiting)) == len(simulation.samples(gate)) == MIN_SAMPLES

    def test_who_waits_is_sampled_where_nobody_else_is_left(self, simulation):
        def fail():
            raise RuntimeError("out of luck")

        lost, _ = self.pair(simulation, 8e-3, 2e-3)
        waiting, _ = self.pair(simulation, 2e-3, fail)
        simulation.candidates[waiting].gates = (lost,)
        simulation.run(seconds=2)
        assert len(simulation.samples(waiting)) == MIN_SAMPLES

    def test_who_was_beaten_by_what_then_fails_is_sampled_again(self, simulation):
        durations = itertools.chain([2e-3] * 4)

        def fast():
            return next(durations)  # and then StopIteration, as any error of a kernel

        slow, failing = self.pair(simulation, noisy(2e-2), fast)
        simulation.run(seconds=4)
        assert set(simulation.failures) == {failing}
        assert len(simulation.samples(slow)) >= MIN_SAMPLES

    def test_what_an_earlier_worker_found_counts(self, simulation):
        """It was beaten there already: not a call more."""
        slow, _ = self.pair(simulation, 2e-2, 2e-3, samples_s=[2e-3], call_s=2e-3)
        simulation.candidates[slow].samples_s.append(2e-2)
        simulation.run(seconds=1)
        assert slow not in simulation.calls


# Calls that run an operation several times, and other ways to time them


def test_a_sample_is_per_operation_where_a_call_runs_several(simulation):
    """A call of 8 operations takes 80 us; 13 of them last a millisecond."""
    index = simulation.add(80e-6, repeats=8)
    simulation.run(seconds=10)
    for sample in simulation.samples(index):
        assert sample.time_s == pytest.approx(10e-6)
        assert sample.calls % 8 == 0
        assert MIN_SAMPLE_S * (1 - ROUNDING) <= sample.time_s * sample.calls < 2 * MIN_SAMPLE_S


def test_what_several_operations_take_is_expected_of_the_next_sample(simulation):
    index = simulation.add(noisy(0.08), repeats=8)
    simulation.run(seconds=4)
    _, first, _ = next(begun for begun in simulation.begun if begun[0] == index)
    assert first is None
    assert all(0.05 < expected < 0.11 for _, expected, _ in simulation.begun[1:])


def test_a_candidate_may_be_timed_by_another_watch_than_the_clock(simulation):
    """A device's own: the clock goes on while it works, and that doesn't count."""

    def watch(call, calls):
        for _ in range(calls):
            call()
        return calls * 5e-4

    index = simulation.add(3e-3, stopwatch=watch)
    simulation.run(seconds=10)
    assert {sample.time_s for sample in simulation.samples(index)} == {5e-4}


class TestCoarse:
    """Where a wider interval will do."""

    def test_a_candidate_is_sampled_until_its_own_target(self, simulation):
        coarse, fine = (
            simulation.add(noisy(5e-3, 0.08), target=target) for target in (COARSE_INTERVAL, TARGET_INTERVAL)
        )
        simulation.run(60)
        taken = {index: [sample.time_s for sample in simulation.samples(index)] for index in (coarse, fine)}
        assert MIN_SAMPLES <= len(taken[coarse]) < len(taken[fine])
        assert TARGET_INTERVAL < relative_median_interval(taken[coarse]) <= COARSE_INTERVAL

    def test_on_a_noisy_host_few_samples_are_enough(self, simulation):
        """Whether the point matters can be told from the interval that they give."""
        index = simulation.add(noisy(5e-3, 0.9), target=COARSE_INTERVAL)
        simulation.run(60)
        taken = [sample.time_s for sample in simulation.samples(index)]
        assert relative_median_interval(taken) > COARSE_INTERVAL
        assert len(taken) == 10

    def test_a_sampler_goes_on_where_more_is_asked_of_candidates_or_others_come(self, simulation):
        first = simulation.add(noisy(5e-3, 0.08), target=COARSE_INTERVAL)
        control = simulation.control = simulation.add(2e-3, done=True)
        sampler = Sampler(simulation.candidates, control, simulation.now + 60, simulation, clock=lambda: simulation.now)
        sampler.run()
        coarse = len(simulation.samples(first))
        simulation.candidates[first].target, simulation.candidates[first].done = TARGET_INTERVAL, False
        second = simulation.add(3e-3)
        sampler.run()
        assert simulation.samples(second)
        assert len(simulation.samples(first)) > coarse
        begun = [index for index, _, _ in simulation.begun]
        assert begun.index(second) == coarse, "the new one first"

    @pytest.mark.parametrize(
        ("samples_s", "target", "why"),
        [
            ([1.0] * 6, COARSE_INTERVAL, "converged"),
            ([0.97, 1.0, 1.03] * 3, COARSE_INTERVAL, "enough"),
            ([0.97, 1.0, 1.03] * 3, TARGET_INTERVAL, None),
            ([1.0, 1.5] * 5, COARSE_INTERVAL, "enough"),
            ([1.0, 1.5] * 5, TARGET_INTERVAL, None),
            ([1.0, 1.5] * 2, COARSE_INTERVAL, None),
        ],
    )
    def test_why_it_ends(self, samples_s, target, why):
        assert stopping(samples_s, target) == why
