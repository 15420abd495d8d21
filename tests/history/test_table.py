"""Records as one tidy table."""

from __future__ import annotations

import io

import pandas as pd
import pytest
from msgspec.structs import replace

from autotune.errors import UsageError
from autotune.history import table
from autotune.history.store import Stored
from tests.builders import build_gpu_result
from tests.history.records import AT, COMMIT, build_record

USUAL = Stored("results/one.json", build_record(warnings=("hot", "noisy")))
BARE = Stored(
    "results/two.json",
    build_record(
        build_gpu_result(created_at=AT),
        recorded_at="2026-01-02T05:04:05+02:00",
        commit=None,
        branch=None,
        dirty=None,
        job=None,
        tags={"note": 'a, "b"\nµ'},
        held_out={},
        speedup_over_default=None,
    ),
)


def test_every_record_is_a_row_and_every_figure_a_column() -> None:
    """With the numbers that the record holds."""
    frame = table.table([USUAL, BARE])
    first, second = (row for _, row in frame.iterrows())
    assert list(frame["path"]) == ["results/one.json", "results/two.json"]
    assert (first["tokens_per_s"], first["default_tokens_per_s"], first["predicted_tokens_per_s"]) == (
        190.0,
        76.0,
        200.0,
    )
    assert (first["decode_samples"], first["prefill_samples"], first["relative_interval"]) == (6, 2, 0.012)
    assert (first["commit"], first["dirty"], first["job_attempt"]) == (COMMIT, False, 1)
    assert (first["held_out_interior_m_error"], first["warnings"]) == (0.03, "hot; noisy")
    assert (first["strategy"], first["device_layers"], first["cpu_layers"], first["gpu_layers"]) == (
        ("CpuOnly", "2 cpu", 2, 0)
    )
    assert (second["strategy"], second["device_layers"], second["cpu_layers"], second["gpu_layers"]) == (
        ("Hybrid", "1 cpu, 1 cuda:0", 1, 1)
    )
    assert (second["gpus"], second["memory_planned_gpu_bytes"]) == ("Synthetic GPU", 52_900_000)


def test_what_is_unknown_is_missing_whatever_its_type() -> None:
    """And not zero, False or an empty text; the other rows keep their types."""
    frame = table.table([USUAL, BARE])
    unknown = {"commit", "branch", "dirty", "job_name", "job_attempt", "tokens_per_s", "default_tpot_s", "tag.runner"}
    unknown |= {"speedup_over_default", "memory_used_cpu_bytes", "steal_fraction", "held_out_site_error"}
    assert frame.loc[1, sorted(unknown)].isna().all()
    assert not frame.loc[0, sorted(unknown - {"steal_fraction", "held_out_site_error"})].isna().any()


def test_types_are_those_of_the_figures() -> None:
    """Also where all values are missing, so that tables of different folders can be joined."""
    for stored in ([USUAL, BARE], [BARE]):
        types = table.table(stored).dtypes
        assert isinstance(types["recorded_at"], pd.DatetimeTZDtype)
        assert str(types["recorded_at"].tz) == "UTC"
        assert [str(types[name]) for name in ("tokens_per_s", "job_attempt", "dirty")] == [
            "float64",
            "Int64",
            "boolean",
        ]
        assert str(types["commit"]) == str(types["tag.note"]) == "string"


def test_times_are_in_utc() -> None:
    """Whatever zone they were recorded in."""
    frame = table.table([USUAL, BARE])
    assert list(frame["recorded_at"]) == [pd.Timestamp("2026-01-02T03:04:05Z")] * 2


def test_every_tag_is_a_column() -> None:
    """Called by its key."""
    frame = table.table([USUAL, BARE])
    assert list(frame["tag.runner"].dropna()) == ["ci-1"]
    assert list(frame["tag.note"].dropna()) == ['a, "b"\nµ']


def test_columns_with_a_unit_name_it() -> None:
    """Times, sizes and rates are SI."""
    names = {column.name for column in table.COLUMNS if column.kind == "number"}
    without = {"relative_interval", "default_relative_interval", "speedup_over_default", "noise_relative_interval"}
    without |= {"control_drift", "steal_fraction", *(name for name in names if name.startswith("held_out_"))}
    assert all(name.endswith(("_s", "_bytes")) for name in names - without)


def test_rows_are_the_same_table_in_plain_values() -> None:
    """Unknown ones are None; times are as they were recorded."""
    first, second = table.rows([USUAL, BARE])
    frame = table.table([USUAL, BARE])
    assert list(first) == list(second) == list(frame.columns)
    assert (first["recorded_at"], first["tokens_per_s"], second["tokens_per_s"]) == (AT, 190.0, None)


def test_csv_is_read_back_as_the_same_table() -> None:
    """With separators, quotes, line breaks and letters of all kinds in it; unknown values are empty."""
    frame = table.table([USUAL, BARE])
    raw = table.to_csv([USUAL, BARE])
    again = pd.read_csv(
        io.BytesIO(raw),
        dtype={name: str(kind) for name, kind in frame.dtypes.items() if kind != frame.dtypes["recorded_at"]},
        parse_dates=["recorded_at", "measured_at"],
    )
    pd.testing.assert_frame_equal(again, frame, check_dtype=False)


def test_parquet_is_read_back_as_the_same_table() -> None:
    """Types included."""
    pytest.importorskip("pyarrow")
    frame = table.table([USUAL, BARE])
    again = pd.read_parquet(io.BytesIO(table.to_parquet([USUAL, BARE])))
    pd.testing.assert_frame_equal(again, frame)


def test_parquet_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one sentence."""
    monkeypatch.setattr(table, "find_spec", lambda _: None)
    with pytest.raises(
        UsageError, match=r"needs pyarrow, which is not installed: `pip install 'bitnet-autotune\[parquet\]'`"
    ):
        table.to_parquet([USUAL])


def test_a_table_needs_no_more_columns_than_its_records_fill() -> None:
    """Every column has a value in one record or another of a CPU and a GPU host."""
    full = replace(USUAL.record, driver="580", gpus=("GPU",), hardware_class="zen4-8t-32g-cpu-01234567")
    frame = table.table([Stored("full.json", full), BARE])
    empty = {name for name in frame.columns if frame[name].isna().all()}
    assert empty <= {
        "max_ttft_s",
        "steal_fraction",
        "throttled_s",
        "held_out_site_error",
        "held_out_thread_count_error",
        "memory_used_gpu_bytes",
    }
