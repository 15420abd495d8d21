"""What records of both sides say, with synthetic records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from autotune.compare.recorded import compare_records, find_records
from autotune.errors import ResultNotFoundError, StoreError, UsageError
from autotune.records.history import HistoryRecord
from tests.history.records import COMMIT, build_record, fill

CLASS = "synthetic-2t-8g-cpu-00000000"
NAMES = ("BASE (old)", "HEAD (new)")
OTHER_COMMIT = "ffee" * 10


def record(seed: int = 0, *, slower: float = 1.0, spread: float = 0.005, **overrides: Any) -> HistoryRecord:
    """A synthetic run on a quiet host, ``slower`` times as long as others."""
    rng = np.random.default_rng(seed)
    plain = build_record(hardware_class=CLASS)
    assert plain.measured is not None
    tpot_s, ttft_s = (slower * time * float(np.exp(rng.normal(0, spread))) for time in (0.02, 0.5))
    quiet = replace(plain.noise, median_relative_interval=0.005, control_drift=0.01)
    run = replace(
        plain,
        measured=replace(plain.measured, tpot_s=tpot_s, ttft_s=ttft_s),
        decode_samples_s=tuple((tpot_s * np.exp(rng.normal(0, 0.005, 20))).tolist()),
        prefill_samples_s=tuple((ttft_s * np.exp(rng.normal(0, 0.005, 20))).tolist()),
        noise=quiet,
    )
    return replace(run, **overrides)


def test_several_records_of_a_slower_version_are_worse() -> None:
    """Five of each side, a tenth apart."""
    found = compare_records(NAMES, [record(i) for i in range(5)], [record(i, slower=1.1) for i in range(5, 10)], 0.03)
    assert (found.mode, found.verdict, found.rounds, found.spent_s) == ("recorded", "worse", (), None)
    (compared,) = found.compared
    assert compared.runs == (5, 5)
    assert compared.changes[0].low <= 0.1 <= compared.changes[0].high
    assert found.base == "BASE (old): 5 records of 0a1b2c3"


def test_records_of_the_same_stay_quiet() -> None:
    """None of 100 comparisons of five with five is worse or better."""
    for seed in range(0, 1000, 10):
        base, head = ([record(seed + 5 * side + i) for i in range(5)] for side in (0, 1))
        assert compare_records(NAMES, base, head, 0.03).verdict in ("same", "can't tell")


def test_runs_that_lie_far_apart_tell_nothing() -> None:
    """However narrow each one's own interval is: the next run may be as far off."""
    base, head = ([record(side + i, slower=by * (1 + 0.2 * i)) for i in range(3)] for side, by in ((0, 1.0), (9, 1.1)))
    found = compare_records(NAMES, base, head, 0.03)
    assert found.verdict == "can't tell"
    assert "more records of both sides" in found.notes[-1]


def test_single_records_of_the_same_stay_quiet_though_processes_differ() -> None:
    """A record's samples are of one process, and don't show that the next is a few per cent faster or slower."""
    quiet = replace(record().noise, control_drift=0.002)
    for seed in range(0, 1200, 2):
        base, head = (record(seed + side, spread=0.02, noise=quiet) for side in (0, 1))
        assert compare_records(NAMES, [base], [head], 0.03).verdict in ("same", "can't tell")


def test_a_run_that_was_recorded_again_counts_once() -> None:
    """`--cached` repeats figures: ten records of one run know no more than one; that both sides have it is said."""
    once, slow = record(1), record(2, slower=1.1)
    again = [replace(once, recorded_at=f"2026-01-02T03:04:{second:02}+00:00") for second in range(10)]
    found = compare_records(NAMES, again, [slow], 0.03)
    assert found.compared == compare_records(NAMES, [once], [slow], 0.03).compared
    assert found.notes[0] == "records left out: 9 of BASE (old) of a run that another one is of"
    assert "BASE and HEAD have 1 run in common, which can't tell them apart" in (
        compare_records(NAMES, again, [once, slow], 0.03).notes
    )


def test_single_records_carry_the_noise_that_was_recorded() -> None:
    """A tenth is not told where the host drifted by as much; twice the time is."""
    drifted = replace(record().noise, control_drift=0.1)
    for slower, noise, verdict in (
        (1.1, drifted, "can't tell"),
        (2.5, drifted, "worse"),
        (1.2, record().noise, "worse"),
    ):
        found = compare_records(NAMES, [record(1, noise=noise)], [record(2, slower=slower, noise=noise)], 0.03)
        assert found.verdict == verdict


def test_records_of_few_samples_are_as_wide_as_the_host_was_noisy() -> None:
    """Their own spread can't be told from so few."""
    few = {"decode_samples_s": (0.02,), "prefill_samples_s": (0.5,)}
    loud = replace(record().noise, median_relative_interval=0.2)
    steady = compare_records(NAMES, [record(1)], [record(2)], 0.03).compared[0].changes[0]
    unsteady = compare_records(NAMES, [record(1, **few, noise=loud)], [record(2, **few)], 0.03).compared[0].changes[0]
    assert unsteady.high - unsteady.low > 3 * (steady.high - steady.low)


