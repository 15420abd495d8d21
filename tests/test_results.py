"""The tuning records under results/: real ones, which later versions must still read and replay."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from autotune.pipeline import conclude_again
from autotune.store import schema
from autotune.store.entry import SCHEMA_VERSION, parse

RECORDS = sorted((Path(__file__).parents[1] / "results").glob("*.json"))


def test_there_are_records() -> None:
    """An empty folder would make the tests below pass without testing anything."""
    assert RECORDS


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.name)
def test_a_record_is_intact_and_valid(path: Path) -> None:
    """Its checksum holds, and it is what the schema says; those of older versions are read."""
    raw = path.read_bytes()
    schema.decode_result(parse(raw, str(path)))
    document = json.loads(raw)
    if document["schema_version"] == SCHEMA_VERSION:
        jsonschema.validate(document, schema.json_schema())


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.name)
def test_a_record_decides_the_same_again_without_its_host(path: Path) -> None:
    """From the measurements it holds follows the configuration it holds, on any machine."""
    recorded = schema.decode_result(parse(path.read_bytes(), str(path)))
    again = conclude_again(recorded, recorded.workload, recorded.host)
    assert again.device_config == recorded.device_config
    assert again.decision.chosen == recorded.decision.chosen
    assert again.decision.reasons == recorded.decision.reasons
