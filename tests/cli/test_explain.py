"""`autotune explain` as a user meets it, on a result decided from what was recorded on a real host."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from autotune.cli.run import main
from autotune.conclusion import conclude
from autotune.costmodel.heldout import fit
from autotune.evidence import Evidence, workload_of
from autotune.options import Options
from autotune.search.variants import read_variants
from autotune.store.cache import document
from autotune.store.recording import read
from tests.cli.shop import ROOT, Shop, assert_one_sentence

XEON = ROOT / "tests" / "hosts" / "xeon-2-threads-native.json"


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a saved result: batch 8 on two threads."""
    recording = read(str(XEON))
    campaign = recording.campaigns[0]
    models = read_variants("bitnet-b1.58-2B-4T", None, campaign.kernels, recording.host.cpu.architecture)
    workload = workload_of(Options(), models[0], recording.host)
    evidence = Evidence(models, recording.host, campaign, *fit(campaign))
    _, raw = document(conclude(evidence, workload, started=0.0, trials=None), {})
    path = tmp_path_factory.mktemp("saved") / "result.json"
    path.write_bytes(raw)
    return path


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    """A folder without a cache: the result is named by its file."""
    return Shop(tmp_path)


def test_a_file_is_explained(shop: Shop, record: Path) -> None:
    """To standard error; standard output stays empty."""
    answer = shop.run("explain", record, COLUMNS="400")
    assert (answer.code, answer.out) == (0, b"")
    labels = [line.split("  ")[0] for line in answer.err.splitlines() if line and not line.startswith(" ")]
    assert labels == ["chosen", "why", "bound by", "time", "memory", "instead", "searched", "held-out error", "split"]


def test_the_lines_fit_a_terminal(shop: Shop, record: Path) -> None:
    """No line is wider than the 120 columns that are assumed where there is no terminal."""
    assert max(map(len, shop.run("explain", record, "--batch", "4").err.splitlines())) <= 120


@pytest.fixture
def explained(record: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> Callable[..., str]:
    """What a command prints for a person, in this process."""

    def explain(*arguments: str) -> str:
        assert main(["explain", str(record), *arguments]) == 0
        out, err = capsysbinary.readouterr()
        assert out == b""
        return " ".join(err.decode().split())

    return explain


def test_cpu_threads_are_those_of_both_steps(explained: Callable[..., str]) -> None:
    assert "1 thread for decode, 1 for prefill" in explained("--cpu-threads", "1")
    assert "1 thread for decode, 2 for prefill" in explained("--decode-threads", "1")
    assert "2 threads for decode, 1 for prefill" in explained("--prefill-threads", "1")


def test_settings_are_asked_about_together(explained: Callable[..., str]) -> None:
    text = explained("--cpu-threads", "2", "--batch", "4", "--chunk", "128", "--gpu-layers", "0")
    assert "asked 30 layers on cpu; 2 threads for decode, 2 for prefill; batch 4; prompts in chunks of 128" in text
    assert "verdict predicted: " in text


def test_as_json_an_answer_is_one_document(record: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["explain", str(record), "--batch", "4", "--json"]) == 0
    out, err = capsysbinary.readouterr()
    document = json.loads(out)
    assert err == b""
    assert set(document) == {"asked", "chosen", "verdict", "reasons", "bound_by", "better"}
    assert document["asked"]["configuration"]["batch_size"] == 4
    assert document["chosen"]["configuration"]["batch_size"] == 8
    low, high = document["asked"]["tokens_per_s_within"]
    assert low < document["asked"]["predicted"]["tokens_per_s"] < high


def test_as_json_the_decision_is_one_document(record: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["explain", str(record), "--json"]) == 0
    document = json.loads(capsysbinary.readouterr().out)
    assert document["chosen"]["configuration"]["batch_size"] == 8
    assert document["reasons"][0].startswith("The default would be ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cpu-threads", "8"], "decode threads must be 1 to 2, "),
        (["--cpu-threads", "2", "--decode-threads", "1"], "--cpu-threads is for both steps: leave out"),
        (["--batch", "-1"], "--batch must be 1 to 4096, got -1"),
        (["--chunk", "0"], "--chunk must be 1 to 512"),
        (["--gpu-layers", "4"], "--gpu-layers 4 can't be predicted: no GPU was timed on"),
    ],
)
def test_settings_that_no_run_could_use_get_one_sentence(
    record: Path, capsysbinary: pytest.CaptureFixture[bytes], arguments: list[str], message: str
) -> None:
    assert main(["explain", str(record), *arguments]) == 2
    out, err = capsysbinary.readouterr()
    assert out == b""
    assert err.decode().startswith(f"autotune: {message}")
    assert err.count(b"\n") == 1


def test_a_number_that_is_none_is_a_usage_error(shop: Shop, record: Path) -> None:
    answer = shop.run("explain", record, "--batch", "many")
    assert answer.code == 2
    assert "expected a whole number, got 'many'" in answer.err


def test_a_file_that_holds_no_result_any_more_gets_one_sentence(shop: Shop, record: Path) -> None:
    """Changed by hand: what it says can't be trusted."""
    changed = shop.write("changed.json", record.read_bytes().replace(b'"batch_size":8', b'"batch_size":9'))
    assert_one_sentence(shop.run("explain", changed, "--batch", "4"), 8)
