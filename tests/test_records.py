from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from autotune import records
from autotune.records import (
    DeviceConfig,
    FormatCandidate,
    Hybrid,
    HybridSplit,
    Measurement,
    Noise,
    Point,
    Record,
    relative_median_interval,
)
from tests.builders import build_candidate, build_gpu_result, build_imported_result, build_result, build_verification

POINT = Point(op="matmul", device="cpu", kernel="numpy", threads=2, m=4, format="I2_S", n_out=256, k_in=128)
TIMES_S = st.lists(st.floats(1e-7, 1e3), min_size=1, max_size=60)


def measurement(samples_s: list[float]) -> Measurement:
    return Measurement(point=POINT, samples_s=tuple(samples_s), calls_per_sample=1, stopped="converged")


# Derived statistics


@given(TIMES_S)
def test_statistics_are_those_of_numpy(samples_s: list[float]) -> None:
    """Median, quartiles (linear between order statistics) and median absolute deviation, for any samples."""
    measured = measurement(samples_s)
    centre = np.median(samples_s)
    assert measured.median_s == pytest.approx(centre)
    assert measured.quartiles_s == pytest.approx(tuple(np.quantile(samples_s, [0.25, 0.75])))
    assert measured.mad_s == pytest.approx(np.median(np.abs(np.array(samples_s) - centre)), abs=1e-12)


def test_statistics_of_a_sample_known_by_heart() -> None:
    """1 to 4 with an outlier, which moves the mean but none of these."""
    measured = measurement([3.0, 1.0, 100.0, 2.0, 4.0])
    assert measured.median_s == 3.0
    assert measured.quartiles_s == (2.0, 4.0)
    assert measured.mad_s == 1.0


@pytest.mark.parametrize(
    ("count", "low", "high"),
    [(6, 1, 6), (8, 1, 8), (9, 2, 8), (10, 2, 9), (12, 3, 10), (20, 6, 15), (25, 8, 18), (50, 18, 33), (100, 40, 61)],
)
def test_the_interval_lies_between_the_tabulated_ranks(count: int, low: int, high: int) -> None:
    """The ranks of the 95 % interval of a median, as tables of the sign test list them."""
    samples = [1000.0 + rank for rank in range(1, count + 1)]
    expected = (high - low) / 2 / (1000 + (count + 1) / 2)
    assert relative_median_interval(samples[::-1]) == pytest.approx(expected)
    assert measurement(samples).relative_interval == pytest.approx(expected)


@given(st.integers(6, 300))
def test_the_interval_covers_95_percent_and_no_narrower_one_does(count: int) -> None:
    """By the binomial distribution: the chance that the median lies between two order statistics."""
    ordered = [1e6 + rank for rank in range(count)]
    interval = relative_median_interval(ordered)
    assert interval is not None
    width = round(interval * 2 * (1e6 + (count - 1) / 2))
    low = (count - 1 - width) // 2

    def covered(rank: int) -> float:
        """Between the order statistics number ``rank`` from either end, counted from 0."""
        return 1 - 2 * sum(math.comb(count, below) for below in range(rank + 1)) / 2**count

    assert covered(low) >= 0.95
    assert covered(low + 1) < 0.95


@pytest.mark.parametrize("count", range(1, 6))
def test_too_few_samples_have_no_interval(count: int) -> None:
    """None, for even the range of five samples covers less than 95 %."""
    assert measurement([1.0] * count).relative_interval is None


def noise(width: float | None, drift: float) -> Noise:
    return Noise(width, 1, 1, 0, control_drift=drift, steal_fraction=None, throttled_s=None)


@pytest.mark.parametrize(
    ("width", "drift", "label"),
    [
        (0.0, 0.0, "quiet"),
        (0.02, 0.03, "quiet"),
        (0.021, 0.0, "noisy"),
        (0.0, 0.031, "noisy"),
        (0.10, 0.10, "noisy"),
        (0.101, 0.0, "very noisy"),
        (0.0, 0.101, "noisy"),
        (None, 0.0, "noisy"),
        (None, 0.2, "noisy"),
    ],
)
def test_noise_is_labelled_by_interval_and_drift(width: float | None, drift: float, label: str) -> None:
    """An unknown interval never counts as quiet."""
    assert noise(width, drift).label == label


def test_memory_use_is_the_sum_of_its_parts() -> None:
    """Available memory is none of them."""
    (use,) = build_candidate().predicted.memory
    assert use.total_bytes == 800_000 + 2_000_000 + 100_000 + 50_000_000


