"""What a running loader tells of itself."""

from __future__ import annotations

import math

from autotune.errors import UsageError
from autotune.records.base import Record


class PerformanceMetrics(Record, frozen=True):
    """One observation of a running model: averages over some seconds in which requests were served.

    Raises:
        UsageError: A value that nothing could have measured.
    """

    throughput_tokens_per_s: float
    """Output tokens per second of all sequences together, prefill included; 0: nothing was served."""
    memory_pressure: float
    """Share of a memory that is in use, 0 to 1, whoever uses it: of the memories that hold the model, the fullest."""
    gpu_utilization: float | None
    """Share of the time in which the GPU worked, 0 to 1; None: unknown. Ignored where the configuration uses none."""
    cpu_utilization: float
    """Share of the usable CPUs' time that was busy, 0 to 1, whoever was."""

    def __post_init__(self) -> None:
        _check("throughput_tokens_per_s", self.throughput_tokens_per_s, "a finite number of at least 0", math.inf)
        _check("memory_pressure", self.memory_pressure, "a share from 0 to 1", 1.0)
        if self.gpu_utilization is not None:
            _check("gpu_utilization", self.gpu_utilization, "a share from 0 to 1, or None where it is unknown", 1.0)
        _check("cpu_utilization", self.cpu_utilization, "a share from 0 to 1", 1.0)


def _check(field: str, value: object, expected: str, most: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= most or value == math.inf:  # type: ignore[operator]
        raise UsageError(f"{field} must be {expected}, got {value!r}")
