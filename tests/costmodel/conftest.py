"""A model, configurations, and the campaigns that were recorded on a real host."""

from __future__ import annotations

from pathlib import Path

import pytest

from autotune.records import Campaign, Configuration, Layer
from autotune.store import recording
from tests.builders import build_model
from tests.costmodel.synthetic import HEAD, LARGE, LONG, SMALL, WIDE

HOSTS = Path(__file__).parents[1] / "hosts"


@pytest.fixture(scope="session")
def mixed_model():
    """A synthetic model with two layers of one kind and one of another, under a tied head."""
    usual, larger = Layer((SMALL, WIDE, WIDE, LONG)), Layer((SMALL, LARGE, LONG))
    return build_model(layers=(usual, larger, usual), head=HEAD, tied=True)


@pytest.fixture(scope="session")
def configuration():
    """Builds a CPU configuration."""

    def build(batch_size=4, prefill_chunk=32, decode_threads=2, prefill_threads=2):
        return Configuration(
            device_layers={"cpu": 3},
            head_device="cpu",
            decode_threads=decode_threads,
            prefill_threads=prefill_threads,
            batch_size=batch_size,
            prefill_chunk=prefill_chunk,
        )

    return build


@pytest.fixture(scope="session", params=["numpy", "native"])
def recorded(request) -> Campaign:
    """Recorded on a real host, see tests/hosts/README.md."""
    (campaign,) = recording.read(HOSTS / f"xeon-2-threads-{request.param}.json").campaigns
    return campaign
