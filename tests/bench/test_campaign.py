"""Campaigns on this host: real worker processes, tiny products."""

from __future__ import annotations

import msgspec
import pytest
from msgspec.structs import replace

from autotune.bench import campaign
from autotune.bench.plan import Task, ceilings, describe_first_missing, plan
from autotune.bench.sampler import COARSE_INTERVAL, MIN_SAMPLE_S, MIN_SAMPLES, TARGET_INTERVAL
from autotune.errors import BenchmarkError
from autotune.records import Campaign, Measurement, Site, median
from tests.builders import NUMPY, build_model, build_workload

FAULTY = ("ternary_kernels.reference.products", "tests.bench.faulty_kernels")
OVERRUN = 1.10
"""The budget's own promise."""

TINY = {"prompt_tokens": 1, "output_tokens": 1, "context_tokens": 2, "max_batch": 1}


@pytest.fixture(scope="module")
def reports():
    return []


@pytest.fixture(scope="module")
def tasks(host):
    """More than the budget allows to sample to the end."""
    model = build_model(head=Site("head", 100_000, 2560, "F16"))
    return plan((model,), host, build_workload(prompt_tokens=512, max_batch=32), NUMPY, quick=False)


@pytest.fixture(scope="module")
def found(host, tasks, reports):
    """One campaign that ends with its budget."""
    return campaign.run(build_model(), host, tasks, budget_s=4.0, progress=lambda *told: reports.append(told))


def test_every_task_has_an_outcome_in_its_place(found, tasks):
    assert [outcome.point for outcome in found.outcomes] == [task.point for task in tasks]
    assert {failure.kind for failure in found.failures()} <= {"budget"}
    assert found.measurements()


def test_the_budget_holds_although_there_was_more_to_do(found):
    assert any(outcome.stopped == "budget" for outcome in found.measurements()) or found.failures()
    assert 0.9 < found.spent_s / found.budget_s <= OVERRUN


def test_every_sample_lasted_long_enough_for_the_clock(found):
    for outcome in found.measurements():
        scale = outcome.point.n_out / outcome.rows_timed if outcome.rows_timed else 1
        assert outcome.samples_s[-1] / scale * outcome.calls_per_sample >= 0.999 * MIN_SAMPLE_S


def test_a_slice_is_scaled_to_the_whole_head(found, tasks):
    sliced = [
        (outcome, task) for outcome, task in zip(found.outcomes, tasks, strict=True) if task.rows and task.point.m == 1
    ]
    assert sliced
    for outcome, task in sliced:
        assert isinstance(outcome, Measurement)
        assert outcome.rows_timed == task.rows < outcome.point.n_out


def test_noise_is_that_of_the_outcomes(found):
    widths = [width for outcome in found.measurements() if (width := outcome.relative_interval) is not None]
    noise = found.noise
    assert noise.points == len(found.measurements())
    assert noise.converged == sum(width <= TARGET_INTERVAL for width in widths)
    assert noise.median_relative_interval == (median(widths) if widths else None)
    assert noise.disturbed_samples == sum(outcome.disturbed for outcome in found.measurements())
    assert noise.control_drift >= 0
    assert noise.steal_fraction is None or 0 <= noise.steal_fraction <= 1
    assert noise.throttled_s is None or noise.throttled_s >= 0


def test_it_says_how_much_memory_weights_rotated_through_and_what_the_runtime_takes_itself(found, host, tasks):
    assert 64 << 20 < found.cold_bytes <= campaign.cold_memory_bytes(build_model(), host, tasks)
    assert 10 << 20 < found.runtime_overhead_bytes < 500 << 20


def test_progress_is_told_with_growing_shares(found, reports, tasks):
    shares, timed, totals = zip(*reports, strict=True)
    assert len(reports) > 5
    assert list(shares) == sorted(shares)
    assert 0 <= shares[0] < 0.5 < shares[-1] <= 1
    assert list(timed) == sorted(timed)
    assert timed[-1] == len(found.measurements())
    assert set(totals) == {len(tasks)}


