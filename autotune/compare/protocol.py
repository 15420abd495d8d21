"""What `autotune compare` and the sides that it runs say to each other: JSON lines, the same between versions.

A side is ``PYTHON -m autotune sample MODEL``. Its first line is a ``Ready``; then it answers each line that comes down
its standard input with one of its own: a ``Start`` and a ``Stop`` with ``Done``, a ``Run`` with ``Samples``, and each
with ``Failed`` where it can't. It exits when its standard input closes. Fields of messages may be added, as readers
skip those that they don't know; whatever else changes takes a new ``PROTOCOL``, a field of ``Configuration`` or
``Workload`` too: a side that skipped one would run something else.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from autotune.records import Configuration, Phase, Record, Workload

PROTOCOL = 1
# Version history.
# 1: the first.


class Message(Record, frozen=True, forbid_unknown_fields=False):
    """A line that another version may have written."""


class About(Message, frozen=True, kw_only=True):
    """What a side is."""

    autotune: str
    """Its version."""
    python: str
    kernels: str
    """Digest of the kernel sources."""
    folder: str
    """Where its autotune is installed."""
    host_label: str
    hardware_class: str
    model_name: str
    weight_format: str
    model_bytes: int
    """Of all its weights: what tells two models of one name apart, whichever version read them."""
    workload: Workload
    """The saved result's, or the one it would tune for."""
    configuration: Configuration
    """Its own choice for this host."""
    origin: Literal["saved", "predicted"]
    """saved: of the result in the cache. predicted: there was none, so kernels were timed, quickly, to choose."""


class Ready(Message, frozen=True, tag="ready"):
    """A side's first line."""

    protocol: int
    about: msgspec.Raw
    """An ``About``, to be read if the protocol is this version's."""


class Start(Message, frozen=True, tag="start"):
    """Start an engine with its weights loaded, in place of the one there is."""

    configuration: Configuration
    workload: Workload


class Run(Message, frozen=True, tag="run"):
    """Run one half of what was started for so long."""

    phase: Phase
    seconds: float
    """Of sampling; a phase's first run prepares and warms up before it."""


class Stop(Message, frozen=True, tag="stop"):
    """End the engine and give its memory back."""


class Done(Message, frozen=True, tag="done"):
    """What was asked is done."""


class Samples(Message, frozen=True, tag="samples"):
    """Raw samples of a run, in the order taken."""

    samples_s: tuple[float, ...]
    """Seconds per decode step of the batch, or per prompt; at least one."""


class Failed(Message, frozen=True, tag="failed"):
    """Why what was asked was not done."""

    message: str
    lacks_memory: bool = False
    """Whether it would be done with more memory."""


Request = Start | Run | Stop
Event = Ready | Done | Samples | Failed

event_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
request_decoder: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
