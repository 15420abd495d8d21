"""Results to report on, read or decided once."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from autotune.records import Result
from tests.report.results import LARGE, confirm, read_record, replayed


@pytest.fixture(scope="session")
def predicted() -> Result:
    """A real result of a host without a GPU, of which nothing was run."""
    return replace(read_record(), confirmation=None)


@pytest.fixture(scope="session")
def confirmed(predicted: Result) -> Result:
    """The same with synthetic runs that take 5 % longer than predicted."""
    return confirm(predicted)


@pytest.fixture(scope="session")
def hybrid() -> Result:
    """Layers on the CPU and on a synthetic GPU."""
    return replayed("office-4gb-gpu", "Llama3-8B-1.58-100B-tokens")


@pytest.fixture(scope="session")
def two_gpus() -> Result:
    """A model of 80 layers, all on two synthetic GPUs."""
    return replayed("server-two-sockets-two-gpus", LARGE)
