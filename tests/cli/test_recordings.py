"""Recording a host, deciding for a recorded one, and explaining a result, as a user meets them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from autotune.store import recording
from autotune.store.cache import document
from tests.builders import build_gpu_result
from tests.cli.shop import ROOT, SMALL, Answer, Shop, assert_one_sentence

OFFICE = ROOT / "tests" / "hosts" / "synthetic" / "office-4gb-gpu.json"
LLAMA = "Llama3-8B-1.58-100B-tokens"

# Replay


@pytest.fixture(scope="module")
def recorded(compiled: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Shop, Answer]:
    """A folder with a recording of this very host and the small model."""
    shop = Shop(tmp_path_factory.mktemp("recorded"))
    shop.write("small.json", SMALL)
    return shop, shop.run("host", "--record", "host.json", "--model", "small.json", "--budget", "3", "--quiet")


def test_a_recorded_host_is_decided_for_and_nothing_is_saved(tmp_path: Path) -> None:
    """The summary says whose it is; a hybrid split on a host that has the GPU, which this one needn't."""
    shop = Shop(tmp_path)
    answer = shop.run(LLAMA, "--replay", OFFICE, COLUMNS="400")
    assert (answer.code, answer.out) == (0, b"")
    assert "layers on cuda:0" in answer.err
    assert "decided for a synthetic host, which nobody measured: SYNTHETIC, no such host was measured." in answer.err
    assert "office-4gb-gpu.json; nothing is saved" in answer.err
    assert "<- chosen" in answer.err
    assert not shop.entries()


def test_a_replayed_document_has_the_shape_of_a_tuned_one(tmp_path: Path) -> None:
    """So that whatever reads the one reads the other."""
    answer = Shop(tmp_path).run(LLAMA, "--replay", OFFICE, "--workload", "chat", "--json")
    assert answer.code == 0, answer.err
    result = answer.result
    split = answer.document["device_config"]["strategy"]["Hybrid"]
    assert split["cpu_layers"] + split["gpu_layers"] == len(result.model.layers)
    assert 0 < answer.document["device_config"]["gpu_memory_fraction"] <= 1
    assert (result.host, result.provenance) == (recording.read(OFFICE).host, "replayed")
    assert len(result.decision.split_curve) == len(result.model.layers) + 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((LLAMA, "--replay", "no.json"), 8, "no.json"),
        ((LLAMA, "--replay", "bad.json"), 8, "it is something else"),
        ((LLAMA, "--replay", OFFICE, "--force"), 2, "--force is about timing"),
        ((LLAMA, "--replay", OFFICE, "--quick"), 2, "--quick is about timing"),
        ((LLAMA, "--replay", OFFICE, "--budget", "9"), 2, "--budget is about timing"),
        ((LLAMA, "--replay", OFFICE, "--no-confirm"), 2, "--no-confirm is about timing"),
        ((LLAMA, "--replay", OFFICE, "--storage", "sqlite:///study.db"), 2, "--storage is about timing"),
        (("bitnet_b1_58-3B", "--replay", OFFICE), 9, "has no measurements of bitnet_b1_58-3B: expected matmul"),
        ((LLAMA, "--replay", OFFICE, "--workload", "chat", "--max-tpot-ms", "0.01"), 5, "can't be kept"),
        ((LLAMA, "--replay", OFFICE, "--kernel", "numpy"), 2, "--kernel is about timing"),
    ],
)
def test_a_replay_that_is_not_possible_is_refused(
    tmp_path: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    shop = Shop(tmp_path)
    shop.write("bad.json", "{}")
    answer = shop.run(*arguments)
    assert_one_sentence(answer, code)
    assert words in answer.err


# Recording


def test_a_host_is_recorded_with_what_a_replay_needs(recorded: tuple[Shop, Answer]) -> None:
    """The file holds the host and all of the model's points; its replay gives a configuration; nothing is cached."""
    shop, answer = recorded
    assert (answer.code, answer.out, answer.err) == (0, b"", "wrote host.json\n")
    held = recording.read(shop.folder / "host.json")
    assert (held.synthetic, len(held.campaigns), held.note) == (False, 1, "measured with small")
    assert held.campaigns[0].budget_s >= 3
    assert held.campaigns[0].spared == 0
    replayed = shop.run("small.json", "--replay", "host.json", "--json")
    assert replayed.code == 0, replayed.err
    assert replayed.result.host == held.host
    assert replayed.result.campaign == held.campaigns[0]
    assert not shop.entries()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--model", "small.json"), 2, "takes --model only with --record FILE"),
        (("--budget", "3"), 2, "takes --budget only with --record FILE"),
        (("--quiet",), 2, "takes --quiet only with --record FILE"),
        (("--record", "host.json", "--json"), 2, "it takes no --json"),
        (("--record", "host.json", "--no-measure"), 2, "it takes no --no-measure"),
        (("--record", "missing/host.json"), 8, "missing/host.json: the recording can't be written"),
        (("--record", "host.json", "--budget", "-1"), 2, "--budget must be"),
        (("--record", "host.json", "--model", "no.json"), 3, "no.json"),
        (("--record", "host.json", "--model", "small.json", "--model", "no.json"), 3, "no.json"),
    ],
)
def test_a_recording_that_is_not_possible_is_refused_before_anything_is_timed(
    empty: Shop, arguments: tuple[str, ...], code: int, words: str
) -> None:
    answer = empty.run("host", *arguments)
    assert_one_sentence(answer, code)
    assert words in answer.err
    assert not (empty.folder / "host.json").exists()


# Explain


def test_explain_gives_reasons_and_says_where_there_is_no_gpu(shop: Shop, tuned: tuple[Path, Answer]) -> None:
    answer = shop.run("explain", "small.json", COLUMNS="400")
    assert (answer.code, answer.out) == (0, b"")
    for reason in tuned[1].result.decision.reasons:
        assert reason in answer.err
    assert "there is no GPU that was timed" in answer.err
    as_json = shop.run("explain", "small.json", "--json")
    assert as_json.document["reasons"] == list(tuned[1].result.decision.reasons)
    assert as_json.document["split_curve"] == []


def test_explain_shows_the_curve_over_the_layers_on_gpus(shop: Shop, tuned: tuple[Path, Answer]) -> None:
    """A result with a GPU, put where this host's own was."""
    own = tuned[1].result
    split = build_gpu_result()
    result = msgspec.structs.replace(own, decision=split.decision, campaign=split.campaign)
    _, raw = document(result, tuned[1].document["request"])
    (entry,) = shop.entries()
    entry.write_bytes(raw)
    answer = shop.run("explain", "small.json", COLUMNS="400")
    assert answer.code == 0, answer.err
    assert "█ 400 (batch 4, TPOT 10 ms, head on GPU) <- chosen" in answer.err
    assert "2 does not fit the memory" in answer.err


def test_explain_without_a_saved_result_names_the_command(empty: Shop) -> None:
    answer = empty.run("explain", "small.json")
    assert_one_sentence(answer, 9)
    assert "run `python -m autotune small.json --workload server` first" in answer.err