def test_a_campaign_tells_what_was_timed_from_what_was_not() -> None:
    """Together they are all outcomes."""
    campaign = build_result().campaign
    assert {*campaign.measurements(), *campaign.failures()} == {*campaign.outcomes}
    assert len(campaign.measurements()) == 3
    assert len(campaign.failures()) == 1


# As JSON


def all_records() -> dict[str, Record]:
    """One instance of every record, each from a result or an exam of one; together they use them all."""
    result = build_gpu_result()
    other = FormatCandidate("TL2", build_candidate())
    result = replace(result, decision=replace(result.decision, other_formats=(other,)))
    found: dict[str, Record] = {}
    waiting: list[object] = [result, build_imported_result(), build_verification()]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Record):
            found[type(value).__name__] = value
            waiting += [getattr(value, name) for name in value.__struct_fields__]
        elif isinstance(value, tuple | dict):
            waiting += value.values() if isinstance(value, dict) else value
    return found


RECORDS = all_records()


def record_types() -> Iterator[type[Record]]:
    for name in records.__all__:
        value = getattr(records, name)
        if inspect.isclass(value) and issubclass(value, Record) and value is not Record:
            yield value


@pytest.mark.parametrize("kind", tuple(record_types()), ids=lambda kind: kind.__name__)
class TestEveryRecord:
    def test_survives_json(self, kind: type[Record]) -> None:
        """Written and read again it is equal, so any stage can be replayed from a file."""
        value = RECORDS[kind.__name__]
        assert msgspec.json.decode(msgspec.json.encode(value), type=kind) == value

    def test_refuses_a_field_it_does_not_know(self, kind: type[Record]) -> None:
        """What another version wrote is not half understood."""
        document = {**json.loads(msgspec.json.encode(RECORDS[kind.__name__])), "surprise": 1}
        with pytest.raises(msgspec.ValidationError, match="unknown field `surprise`"):
            msgspec.json.decode(json.dumps(document), type=kind)

    def test_refuses_a_missing_field(self, kind: type[Record]) -> None:
        """Except those that have a default."""
        document = json.loads(msgspec.json.encode(RECORDS[kind.__name__]))
        required = [field.encode_name for field in msgspec.structs.fields(kind) if field.required]
        assert required
        for name in required:
            with pytest.raises(msgspec.ValidationError, match="missing required field"):
                msgspec.json.decode(json.dumps({key: document[key] for key in document if key != name}), type=kind)

    def test_cannot_be_changed(self, kind: type[Record]) -> None:
        """A stage can hand it on without a copy."""
        value = RECORDS[kind.__name__]
        with pytest.raises(AttributeError, match="immutable"):
            setattr(value, value.__struct_fields__[0], None)


def test_outcomes_keep_their_kind_through_json() -> None:
    """A failure doesn't come back as a measurement without samples."""
    campaign = build_result().campaign
    again = msgspec.json.decode(msgspec.json.encode(campaign), type=records.Campaign)
    assert [type(outcome) for outcome in again.outcomes] == [type(outcome) for outcome in campaign.outcomes]


def test_samples_keep_their_last_bit_through_json() -> None:
    """Statistics of a replayed campaign are the same to the last digit."""
    measured = measurement([0.1 + 0.2, 1 / 3, 1e-7 / 3])
    assert msgspec.json.decode(msgspec.json.encode(measured), type=Measurement).samples_s == measured.samples_s


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("CpuOnly", "CpuOnly"),
        ("GpuOnly", "GpuOnly"),
        (Hybrid(HybridSplit(10, 20)), {"Hybrid": {"cpu_layers": 10, "gpu_layers": 20}}),
    ],
)
def test_a_device_config_has_the_shape_of_serde(strategy: object, expected: object) -> None:
    """What plain derives of a Rust enum and struct read: externally tagged, None as null, all fields there."""
    config = replace(RECORDS["DeviceConfig"], strategy=strategy, gpu_memory_fraction=None)
    assert json.loads(msgspec.json.encode(config)) == {
        "strategy": expected,
        "cpu_threads": 2,
        "gpu_memory_fraction": None,
        "recommended_batch_size": 4,
    }


@pytest.mark.parametrize("strategy", ['"Cpu"', '{"Hybrid": {"cpu_layers": 1}}', '{"Split": {}}', "null"])
def test_an_unknown_strategy_is_refused(strategy: str) -> None:
    """Rather than run as something else."""
    text = f'{{"strategy": {strategy}, "cpu_threads": 2, "gpu_memory_fraction": null, "recommended_batch_size": 1}}'
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=DeviceConfig)
