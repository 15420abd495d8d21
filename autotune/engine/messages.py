"""What the engine's two processes say to each other: requests down standard input, one JSON line per event back."""

from __future__ import annotations

import msgspec

from autotune.engine.stages import Kernels
from autotune.records import Model, Part, PartRun, Record, RunFailure


class Patience(Record, frozen=True):
    """How long something may run before it counts as hung: some seconds, and so many times what was expected."""

    factor: float = 5.0
    """Steps vary less than single kernels do; but on a shared machine everything may take several times as long."""
    floor_s: float = 10.0
    compile_s: float = 30.0
    """Instead, for what may compile code first."""
    gpu_s: float = 120.0
    """Instead, for what may load a GPU's libraries or compile code for it, which takes tens of seconds."""


class Setup(Record, frozen=True):
    """All that the engine's process needs before any request."""

    model: Model
    seed: int
    """Of the weights."""
    cpus: tuple[int, ...]
    """Logical CPUs in the order threads are pinned to them."""
    room_bytes: int
    """What weights may take of the CPU's memory."""
    cache_bytes: int
    """Size of the CPU's last-level caches."""
    gpus: dict[str, str]
    """Where torch finds each GPU: ``{"cuda:0": "cuda:0"}``; ``cpu`` stands in for one in tests."""
    nvml_gpus: dict[str, str]
    """The same GPUs by UUID or by index in PCI order, as NVML knows them."""
    modules: tuple[str, ...]
    """Modules to import, whose kernels register themselves."""
    patience: Patience


class Prepare(Record, frozen=True, tag="prepare"):
    """Bring weights and KV cache to where a part has them, and make its kernels ready."""

    part: Part
    kernels: Kernels
    capacity: int
    """Slots of the KV cache per sequence: the same in all requests to a process."""


class Measure(Prepare, frozen=True, tag="measure"):
    """Prepare a part and run it several times."""

    at_least: int
    at_most_s: float


class TellOverhead(Prepare, frozen=True, tag="tell overhead"):
    """Prepare a decode part and run it with a clock around each kernel."""


Request = Prepare | Measure | TellOverhead


class Ready(Record, frozen=True, tag="ready"):
    """Imports are done; requests can come."""


class Working(Record, frozen=True, tag="working"):
    """Something is about to run that the process may not survive."""

    what: str
    """In words, for the user: ``loading weights``."""
    allowed_s: float
    """After how long without another word it counts as hung."""


class Usage(Record, frozen=True, tag="usage"):
    """What the process holds; told before each answer."""

    memory_bytes: dict[str, int]
    """Per device, at the peak so far."""
    reused_layers: int


class Prepared(Record, frozen=True, tag="prepared"):
    """A part can run."""


class Overhead(Record, frozen=True, tag="overhead"):
    """Share of a decode step that is spent outside the kernels; None: unknown."""

    share: float | None


Answer = Prepared | PartRun | Overhead | RunFailure
Event = Ready | Working | Usage | Answer

request_decoder: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
setup_decoder = msgspec.json.Decoder(Setup)
event_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
