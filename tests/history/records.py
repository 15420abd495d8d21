"""Synthetic records for tests, and a folder of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec.structs import replace

from autotune.history import store
from autotune.history.condense import history_record
from autotune.history.surroundings import Checkout
from autotune.records import Result
from autotune.records.history import HistoryRecord, Job
from tests.builders import build_confirmed_result

COMMIT = "0a1b2c3d" * 5
AT = "2026-01-02T03:04:05+00:00"


def build_record(result: Result | None = None, **overrides: Any) -> HistoryRecord:
    """A synthetic record, by default of a confirmed result at a commit, made by a CI job."""
    record = history_record(
        result or build_confirmed_result(created_at=AT),
        recorded_at=AT,
        checkout=Checkout(COMMIT, "main", dirty=False),
        job=Job(name="tune", run_id="42", attempt=1, url="https://example.org/runs/42"),
        tags={"runner": "ci-1"},
    )
    return replace(record, **overrides)


def fill(folder: Path, *records: HistoryRecord) -> list[str]:
    """Write records to a folder; returns their paths."""
    return [store.write(folder, record) for record in records]