@pytest.mark.parametrize(
    "other",
    [
        {"hardware_class": "other-4t-16g-cpu-11111111"},
        {"model_name": "other/model"},
        {"weight_format": "TL2"},
        {"workload": replace(record().workload, prompt_tokens=7)},
    ],
)
def test_nothing_in_common_is_refused_and_both_are_named(other: dict[str, Any]) -> None:
    """Times of another host, model, format or workload say nothing about a version."""
    changed = record(**other)
    with pytest.raises(UsageError) as refused:
        compare_records(NAMES, [record()], [changed], 0.03)
    message = str(refused.value)
    assert f"BASE (old) has synthetic/model (I2_S), server (prompt 128, output 64), on {CLASS}" in message
    assert f"HEAD (new) has {changed.model_name} ({changed.weight_format})" in message


def test_each_kind_that_both_have_is_compared() -> None:
    """The worst counts; what only one has is said."""
    elsewhere = {"hardware_class": "other-4t-16g-cpu-11111111"}
    base = [record(i, **kind) for i in range(4) for kind in ({}, elsewhere)]
    head = [record(i, slower=by, **kind) for i in range(4, 8) for by, kind in ((1.0, {}), (1.3, elsewhere))]
    found = compare_records(NAMES, base, [*head, record(weight_format="TL2")], 0.05)
    assert [each.verdict for each in found.compared] == ["same", "worse"]
    assert found.verdict == "worse"
    assert any(note.startswith("only HEAD (new) has synthetic/model (TL2)") for note in found.notes)


def test_another_configuration_leaves_the_verdict_to_the_workload() -> None:
    """As with running: a larger batch has slower steps."""
    configuration = record().configuration
    batched = replace(configuration, batch_size=2 * configuration.batch_size)
    found = compare_records(
        NAMES, [record(i) for i in range(4)], [record(i, slower=1.1, configuration=batched) for i in range(4)], 0.03
    )
    (compared,) = found.compared
    assert not compared.alike
    assert [change.decides for change in compared.changes] == [False, False, True]
    assert found.verdict == "better"


def test_records_from_different_hosts_are_said() -> None:
    """Of one class, but not the same machine."""
    found = compare_records(NAMES, [record()], [record(host_label="elsewhere")], 0.03)
    assert found.notes[-1] == "recorded on different hosts: synthetic-host and elsewhere"


def test_what_was_not_run_is_left_out() -> None:
    """Predictions are no measurements, and hosts without a class can't be told apart."""
    predicted, old = record(measured=None), record(hardware_class="")
    found = compare_records(NAMES, [record(1), predicted, old], [record(2)], 0.03)
    assert found.compared[0].runs == (1, 1)
    assert found.notes[:2] == (
        "records left out: 1 of BASE (old) only predicted",
        "records left out: 1 of BASE (old) without a hardware class",
    )
    with pytest.raises(UsageError, match=r"got 2 of HEAD \(new\) only predicted$"):
        compare_records(NAMES, [record()], [predicted, predicted], 0.03)


def test_records_are_named_by_file_folder_or_commit(tmp_path: Path) -> None:
    """A commit's lie in the folder of results."""
    results = tmp_path / "results"
    mine, other = record(1), record(2, commit=OTHER_COMMIT)
    path, _ = fill(results, mine, other)
    assert find_records("BASE", path, "nowhere") == [mine]
    assert len(find_records("BASE", str(results), "nowhere")) == 2
    assert find_records("BASE", COMMIT[:7], str(results)) == [mine]
    assert find_records("BASE", OTHER_COMMIT.upper(), str(results)) == [other]


def test_records_can_be_chosen_from(tmp_path: Path) -> None:
    """By model, workload and format."""
    fill(tmp_path, record(1), record(2, weight_format="TL2"))
    assert len(find_records("BASE", str(tmp_path), "", model="synth*", workload="server", weight_format="TL2")) == 1
    with pytest.raises(UsageError, match=r"^HEAD \(.*\): expected records, workload chat, got none among 2$"):
        find_records("HEAD", str(tmp_path), "", workload="chat")


def test_what_names_no_records_is_refused(tmp_path: Path) -> None:
    """A commit without any, a word, a file that is none, a folder of results that isn't there."""
    results = tmp_path / "results"
    fill(results, record())
    with pytest.raises(UsageError, match=r"expected records in .*results, got none among 1"):
        find_records("BASE", "deadbeef", str(results))
    with pytest.raises(UsageError, match=r"BASE \(main\): expected a Python executable"):
        find_records("BASE", "main", str(results))
    (tmp_path / "no.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UsageError, match=r"^HEAD \(.*empty\): the folder is no virtual environment, .* has no records$"
    ):
        find_records("HEAD", str(tmp_path / "empty"), str(results))
    with pytest.raises(StoreError, match=r"no\.json: expected a record"):
        find_records("BASE", str(tmp_path / "no.json"), str(results))
    with pytest.raises(ResultNotFoundError):
        find_records("BASE", "deadbeef", str(tmp_path / "missing"))
