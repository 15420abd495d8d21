"""Low, Medium, High, Extreme: how fast a host is for ternary models, from what was measured on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from autotune.records import Tier
from autotune.records.host import TierName

# The reference model, BitNet b1.58 2B-4T: its published I2_S file, and its 2,084,044,800 ternary weights plus
# the 128,256 x 2,560 head, each multiplied and added once per token.
_REFERENCE = "BitNet b1.58 2B-4T"
_REFERENCE_BYTES = 1_187_801_280
_REFERENCE_OPERATIONS = 2 * (2_084_044_800 + 128_256 * 2_560)

# The rate in tokens/s below which a host belongs to a tier, the tier, and its range in words.
_TIERS: tuple[tuple[float, TierName, str], ...] = (
    (10.0, "Low", "below 10"),
    (40.0, "Medium", "10 to 40"),
    (150.0, "High", "40 to 150"),
    (math.inf, "Extreme", "150 or more"),
)


class Speed(NamedTuple):
    """What was measured of a device, for placing its host.

    Attributes:
        device: ``cpu``, ``cuda:0``, ...
        memory_bytes: Usable memory.
        read_bytes_per_s: The best streaming read bandwidth.
        operations_per_s: Multiply and add operations per second.
    """

    device: str
    memory_bytes: int
    read_bytes_per_s: float
    operations_per_s: float

    @property
    def streamed(self) -> float:
        """Tokens/s of the reference model at which its weights can be read."""
        return self.read_bytes_per_s / _REFERENCE_BYTES

    @property
    def computed(self) -> float:
        """Tokens/s of the reference model that can be multiplied."""
        return self.operations_per_s / _REFERENCE_OPERATIONS

    @property
    def rate(self) -> float:
        """Tokens/s of the reference model at most; 0 if the memory can't hold it."""
        return 0.0 if self.memory_bytes < _REFERENCE_BYTES else min(self.streamed, self.computed)


def classify(devices: Sequence[Speed]) -> Tier:
    """Place a host by the highest rate at which one of its devices could decode the reference model.

    One token needs every weight once, so the rate is at most bandwidth / file size and at most peak /
    operations; the lower of the two counts. Below 10 tokens/s, about the pace of silent reading, a host is
    Low; from 40 on, where one user no longer waits, High; from 150 on, enough for several users at once,
    Extreme. In bandwidth these bars are 12 GB/s (single-board computers lie below), 48 GB/s (about two
    channels of DDR4) and 178 GB/s (several channels of a server, or a GPU). A device whose usable memory can't
    hold the model doesn't count; a host without another is Low, however fast.

    Args:
        devices: What was measured, the CPU first.
    """
    best = max(devices, key=lambda device: device.rate)
    on = "" if best.device == "cpu" else f" on {best.device}"
    if not best.rate:
        usable, needed = best.memory_bytes / 1e9, _REFERENCE_BYTES / 1e9
        return Tier("Low", f"{usable:.2f} GB of usable memory{on} can't hold {_REFERENCE} ({needed:.2f} GB)")
    bound = (
        f"reading {best.read_bytes_per_s / 1e9:.1f} GB/s"
        if best.streamed <= best.computed
        else f"computing {best.operations_per_s / 1e9:.1f} billion operations/s"
    )
    name, bars = next((name, bars) for below, name, bars in _TIERS if best.rate < below)
    return Tier(name, f"{bound}{on} allows at most {best.rate:.1f} tokens/s of {_REFERENCE} ({name}: {bars})")
