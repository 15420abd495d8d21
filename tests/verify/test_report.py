"""The tables of synthetic exams, as a person reads them, and the JSON document."""

import re

import msgspec
import pytest
from msgspec.structs import replace

from autotune.records import Verification
from autotune.verify.report import show
from tests.builders import build_exam, build_verification
from tests.verify.conftest import small_workload


@pytest.fixture
def exam():
    return build_exam()


@pytest.fixture
def shown(exam, capsys):
    """What is printed of one or more exams, as lines with single spaces."""

    def lines(*exams):
        show(build_verification(*(exams or (exam,))))
        captured = capsys.readouterr()
        assert captured.out == ""
        return [re.sub(r"\s+", " ", line).strip() for line in captured.err.splitlines()]

    return lines


def test_what_was_measured_is_said_first(shown):
    assert shown()[0] == (
        "synthetic/model in I2_S on synthetic-host: 2 of 20 parts of configurations, each run in 3 rounds by "
        "synthetic engine, 100 s"
    )


def test_the_chosen_the_best_and_the_baselines_are_rows_of_one_table(shown):
    lines = shown()
    assert "server: 1,400 of 1,700 configurations, TPOT within 100 ms" in lines
    assert "chosen 2 cpu 2 / 1 4 128 12.5 80.1 ms 1,250 ms 1.2 % (-0.4 to 3.0)" in lines
    assert "the chosen configuration is within the noise of the best" in lines
    assert not any("other samples" in line for line in lines)
    lines = shown(build_exam(cross_fitted_regret=-0.001))
    assert "regret against what other samples say is the best: -0.1 %" in lines
    assert "best measured 2 cpu 2 / 1 8 128 1,250 80.1 ms 1,250 ms 0.0 %" in lines
    assert "fallback 2 cpu 2 / 1 1 128 12.5 80.1 ms 1,250 ms 150.0 % (140.0 to 160.0) 2.47x (2.40 to 2.50)" in lines
    assert "everything 2 cpu 2 / 1 1 128 - - - - -" in lines
    assert "everything: does not fit" in lines
    assert "a note for the reader" in lines


def test_errors_have_median_p90_worst_and_count(shown):
    lines = shown()
    figures = "2.1 / 5.0 / 12.3 (8)"
    assert f"server before {figures} - / - / - (0) {figures} {figures} 0.988" in lines
    assert f"server after {figures} {figures} {figures} {figures} -" in lines


def test_times_say_what_was_measured_and_what_was_computed(shown):
    lines = shown()
    header = "workload tune, measured grid, measured exhaustive, computed exhaustive / tune"
    assert header in lines
    assert "server 30.0 s 100.0 s 1,500.0 s 50x" in lines


def test_memory_planned_stands_beside_memory_used(shown):
    lines = shown()
    assert "server cpu 1.03 GB 1 GB +30 MB +3.0%" in lines
    assert "server cuda:0 90 MB 100 MB -10 MB -10.0%" in lines


def test_a_choice_that_was_only_predicted_and_has_no_figures_says_so(shown, exam):
    blind = replace(
        exam,
        confirmed=False,
        chosen=replace(exam.chosen, device_layers={"cpu": 1, "cuda:0": 3}, head_device="cpu"),
        measured=None,
        max_tpot_s=None,
        best=None,
        best_measured=None,
        regret=None,
        regret_interval=None,
        tune_time_s=0.0,
        memory=(),
    )
    lines = shown(blind)
    assert "chosen as predicted 1 cpu + 3 cuda:0, head cpu 2 / 1 4 128 - - - -" in lines
    assert "server: 1,400 of 1,700 configurations" in lines
    assert not any(line.startswith("best measured") for line in lines)
    assert "server 0.0 s 100.0 s 1,500.0 s -" in lines


def test_threads_mean_nothing_where_the_cpu_has_nothing_to_do(shown, exam):
    on_gpu = replace(exam.chosen, device_layers={"cuda:0": 4}, head_device="cuda:0")
    (row,) = (line for line in shown(replace(exam, chosen=on_gpu)) if line.startswith("chosen"))
    assert row.startswith("chosen 4 cuda:0 - 4 128 ")


def test_every_workload_has_its_rows(shown, exam):
    lines = shown(exam, replace(exam, workload=small_workload("chat"), regret_interval=(0.01, 0.02)))
    assert sum(line.startswith("chat ") for line in lines) == 5
    assert sum("within the noise of the best" in line for line in lines) == 1


def test_the_document_survives_json():
    found = build_verification()
    assert msgspec.json.decode(msgspec.json.encode(found), type=Verification) == found
