"""What becomes of reported samples and failures, on synthetic events."""

from __future__ import annotations

import pytest

from autotune.bench.ledger import Ledger
from autotune.bench.messages import Block, Clocks, Failed, Finished, GpuFacts, Prepared, Ready, Unusable
from autotune.bench.sampler import COARSE_INTERVAL, TARGET_INTERVAL, Sample
from autotune.records import Failure, Measurement


def block(*samples, drift=0.0):
    return Block(tuple(Sample(index, time_s, 4, discarded) for index, time_s, discarded in samples), drift)


def book(tasks, interval=TARGET_INTERVAL):
    """A ledger of which all tasks are asked."""
    ledger = Ledger(tasks)
    ledger.select(dict.fromkeys(range(len(tasks)), interval))
    return ledger


@pytest.fixture
def tasks(product):
    return [product(m=1), product(m=2), product(n_out=1000, rows=250)]


def test_samples_become_measurements_in_the_order_of_the_tasks(tasks):
    ledger = book(tasks)
    ledger.take(block((1, 2.0, 1), (0, 1.0, 0)))
    ledger.take(block((1, 2.1, 2), (2, 0.1, 0)))
    first, second, _ = ledger.outcomes()
    assert first == Measurement(tasks[0].point, (1.0,), 4, "budget")
    assert second == Measurement(tasks[1].point, (2.0, 2.1), 4, "budget", disturbed=3)
    assert ledger.timed == 3


def test_the_time_of_a_slice_is_scaled_to_the_whole_site(tasks):
    ledger = book(tasks)
    ledger.take(block((2, 0.1, 0), (2, 0.2, 0)))
    outcome = ledger.outcomes()[2]
    assert outcome.samples_s == pytest.approx((0.4, 0.8))
    assert outcome.rows_timed == 250
    assert ledger.samples_s()[2] == (0.1, 0.2), "the worker goes on with what it measured itself"


@pytest.mark.parametrize(
    ("samples_s", "stopped"),
    [([1.0] * 6, "converged"), ([1.0, 1.2] * 12, "stable"), ([1.0, 1.2] * 3, "budget")],
)
def test_a_measurement_says_why_its_sampling_stopped(tasks, samples_s, stopped):
    ledger = book(tasks)
    ledger.take(block(*((0, time_s, 0) for time_s in samples_s)))
    assert ledger.outcomes()[0].stopped == stopped


def test_what_was_never_sampled_is_a_failure_for_want_of_time(tasks):
    outcomes = book(tasks).outcomes()
    assert [(outcome.kind, outcome.point) for outcome in outcomes] == [("budget", task.point) for task in tasks]


def test_a_failure_outweighs_samples_and_keeps_its_first_reason(tasks):
    ledger = book(tasks)
    ledger.take(block((0, 1.0, 0)))
    ledger.take(Failed(0, "crashed", "RuntimeError: first"))
    ledger.fail([0, 1], "hung", "second")
    assert ledger.outcomes()[:2] == (
        Failure(tasks[0].point, "crashed", "RuntimeError: first"),
        Failure(tasks[1].point, "hung", "second"),
    )


def test_it_is_open_until_a_worker_finishes_or_all_have_failed(tasks):
    finished, failed = book(tasks), book(tasks)
    assert finished.open
    finished.take(Finished())
    assert not finished.open
    failed.fail([0, 1], "hung", "")
    assert failed.open
    failed.fail([2], "hung", "")
    assert not failed.open
    assert not book([]).open


def test_of_several_workers_the_first_overhead_the_worst_drift_and_the_least_cold_memory_count(tasks):
    ledger = book(tasks)
    first = (Ready(40), Prepared(700), block(drift=0.02), block(drift=0.07))
    second = (Ready(50), Prepared(600), block(drift=0.01))
    for event in (*first, *second, Ready(60), Prepared(800)):
        ledger.take(event)
    assert (ledger.overhead_bytes, ledger.control_drift, ledger.cold_bytes) == (40, 0.07, 600)


