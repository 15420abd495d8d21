"""The tier: from measured figures, with the figures in its reason. The measured figures here are synthetic."""

import msgspec
import pytest

from autotune.host.tier import classify

AMPLE_OPERATIONS = 1e15
MODEL_BYTES = 1_187_801_280


@pytest.fixture
def host(lab):
    return lab.desktop().detect()


@pytest.mark.parametrize(
    ("tokens_per_s", "name"),
    [(9.9, "Low"), (10.1, "Medium"), (39.9, "Medium"), (40.1, "High"), (149, "High"), (151, "Extreme")],
)
def test_bandwidth_places_a_host_by_the_tokens_it_could_stream(host, tokens_per_s, name):
    assert classify(host, tokens_per_s * MODEL_BYTES, AMPLE_OPERATIONS).name == name


def test_the_reason_gives_the_figures_and_the_bars(host):
    tier = classify(host, 18.4e9, AMPLE_OPERATIONS)
    assert tier.reason == ("reading 18.4 GB/s allows at most 15.5 tokens/s of BitNet b1.58 2B-4T (Medium: 10 to 40)")


def test_a_host_that_computes_more_slowly_than_it_reads_is_placed_by_that(host):
    tier = classify(host, 500e9, 24e9)
    assert tier.name == "Low"
    assert tier.reason.startswith("computing 24.0 billion operations/s allows at most 5.0 tokens/s")


def test_a_host_that_cannot_hold_the_model_is_low_however_fast(host):
    small = msgspec.structs.replace(host, memory=msgspec.structs.replace(host.memory, usable_bytes=MODEL_BYTES - 1))
    tier = classify(small, 900e9, AMPLE_OPERATIONS)
    assert (tier.name, tier.reason) == (
        "Low", "1.19 GB of usable memory can't hold BitNet b1.58 2B-4T (1.19 GB)"
    )  # fmt: skip
