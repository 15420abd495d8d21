"""The tier: from measured figures, with the figures in its reason. The measured figures here are synthetic."""

import pytest

from autotune.host.tier import Speed, classify

AMPLE_OPERATIONS = 1e15
MODEL_BYTES = 1_187_801_280


def cpu(read_bytes_per_s, operations_per_s=AMPLE_OPERATIONS, memory_bytes=16 << 30):
    return Speed("cpu", memory_bytes, read_bytes_per_s, operations_per_s)


@pytest.mark.parametrize(
    ("tokens_per_s", "name"),
    [(9.9, "Low"), (10.1, "Medium"), (39.9, "Medium"), (40.1, "High"), (149, "High"), (151, "Extreme")],
)
def test_bandwidth_places_a_host_by_the_tokens_it_could_stream(tokens_per_s, name):
    assert classify([cpu(tokens_per_s * MODEL_BYTES)]).name == name


def test_the_reason_gives_the_figures_and_the_bars():
    tier = classify([cpu(18.4e9)])
    assert tier.reason == ("reading 18.4 GB/s allows at most 15.5 tokens/s of BitNet b1.58 2B-4T (Medium: 10 to 40)")


def test_a_host_that_computes_more_slowly_than_it_reads_is_placed_by_that():
    tier = classify([cpu(500e9, 24e9)])
    assert tier.name == "Low"
    assert tier.reason.startswith("computing 24.0 billion operations/s allows at most 5.0 tokens/s")


def test_a_host_that_cannot_hold_the_model_is_low_however_fast():
    tier = classify([cpu(900e9, memory_bytes=MODEL_BYTES - 1)])
    assert (tier.name, tier.reason) == (
        "Low", "1.19 GB of usable memory can't hold BitNet b1.58 2B-4T (1.19 GB)"
    )  # fmt: skip


def test_a_gpu_places_its_host_by_its_own_figures():
    tier = classify([cpu(18.4e9), Speed("cuda:0", 24 << 30, 900e9, AMPLE_OPERATIONS)])
    assert tier.name == "Extreme"
    assert tier.reason.startswith("reading 900.0 GB/s on cuda:0 allows at most 757.7 tokens/s")


def test_a_fast_gpu_that_cannot_hold_the_model_does_not_count():
    tier = classify([cpu(18.4e9), Speed("cuda:0", 1 << 30, 900e9, AMPLE_OPERATIONS)])
    assert tier.name == "Medium"