class TestSelection:
    """What is asked for, bit by bit."""

    def test_what_was_not_asked_for_has_no_outcome(self, tasks):
        ledger = Ledger(tasks)
        assert (ledger.outcomes(), ledger.open, ledger.asked) == ((), False, 0)
        assert ledger.select({1: TARGET_INTERVAL}) == {1: TARGET_INTERVAL}
        assert [outcome.point for outcome in ledger.outcomes()] == [tasks[1].point]
        assert (ledger.open, ledger.asked) == (True, 1)

    def test_what_failed_has_one_although_it_was_not_asked_for(self, tasks):
        """A kernel that failed its check is out at all its points."""
        ledger = Ledger(tasks)
        ledger.fail([0], "wrong_result", "differs from the oracle")
        assert [outcome.kind for outcome in ledger.outcomes()] == ["wrong_result"]
        assert not ledger.select({0: TARGET_INTERVAL})

    def test_only_what_is_new_or_is_to_be_surer_is_passed_on(self, tasks):
        ledger = Ledger(tasks)
        ledger.select({0: COARSE_INTERVAL, 1: TARGET_INTERVAL})
        asked = {2: COARSE_INTERVAL, 0: TARGET_INTERVAL, 1: COARSE_INTERVAL}
        assert list(ledger.select(asked).items()) == [(2, COARSE_INTERVAL), (0, TARGET_INTERVAL)]
        assert ledger.selected == {0: TARGET_INTERVAL, 1: TARGET_INTERVAL, 2: COARSE_INTERVAL}
        assert not ledger.select(asked)

    def test_an_interval_that_is_narrow_enough_for_what_was_asked_is_said_to_be_just_that(self, tasks):
        """Until more is asked for; then it is the time that was missing."""
        ledger = book(tasks, COARSE_INTERVAL)
        ledger.take(block(*((0, time_s, 0) for time_s in [0.96, 1.0, 1.04] * 4)))
        assert ledger.outcomes()[0].stopped == "enough"
        ledger.select({0: TARGET_INTERVAL})
        assert ledger.outcomes()[0].stopped == "budget"


class TestRivals:
    """Two kernels at three values of m: the reference is compared at 1 and 64, which spare 16."""

    def ledger(self, product):
        tasks = [product(kernel, m=m) for m in (1, 64, 16) for kernel in ("native", "numpy")]
        return tasks, book(tasks)

    def test_a_beaten_kernel_says_so_and_what_it_is_spared_has_no_outcome(self, product):
        tasks, ledger = self.ledger(product)
        ledger.take(block(*((index, 1.0, 0) for index in (0, 2, 4)), (1, 4.0, 0), (3, 1.6, 0), (3, 1.7, 0)))
        outcomes = ledger.outcomes()
        assert [outcome.point for outcome in outcomes] == [task.point for task in tasks[:5]]
        assert [outcome.stopped for outcome in outcomes] == ["budget", "beaten", "budget", "beaten", "budget"]
        assert ledger.timed == len(tasks)

    def test_beaten_at_one_of_two_points_spares_nothing(self, product):
        _, ledger = self.ledger(product)
        ledger.take(block(*((index, 1.0, 0) for index in (0, 2, 3, 4)), (1, 4.0, 0)))
        assert [outcome.kind for outcome in ledger.outcomes() if isinstance(outcome, Failure)] == ["budget"]

    def test_where_the_rival_failed_nothing_is_spared(self, product):
        tasks, ledger = self.ledger(product)
        ledger.take(block(*((index, 1.0, 0) for index in (0, 2)), *((index, 4.0, 0) for index in (1, 3))))
        ledger.fail([4], "unsupported", "ValueError: too wide")
        assert [outcome.point for outcome in ledger.outcomes()] == [task.point for task in tasks]

    def test_a_rival_that_failed_beats_nobody(self, product):
        tasks, ledger = self.ledger(product)
        ledger.take(block(*((index, 1.0, 0) for index in (0, 2, 4)), (1, 4.0, 0), (3, 4.0, 0)))
        ledger.fail([0, 2, 4], "crashed", "died of signal 11")
        assert [outcome.point for outcome in ledger.outcomes()] == [task.point for task in tasks]
        assert [outcome.stopped for outcome in ledger.outcomes() if isinstance(outcome, Measurement)] == ["budget"] * 2


class TestGpu:
    """What workers tell of a GPU beside samples."""

    FACTS = GpuFacts(500, 900, 7000, 50, 132, 0.0, {"torch": "9.9"})

    def test_what_the_first_worker_found_counts(self, tasks):
        """The next one finds the GPU as the first one left it."""
        ledger = book(tasks)
        assert ledger.gpu is None
        for facts in (self.FACTS, GpuFacts(600, 800, 6000, 50, 132, 0.4, {})):
            ledger.take(Prepared(700, facts))
        assert ledger.gpu == self.FACTS

    def test_clocks_are_kept_as_they_were_read(self, tasks):
        ledger = book(tasks)
        read = [Clocks(1e9, 2e9, ()), Clocks(9e8, None, ("sw_power_cap",))]
        for clocks in read:
            ledger.take(clocks)
        assert ledger.clocks == read

    def test_a_device_that_cannot_be_used_ends_it_and_what_was_sampled_stays(self, tasks):
        ledger = book(tasks)
        ledger.take(block((0, 1.0, 0)))
        ledger.take(Unusable("the driver is too old"))
        assert ledger.unusable == "the driver is too old"
        assert not ledger.open
        assert [outcome.kind for outcome in ledger.outcomes() if isinstance(outcome, Failure)] == ["budget"] * 2