def test_a_tiny_model_is_timed_completely_and_each_sampling_stops_for_a_reason(host):
    model = build_model(max_context=64)
    tasks = plan((model,), host, build_workload(**TINY), NUMPY, quick=True)
    found = campaign.run(model, host, tasks, budget_s=4.0)
    assert not found.failures()
    assert describe_first_missing(tasks, (outcome.point for outcome in found.measurements())) is None
    for outcome in found.measurements():
        width = outcome.relative_interval
        if outcome.stopped == "converged":
            assert width <= TARGET_INTERVAL
        if outcome.stopped != "budget":
            assert len(outcome.samples_s) >= MIN_SAMPLES


def test_it_ends_early_when_all_is_known(host, product):
    """Two products need some ten milliseconds; the budget is a minute."""
    found = campaign.run(build_model(), host, [product(), product(m=2)], budget_s=60)
    assert not found.failures()
    assert all(outcome.stopped != "budget" for outcome in found.measurements())
    assert found.spent_s < 30


def test_the_hosts_ceilings_are_timed_without_a_model(host):
    found = campaign.run(None, host, ceilings(host, NUMPY), budget_s=2.0)
    assert {outcome.point.op for outcome in found.measurements()} == {"read", "peak"}
    assert not found.failures()


def test_a_campaign_survives_the_way_through_a_file(found):
    assert msgspec.json.decode(msgspec.json.encode(found), type=Campaign) == found


def test_with_nothing_to_time_no_worker_is_started(host, monkeypatch):
    monkeypatch.setattr("sys.executable", "/no/such/python")
    found = campaign.run(None, host, (), budget_s=1.0)
    assert found.outcomes == ()
    assert found.noise.points == 0


def test_a_host_without_enough_memory_is_refused_in_a_sentence(host):
    small = replace(host, memory=replace(host.memory, usable_bytes=100 << 20))
    with pytest.raises(BenchmarkError, match="timing needs a window of 64 MiB and this host has 100 MiB"):
        campaign.run(None, small, ceilings(small, NUMPY), budget_s=1.0)


def test_memory_that_runs_out_before_anything_is_timed_is_an_error_and_blames_no_task(host, product):
    """The host claims far more memory than any address space has."""
    rows = 1 << 44
    boasting = replace(host, memory=replace(host.memory, usable_bytes=1 << 60))
    task: Task = product(n_out=rows)
    with pytest.raises(BenchmarkError, match=r"before it came to any task.*Unable to allocate"):
        campaign.run(build_model(), boasting, [task], budget_s=10)


@pytest.mark.parametrize("module", ["tests.bench.no_such_module", "tests.bench.conftest_missing.kernels"])
def test_a_kernel_module_that_cannot_be_imported_is_an_error(host, product, module):
    with pytest.raises(
        BenchmarkError, match=r"exited with status 1: ModuleNotFoundError: No module named 'tests.bench"
    ):
        campaign.run(build_model(), host, [product()], budget_s=10, kernel_modules=(module,))


