"""What parent and worker say to each other: a job and selections of its tasks one way, events the other; JSON lines."""

from __future__ import annotations

import msgspec

from autotune.bench.plan import Task
from autotune.bench.sampler import Sample
from autotune.records import Model, Record
from autotune.records.measurement import FailureKind


class Job(Record, frozen=True):
    """All that a worker needs to time any of its tasks."""

    model: Model | None
    """Geometry of attention and gate; None where only the host's ceilings are timed."""
    tasks: tuple[Task, ...]
    samples_s: tuple[tuple[float, ...], ...]
    """Samples that an earlier worker already took of each task."""
    skip: tuple[int, ...]
    """Tasks that are not to be run (again)."""
    cpus: tuple[int, ...]
    """Logical CPUs in the order threads are pinned to them."""
    cold_bytes: int
    """The CPU's memory for weights to rotate through; a GPU's depends on its cache, which its worker finds."""
    least_cold_bytes: int
    """What will do where memory comes slowly."""
    deadline: float
    """When to be done, on the monotonic clock, which all processes of a machine share."""
    end: float
    """When the parent ends the worker whatever it does, on the same clock."""
    kernel_modules: tuple[str, ...]
    """Modules to import, whose kernels register themselves."""
    seed: int
    device: str = "cpu"
    """What the tasks' points are on."""
    visible_gpu: str | None = None
    """The only GPU that the worker sees, as CUDA_VISIBLE_DEVICES names it: a UUID or an index in PCI order."""
    torch_device: str = "cuda:0"
    """Where torch finds that GPU; ``cpu`` stands in for one in tests."""


class Select(Record, frozen=True, tag="select"):
    """What to time now; answered by ``Idle`` when that is done."""

    intervals: dict[int, float]
    """Index of each task, the most important first, and how narrow an interval its median is to come to, relative.
    None at all: nothing is left to do."""


class Ready(Record, frozen=True, tag="ready"):
    """Imports are done; nothing is allocated yet."""

    overhead_bytes: int


class GpuFacts(Record, frozen=True):
    """What a process finds of the GPU that it times on; fields as in ``GpuRun``."""

    context_bytes: int
    host_bytes: int
    free_bytes: int | None
    l2_bytes: int | None
    multiprocessors: int | None
    busy_before: float | None
    libraries: dict[str, str]


class Prepared(Record, frozen=True, tag="prepared"):
    """Weights can rotate."""

    cold_bytes: int
    gpu: GpuFacts | None = None
    """What was found of the GPU before its memory was filled; None on the CPU."""


class Started(Record, frozen=True, tag="started"):
    """Something is about to run that the worker may not survive."""

    at_stake: tuple[int, ...]
    """The tasks that are out if it doesn't; none where no task is to blame."""
    expected_s: float | None
    """How long it should take; None: unknown."""
    compiles: bool = False
    """Whether code may have to be compiled for it first, which takes seconds."""


class Block(Record, frozen=True, tag="block"):
    """Samples that count; their ``index`` is the task's."""

    samples: tuple[Sample, ...]
    control_drift: float
    """Largest relative distance of the control from its median so far."""


class Clocks(Record, frozen=True, tag="clocks"):
    """A GPU's clocks at one moment; None where they can't be read."""

    sm_hz: float | None
    memory_hz: float | None
    throttle_reasons: tuple[str, ...]


class Failed(Record, frozen=True, tag="failed"):
    """A task is out."""

    index: int
    kind: FailureKind
    message: str


class Unusable(Record, frozen=True, tag="unusable"):
    """The device can't be used, so no worker can time what is left."""

    reason: str


class Idle(Record, frozen=True, tag="idle"):
    """All that was selected is done, or there is no time for the rest."""


class Finished(Record, frozen=True, tag="finished"):
    """The worker is done."""


Event = Ready | Prepared | Started | Block | Clocks | Failed | Unusable | Idle | Finished

encoder = msgspec.json.Encoder()
event_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
job_decoder = msgspec.json.Decoder(Job)
select_decoder = msgspec.json.Decoder(Select)
