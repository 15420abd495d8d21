"""Records as lines for a person."""

from __future__ import annotations

import re

import pytest
from msgspec.structs import replace
from rich.cells import cell_len

from autotune.history.listing import figures, listing
from autotune.history.store import Stored
from autotune.host.hardware_class import hardware_class
from autotune.records.history import HistoryRecord
from tests.builders import build_gpu_result, build_workload
from tests.history.records import build_record

CLASS = "sapphirerapids-2t-24g-cpu-3f2a91c0"
RECORD = build_record(hardware_class=CLASS)
PREDICTED = build_record(measured=None, commit=None, speedup_over_default=None, hardware_class="")


def lines(*records: HistoryRecord, width: int | None = None) -> list[str]:
    return listing([Stored("a.json", record) for record in records], width).splitlines()


def cells(line: str) -> list[str]:
    return re.split(" {2,}", line)


def test_what_all_have_in_common_is_told_once() -> None:
    """Above the table, which has the figures."""
    head, blank, labels, *rows = lines(RECORD, replace(RECORD, dirty=True))
    assert head == (
        f"model: synthetic/model (I2_S); workload: server; class: {CLASS}; layers: 2 cpu; threads: 2/2; batch: 4; "
        "chunk: 128"
    )
    assert blank == ""
    assert labels.split() == ["when", "(UTC)", "commit", "tokens/s", "TPOT", "TTFT", "speed-up", "noise"]
    assert cells(rows[0])[:5] == ["2026-01-02 03:04", "0a1b2c3", "190 ±1.2%", "20 ms", "100 ms"]
    assert cells(rows[1])[1] == "0a1b2c3*"


def test_what_differs_is_a_column() -> None:
    """And the rest stays above."""
    head, _, labels, *rows = lines(RECORD, build_record(build_gpu_result(), workload=build_workload(name="chat")))
    assert head == "model: synthetic/model (I2_S); threads: 2/2; batch: 4; chunk: 128"
    assert labels.split()[-3:] == ["workload", "class", "layers"]
    assert rows[0].split()[-4:] == ["server", CLASS, "2", "cpu"]
    assert rows[1].split("  ")[-2:] == [hardware_class(build_gpu_result().host), "1 cpu, 1 cuda:0"]


def test_nothing_above_where_nothing_is_in_common() -> None:
    """The table begins at once."""
    other = build_record(
        build_gpu_result(),
        model_name="other",
        workload=build_workload(name="chat"),
        configuration=replace(
            RECORD.configuration, device_layers={"cpu": 1}, decode_threads=1, batch_size=1, prefill_chunk=1
        ),
    )
    assert lines(RECORD, other)[0].startswith("when (UTC)")


def test_predictions_are_called_so() -> None:
    """And what is unknown is a dash."""
    row = cells(lines(PREDICTED)[-1])
    assert row == ["2026-01-02 03:04", "-", "200 (predicted)", "20 ms", "250 ms", "-", "quiet"]


@pytest.mark.parametrize("width", [200, 120, 100, 80, 60, 40])
def test_lines_keep_to_the_width_of_the_terminal(width: int) -> None:
    """What there is no room for is left out whole and named: no figure is cut."""
    found = lines(RECORD, replace(PREDICTED, model_name="a-model-with-a-rather-long-name-3B"), width=width)
    assert max(map(cell_len, found)) <= width
    text = " ".join("\n".join(found).split())
    assert "190 ±1.2%" in text
    assert "200 (predicted)" in text
    assert "…" not in text
    assert ("no room for noise" in text) == ("quiet" not in text)


def test_names_cannot_steer_the_terminal() -> None:
    """Escape sequences and markup are shown, not obeyed."""
    text = "\n".join(lines(replace(RECORD, model_name="\x1b[31m[red]:smile:")))
    assert "\x1b" not in text
    assert "model: ?[31m[red]:smile: (I2_S)" in text


def test_figures_in_a_sentence() -> None:
    """Measured, or predicted."""
    assert figures(RECORD) == "measured 190 ±1.2% tokens/s, TPOT 20 ms, TTFT 100 ms, 2.50x the fallback's speed"
    assert figures(PREDICTED) == "predicted 200 tokens/s, TPOT 20 ms, TTFT 250 ms"
    assert RECORD.measured is not None
    bare = replace(RECORD, measured=replace(RECORD.measured, relative_interval=None))
    assert figures(bare).startswith("measured 190 tokens/s")
