"""From a prediction to what was run, in this process: a small model is really measured and really run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from autotune import confirmation, loader, pipeline
from autotune.conclusion import conclude
from autotune.errors import BenchmarkError, StoreError, UsageError
from autotune.evidence import recall
from autotune.options import Options
from autotune.records import PartRun, Result, RunFailure, part_of
from autotune.room import room_on
from autotune.search.measured import Outcome
from autotune.store import cache, paths
from autotune.summary import summarize
from tests.cli.shop import SMALL

BUDGET_S = 8.0
WISH = Options(prompt=64, output=32, max_batch=4)


@pytest.fixture(scope="module")
def folder(compiled: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small model's file."""
    folder = tmp_path_factory.mktemp("confirmed")
    (folder / "small.json").write_text(json.dumps(SMALL))
    return folder


@pytest.fixture(scope="module")
def confirmed(folder: Path) -> Result:
    """The small model for a server, really measured and run on this host."""
    return pipeline.measure(folder / "small.json", WISH, budget_s=BUDGET_S)


@pytest.fixture
def model(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small model's file, and an empty cache."""
    monkeypatch.setenv("AUTOTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(paths, "SYSTEM_LAYER", str(tmp_path / "system"))
    return folder / "small.json"


def predicted_of(result: Result) -> Result:
    """The same before anything was run."""
    return pipeline.conclude_again(replace(result, confirmation=None), result.workload, result.host)


def search_gives(outcome: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replaces the search; returns a list that grows with what each is given."""
    asked: list[dict[str, Any]] = []

    def search(engine: object, **arguments: Any) -> Outcome:
        asked.append(arguments)
        return outcome(engine, **arguments)

    monkeypatch.setattr(confirmation, "search", search)
    return asked


def test_a_confirmed_result_holds_what_was_run(confirmed: Result) -> None:
    """The winner and the default with samples of both their parts, and what they say of the predictions."""
    found = confirmed.confirmation
    assert found is not None
    assert confirmed.confirmed
    assert found.workload == confirmed.workload
    assert found.chosen is not None
    assert found.default is not None
    parts = {run.part for run in found.runs}
    assert confirmed.decision.default is not None
    for candidate in (confirmed.decision.chosen, confirmed.decision.default):
        for phase in ("decode", "prefill"):
            assert part_of(candidate.configuration, confirmed.workload, phase) in parts
    assert {report.phase for report in found.corrections} == {"decode", "prefill"}
    assert found.memory_used["cpu"] > 0
    assert 0 <= (found.overhead_share or 0) < 1


def test_predictions_of_what_was_run_are_what_was_measured(confirmed: Result) -> None:
    """The corrected cost model is what is saved: at the points that were run it says what these took."""
    found = confirmed.confirmation
    assert found is not None
    assert found.chosen is not None
    predicted = confirmed.decision.chosen.predicted
    # Few noisy samples of a tiny model move a prediction most of the way.
    assert predicted.tpot_s == pytest.approx(found.chosen.tpot_s, rel=0.4)
    assert predicted.ttft_s == pytest.approx(found.chosen.ttft_s, rel=0.4)
    evidence = recall(confirmed, confirmed.host)
    assert evidence.cost_model.corrections() == found.corrections


def test_the_reasons_begin_with_what_was_run(confirmed: Result) -> None:
    """And the speed-up is the measured one."""
    found = confirmed.confirmation
    assert found is not None
    assert found.chosen is not None
    assert found.default is not None
    assert "run to the end" in confirmed.decision.reasons[0]
    speedup = found.chosen.tokens_per_s / found.default.tokens_per_s
    assert confirmed.decision.speedup_over_default == pytest.approx(speedup)


def test_a_measured_speedup_stands_beside_what_was_measured(confirmed: Result) -> None:
    """Not beside predictions, from which another one would follow."""
    lines = [value for label, value in summarize(confirmed, None) if label in ("  predicted", "  measured")]
    assert [line.endswith("as fast)") for line in lines] == [False, False, False, True]


def test_a_tune_is_answered_by_a_confirmed_result_alone(
    confirmed: Result, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A predicted one is run, without timing kernels again; then the cache answers."""
    predicted = predicted_of(confirmed)
    cache.write(predicted, pipeline.request(WISH, predicted))
    monkeypatch.setattr("autotune.bench.campaign.run", None)
    result = pipeline.tune(model, WISH, budget_s=BUDGET_S)
    assert result.confirmed
    assert result.campaign == predicted.campaign
    monkeypatch.setattr(confirmation, "search", None)
    assert pipeline.tune(model, WISH, budget_s=BUDGET_S) == result
    assert pipeline.tune(model, WISH._replace(confirm=False), budget_s=1.0) == result


def test_what_was_measured_is_saved_before_anything_is_run(
    confirmed: Result, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is killed among the runs has the prediction, and loaders have it meanwhile."""
    monkeypatch.setattr("autotune.evidence.bench.run", lambda *_, **__: confirmed.campaign)

    def killed(*_: object, **__: object) -> Outcome:
        raise KeyboardInterrupt

    search_gives(killed, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        pipeline.tune(model, WISH, budget_s=BUDGET_S)
    saved = loader.load_result(model)
    assert saved is not None
    assert not saved.confirmed
    assert saved.campaign == confirmed.campaign


def test_another_workload_starts_from_earlier_runs(
    confirmed: Result, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They correct its predictions, and its search knows them."""
    cache.write(confirmed, pipeline.request(WISH, confirmed))
    found = confirmed.confirmation
    assert found is not None
    chat = WISH._replace(workload="chat", max_batch=None)
    again = pipeline.retune(model, chat)
    assert again.confirmation == replace(found, chosen=None, overhead_share=None)
    assert not again.confirmed
    asked = search_gives(confirmation.search, monkeypatch)
    monkeypatch.setattr("autotune.evidence.covers", lambda *_, **__: True)
    monkeypatch.setattr(pipeline, "covers", lambda *_, **__: True)
    result = pipeline.tune(model, chat, budget_s=BUDGET_S)
    assert asked[0]["known"] == found.runs
    assert result.confirmed
    assert result.confirmation is not None
    assert {run.part for run in found.runs} <= {run.part for run in result.confirmation.runs}


def test_an_engine_that_cannot_start_leaves_the_prediction(confirmed: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    """A usable configuration all the same, with a warning that says so."""

    def refuse(*_: object, **__: object) -> Outcome:
        raise BenchmarkError("the engine's process could not be started")

    search_gives(refuse, monkeypatch)
    predicted = predicted_of(confirmed)
    evidence = recall(predicted, predicted.host)
    result = confirmation.confirm(evidence, predicted, budget_s=1.0, started=0.0)
    assert result.decision == predicted.decision
    assert result.warnings[-1].startswith("nothing was run, so all is predicted: the engine")
    assert not result.confirmed


def test_where_nothing_could_be_run_the_prediction_stands(confirmed: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it says why."""
    predicted = predicted_of(confirmed)
    evidence = recall(predicted, predicted.host)
    found = confirmed.confirmation
    assert found is not None
    part = part_of(predicted.decision.chosen.configuration, predicted.workload, "decode")
    failed = replace(
        found,
        stopped="failed",
        runs=(),
        corrections=(),
        chosen=None,
        default=None,
        failures=(RunFailure(part, "crashed", "the process died of signal 11"),),
    )
    search_gives(lambda *_, **__: Outcome(failed, None, evidence.cost_model), monkeypatch)
    result = confirmation.confirm(evidence, predicted, budget_s=1.0, started=0.0)
    assert result.decision.chosen.configuration == predicted.decision.chosen.configuration
    assert result.warnings[-1].endswith("all is predicted: the process died of signal 11")
    assert not result.confirmed


def test_retuning_for_the_same_keeps_what_running_found(confirmed: Result, model: Path) -> None:
    """Another configuration may be predicted to be better: it was not run, or was and proved worse."""
    found, decision = confirmed.confirmation, confirmed.decision
    assert found is not None
    assert decision.default is not None
    other = replace(decision.chosen.configuration, prefill_chunk=32, batch_size=1)
    won = replace(confirmed, decision=replace(decision, chosen=replace(decision.chosen, configuration=other)))
    cache.write(won, pipeline.request(WISH, won))
    again = pipeline.retune(model, WISH)
    assert again.decision.chosen.configuration == other
    assert again.confirmation == found
    assert again.decision.reasons[0] == decision.reasons[0]


def test_retuning_without_the_memory_for_what_running_found_is_a_prediction(
    confirmed: Result, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its figures are not taken for those of what is chosen instead."""
    used = confirmed.decision.chosen.predicted.memory[0]
    room = room_on(confirmed.host, confirmed.campaign, ("cpu",))
    monkeypatch.setattr(
        confirmation, "room_on", lambda *_: room._replace(available_bytes={"cpu": used.total_bytes - 1})
    )
    cache.write(confirmed, pipeline.request(WISH, confirmed))
    again = pipeline.retune(model, WISH)
    assert not again.confirmed
    assert again.confirmation is not None
    assert again.confirmation.chosen is None
    assert pipeline.request(WISH, again)["confirm"] is False


def test_runs_in_another_format_are_not_taken_for_those_of_the_chosen_one(confirmed: Result) -> None:
    """With `--format auto` another workload may choose another format, of which nothing was run."""
    evidence = recall(confirmed, confirmed.host)._replace(run_format="another one")
    result = conclude(evidence, confirmed.workload, started=0.0, trials=None)
    assert result.confirmation is None


def test_a_search_in_another_format_does_not_know_of_the_runs(
    confirmed: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They took as long as the other format takes."""
    evidence = recall(confirmed, confirmed.host)._replace(run_format="another one")
    asked = search_gives(lambda *_, **__: (_ for _ in ()).throw(BenchmarkError("no engine")), monkeypatch)
    confirmation.confirm(evidence, predicted_of(confirmed), budget_s=1.0, started=0.0)
    assert asked[0]["known"] == ()


@pytest.mark.parametrize(
    ("stopped", "reason", "words"),
    [
        ("budget", None, "the time was up before the best could be run to its end; --budget allows more"),
        ("decided", "it breaks the limit on the time per output token", "it breaks the limit on the time per output"),
        ("decided", None, "none keeps the limits as measured"),
    ],
)
def test_it_is_told_why_nothing_that_was_run_is_the_answer(
    confirmed: Result, monkeypatch: pytest.MonkeyPatch, stopped: str, reason: str | None, words: str
) -> None:
    """Whether more time would help, or the limits are what nothing keeps."""
    predicted = predicted_of(confirmed)
    evidence = recall(predicted, predicted.host)
    found = confirmed.confirmation
    assert found is not None
    trial = replace(found.trials[0], state="infeasible", reason=reason)
    empty = replace(found, stopped=stopped, trials=(trial,), chosen=None, failures=())
    search_gives(lambda *_, **__: Outcome(empty, None, evidence.cost_model), monkeypatch)
    result = confirmation.confirm(evidence, predicted, budget_s=1.0, started=0.0)
    assert words in result.warnings[-1]
    assert not result.confirmed


def test_a_search_is_kept_and_goes_on(confirmed: Result, model: Path, tmp_path: Path) -> None:
    """The second one knows all that the first one ran."""
    predicted = predicted_of(confirmed)
    evidence, url = recall(predicted, predicted.host), f"sqlite:///{tmp_path / 'study.db'}"
    first = confirmation.confirm(evidence, predicted, budget_s=4.0, started=0.0, storage=url)
    again = confirmation.confirm(evidence, predicted, budget_s=0.5, started=0.0, storage=url)
    assert first.confirmation is not None
    assert again.confirmation is not None
    assert first.confirmation.storage == url
    before, after = ({run.part: run for run in each.confirmation.runs} for each in (first, again))
    for part, run in before.items():
        assert isinstance(run, PartRun)
        assert after[part].samples_s[: len(run.samples_s)] == run.samples_s


@pytest.mark.parametrize(
    ("url", "error", "words"),
    [
        ("study.db", UsageError, "--storage must be the URL of a database"),
        ("bogus://host/database", UsageError, "--storage"),
        ("postgresql://user:secret@host:port/database", UsageError, "--storage must be the URL of a database"),
        ("sqlite:////nowhere/at/all/study.db", StoreError, "can't be used"),
    ],
)
def test_a_database_that_cannot_be_used_is_told_in_a_sentence(
    confirmed: Result, url: str, error: type[Exception], words: str
) -> None:
    """Before the engine is started."""
    predicted = predicted_of(confirmed)
    evidence = recall(predicted, predicted.host)
    with pytest.raises(error, match=words):
        confirmation.confirm(evidence, predicted, budget_s=1.0, started=0.0, storage=url)
