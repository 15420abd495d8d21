"""The parent's side of a worker, with shell scripts in the worker's place that say synthetic things."""

from __future__ import annotations

import sys
import time

import pytest

from autotune.bench.ledger import Ledger
from autotune.bench.messages import Block, Finished, Idle, Job, Ready, Select, Started, Unusable, encoder
from autotune.bench.sampler import Sample
from autotune.bench.supervisor import Supervisor
from autotune.errors import BenchmarkError

BUDGET_S = 20.0
"""Far more than any of these takes unless it hangs."""


@pytest.fixture
def supervise(monkeypatch, tmp_path, product):
    """Runs a script as the worker; returns the ledger."""

    def run(*lines, budget_s=BUDGET_S, patience_s=0.3, visible_gpu=None, selections=()):
        script = tmp_path / "worker"
        script.write_text("\n".join(("#!/bin/sh", *lines, "")))
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))
        tasks = (product(m=1), product(m=2))
        end = time.monotonic() + budget_s
        job = Job(None, tasks, ((), ()), (), (0,), 0, 0, end, end, (), 0, visible_gpu=visible_gpu)
        ledger = Ledger(tasks)
        ledger.select({0: 0.02, 1: 0.02})
        left = iter(selections)
        Supervisor(job, ledger, lambda: next(left), patience_s, lambda: None).run()
        assert time.monotonic() < end + 1
        return ledger

    return run


def say(*events):
    return "\n".join(f"echo '{encoder.encode(event).decode()}'" for event in events)


def sample(index, time_s=0.5):
    return Block((Sample(index, time_s, 1, 0),), 0.0)


def failures(ledger):
    return {index: (failure.kind, failure.message) for index, failure in ledger.failures.items()}


def test_what_a_worker_reports_is_booked(supervise):
    ledger = supervise("read job", say(Ready(1000), Started((0,), None), sample(0), Finished()))
    assert ledger.finished
    assert (ledger.overhead_bytes, ledger.samples_s()) == (1000, ((0.5,), ()))
    assert not ledger.failures


@pytest.mark.parametrize(
    ("end", "kind", "message"),
    [
        ("kill -SEGV $$", "crashed", "the worker died of signal 11 (Segmentation fault)"),
        ("kill -KILL $$", "out_of_memory", "the worker was killed (SIGKILL), as the system does when memory runs out"),
        ("exit 3", "crashed", "the worker exited with status 3: it said nothing"),
        ("exit 0", "crashed", "the worker exited with status 0: it said nothing"),
        ("echo first >&2; echo 'last words' >&2; exit 1", "crashed", "the worker exited with status 1: last words"),
    ],
)
def test_a_dying_workers_last_task_takes_the_blame_and_what_was_sampled_stays(supervise, end, kind, message):
    ledger = supervise("read job", say(Started((0,), None), sample(0), Started((1,), 0.1)), end)
    assert failures(ledger) == {1: (kind, message)}
    assert ledger.samples_s() == ((0.5,), ())
    assert ledger.open


def test_all_tasks_at_stake_take_the_blame(supervise):
    assert set(supervise(say(Started((0, 1), None)), "exit 1").failures) == {0, 1}


@pytest.mark.parametrize(
    ("lines", "how"),
    [
        (["exit 7"], "exited with status 7: it said nothing"),
        ([say(Ready(1)), "echo 'No module named numpy' >&2", "exit 1"], "status 1: No module named numpy"),
        ([say(Started((0,), None), Started((), None)), "kill -KILL $$"], "was killed"),
    ],
    ids=["at once", "while importing", "while allocating"],
)
def test_a_worker_that_dies_with_no_task_to_blame_is_an_error(supervise, lines, how):
    with pytest.raises(BenchmarkError, match=f"before it came to any task, the benchmark's worker .*{how}"):
        supervise(*lines)


def test_a_worker_that_cannot_be_started_is_an_error(monkeypatch, product):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    end = time.monotonic() + BUDGET_S
    job = Job(None, (product(),), ((),), (), (0,), 0, 0, end, end, (), 0)
    with pytest.raises(BenchmarkError, match="could not start the benchmark's worker /no/such/python: No such file"):
        Supervisor(job, Ledger(job.tasks), dict, 1.0, lambda: None).run()


