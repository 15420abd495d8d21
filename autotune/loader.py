"""The fast path for programs that load a model: the saved answer or the fallback, never a benchmark.

Nothing here imports numpy, torch or optuna, and msgspec only to build the record that is returned.
"""

from __future__ import annotations

import os
import warnings

from autotune.errors import AutotuneError
from autotune.store import cache, paths
from autotune.store.entry import Key, check_workload

TYPE_CHECKING = False  # typing takes longer to import than a look-up takes
if TYPE_CHECKING:
    from autotune.options import Options
    from autotune.records.configuration import DeviceConfig
    from autotune.records.result import Result
    from autotune.store.entry import Entry
    from autotune.validity.shortage import Shortage

    ModelName = str | os.PathLike[str]
    Question = tuple[str, str, str | None]
    Signature = tuple[int, int, int, int] | None


class FallbackWarning(UserWarning):
    """Warns that there is no saved result for a model, and names the command that makes one."""


class ShrunkWarning(UserWarning):
    """Warns that a saved configuration doesn't fit the memory there is now, and says what is used instead."""


class _Answer:
    """A configuration, and the files as they were when it was found: it holds until one of them changes."""

    __slots__ = ("config", "seen")

    def __init__(self, config: DeviceConfig, seen: dict[str, Signature]) -> None:
        self.config = config
        self.seen = seen

    def holds(self) -> bool:
        return all(_signature(path) == signature for path, signature in self.seen.items())


_answers: dict[tuple[Question, tuple[str, ...]], _Answer] = {}
_warned: set[Question] = set()
_host_fingerprint: list[str] = []


def get_optimal_device_config(
    model: ModelName,
    workload: str = "server",
    format: str | None = None,  # noqa: A002 (the option's name)
) -> DeviceConfig:
    """The configuration saved for a model on this host, or the fallback with a `FallbackWarning`.

    Where it doesn't fit the memory there is by now, it is the best of those saved with it that does, with a
    `ShrunkWarning`.

    Never benchmarks, and never raises for a model, cache or host that is not as expected: a program that
    loads a model must start. After the first call it costs a few calls of stat, until a file changes.

    Args:
        model: What ``autotune`` was run on: a model file, or the name of a preset.
        workload: ``chat``, ``server`` or ``offline``.
        format: Weight format, where ``autotune`` was run with ``--format``.

    Raises:
        UsageError: Where there is no such workload.
    """
    question = _question(model, workload, format)
    layers = paths.layers()
    answer = _answers.get((question, layers))
    if answer is None or not answer.holds():
        answer = _answers[question, layers] = _look_up(question, layers)
    return answer.config


def get_fallback_config() -> DeviceConfig:
    """A configuration that works everywhere: CPU only, at most 4 of the usable threads, one sequence.

    Reads the affinity mask, the cpuset and the CPU quota; measures nothing and never raises.
    """
    from autotune.host.cgroup import Cgroup
    from autotune.host.limits import FALLBACK_THREADS, read_limits
    from autotune.host.pseudofiles import Root
    from autotune.records.configuration import DeviceConfig

    online = os.cpu_count()
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(online or 1)
    usable = read_limits(Cgroup(Root()), tuple(sorted(affinity)), online).usable_threads
    return DeviceConfig(
        strategy="CpuOnly",
        cpu_threads=min(FALLBACK_THREADS, usable),
        gpu_memory_fraction=None,
        recommended_batch_size=1,
    )


def load_result(
    model: ModelName,
    workload: str = "server",
    format: str | None = None,  # noqa: A002 (the option's name)
) -> Result | None:
    """The whole result saved for a model on this host, with its evidence; None where there is none.

    Args:
        model: What ``autotune`` was run on: a model file, or the name of a preset.
        workload: ``chat``, ``server`` or ``offline``.
        format: Weight format, where ``autotune`` was run with ``--format``.

    Raises:
        ModelError: Where the model doesn't exist or can't be read.
        UsageError: Where there is no such workload.
    """
    from autotune.model.source import digest, resolve
    from autotune.store.schema import decode_result

    name, _, _ = _question(model, workload, format)
    return cache.read_as(decode_result, _this_host(), digest(resolve(name), format), workload)


