"""Tuners to try, one per kind of result."""

from __future__ import annotations

import pytest

from autotune.adapt.tuner import AdaptiveTuner
from tests.adapt.results import MAKERS


@pytest.fixture(scope="session")
def tuners() -> dict[str, AdaptiveTuner]:
    """One per result that acts at once, to be reset before use: making one takes longer than a test."""
    return {name: AdaptiveTuner(make(), patience=1) for name, make in MAKERS.items()}


@pytest.fixture(params=MAKERS)
def tuner(request: pytest.FixtureRequest, tuners: dict[str, AdaptiveTuner]) -> AdaptiveTuner:
    """Each of them in turn, as new."""
    found = tuners[request.param]
    found.reset()
    return found
