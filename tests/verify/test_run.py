"""The whole exam of one small model, really tuned and really run on this host; only figures that must hold are told."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace

from autotune import pipeline
from autotune.errors import UsageError
from autotune.host.detect import detect
from autotune.options import Options
from autotune.records import part_of
from autotune.search.workload import make_workload
from autotune.verify import run
from autotune.verify.grid import PHASES
from autotune.verify.run import examine_results, verify
from tests.cli.shop import SMALL
from tests.verify.conftest import confirmation_of

OFFLINE = Options(workload="offline", prompt=64, output=8, context=128, max_batch=2, confirm=False)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("verified") / "small.json"
    path.write_text(json.dumps(SMALL))
    return path


@pytest.fixture(scope="module")
def results(compiled, path):
    """Two workloads from one benchmark."""
    offline = pipeline.measure(path, OFFLINE, budget_s=4.0)
    chat = make_workload("chat", offline.model, prompt=64, output=8, context=128)
    return [offline, pipeline.conclude_again(offline, chat, detect())]


@pytest.fixture(scope="module")
def verification(results):
    return examine_results(results, repeats=1)


def test_one_grid_serves_both_workloads(verification, results):
    grid = verification.grid
    assert not grid.failures()
    assert len(grid.parts) == grid.feasible_parts
    offline, chat = verification.exams
    assert offline.configurations == offline.feasible_configurations > chat.configurations
    assert chat.configurations == chat.feasible_configurations
    assert [exam.workload for exam in verification.exams] == [result.workload for result in results]
    assert all(len(run.samples_s) >= 6 for run in grid.runs())
    assert (verification.model, verification.host) == (results[0].model.name, results[0].host.label)


def test_nothing_that_was_measured_beats_the_best(verification):
    for exam in verification.exams:
        rates = [exam.measured, *(baseline.measured for baseline in exam.baselines)]
        figures = [rate.tpot_s if exam.workload.name == "chat" else 1 / rate.tokens_per_s for rate in rates]
        best = exam.best_measured
        assert min(figures) >= 0.999 * (best.tpot_s if exam.workload.name == "chat" else 1 / best.tokens_per_s)
        assert exam.regret >= -1e-9
        assert exam.regret_interval[0] <= exam.regret <= exam.regret_interval[1]
        assert exam.baselines[0].name == "fallback"
        assert all(baseline.obstacle is None for baseline in exam.baselines)


def test_predictions_times_and_memory_are_examined(verification, results):
    for exam, result in zip(verification.exams, results, strict=True):
        (before,) = exam.predictions
        assert before.stage == "before correction"
        assert before.configurations.count == exam.configurations
        assert not exam.confirmed
        assert exam.tune_time_s == result.tune_time_s
        assert exam.exhaustive_time_s > 0
        (use,) = exam.memory
        assert use.device == "cpu"
        assert 0.2 < use.planned_bytes / use.used_bytes < 5


def test_a_correction_is_examined_on_what_it_saw_and_what_it_did_not(verification, results):
    """Made from the chosen configuration's samples in the first grid, examined in a second one, twice with one grid."""
    offline, _ = results
    chosen = offline.decision.chosen.configuration
    seen = {part_of(chosen, offline.workload, phase) for phase in PHASES}
    confirmation = confirmation_of([], offline.workload)
    confirmation = replace(confirmation, runs=tuple(own for own in verification.grid.runs() if own.part in seen))
    found = examine_results([replace(offline, confirmation=confirmation)] * 2, limit=1, repeats=1)
    exam, again = found.exams
    before, after = exam.predictions
    assert again == exam
    assert exam.confirmed
    assert before.parts.count == after.parts.count == len(found.grid.parts)
    assert before.unseen_parts.count == after.unseen_parts.count == len(found.grid.parts) - 2
    assert before.parts != after.parts
    assert any("the best may be among the rest" in note for note in exam.notes)


def test_results_for_different_models_are_refused(results):
    other = replace(results[0], model=replace(results[0].model, source_digest="another"))
    with pytest.raises(ValueError, match="expected results for one model in one format, got 2 of them"):
        examine_results([results[0], other])
    with pytest.raises(ValueError, match="got 0 of them"):
        examine_results([])


def test_verify_tunes_whatever_is_saved_and_examines_the_result(monkeypatch, path, results):
    asked = []

    def measure(*args, **options):
        asked.append((args, options))
        return results[1]

    told = []
    monkeypatch.setattr(run, "measure", measure)
    found = verify(path, OFFLINE, budget_s=7.0, limit=1, repeats=1, measuring=lambda *values: told.append(values))
    assert asked == [((path, OFFLINE), {"budget_s": 7.0, "seed": 0, "progress": None, "running": None})]
    assert [exam.workload.name for exam in found.exams] == ["chat"]
    assert told[-1][0] == 1.0


@pytest.mark.parametrize(("bounds", "name"), [({"limit": 0}, "grid"), ({"repeats": 0}, "repeats")])
def test_a_grid_of_nothing_is_refused_before_anything_is_timed(monkeypatch, path, bounds, name):
    monkeypatch.setattr(run, "measure", None)
    with pytest.raises(UsageError, match=f"--{name} must be a whole number of at least 1, got 0"):
        verify(path, OFFLINE, **bounds)
