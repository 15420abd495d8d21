"""Every target and form takes what is decided for a recorded host, or says in a sentence why it can't."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from autotune.errors import ExportError
from autotune.export.targets import TARGETS, export
from autotune.records import Result
from tests.replayed import hybrid, on_cpu, on_gpu

EVERY_FORM = {(target, form) for target in TARGETS for form in TARGETS[target].forms}
LLAMA_CPP = {("llama.cpp", form) for form in TARGETS["llama.cpp"].forms}
BITNET_CPP = {("bitnet.cpp", form) for form in TARGETS["bitnet.cpp"].forms}
PERFORMANCE = {("bitnet-rs", form) for form in TARGETS["bitnet-rs"].forms if "performance" in form}


@pytest.mark.parametrize(
    ("decided", "refused"),
    [
        (on_cpu, LLAMA_CPP),  # its weights are in I2_S, as those of all recordings
        (on_gpu, LLAMA_CPP | BITNET_CPP),
        (hybrid, LLAMA_CPP | BITNET_CPP | PERFORMANCE),
    ],
)
def test_what_is_decided_can_be_exported_but_for_what_a_target_lacks(
    decided: Callable[[], Result], refused: set[tuple[str, str]]
) -> None:
    found = set()
    for target, form in EVERY_FORM:
        try:
            exported = export(decided(), target, form)
        except ExportError as error:
            found.add((target, form))
            sentences = [str(error)]
        else:
            assert exported.text.endswith("\n")
            assert exported.text.strip()
            sentences = [*exported.notes]
        for sentence in sentences:
            assert re.fullmatch(r"[^\n]+[^\n.]", sentence)
    assert found == refused
