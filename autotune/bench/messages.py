"""What parent and worker say to each other: one job down standard input, one JSON line per event back."""

from __future__ import annotations

import msgspec

from autotune.bench.plan import Task
from autotune.records import Model, Record
from autotune.records.measurement import FailureKind


class Job(Record, frozen=True):
    """All that a worker needs; written as one line."""

    model: Model | None
    """Geometry of attention and gate; None where only the host's ceilings are timed."""
    tasks: tuple[Task, ...]
    samples_s: tuple[tuple[float, ...], ...]
    """Samples that an earlier worker already took of each task."""
    skip: tuple[int, ...]
    """Tasks that are not to be run (again)."""
    cpus: tuple[int, ...] | None
    """Logical CPUs in the order threads are pinned to them; None: no pinning."""
    cold_bytes: int
    deadline: float
    """On the monotonic clock, which all processes of a machine share."""
    kernel_modules: tuple[str, ...]
    """Modules to import, whose kernels register themselves."""
    seed: int


class Ready(Record, frozen=True, tag="ready"):
    """Imports are done; nothing is allocated yet."""

    overhead_bytes: int


class Started(Record, frozen=True, tag="started"):
    """A task is about to run."""

    index: int
    expected_s: float | None


class Block(Record, frozen=True, tag="block"):
    """Samples that count: (task, seconds per call)."""

    samples: tuple[tuple[int, float], ...]


class Failed(Record, frozen=True, tag="failed"):
    """A task is out."""

    index: int
    kind: FailureKind
    message: str


class TaskSummary(Record, frozen=True):
    """How a task's sampling ended."""

    index: int
    stop: str
    calls: int
    disturbed: int


class Finished(Record, frozen=True, tag="finished"):
    """The worker is done."""

    tasks: tuple[TaskSummary, ...]
    control_drift: float


Event = Ready | Started | Block | Failed | Finished

encoder = msgspec.json.Encoder()
event_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
job_decoder = msgspec.json.Decoder(Job)
