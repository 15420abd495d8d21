"""The study that keeps a search: resumed, killed at any moment, shared by two processes, and databases that fail."""

from __future__ import annotations

import os
import platform
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import optuna
import pytest
from optuna.trial import TrialState

from autotune.errors import StoreError, UsageError
from autotune.records import Configuration, Confirmation, PartRun
from autotune.search.measured import search
from autotune.search.parameters import silenced
from autotune.search.storage import CONFIGURATION, ORIGIN, RECORD, without_password
from tests.search.search_process import BUDGET_S, problem, slow_beyond_four
from tests.search.synthetic_engine import SyntheticClock, SyntheticEngine

KILLS = 10


class Killed(BaseException):
    """Stands for a process that ends here: nothing of the search catches it."""


def run(url, *, killed_at=None, fails=None, seed=0, **arguments):
    """A search kept in a database, ended at a call of the engine if need be."""
    synthetic, clock = SYNTHETIC, SyntheticClock()

    class Mortal(SyntheticEngine):
        def measure(self, *arguments, **options):
            if len(self.calls) == killed_at:
                raise Killed
            return super().measure(*arguments, **options)

    engine = Mortal(synthetic.truth(slow_beyond_four), clock, seed=seed, **({} if fails is None else {"fails": fails}))
    given = {"clock": clock, "storage": url, "budget_s": BUDGET_S, **arguments}
    return search(engine, **synthetic.arguments(**given)), engine


def load(url):
    return optuna.load_study(study_name="synthetic", storage=url)


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/study.db"


SYNTHETIC = problem()


def true_cost(configuration):
    return SYNTHETIC.costs(configuration, SYNTHETIC.truth(slow_beyond_four))[0]


@pytest.fixture(scope="module")
def best():
    """The lowest true cost of all configurations."""
    return min(true_cost(configuration) for configuration in SYNTHETIC.every())


def samples_of(runs):
    return {run.part: list(run.samples_s) for run in runs}


def test_a_study_can_be_opened_and_says_what_was_tried(url):
    """As a dashboard reads it: configurations, why they were tried, costs, and constraints in every finished trial."""
    outcome, _ = run(url)
    study = load(url)
    assert outcome.confirmation.storage == url
    assert len(study.trials) == len(outcome.confirmation.trials)
    for number, (trial, record) in enumerate(zip(study.trials, outcome.confirmation.trials, strict=True)):
        assert trial.number == number
        assert trial.state.is_finished()
        assert trial.constraints
        assert msgspec.convert(trial.user_attrs[CONFIGURATION], Configuration) == record.configuration
        assert trial.user_attrs[ORIGIN] == record.origin
        assert trial.user_attrs[RECORD]["state"] == record.state
        if record.state == "complete":
            assert trial.value == pytest.approx(1 / record.measured.tokens_per_s)
    assert msgspec.convert(study.best_trial.user_attrs[CONFIGURATION], Configuration) is not None


def test_a_finished_search_is_answered_from_its_samples(url):
    """Nothing that is known well is run again; samples and trials of before are all there."""
    first, _ = run(url)
    again, engine = run(url, seed=1)
    assert true_cost(again.winner) <= true_cost(first.winner) * 1.01
    assert len(engine.calls) < 4
    assert again.confirmation.spent_s < first.confirmation.spent_s / 2
    before, after = samples_of(first.confirmation.runs), samples_of(again.confirmation.runs)
    assert all(after[part][: len(samples)] == samples for part, samples in before.items())
    assert [t.configuration for t in again.confirmation.trials][: len(first.confirmation.trials)] == [
        trial.configuration for trial in first.confirmation.trials
    ]


@pytest.mark.parametrize("killed_at", [0, 1, 2, 3, 5, 8])
def test_an_interrupted_trial_is_run_again(url, best, killed_at):
    """Its samples count, its trial is ended, and its configuration is tried once more before anything new is."""
    with pytest.raises(Killed):
        run(url, killed_at=killed_at)
    study = load(url)
    (interrupted,) = [trial for trial in study.trials if trial.state == TrialState.RUNNING] or [None]
    kept = [run for trial in study.trials for run in trial.user_attrs if run.startswith("run ")]
    kept += [run for run in study.user_attrs if run.startswith("run ")]
    assert len(kept) == killed_at
    # The process that ran it is this one, which is still there; as if it were another that isn't any more:
    if interrupted is not None:
        study._storage.set_trial_user_attr(interrupted._trial_id, "owner", {"pid": 2**22 + 1, "node": platform.node()})
    outcome, _ = run(url)
    study = load(url)
    assert not [trial for trial in study.trials if trial.state in (TrialState.RUNNING, TrialState.WAITING)]
    if interrupted is not None:
        assert study.trials[interrupted.number].state == TrialState.FAIL
        later = [t for t in study.trials[interrupted.number + 1 :] if t.user_attrs.get(RECORD) is not None]
        assert interrupted.user_attrs[CONFIGURATION] in [trial.user_attrs[CONFIGURATION] for trial in later]
    assert outcome.confirmation.spent_s <= BUDGET_S + 3, "the budget is a new one"
    assert true_cost(outcome.winner) <= best * 1.02