def find_answer(model: ModelName, options: Options, budget_s: float) -> Entry | None:
    """The saved entry that answers a user's options, measured with at least that budget; None: it must be measured.

    Doesn't analyse the model and imports neither msgspec nor numpy: it is what a repeated command runs.

    Raises:
        ModelError: Where the model doesn't exist or can't be read.
        UsageError: Where there is no such workload.
    """
    entry = find_entry(model, options.workload, options.format)
    return entry if entry is not None and options.answered_by(entry.request, budget_s) else None


def find_entry(model: ModelName, workload: str, format: str | None) -> Entry | None:  # noqa: A002
    """The entry saved for a model on this host, whatever options it answers; None where there is none.

    Raises:
        ModelError: Where the model doesn't exist or can't be read.
        UsageError: Where there is no such workload.
    """
    from autotune.model.source import digest, resolve

    name, _, _ = _question(model, workload, format)
    return cache.read(_this_host(), digest(resolve(name), format), workload)


def memory_shortage(entry: Entry) -> str | None:
    """Whether a saved configuration lacks memory on this host now, and what loaders get instead, in words; None: no.

    Raises:
        BadEntry: Where the entry can't be read.
    """
    from autotune.validity.shortage import decode, find_shortage

    shortage = find_shortage(decode(entry))
    return None if shortage is None else _describe(shortage)


def _question(model: ModelName, workload: str, format: str | None) -> Question:  # noqa: A002
    check_workload(workload)
    return os.fspath(model), workload, format


def _look_up(question: Question, layers: tuple[str, ...]) -> _Answer:
    from autotune.model.source import digest, resolve, split_paths
    from autotune.validity.shortage import decode, find_shortage

    # Signatures are taken before the files are read: a change in between is noticed by the next call.
    model, workload, weight_format = question
    seen = {model: _signature(model)}
    try:
        source = resolve(model)
        seen.update((path, _signature(path)) for path in split_paths(source))
        key = Key(_this_host(), digest(source, weight_format), workload)
    except (AutotuneError, OSError) as error:
        return _fall_back(question, seen, reason=str(error))
    seen.update((path, _signature(path)) for path in map(key.path_in, layers))
    found = cache.read_as(lambda entry: (entry, decode(entry)), key.host, key.model, key.workload)
    if found is None:
        return _fall_back(question, seen, reason=_why_missed(question, key, layers))
    # Memory is looked at when an answer is looked up, and not at each later call: by then what it is for has been
    # loaded, takes the memory itself, and can't become smaller any more.
    entry, saved = found
    shortage = find_shortage(saved)
    if shortage is None:
        return _Answer(saved.device_config, seen)
    from autotune.options import asking_command

    message = f"{_describe(shortage)}; decide anew with: {asking_command('retune', model, entry.request)}"
    warnings.warn(message, ShrunkWarning, stacklevel=3)  # the caller of get_optimal_device_config
    return _Answer(shortage.config or get_fallback_config(), seen)


def _fall_back(question: Question, seen: dict[str, Signature], reason: str) -> _Answer:
    answer = _Answer(get_fallback_config(), seen)
    if question not in _warned:
        from autotune.options import tune_command

        _warned.add(question)
        message = f"using the fallback configuration, for {reason}; tune with: {tune_command(*question)}"
        warnings.warn(message, FallbackWarning, stacklevel=4)  # the caller of get_optimal_device_config
    return answer


def _why_missed(question: Question, key: Key, layers: tuple[str, ...]) -> str:
    reason = "nothing is saved for this model and host"
    if question in _warned:  # and so it isn't said
        return reason
    from autotune.validity.changes import explain_miss

    change = explain_miss(key, layers)
    return reason if change is None else f"{reason} ({change})"


def _describe(shortage: Shortage) -> str:
    instead = (
        f"using {shortage.change}"
        if shortage.config is not None
        else "no smaller one that is saved fits either: using the fallback configuration, which may not fit"
    )
    return f"the saved configuration needs {shortage.lacking}: {instead}"


def _this_host() -> str:
    """The cheap fingerprint, read once per process.

    Reading it takes most of the millisecond that a call may cost. While a process runs, only a new quota or
    affinity mask can change it, and the threads that the process already has don't adapt to these either.
    """
    if not _host_fingerprint:
        from autotune.host.fingerprint import cheap

        _host_fingerprint.append(cheap())
    return _host_fingerprint[0]


def _signature(path: str) -> Signature:
    """What changes when a file is replaced or written to; None where there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116 (pathlib takes longer to import than a look-up takes)
    except (OSError, ValueError):  # ValueError: a null byte in a model's name
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
