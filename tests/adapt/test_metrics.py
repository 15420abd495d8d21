from __future__ import annotations

import math

import msgspec
import pytest

from autotune.adapt.metrics import PerformanceMetrics
from autotune.errors import UsageError

GOOD = {"throughput_tokens_per_s": 40.0, "memory_pressure": 0.6, "gpu_utilization": 0.5, "cpu_utilization": 0.7}


@pytest.mark.parametrize(
    "values", [GOOD, {**GOOD, "gpu_utilization": None}, dict.fromkeys(GOOD, 0), dict.fromkeys(GOOD, 1)]
)
def test_what_can_be_measured_is_taken(values: dict[str, float]) -> None:
    """Both ends of the shares, whole numbers, an unknown GPU, and no throughput at all."""
    assert msgspec.structs.asdict(PerformanceMetrics(**values)) == values


@pytest.mark.parametrize("field", GOOD)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.01, "0.5", True, [0.5]])
def test_what_nothing_could_have_measured_is_refused(field: str, value: object) -> None:
    """In one sentence that names the field, what was expected and what was got."""
    with pytest.raises(UsageError) as refused:
        PerformanceMetrics(**{**GOOD, field: value})
    message = str(refused.value)
    assert message.startswith(f"{field} must be a ")
    assert message.endswith(f"got {value!r}")
    assert "\n" not in message


@pytest.mark.parametrize("field", ["memory_pressure", "gpu_utilization", "cpu_utilization"])
def test_shares_are_no_percentages(field: str) -> None:
    """95 is a mistake, and not a very high pressure."""
    with pytest.raises(UsageError, match=f"{field} must be a share from 0 to 1.*, got 95"):
        PerformanceMetrics(**{**GOOD, field: 95})


@pytest.mark.parametrize("field", ["throughput_tokens_per_s", "memory_pressure", "cpu_utilization"])
def test_only_the_gpu_may_be_unknown(field: str) -> None:
    """A loader that doesn't know the rest has nothing to adapt to."""
    with pytest.raises(UsageError, match=f"{field} must be .*, got None"):
        PerformanceMetrics(**{**GOOD, field: None})


def test_metrics_are_immutable() -> None:
    """As all records are."""
    with pytest.raises(AttributeError):
        PerformanceMetrics(**GOOD).memory_pressure = 0.1
