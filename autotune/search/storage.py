"""The Optuna study that keeps a measured search: what a trial holds, and what a stopped search left behind."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import time
import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import msgspec
import optuna
import psutil
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from autotune.errors import StoreError, UsageError
from autotune.records import Configuration, PartRun, Trial

CONFIGURATION, ORIGIN, RECORD = "configuration", "origin", "trial"
"""User attributes of trials: what is run and why, and when it is finished what came of it, each as JSON."""
_RUN, _OWNER = "run ", "owner"
"""Samples are under keys of their own as they come, by the time, so that none is written twice."""

_BUSY_S = 30.0
"""How long SQLite waits for another process' write."""
_PAUSES_S = (0.1, 0.2, 0.3)
"""Between attempts: two processes that make the tables of a new database at once get in each other's way."""
_LONGEST_S = 3600.0
"""A trial that another machine began so long ago has been abandoned."""
_BEGINNING_S = 1.0
"""A trial that doesn't say whose it is so long after it was begun never will."""


def open_study(url: str | None, name: str, sampler: BaseSampler, pruner: BasePruner) -> optuna.Study:
    """The study of a name in a database, made if it isn't there; without a URL one in memory.

    Raises:
        UsageError: The URL names no database that can be used here.
        StoreError: The database can't be opened.
    """
    with storing(url):
        storage = None if url is None else _connected(url)
        return optuna.create_study(
            storage=storage, sampler=sampler, pruner=pruner, study_name=name, load_if_exists=url is not None
        )


def check(url: str) -> None:
    """Reach a database, and make its tables if it has none: what can't be used is better told before anything is timed.

    Raises:
        UsageError, StoreError: As for ``open_study``.
    """
    with storing(url):
        _connected(url).remove_session()


def without_password(url: str) -> str:
    """A URL that can be shown; what is no URL isn't shown at all, for a password could be anywhere in it."""
    try:
        return make_url(url).set(query={}).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):  # ValueError: a port that is no number
        return "the URL"


@contextlib.contextmanager
def storing(url: str | None) -> Iterator[None]:
    """Turns what a database may fail with into one sentence.

    Raises:
        StoreError: It did.
    """
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        assert url is not None, "a study in memory has no database"
        cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
        reason = getattr(cause, "orig", None) or type(cause).__name__
        raise StoreError(f"the study in {without_password(url)} can't be used: {reason}") from None


def enqueue(study: optuna.Study, parameters: Mapping[str, int], configuration: Configuration, origin: str) -> None:
    """Have a configuration tried before any that the sampler proposes; those enqueued first are tried first."""
    study.enqueue_trial(
        dict(parameters), user_attrs={CONFIGURATION: msgspec.to_builtins(configuration), ORIGIN: origin}
    )


def begin(trial: optuna.Trial, configuration: Configuration, origin: str) -> None:
    """Note who runs a trial, and what it is about."""
    trial.set_user_attr(_OWNER, _self())
    if CONFIGURATION not in trial.user_attrs:
        trial.set_user_attr(CONFIGURATION, msgspec.to_builtins(configuration))
        trial.set_user_attr(ORIGIN, origin)


def keep(holder: optuna.Trial | optuna.Study, run: PartRun) -> str:
    """Add samples to the trial that they were taken for, or where several were compared by them, to the study.

    Returns:
        The key that they are under, which no others have.
    """
    key = f"{_RUN}{time.time_ns()} {uuid.uuid4().hex[:8]}"
    holder.set_user_attr(key, msgspec.to_builtins(run))
    return key


def runs_in(study: optuna.Study) -> Iterator[tuple[str, PartRun]]:
    """All samples with their keys in the order taken, those of trials that were stopped as well."""
    found = dict(study.user_attrs)
    for trial in study.get_trials(deepcopy=False):
        found |= trial.user_attrs
    for key in sorted(key for key in found if key.startswith(_RUN)):
        yield from ((key, run) for run in _read(found[key], PartRun))


def records_in(study: optuna.Study) -> Iterator[Trial]:
    """What came of the finished trials."""
    for trial in study.get_trials(deepcopy=False):
        yield from _read(trial.user_attrs.get(RECORD), Trial)


def waiting(study: optuna.Study) -> list[Configuration]:
    """What was enqueued and not begun."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    return [found for trial in trials for found in _read(trial.user_attrs.get(CONFIGURATION), Configuration)]


def interrupted(study: optuna.Study) -> Iterator[tuple[FrozenTrial, Configuration | None, str]]:
    """The trials whose process ended before they did, what they were about and why they were tried."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not _alive(trial.user_attrs.get(_OWNER), trial.datetime_start):
            configuration = next(_read(trial.user_attrs.get(CONFIGURATION), Configuration), None)
            yield trial, configuration, str(trial.user_attrs.get(ORIGIN, ""))


def _connected(url: str) -> RDBStorage:
    shown = without_password(url)
    try:
        sqlite = make_url(url).get_backend_name() == "sqlite"
    except (ArgumentError, ValueError):  # ValueError: a port that is no number
        raise UsageError(
            "--storage must be the URL of a database, for example sqlite:///study.db or "
            "postgresql://user@host/database, got something else"
        ) from None
    options: dict[str, Any] = {"connect_args": {"timeout": _BUSY_S}} if sqlite else {}
    pauses_s = list(_PAUSES_S)
    while True:
        try:
            return RDBStorage(url, engine_kwargs=options)
        except NoSuchModuleError:
            raise UsageError(f"--storage names a kind of database that is not known: {shown}") from None
        except ImportError:
            raise UsageError(f"--storage needs a database driver that is not installed: {shown}") from None
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError):
            if not pauses_s:
                raise
            time.sleep(pauses_s.pop(0))
        except RuntimeError as error:
            raise StoreError(f"the study in {shown} can't be used: {error}") from None


def _read(value: object, kind: type[Any]) -> Iterator[Any]:
    """A record from a user attribute; nothing if it isn't there, or isn't what this version writes."""
    if value is not None:
        with contextlib.suppress(msgspec.ValidationError):
            yield msgspec.convert(value, kind)


def _self() -> dict[str, object]:
    """Says which process this is, wherever that is read."""
    process = psutil.Process()
    return {"node": platform.node(), "pid": os.getpid(), "started": process.create_time()}


def _alive(owner: object, begun: datetime | None) -> bool:
    """Whether the process that runs a trial may still do so."""
    age_s = math.inf if begun is None else (datetime.now() - begun).total_seconds()
    if not isinstance(owner, dict):
        return age_s < _BEGINNING_S
    if owner.get("node") != platform.node():
        return age_s < _LONGEST_S
    try:
        return bool(psutil.Process(int(owner["pid"])).create_time() == owner["started"])
    except (psutil.Error, KeyError, ValueError):
        return False