def test_a_trial_of_a_process_that_lives_is_left_alone(url):
    with pytest.raises(Killed):
        run(url, killed_at=1)
    (running,) = [trial for trial in load(url).trials if trial.state == TrialState.RUNNING]
    run(url)
    assert load(url).trials[running.number].state == TrialState.RUNNING


def test_a_trial_that_somebody_ends_in_the_dashboard_costs_nothing_else(url):
    """It counts for what was measured of it; the search goes on."""
    synthetic, clock = SYNTHETIC, SyntheticClock()

    class Watched(SyntheticEngine):
        def measure(self, *arguments, **options):
            if len(self.calls) == 1:
                load(url).tell(0, state=TrialState.FAIL)
            return super().measure(*arguments, **options)

    engine = Watched(synthetic.truth(slow_beyond_four), clock)
    outcome = search(engine, **synthetic.arguments(clock=clock, storage=url, budget_s=BUDGET_S))
    assert load(url).trials[0].state == TrialState.FAIL
    assert outcome.winner is not None


def test_failures_of_an_earlier_search_are_tried_again(url):
    """A GPU that was busy, memory that others had: they may be gone."""
    first, _ = run(url, fails=lambda configuration, phase: "crashed")
    assert first.confirmation.stopped == "failed"
    again, _ = run(url)
    assert again.winner is not None
    assert again.confirmation.failures == ()


def test_queued_trials_of_another_space_are_ended(url):
    """As after other thread counts were timed: their parameters mean something else now."""
    with pytest.raises(Killed):
        run(url, killed_at=0)
    outcome, engine = run(url, threads=(1, 4))
    assert outcome.winner.decode_threads == 4
    assert {configuration.decode_threads for configuration, _, _ in engine.calls} <= {1, 4}


def test_attributes_that_nobody_here_wrote_are_left_alone(url):
    run(url)
    study = load(url)
    study.set_user_attr("run by hand", "fast")
    study.set_user_attr("note", {"a": 1})
    outcome, _ = run(url)
    assert outcome.winner is not None


def start(url: str, log: Path, share: float) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "tests.search.search_process", url, str(log), str(share)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n", process.communicate()[1].decode()
    return process


def finish(process: subprocess.Popen[bytes]) -> tuple[Configuration, Confirmation]:
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors.decode()
    found = msgspec.json.decode(output)
    return msgspec.convert(found["winner"], Configuration), msgspec.convert(found["confirmation"], Confirmation)


def assert_all_kept(log: Path, confirmation: Confirmation) -> None:
    """Every sample that a finished call measured is in the outcome, once."""
    kept = samples_of(confirmation.runs)
    lines = log.read_bytes().splitlines() if log.exists() else []
    for line in lines:
        found = msgspec.json.decode(line, type=PartRun)
        for sample in found.samples_s:
            kept[found.part].remove(sample)


def test_a_search_killed_at_random_moments_loses_nothing(url, best, tmp_path):
    """SIGKILL ten times, resumed each time: all that was measured is there, and the answer is right."""
    moments, log = random.Random(5), tmp_path / "log"
    for _ in range(KILLS):
        process = start(url, log, share=0.02)
        time.sleep(moments.uniform(0.0, 0.6))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    winner, confirmation = finish(start(url, log, share=0.0))
    assert_all_kept(log, confirmation)
    study = load(url)
    assert [trial.number for trial in study.trials] == list(range(len(study.trials)))
    finished = [trial for trial in study.trials if trial.user_attrs.get(RECORD) is not None]
    recorded = [trial.user_attrs[CONFIGURATION] for trial in finished]
    # What was begun and not ended was run again; killed in the instant between two writes, it may still be open.
    for trial in study.trials:
        if trial.state == TrialState.FAIL and CONFIGURATION in trial.user_attrs and RECORD not in trial.user_attrs:
            assert trial.user_attrs[CONFIGURATION] in recorded
    assert true_cost(winner) <= best * 1.02
    assert confirmation.stopped in ("decided", "budget")
    assert confirmation.spent_s <= BUDGET_S + 3


def test_two_processes_can_share_a_study(url, best, tmp_path):
    """Neither disturbs the other's trials, and both come to the right answer."""
    logs = tmp_path / "first", tmp_path / "second"
    processes = [start(url, log, share=0.02) for log in logs]
    confirmations = []
    for process in processes:
        winner, confirmation = finish(process)
        assert true_cost(winner) <= best * 1.03
        confirmations.append(confirmation)
    study = load(url)
    assert [trial.number for trial in study.trials] == list(range(len(study.trials)))
    assert not [trial for trial in study.trials if trial.state == TrialState.RUNNING]
    final, _ = run(url)
    for log in logs:
        assert_all_kept(log, final.confirmation)


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ("study.db", UsageError),
        ("nosuch://user:secret@host/name", UsageError),
        ("sqlite:////nowhere/at/all/study.db", StoreError),
        ("redis://:secret@host/0", UsageError),
    ],
)
def test_a_bad_url_is_one_sentence_without_a_password(bad, error):
    with pytest.raises(error) as raised:
        run(bad)
    message = str(raised.value)
    assert "storage" in message or "study" in message
    assert "secret" not in message
    assert "\n" not in message
    assert raised.value.__suppress_context__


