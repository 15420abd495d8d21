"""What a record keeps of a result."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from msgspec.structs import replace

from autotune.history.condense import MAX_SAMPLES, history_record
from autotune.history.surroundings import Checkout
from autotune.records import Confirmation, PartRun, Phase, Result, part_of
from tests.builders import build_confirmed_result, build_gpu_result, build_result
from tests.history.records import AT, build_record


def with_samples(count: int, phase: Phase) -> Result:
    """A result whose chosen configuration has so many samples of a phase, split over two runs."""
    result = build_confirmed_result()
    assert result.confirmation is not None
    part = part_of(result.decision.chosen.configuration, result.workload, phase)
    samples_s = [tuple(float(index) for index in half) for half in (range(count // 2), range(count // 2, count))]
    runs = tuple(PartRun(part, half, {}) for half in samples_s)
    others = tuple(run for run in result.confirmation.runs if run.part != part)
    return replace(result, confirmation=replace(result.confirmation, runs=(*others, *runs)))


def confirmation_of(result: Result) -> Confirmation:
    assert result.confirmation is not None
    return result.confirmation


def test_a_record_says_what_was_found_where_and_for_which_commit() -> None:
    """All that a comparison asks for, without the campaign."""
    result = build_confirmed_result(created_at=AT)
    record = build_record(result)
    assert (record.model_name, record.weight_format, record.workload) == ("synthetic/model", "I2_S", result.workload)
    assert (record.cpu_name, record.usable_threads, record.gpus) == ("Synthetic CPU", 2, ())
    assert record.configuration == result.decision.chosen.configuration
    assert record.device_config == result.device_config
    assert (record.measured, record.default) == (confirmation_of(result).chosen, confirmation_of(result).default)
    assert (record.speedup_over_default, record.noise_label) == (2.5, "quiet")
    assert record.memory_planned_bytes == {"cpu": 52_900_000}
    assert record.memory_used_bytes == {"cpu": 3_000_000}
    assert record.held_out == {"cpu": result.cost_model.held_out}
    assert (record.branch, record.dirty, record.tags) == ("main", False, {"runner": "ci-1"})
    assert len(msgspec.json.encode(record)) < 5_000


def test_a_record_names_the_usable_gpus_and_their_driver() -> None:
    """And holds prediction errors and memory of each device."""
    record = build_record(build_gpu_result())
    assert (record.gpus, record.driver) == (("Synthetic GPU",), "580.65")
    assert set(record.held_out) == set(record.memory_planned_bytes) == {"cpu", "cuda:0"}


def test_a_result_that_was_not_run_leaves_measured_figures_unknown() -> None:
    """Predictions take nobody's place."""
    record = history_record(build_result(), recorded_at=AT, checkout=Checkout())
    assert record.measured is record.default is None
    assert record.decode_samples_s == record.prefill_samples_s == ()
    assert (record.memory_used_bytes, record.tags, record.job, record.commit) == ({}, {}, None, None)
    assert record.predicted.tokens_per_s == 200.0


def test_runs_for_another_workload_prove_nothing() -> None:
    """They correct predictions; the figures of the chosen configuration are predicted."""
    result = build_confirmed_result()
    other = replace(confirmation_of(result), workload=replace(result.workload, output_tokens=8))
    record = build_record(replace(result, confirmation=other))
    assert record.measured is record.default is None


def test_samples_are_those_of_the_chosen_configuration() -> None:
    """Of both phases, in the order taken, whatever else was run."""
    record = build_record()
    assert (record.decode_samples_s, record.prefill_samples_s) == ((0.02,) * 6, (0.1, 0.101))
    assert record.notes == ()


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_as_many_samples_as_fit_are_all_kept(phase: Phase) -> None:
    """Those of several runs together."""
    record = build_record(with_samples(MAX_SAMPLES, phase))
    assert getattr(record, f"{phase}_samples_s") == tuple(map(float, range(MAX_SAMPLES)))
    assert record.notes == ()


@pytest.mark.parametrize("count", [MAX_SAMPLES + 1, 3 * MAX_SAMPLES, 12345])
def test_more_samples_are_thinned_out_evenly_and_a_note_says_so(count: int) -> None:
    """From the first to the last, none twice, the gaps between them alike."""
    record = build_record(with_samples(count, "decode"))
    kept = record.decode_samples_s
    assert (len(kept), kept[0], kept[-1]) == (MAX_SAMPLES, 0.0, count - 1.0)
    gaps = {after - before for before, after in itertools.pairwise(kept)}
    assert min(gaps) >= 1
    assert max(gaps) - min(gaps) <= 1
    assert record.notes == (f"{MAX_SAMPLES} of {count} decode samples, evenly chosen in the order taken",)
