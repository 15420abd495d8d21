"""docs/loaders.md: its tables are what is printed."""

from __future__ import annotations

import json
import re

from autotune.export.targets import TARGETS, export
from tests.export.cases import TWO_GPUS, a_result
from tests.guides.guide import ROOT, table

GUIDE = ROOT / "docs" / "loaders.md"


def _in_backticks(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_targets_and_forms() -> None:
    rows = table(GUIDE, "`--to`")
    assert {_in_backticks(name)[0]: tuple(_in_backticks(forms)) for name, _, forms in rows} == {
        name: target.forms for name, target in TARGETS.items()
    }


def test_variables() -> None:
    told = {name for row in table(GUIDE, "variable") for name in _in_backticks(row[0])}
    assert told == {line.partition("=")[0] for line in export(a_result(TWO_GPUS, "cpu"), "env").text.splitlines()}


def test_fields() -> None:
    told = {name for row in table(GUIDE, "field") for name in _in_backticks(row[0])}
    assert told == set(json.loads(export(a_result(), "json").text))
