"""`autotune requirements`: memory by format and context, and the speeds that records hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from autotune.cli.run import main
from autotune.history import store
from autotune.history.condense import history_record
from autotune.history.surroundings import Checkout
from autotune.records import Measured
from autotune.records.history import HistoryRecord
from tests.builders import build_model, build_result

MODEL = "bitnet-b1.58-2B-4T"


def _record(measured_at: str, tokens_per_s: float, **overrides: object) -> HistoryRecord:
    """Synthetic: a record of the preset that was run."""
    result = build_result(model=build_model(name=MODEL), created_at=measured_at)
    record = history_record(result, recorded_at=measured_at, checkout=Checkout(None, None, None))
    measured = Measured(tokens_per_s=tokens_per_s, tpot_s=0.02, ttft_s=0.3, relative_interval=0.01)
    return replace(record, measured=measured, memory_used_bytes={"cpu": 2_500_000_000}, **overrides)


def test_json_holds_each_part_of_the_memory(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """And their sum."""
    assert main(["requirements", MODEL, "--format", "TL2", "I2_S", "--context", "2048", "--json"]) == 0
    found = json.loads(capfdbinary.readouterr().out)
    assert [need["format"] for need in found["needed"]] == ["TL2", "I2_S"]
    for need in found["needed"]:
        parts = ("weights_bytes", "kv_cache_bytes", "activations_bytes", "overhead_bytes")
        assert need["needed_bytes"] == sum(need[part] for part in parts)
    assert found["left_out"] == found["measured"] == []


def test_a_table_has_a_column_for_each_context_asked_about(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """A model whose longest is less has a dash there; a lossy format says so."""
    models = ("bitnet_b1_58-large", "Falcon3-1B-Instruct-1.58bit")
    assert main(["requirements", *models, "--context", "1024", "8192", "--format", "IQ2_S", "--markdown"]) == 0
    head, _, large, falcon = capfdbinary.readouterr().out.decode().splitlines()
    assert head == "| model | format | weights | 1,024 tokens | 8,192 tokens | read per token |"
    assert large.startswith("| bitnet_b1_58-large | IQ2_S (lossy) | 319 MB |")
    assert [row.split(" | ")[4] == "-" for row in (large, falcon)] == [True, False]


def test_a_table_has_each_model_s_longest_context_unless_others_are_asked_about(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    """A model that is named twice has two rows, each of its own."""
    assert main(["requirements", "Falcon3-1B-Instruct-1.58bit", MODEL, MODEL, "--format", "I2_S", "--markdown"]) == 0
    head, _, falcon, *twice = capfdbinary.readouterr().out.decode().splitlines()
    assert head == "| model | format | weights | 2,048 tokens | 4,096 tokens | longest context | read per token |"
    assert "| 2.06 GB (8,192) |" in falcon
    assert twice == ["| bitnet-b1.58-2B-4T | I2_S | 1.19 GB | 1.43 GB | 1.6 GB | 1.6 GB (4,096) | 1.34 GB |"] * 2


def test_people_get_lines_and_what_was_left_out(capfd: pytest.CaptureFixture[str]) -> None:
    """On standard error, as all that is for people."""
    assert main(["requirements", "bitnet_b1_58-3B"]) == 0
    out, err = capfd.readouterr()
    assert out == ""
    assert "I2_S, F16: weights 2.27 GB" in err
    assert "can't be stored in TQ2_0" in err


def test_records_tell_how_fast_the_models_are(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The last one of each model, format, workload and class of hosts that was run, and not replayed."""
    for record in (
        _record("2026-01-02T00:00:00+00:00", 70.0),
        _record("2026-01-01T00:00:00+00:00", 60.0),
        _record("2026-01-01T00:00:00+00:00", 50.0, hardware_class="another"),
        _record("2026-01-03T00:00:00+00:00", 80.0, provenance="replayed"),
        replace(_record("2026-01-03T00:00:00+00:00", 90.0), measured=None),
    ):
        store.write(tmp_path, record)
    assert main(["requirements", MODEL, "--results", str(tmp_path), "--markdown"]) == 0
    rows = [line.split(" | ") for line in capfd.readouterr().out.splitlines() if "2.5 GB on cpu" in line]
    assert sorted(row[5] for row in rows) == ["50", "70"]
    assert main(["requirements", MODEL, "--results", str(tmp_path)]) == 0
    assert "70 | 20 ms | 300 ms | 2.5 GB on cpu" in capfd.readouterr().err
    assert main(["requirements", MODEL, "--results", str(tmp_path), "--format", "TL2", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["measured"] == []


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["no-such-model"], 3, "got a name that is none of them"),
        (["bitnet_b1_58-3B", "--format", "TQ2_0"], 3, "can't be stored in TQ2_0: q 3200 x 3200: TQ2_0 needs k_in"),
        ([MODEL, "--format", "Q9"], 2, "unknown weight format 'Q9'"),
        ([MODEL, "--context", "0"], 2, "--context must be at least 1 token, got 0"),
        ([MODEL, "--context", "9999"], 2, "within the models' longest context, 4096 tokens, got 9999"),
        (["--context", "99999"], 2, "within the models' longest context, 32768 tokens, got 99999"),
        ([MODEL, "--results", "/nowhere"], 9, "/nowhere"),
    ],
)
def test_bad_input_gets_one_sentence(
    words: list[str], code: int, sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["requirements", *words]) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert sentence in err
    assert err.count("\n") == 1
