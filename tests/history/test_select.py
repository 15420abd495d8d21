"""Which records are wanted."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from autotune.errors import UsageError
from autotune.history.select import Wanted, parse_moment, select
from autotune.history.store import Stored
from tests.builders import build_workload
from tests.history.records import COMMIT, build_record


def day(number: int) -> datetime:
    return datetime(2026, 1, number, tzinfo=UTC)


def stored(**overrides: Any) -> Stored:
    return Stored(f"{len(overrides)}.json", build_record(**overrides))


@pytest.mark.parametrize(
    ("wanted", "other"),
    [
        (Wanted(model="synthetic/model"), {"model_name": "synthetic/model-2"}),
        (Wanted(model="SYNTH*"), {"model_name": "bitnet"}),
        (Wanted(workload="server"), {"workload": build_workload(name="chat")}),
        (Wanted(hardware_class="zen4-8t-*"), {"hardware_class": "zen5-8t-32g-cpu-00000000"}),
        (Wanted(hardware_class="zen4-8t-32g-cpu-01234567"), {"hardware_class": ""}),
        (Wanted(commit=COMMIT[:4].upper()), {"commit": "f" * 40}),
        (Wanted(commit=COMMIT), {"commit": None}),
        (Wanted(since=day(2)), {"recorded_at": "2026-01-01T23:59:59+00:00"}),
        (Wanted(until=day(3)), {"recorded_at": "2026-01-03T00:00:00+00:00"}),
        (Wanted(tags={"runner": "ci-1"}), {"tags": {"runner": "ci-10"}}),
        (Wanted(tags={"runner": "ci-1"}), {"tags": {}}),
    ],
)
def test_only_what_was_asked_for_is_taken(wanted: Wanted, other: dict[str, Any]) -> None:
    """Each filter takes the one and leaves the other; without filters both are taken."""
    wanted.check()
    usual = stored(hardware_class="zen4-8t-32g-cpu-01234567")
    assert select([usual, stored(**other)], wanted) == [usual]
    assert len(select([usual, stored(**other)], Wanted())) == 2


def test_records_come_in_the_order_of_time_whatever_their_zone() -> None:
    """And the last ones are the latest."""
    times = ("2026-01-02T00:30:00+00:00", "2026-01-02T01:00:00+02:00", "2026-01-01T23:59:00+00:00")
    found = [stored(recorded_at=time) for time in times]
    first, second, third = found[1], found[2], found[0]
    assert select(found, Wanted()) == [first, second, third]
    assert select(found, Wanted(last=2)) == [second, third]
    assert select(found, Wanted(last=9)) == [first, second, third]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Wanted(workload="chatty"), "the workload must be one of chat, server, offline, got 'chatty'"),
        (Wanted(commit="abc"), "at least the first 4 hex digits of a commit, got 'abc'"),
        (Wanted(commit="HEAD~1"), "got 'HEAD~1'"),
        (Wanted(last=0), "--last must be a whole number of at least 1, got 0"),
        (Wanted(since=day(3), until=day(3)), "--since must be before --until"),
    ],
)
def test_what_no_record_can_match_is_refused(wanted: Wanted, words: str) -> None:
    """With what was expected and what was given."""
    with pytest.raises(UsageError, match=words):
        wanted.check()


@pytest.mark.parametrize(
    ("text", "begins", "ends"),
    [
        ("2026-01-02", day(2), day(3)),
        ("2026-01-02T12:30", day(2) + timedelta(hours=12.5), day(2) + timedelta(hours=12.5)),
        ("2026-01-02 12:30Z", day(2) + timedelta(hours=12.5), day(2) + timedelta(hours=12.5)),
    ],
)
def test_times_are_in_utc_and_a_date_is_its_whole_day(text: str, begins: datetime, ends: datetime) -> None:
    """As the end of a span it reaches to the next day."""
    assert (parse_moment(text), parse_moment(text, ends=True)) == (begins, ends)


def test_a_time_keeps_the_zone_that_it_names() -> None:
    """Half past twelve there is not half past twelve in UTC."""
    assert parse_moment("2026-01-02T12:30+02:00") == datetime(2026, 1, 2, 12, 30, tzinfo=timezone(timedelta(hours=2)))


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "2026-01-02T25:00", "12"])
def test_what_is_no_time_is_no_time(text: str) -> None:
    """It is for the command line to say so."""
    with pytest.raises(ValueError, match=r"."):
        parse_moment(text)