def test_a_database_without_a_driver_is_said():
    with pytest.raises(UsageError, match=r"driver that is not installed: mysql://user:\*\*\*@host/name$"):
        run("mysql://user:secret@host/name")


def test_a_file_that_is_no_database_is_said(tmp_path):
    (tmp_path / "study.db").write_bytes(b"something else" * 1000)
    with pytest.raises(StoreError, match=r"can't be used: file is not a database$"):
        run(f"sqlite:///{tmp_path}/study.db")


def test_a_database_of_another_optuna_is_said(url, tmp_path):
    run(url, budget_s=0.1)
    with sqlite3.connect(tmp_path / "study.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v0.9.0.a'")
    connection.close()
    with pytest.raises(StoreError, match="can't be used"):
        run(url)


def test_a_database_that_breaks_during_the_search_is_said(url, tmp_path):
    synthetic, clock = SYNTHETIC, SyntheticClock()

    class Breaking(SyntheticEngine):
        def prepare(self, *arguments):
            with sqlite3.connect(tmp_path / "study.db") as connection:
                connection.execute("DROP TABLE trial_user_attributes")
            connection.close()
            return super().prepare(*arguments)

    engine = Breaking(synthetic.truth(), clock)
    with pytest.raises(StoreError, match="can't be used: no such table"):
        search(engine, **synthetic.arguments(clock=clock, storage=url))
    assert not engine.open


def test_passwords_are_hidden():
    assert without_password("postgresql://user:secret@host/name") == "postgresql://user:***@host/name"
    assert without_password("postgresql://host/name?user=u&password=secret") == "postgresql://host/name"
    assert without_password("secret") == "the URL"


@pytest.mark.parametrize(("longest_s", "taken_up"), [(3600.0, False), (0.0, True)])
def test_a_trial_on_another_machine_is_left_alone_for_an_hour(url, monkeypatch, longest_s, taken_up):
    """Whether its process lives can't be told from here."""
    with pytest.raises(Killed):
        run(url, killed_at=1)
    study = load(url)
    (running,) = [trial for trial in study.trials if trial.state == TrialState.RUNNING]
    study._storage.set_trial_user_attr(running._trial_id, "owner", {"pid": 1, "node": "elsewhere", "started": 1.0})
    monkeypatch.setattr("autotune.search.storage._LONGEST_S", longest_s)
    run(url)
    assert (load(url).trials[running.number].state == TrialState.FAIL) is taken_up


def test_a_trial_killed_before_it_said_what_it_is_about_is_ended(url, monkeypatch):
    """Between two writes: nothing of it was run, so nothing is lost."""
    with silenced():
        number = optuna.create_study(study_name="synthetic", storage=url).ask().number
    monkeypatch.setattr("autotune.search.storage._BEGINNING_S", 0.0)
    outcome, _ = run(url)
    assert load(url).trials[number].state == TrialState.FAIL
    assert outcome.winner is not None


def test_a_queue_of_another_space_is_taken_up_as_far_as_it_can_be(url):
    """A trial was running on two threads, which are no choice any more."""
    with pytest.raises(Killed):
        run(url, killed_at=2)
    study = load(url)
    for trial in study.trials:
        if trial.state == TrialState.RUNNING:
            study._storage.set_trial_user_attr(trial._trial_id, "owner", {"pid": 2**22 + 1, "node": platform.node()})
    outcome, _ = run(url, threads=(2, 4))
    assert {outcome.winner.decode_threads, outcome.winner.prefill_threads} <= {2, 4}


def test_a_finished_trial_that_no_samples_bear_out_ends_no_other(url, best):
    """It claims what nothing can beat, as a few lucky samples may: only what samples say now counts."""
    with silenced():
        study = optuna.create_study(study_name="synthetic", storage=url)
    lucky = optuna.trial.create_trial(state=TrialState.COMPLETE, value=1e-9, user_attrs={"costs_s": [1e-9, 1e-9]})
    study.add_trial(lucky)
    outcome, _ = run(url)
    assert true_cost(outcome.winner) <= best * 1.02


def test_samples_that_the_study_keeps_and_a_result_hands_on_count_once(url):
    """An earlier search of the same study gave them to a result, and the next one is told of them by both."""
    first, _ = run(url)
    again, _ = run(url, budget_s=0.0, known=first.confirmation.runs)
    assert samples_of(again.confirmation.runs) == samples_of(first.confirmation.runs)


def test_samples_of_a_result_that_the_study_lacks_count_beside_its_own(url):
    """A search without the study took them."""
    first, _ = run(url)
    other, _ = run(None, seed=1)
    again, _ = run(url, budget_s=0.0, known=other.confirmation.runs)
    own, others = samples_of(first.confirmation.runs), samples_of(other.confirmation.runs)
    for part, samples in samples_of(again.confirmation.runs).items():
        assert samples == [*others.get(part, []), *own.get(part, [])]
