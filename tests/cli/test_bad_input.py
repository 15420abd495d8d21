"""What bad input gets: one sentence, its exit code, the cache untouched."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter

from autotune.store.entry import Entry, encode, parse
from tests.cli.shop import BUDGET, HUGE, SMALL, Shop, assert_one_sentence

# Bad input


BAD_MODELS: dict[str, tuple[object, str]] = {
    "empty": ("", "empty"),
    "blank": (" \n", "empty"),
    "truncated": (json.dumps(SMALL)[:-40], "JSON"),
    "not JSON": ("hidden_size: 256\n", "JSON"),
    "not text": (b"\x80\x04\x95\x00\xff", "JSON"),
    "nested without end": ("[" * 100_000, "nested"),
    "a list": ([1, 2, 3], "a JSON object"),
    "a number": (7, "a JSON object"),
    "null": ("null", "a JSON object"),
    "an empty object": ({}, "expected"),
    "wrong type": ({**SMALL, "hidden_size": "256"}, "hidden_size: expected a whole number"),
    "a fraction": ({**SMALL, "num_hidden_layers": 2.5}, "num_hidden_layers: expected a whole number"),
    "not divisible by heads": ({**SMALL, "num_attention_heads": 7, "num_key_value_heads": 7}, "num_attention_heads"),
    "heads that do not group": ({**SMALL, "num_key_value_heads": 3}, "num_key_value_heads"),
    "zero": ({**SMALL, "hidden_size": 0}, "got 0"),
    "negative": ({**SMALL, "intermediate_size": -768}, "got -768"),
    "a billion layers": ({**SMALL, "num_hidden_layers": 10**9}, "got 1000000000"),
    "a number beyond printing": (json.dumps(SMALL).replace("512", "9" * 5000), "expected"),
    "unknown architecture": ({"architectures": ["MambaForCausalLM"], "model_type": "mamba"}, "Mamba"),
    "unknown activation": ({**SMALL, "hidden_act": "sine"}, "hidden_act"),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_a_bad_model_file_gets_one_sentence(name: str, shop: Shop) -> None:
    """That names the file and what is wrong; exit code 3; the cache stays as it is."""
    content, expected = BAD_MODELS[name]
    shop.write("bad.json", content)
    before = shop.state()
    answer = shop.run("bad.json", *BUDGET)
    assert_one_sentence(answer, 3)
    assert "bad.json" in answer.err
    assert expected in answer.err
    assert shop.state() == before


def fifo(shop: Shop) -> None:
    os.mkfifo(shop.folder / "pipe")


def sparse(shop: Shop) -> None:
    """A gigabyte that takes no room."""
    with shop.write("config.json", "").open("r+b") as file:
        file.truncate(2**30)


def loop(shop: Shop) -> None:
    (shop.folder / "loop.json").symlink_to("loop.json")


def contradictory_gguf(shop: Shop) -> None:
    """A tensor of BitNet's type 36 in a Llama file, where that number is retired."""
    writer = GGUFWriter(shop.folder / "llama.gguf", "llama")
    writer.add_block_count(1)
    writer.add_context_length(512)
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(512)
    writer.add_head_count(4)
    writer.add_tensor("token_embd.weight", np.zeros((512, 256), np.float16))
    writer.add_tensor(
        "blk.0.attn_q.weight",
        np.zeros(256 * 256 // 4 + 32, np.int8),
        raw_shape=(256, 256),
        raw_dtype=36,  # type: ignore[arg-type]
    )
    writer.add_tensor("output_norm.weight", np.zeros(256, np.float32), raw_dtype=GGMLQuantizationType.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def cut_gguf(shop: Shop) -> None:
    contradictory_gguf(shop)
    path = shop.folder / "llama.gguf"
    shop.write("cut.gguf", path.read_bytes()[:100])


def nothing(_: Shop) -> None:
    """Needs no preparation."""


@pytest.mark.parametrize(
    ("prepare", "model", "expected"),
    [
        (nothing, "missing.json", "expected a config.json, a GGUF file or a preset"),
        (nothing, "", "expected a config.json, a GGUF file or a preset"),
        (nothing, "-", "expected a config.json, a GGUF file or a preset"),
        (nothing, "two\nlines", "expected a config.json, a GGUF file or a preset"),
        (nothing, "bitnet-b1.58-2B4T", "bitnet-b1.58-2B-4T"),
        (nothing, "microsoft/bitnet-2B-4T", "bitnet-b1.58-2B-4T"),
        (nothing, ".", "a folder with a config.json"),
        (nothing, "small.json/config.json", "expected a config.json"),
        (nothing, os.devnull, "a regular file"),
        (fifo, "pipe", "a regular file"),
        (sparse, "config.json", "1,073,741,824 bytes"),
        (loop, "loop.json", "loop.json"),
        (contradictory_gguf, "llama.gguf", "36 (I2_S) only where general.architecture is one of bitnet"),
        (cut_gguf, "cut.gguf", "one that can't be read"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_model_that_cannot_be_read_gets_one_sentence(
    prepare: Callable[[Shop], None], model: str, expected: str, shop: Shop
) -> None:
    """Close names are suggested; exit code 3; the cache stays as it is."""
    prepare(shop)
    before = shop.state()
    answer = shop.run(model, *BUDGET)
    assert_one_sentence(answer, 3)
    assert expected in answer.err
    assert shop.state() == before


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (("--budget", "0"), 2, "--budget must be more than 0 and at most 3600 seconds, got 0"),
        (("--budget", "-3"), 2, "got -3"),
        (("--budget", "nan"), 2, "got nan"),
        (("--budget", "inf"), 2, "got inf"),
        (("--budget=-inf",), 2, "got -inf"),
        (("--budget", "1e9"), 2, "got 1e+09"),
        (("--budget", "0.1"), 6, "a budget of 0.1 s is too small"),
        (("--max-tpot-ms", "0"), 2, "--max-tpot-ms must be a positive number of milliseconds"),
        (("--max-tpot-ms", "-5"), 2, "got -5.0"),
        (("--max-tpot-ms", "nan"), 2, "got nan"),
        (("--max-ttft-ms", "inf"), 2, "--max-ttft-ms must be a positive number of milliseconds, got inf"),
        (("--prompt", "0"), 2, "--prompt must be a whole number of at least 1, got 0"),
        (("--output", "-1"), 2, "--output must be a whole number of at least 1, got -1"),
        (("--prompt", "1000", "--output", "1000"), 2, "must fit the context of 1024 tokens"),
        (("--context", "4096"), 2, "--context must be at most 1024"),
        (("--max-batch", "5000"), 2, "--max-batch must be at most 4096, got 5000"),
        (("--workload", "chat", "--max-batch", "2"), 2, "--max-batch must be 1 for chat"),
        (("--workload", "serve"), 2, "one of chat, server, offline, got 'serve'"),
        (("--workload", "serve", "--force"), 2, "one of chat, server, offline, got 'serve'"),
        (("--format", "Q4_0"), 2, "unknown weight format 'Q4_0': expected one of "),
        (("--kernel", "abacus"), 2, "--kernel must be one of "),
        (("--storage", "sqlite:///study.db"), 2, "--storage keeps what is run, and --no-confirm runs nothing"),
        (("--storage", "sqlite:///study.db", "--quick"), 2, "and --quick runs nothing: leave one of them out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_bad_option_gets_one_sentence(arguments: tuple[str, ...], code: int, expected: str, shop: Shop) -> None:
    """With what is expected and what was given; the documented exit code; the cache stays as it is."""
    before = shop.state()
    answer = shop.run("small.json", *(() if "--budget" in arguments[0] else BUDGET), *arguments)
    assert_one_sentence(answer, code)
    assert expected in answer.err
    assert shop.state() == before


@pytest.mark.parametrize(
    ("option", "what"), [("--max-tpot-ms", "time per output token"), ("--max-ttft-ms", "time to the first token")]
)
def test_a_limit_that_no_configuration_keeps_gets_one_sentence(option: str, what: str, thorough_shop: Shop) -> None:
    """With what could be kept, from what is saved; that stays as it is, for it is the better answer."""
    before = thorough_shop.state()
    answer = thorough_shop.run("small.json", *BUDGET, option, "1e-6")
    assert_one_sentence(answer, 5)
    assert f"on the {what} can't be kept" in answer.err
    assert "`autotune retune` answers another limit at once" in answer.err
    assert thorough_shop.state() == before


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("tune",),
        ("cache",),
        ("cache", "burn"),
        ("small.json", "--bogus"),
        ("small.json", "other.json"),
        ("small.json", "--prompt", "1e3"),
        ("small.json", "--prompt", "many"),
        ("small.json", "--budget", "soon"),
        ("small.json", "--budget"),
        ("--json",),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_told_by_the_parser(arguments: tuple[str, ...], shop: Shop) -> None:
    """With the usage and exit code 2, as everywhere; the cache stays as it is."""
    before = shop.state()
    answer = shop.run(*arguments)
    assert (answer.code, answer.out) == (2, b"")
    assert answer.err.startswith("usage: autotune")
    assert answer.err.splitlines()[-1].startswith("autotune")
    assert "Traceback" not in answer.err
    assert shop.state() == before


def test_a_model_that_fits_no_memory_is_told_before_anything_is_timed(shop: Shop) -> None:
    """How much it needs, how much there is, and that neither a shorter context nor another format would help."""
    shop.write("huge.json", HUGE)
    before = shop.state()
    answer = shop.run("huge.json", *BUDGET)
    assert_one_sentence(answer, 4)
    needed = re.search(r"huge needs ([\d,]+) GB for one sequence of 1,024 tokens \(model ([\d,]+) GB", answer.err)
    assert needed is not None, answer.err
    # 4 matrices of 2^32 and 3 of 2^34 weights per layer, a quarter of a byte each
    assert int(needed[2].replace(",", "")) == pytest.approx((4 * 2**32 + 3 * 2**34) / 4 * 1000 / 1e9, rel=0.01)
    assert "there is room for" in answer.err
    assert "no shorter context and no other format would fit" in answer.err
    assert shop.state() == before


def test_a_context_that_fits_no_memory_is_answered_with_one_that_does(shop: Shop) -> None:
    """The largest that would fit, so nobody has to try."""
    shop.write("long.json", {**SMALL, "max_position_embeddings": 2**30})
    answer = shop.run("long.json", *BUDGET, "--context", str(2**30))
    assert_one_sentence(answer, 4)
    advice = re.search(r"a context of at most ([\d,]+) tokens would fit", answer.err)
    assert advice is not None, answer.err
    assert 1 <= int(advice[1].replace(",", "")) < 2**30


def test_a_budget_too_small_for_a_large_model_is_told(empty: Shop) -> None:
    """Something was timed, but not what a decision needs; nothing is saved, and the advice is a longer budget."""
    answer = empty.run("bitnet-b1.58-2B-4T", "--budget", "0.5", "--quiet")
    assert_one_sentence(answer, 6)
    assert "a budget of 0.5 s is too small" in answer.err
    assert empty.entries() == []


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("show", "small.json", "--workload", "chat"), 9),
        (("show", "small.json", "--format", "F16"), 9),
        (("show", "small.json", "--workload", "bogus"), 2),
        (("show", "missing.json"), 3),
        (("retune", "small.json", "--format", "F16"), 9),
        (("retune", "small.json", "--workload", "bogus"), 2),
        (("retune", "small.json", "--prompt", "-1"), 2),
        (("retune", "small.json", "--max-tpot-ms", "1e-9"), 5),
        (("model", "missing.json"), 3),
        (("model", "small.json", "--format", "bogus"), 2),
        (("model", "small.json", "--format", "auto"), 2),
        (("cache", "forget"), 2),
        (("cache", "forget", ""), 3),
        (("cache", "forget", "small.json", "--all"), 2),
        (("cache", "forget", "--all", "--format", "I2_S"), 2),
        (("cache", "forget", "--all", "--workload", "bogus"), 2),
        (("cache", "forget", "small.json", "--workload", "bogus"), 2),
        (("cache", "export", "small.json", "result.json", "--workload", "chat"), 9),
        (("cache", "export", "small.json", "no-such-folder/result.json"), 8),
        (("cache", "import", "small.json"), 8),
        (("cache", "import", "missing.json"), 8),
        (("cache", "import", "."), 9),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_other_commands_refuse_bad_input_as_well(arguments: tuple[str, ...], code: int, shop: Shop) -> None:
    """One sentence, the documented exit code, and the cache stays as it is."""
    before = shop.state()
    assert_one_sentence(shop.run(*arguments), code)
    assert shop.state() == before


def test_the_command_suggested_for_a_missing_result_makes_it(empty: Shop) -> None:
    """Also for a name with blanks and an option that belongs to the result."""
    empty.write("my model.json", SMALL)
    answer = empty.run("show", "my model.json", "--format", "I2_S", "--workload", "chat")
    assert_one_sentence(answer, 9)
    assert "`python -m autotune 'my model.json' --workload chat --format I2_S`" in answer.err


def test_a_result_that_was_changed_is_not_imported(shop: Shop) -> None:
    """It is no longer what was measured, as its checksum tells."""
    changed = shop.entries()[0].read_bytes().replace(b'"CpuOnly"', b'"GpuOnly"')
    shop.write("changed.json", changed)
    before = shop.state()
    answer = shop.run("cache", "import", "changed.json")
    assert_one_sentence(answer, 8)
    assert "checksum" in answer.err
    assert shop.state() == before


# A damaged cache


@pytest.mark.parametrize("damage", ["torn", "checksum", "garbage", "directory"])
def test_a_damaged_entry_is_a_miss(damage: str, shop: Shop) -> None:
    """It is moved aside with a warning, and never shown."""
    (path,) = shop.entries()
    raw = path.read_bytes()
    path.unlink()
    if damage == "directory":
        path.mkdir()
    else:
        path.write_bytes({"torn": raw[:-100], "checksum": raw.replace(b"2", b"3"), "garbage": b"\0" * 100}[damage])
    answer = shop.run("show", "small.json", "--json")
    assert (answer.code, answer.out) == (9, b"")
    warning, sentence = answer.err.splitlines()
    assert warning.startswith("autotune: warning: ignored a saved result: ")
    assert sentence.startswith("autotune: nothing is saved for small.json")
    assert shop.entries() == []
    assert len(list((shop.cache / "quarantine").iterdir())) == 1


def with_strange_record(path: Path) -> None:
    """An intact entry, checksum and all, whose result this version can't read."""
    entry: Entry = parse(path.read_bytes(), str(path))
    path.write_bytes(encode(entry.key, entry.request_json, entry.device_config_json, b'{"surprise":1}'))


def test_an_entry_with_unknown_records_is_not_shown(shop: Shop) -> None:
    """As another version might leave it: moved aside, in one sentence."""
    with_strange_record(shop.entries()[0])
    answer = shop.run("show", "small.json")
    assert (answer.code, answer.out) == (9, b"")
    assert [line.partition(":")[0] for line in answer.err.splitlines()] == ["autotune", "autotune"]
    assert shop.entries() == []


def test_an_entry_with_unknown_records_is_measured_again(shop: Shop) -> None:
    """And replaced by one that can be read."""
    with_strange_record(shop.entries()[0])
    answer = shop.run("small.json", *BUDGET, "--quiet")
    assert answer.code == 0
    assert "autotune: warning: ignored a saved result" in answer.err
    assert shop.run("show", "small.json").code == 0