def test_the_budget_holds_when_the_worker_hangs_while_it_starts(host, product, tmp_path, monkeypatch):
    """No task is at stake then, so nothing ends the worker before the budget does."""
    (tmp_path / "sleeping_kernels.py").write_text("import time\ntime.sleep(3600)\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = campaign.run(build_model(), host, [product()], budget_s=2.0, kernel_modules=("sleeping_kernels",))
    assert [failure.kind for failure in found.failures()] == ["budget"]
    assert found.spent_s / found.budget_s <= OVERRUN


def test_the_budget_holds_when_one_kernel_after_another_hangs(host, product):
    tasks = [product("late-hogging", m=m) for m in range(1, 6)]
    found = campaign.run(build_model(), host, tasks, budget_s=2.0, kernel_modules=FAULTY)
    assert {failure.kind for failure in found.failures()} == {"hung", "budget"}
    assert found.spent_s / found.budget_s <= OVERRUN


class TestChoosing:
    """Tasks are timed as they are chosen, given what was measured so far."""

    def choose(self, *answers):
        """A chooser that gives one answer after the other; and the campaigns that it was given."""
        left, seen = iter(answers), []

        def choose(campaign):
            seen.append(campaign)
            return next(left)

        return choose, seen

    def test_only_what_is_chosen_is_timed_and_the_rest_is_counted(self, host, product):
        tasks = [product(m=m) for m in (1, 2, 3, 4, 5)]
        choose, seen = self.choose({3: TARGET_INTERVAL, 0: COARSE_INTERVAL}, {1: TARGET_INTERVAL}, {})
        found = campaign.run(build_model(), host, tasks, budget_s=60, choose=choose)
        assert [outcome.point for outcome in found.measurements()] == [tasks[index].point for index in (0, 1, 3)]
        assert found.spared == 2
        assert not found.failures()
        assert [len(known.measurements()) for known in seen] == [0, 2, 3]
        assert found.spent_s < 30

    def test_the_benchmark_ends_when_nothing_new_is_chosen(self, host, product):
        choose, seen = self.choose({0: TARGET_INTERVAL}, {0: COARSE_INTERVAL})
        found = campaign.run(build_model(), host, [product(), product(m=2)], budget_s=60, choose=choose)
        assert len(found.measurements()) == 1
        assert len(seen) == 2

    def test_with_nothing_chosen_no_worker_is_started(self, host, product, monkeypatch):
        monkeypatch.setattr("sys.executable", "/no/such/python")
        found = campaign.run(build_model(), host, [product()], budget_s=60, choose=lambda known: {})
        assert (found.outcomes, found.spared) == ((), 1)

    def test_the_chooser_knows_of_failures_and_what_it_chose_before_goes_on_without_them(self, host, product):
        tasks = [product("late-crashing", n_out=512), product(), product(m=2)]
        choose, seen = self.choose({0: COARSE_INTERVAL, 1: COARSE_INTERVAL}, {2: COARSE_INTERVAL}, {})
        found = campaign.run(build_model(), host, tasks, budget_s=60, kernel_modules=FAULTY, choose=choose)
        assert [failure.kind for failure in found.failures()] == ["crashed"]
        assert [outcome.point for outcome in found.measurements()] == [task.point for task in tasks[1:]]
        assert [len(known.failures()) for known in seen] == [0, 1, 1]

    def test_where_all_that_was_chosen_fails_something_else_can_be(self, host, product):
        tasks = [product("crashing"), product()]
        choose, _ = self.choose({0: COARSE_INTERVAL}, {1: COARSE_INTERVAL}, {})
        found = campaign.run(build_model(), host, tasks, budget_s=60, kernel_modules=FAULTY, choose=choose)
        assert [type(outcome).__name__ for outcome in found.outcomes] == ["Failure", "Measurement"]

    def test_nothing_is_chosen_when_the_time_is_up(self, host, product):
        """So no failure tells of a point that there was no time to ask for."""
        tasks = [product(m=m, n_out=4096, k_in=4096) for m in range(1, 60)]
        seen = []

        def choose(known):
            seen.append(known)
            return {len(seen): 1e-9}  # which no samples come to

        found = campaign.run(build_model(), host, tasks, budget_s=2.0, choose=choose)
        assert len(found.outcomes) + found.spared == len(tasks)
        assert len(found.failures()) <= 1
        assert found.spent_s / found.budget_s <= OVERRUN

    def test_progress_counts_what_was_chosen(self, host, product):
        told = []
        choose, _ = self.choose({0: COARSE_INTERVAL}, {1: COARSE_INTERVAL}, {})
        campaign.run(
            build_model(),
            host,
            [product(), product(m=2), product(m=3)],
            budget_s=60,
            choose=choose,
            progress=lambda *report: told.append(report),
        )
        totals = [total for _, _, total in told]
        assert totals == sorted(totals)
        assert (totals[0], totals[-1]) == (1, 2)
        assert told[-1][1] == 2
