"""The memory that a saved configuration was planned with against the memory there is now, and what to use instead."""

from __future__ import annotations

import os

import msgspec

from autotune.device_config import device_config
from autotune.host.memory import USABLE_SHARE, usable_now_bytes
from autotune.host.pseudofiles import Root
from autotune.model.sizes import readable_bytes
from autotune.records.configuration import DeviceConfig
from autotune.records.host import Gpus
from autotune.records.result import Candidate
from autotune.store.seal import BadEntry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from autotune.records.model import MemoryUse
    from autotune.store.entry import Entry


class _Host(msgspec.Struct, frozen=True):
    gpus: Gpus


class _Search(msgspec.Struct, frozen=True):
    effective_max_tpot_s: float | None


class _Workload(msgspec.Struct, frozen=True):
    max_ttft_s: float | None


class _Decision(msgspec.Struct, frozen=True):
    chosen: Candidate
    search: _Search


class Saved(msgspec.Struct, frozen=True):
    """The few fields of `autotune.records.Result` that a loader needs: the rest takes longer to decode."""

    device_config: DeviceConfig
    host: _Host
    workload: _Workload
    decision: _Decision
    smaller: tuple[Candidate, ...] = ()

    @property
    def chosen(self) -> Candidate:
        """The configuration as it was planned."""
        return self.decision.chosen

    @property
    def limits(self) -> tuple[tuple[str, str, float | None], ...]:
        """What the workload limits: a figure in words, its name in predictions, and the limit in seconds."""
        return (
            ("a token", "tpot_s", self.decision.search.effective_max_tpot_s),
            ("a first token", "ttft_s", self.workload.max_ttft_s),
        )


class Shortage(msgspec.Struct, frozen=True):
    """A saved configuration that doesn't fit the memory there is now.

    Attributes:
        lacking: What was planned on a device and what is usable there now, in words.
        instead: The best saved configuration that fits; None: none does.
        change: How that differs from the chosen one and which limits it breaks, in words; empty without.
        config: What a loader needs of it; None without.
    """

    lacking: str
    instead: Candidate | None
    change: str
    config: DeviceConfig | None


def decode(entry: Entry) -> Saved:
    """What a loader needs of an entry.

    Raises:
        BadEntry: Where it doesn't fit the records.
    """
    try:
        return msgspec.json.decode(entry.result_json, type=Saved)
    except msgspec.MsgspecError as error:
        raise BadEntry("schema", f"holds a result that can't be read: {error}") from error


def find_shortage(saved: Saved, root: Root | None = None) -> Shortage | None:
    """Whether a saved configuration lacks memory now, and the best of the smaller ones that doesn't; None: it fits.

    It was planned with a share of what was usable, to leave some to what else runs and grows. That has happened by now:
    it is kept as long as it fits into all that is usable. What replaces it leaves that share again. What can't be read
    is no reason to shrink.

    Args:
        saved: The configuration, and smaller ones.
        root: The folder that stands for ``/``; None: the real one.
    """
    root = root or Root()
    usable_bytes = _usable_bytes((saved.chosen,), root)
    lacking = list(_lacking(saved.chosen, usable_bytes))
    if not lacking:
        return None
    usable_bytes |= _usable_bytes(saved.smaller, root)
    shares = {device: int(size * USABLE_SHARE) for device, size in usable_bytes.items()}
    instead = next((one for one in saved.smaller if not list(_lacking(one, shares))), None)
    return Shortage(
        lacking=" and ".join(
            f"{readable_bytes(use.total_bytes)} on {use.device} ({readable_bytes(usable_bytes[use.device])} usable now)"
            for use in lacking
        ),
        instead=instead,
        change="" if instead is None else _change(saved.chosen, instead) + _broken(saved, instead),
        config=None if instead is None else device_config(instead, saved.host.gpus),
    )


def _lacking(candidate: Candidate, usable_bytes: Mapping[str, int]) -> Iterable[MemoryUse]:
    """The devices whose memory a candidate's plan exceeds."""
    for use in candidate.predicted.memory:
        if use.total_bytes > usable_bytes.get(use.device, use.total_bytes):
            yield use


def _usable_bytes(candidates: Iterable[Candidate], root: Root) -> dict[str, int]:
    """What can be used now on the devices of some plans; without those that don't tell."""
    devices = {use.device for candidate in candidates for use in candidate.predicted.memory}
    usable: dict[str, int | None] = {"cpu": usable_now_bytes(root)}
    if devices - {"cpu"}:  # NVML takes longer to start than all of the rest
        import pynvml

        from autotune.host.gpu import free_now_bytes

        usable |= free_now_bytes(os.environ, pynvml)
    return {device: size for device, size in usable.items() if device in devices and size is not None}


def _broken(saved: Saved, instead: Candidate) -> str:
    """Which limits are broken by what is left: one that keeps them all comes first, so none that does fits."""
    found = []
    for what, figure, limit_s in saved.limits:
        time_s = getattr(instead.predicted, figure)
        if limit_s is not None and time_s > limit_s:
            found.append(f", {what} taking {time_s * 1e3:.4g} ms, over the limit of {limit_s * 1e3:.4g} ms")
    return "".join(found)


def _change(chosen: Candidate, instead: Candidate) -> str:
    """How a configuration differs from the chosen one, in words: ``batch 8 instead of 16 (predicted: ...)``."""
    old, new = chosen.configuration, instead.configuration
    devices = dict.fromkeys([*old.device_layers, *new.device_layers])
    layers = ((old.device_layers.get(device, 0), new.device_layers.get(device, 0), device) for device in devices)
    changes = [f"{after} layers on {device} instead of {before}" for before, after, device in layers if before != after]
    for name, before, after in (
        ("head on", old.head_device, new.head_device),
        ("batch", old.batch_size, new.batch_size),
        ("prefill chunk", old.prefill_chunk, new.prefill_chunk),
    ):
        if before != after:
            changes.append(f"{name} {after} instead of {before}")
    rates = instead.predicted.tokens_per_s, chosen.predicted.tokens_per_s
    return f"{', '.join(changes)} (predicted: {rates[0]:.3g} tokens/s instead of {rates[1]:.3g})"