def test_a_worker_is_told_what_to_do_and_when_that_is_done_what_next(supervise, tmp_path):
    """At last nothing, on which it ends."""
    hear = f"read line; echo \"$line\" >> '{tmp_path}/heard'"
    idle = say(Idle())
    ledger = supervise(hear, hear, idle, hear, idle, hear, say(Finished()), selections=[{1: 0.05}, {}])
    told = [encoder.encode(Select(intervals)) for intervals in ({0: 0.02, 1: 0.02}, {1: 0.05}, {})]
    assert (tmp_path / "heard").read_bytes().splitlines()[1:] == told
    assert ledger.finished


def test_a_worker_that_dies_with_nothing_to_do_is_nobodys_fault(supervise):
    """Another one goes on."""
    ledger = supervise(
        "read job", say(Started((0,), None), sample(0), Idle()), "sleep 0.2", "kill -KILL $$", selections=[{1: 0.02}]
    )
    assert not ledger.failures
    assert ledger.open


def test_nothing_hangs_while_the_next_tasks_are_chosen(supervise):
    ledger = supervise(
        "read job", say(Started((0,), None), Idle()), "exec sleep 60", budget_s=0.7, patience_s=0.1, selections=[{}]
    )
    assert not ledger.failures


def test_a_task_of_which_nothing_is_known_hangs_when_patience_ends(supervise):
    ledger = supervise("read job", say(Started((0,), None)), "exec sleep 60")
    assert failures(ledger) == {0: ("hung", "nothing came back in time, so the worker was ended")}


def test_a_task_hangs_when_it_takes_far_longer_than_expected(supervise):
    started = time.monotonic()
    ledger = supervise("read job", say(Started((1,), 0.01)), "exec sleep 60", patience_s=60)
    assert set(ledger.failures) == {1}
    assert time.monotonic() - started > 1, "a second's grace"


def test_a_task_that_takes_longer_than_patience_but_was_expected_to_does_not_hang(supervise):
    ledger = supervise("read job", say(Started((0,), 0.5)), "sleep 0.6", say(sample(0), Finished()), patience_s=0.1)
    assert ledger.finished
    assert not ledger.failures


def test_where_no_task_is_at_stake_nothing_hangs_before_the_end(supervise):
    ledger = supervise(say(Started((0,), None), Started((), None)), "exec sleep 60", budget_s=0.7, patience_s=0.1)
    assert not ledger.failures
    assert ledger.open


def test_a_task_that_the_end_cut_short_did_not_hang(supervise):
    ledger = supervise(say(Started((0,), None)), "exec sleep 60", budget_s=0.4, patience_s=60)
    assert not ledger.failures


def test_a_worker_that_never_stops_talking_is_ended_in_time(supervise):
    line = say(Started((0,), None))
    assert not supervise(f"while true; do {line}; done", budget_s=0.5).failures


@pytest.mark.parametrize("garbage", ['printf \'{"type":"blo\'', "echo Traceback"], ids=["cut off", "no event"])
def test_a_line_that_is_no_event_ends_the_worker_and_what_came_before_counts(supervise, garbage):
    ledger = supervise("read job", say(sample(0), Started((1,), None)), garbage, "exit 2")
    assert ledger.samples_s() == ((0.5,), ())
    assert set(ledger.failures) == {1}


def test_a_worker_that_goes_silent_without_ending_is_ended_and_nobody_is_blamed(supervise):
    ledger = supervise(say(Started((0,), 60.0)), "exec >&-", "exec sleep 60")
    assert not ledger.failures
    assert ledger.open


@pytest.mark.parametrize(
    ("visible_gpu", "reason"), [("GPU-7", "GPU-7 PCI_BUS_ID"), ("2", "2 PCI_BUS_ID"), (None, "all FASTEST_FIRST")]
)
def test_a_worker_sees_the_gpu_of_its_job_alone(supervise, monkeypatch, visible_gpu, reason):
    """Whatever its parent sees; and a worker for the CPU sees what its parent does."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "all")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    line = say(Unusable("SEEN")).replace("SEEN", "'$CUDA_VISIBLE_DEVICES $CUDA_DEVICE_ORDER'")
    assert supervise("read job", line, visible_gpu=visible_gpu).unusable == reason


def test_a_worker_that_says_its_device_cannot_be_used_is_no_error_and_blames_no_task(supervise):
    ledger = supervise("read job", say(Ready(1), Unusable("no CUDA-capable device is detected")))
    assert ledger.unusable == "no CUDA-capable device is detected"
    assert not ledger.failures
    assert not ledger.open
