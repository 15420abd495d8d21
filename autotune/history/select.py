"""Which records of a folder are wanted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from fnmatch import fnmatchcase
from typing import NamedTuple

from autotune.errors import UsageError
from autotune.history.store import Stored
from autotune.records.history import HistoryRecord
from autotune.store.entry import check_workload


class Wanted(NamedTuple):
    """What records must have in common; None and empty: anything.

    Attributes:
        model: Its name, or a pattern of the shell for it (``bitnet*``), in any case.
        workload: ``chat``, ``server`` or ``offline``.
        hardware_class: The class, or a pattern of the shell for it.
        commit: How its hex digits begin.
        since: The earliest time of recording.
        until: The time of recording before which they are.
        tags: Tags with these values.
        last: So many, the latest.
    """

    model: str | None = None
    workload: str | None = None
    hardware_class: str | None = None
    commit: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    tags: Mapping[str, str] = {}
    last: int | None = None

    def check(self) -> None:
        """Check what a user asked for.

        Raises:
            UsageError: No record could be wanted.
        """
        if self.workload is not None:
            check_workload(self.workload)
        if self.commit is not None and not re.fullmatch("[0-9a-fA-F]{4,64}", self.commit):
            raise UsageError(f"--commit must be at least the first 4 hex digits of a commit, got {self.commit!r}")
        if self.last is not None and self.last < 1:
            raise UsageError(f"--last must be a whole number of at least 1, got {self.last}")
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise UsageError(
                f"--since must be before --until, got {self.since.isoformat()} and {self.until.isoformat()}"
            )

    def accepts(self, record: HistoryRecord) -> bool:
        """Whether a record has all of it; ``last`` is about many and doesn't count here."""
        return (
            _matches(record.model_name, self.model)
            and self.workload in (None, record.workload.name)
            and _matches(record.hardware_class, self.hardware_class)
            and (self.commit is None or (record.commit or "").startswith(self.commit.lower()))
            and (self.since is None or moment_of(record) >= self.since)
            and (self.until is None or moment_of(record) < self.until)
            and all(record.tags.get(key) == value for key, value in self.tags.items())
        )


def select(stored: Iterable[Stored], wanted: Wanted) -> list[Stored]:
    """The wanted ones of the records, the oldest first."""
    found = [one for one in stored if wanted.accepts(one.record)]
    found.sort(key=lambda one: (moment_of(one.record), one.path))
    return found if wanted.last is None else found[-wanted.last :]


def moment_of(record: HistoryRecord) -> datetime:
    """When a record was made."""
    return datetime.fromisoformat(record.recorded_at)


def parse_moment(text: str, *, ends: bool = False) -> datetime:
    """A time as a user gives it: a date or a date with a time, in ISO 8601, in UTC where it names no zone.

    Args:
        text: What the user gave.
        ends: Whether a date alone means the end of its day, and not the beginning.

    Raises:
        ValueError: It is no time.
    """
    try:
        day = date.fromisoformat(text)
    except ValueError:
        moment = datetime.fromisoformat(text)
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    begin = datetime.combine(day, time(tzinfo=UTC))
    if not ends:
        return begin
    return datetime.max.replace(tzinfo=UTC) if day == date.max else begin + timedelta(days=1)


def _matches(value: str, pattern: str | None) -> bool:
    return pattern is None or fnmatchcase(value.lower(), pattern.lower())
