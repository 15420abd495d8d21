"""The command line as a user meets it: real processes, real files, a small model, a cache of its own."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import numpy as np
import psutil
import pytest
from gguf import GGMLQuantizationType, GGUFWriter

from autotune import __version__, cli, errors
from autotune.host import fingerprint
from autotune.records import Result
from autotune.store import cache, paths
from autotune.store.entry import SCHEMA_VERSION, Entry, Key, encode, parse
from tests.builders import build_result

ROOT = Path(__file__).parents[1]
SMALL: dict[str, Any] = {
    "architectures": ["BitNetForCausalLM"],
    "model_type": "bitnet",
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 1024,
    "hidden_act": "relu2",
    "tie_word_embeddings": True,
}
HUGE = {
    **SMALL,
    "hidden_size": 2**16,
    "intermediate_size": 2**18,
    "num_hidden_layers": 1000,
    "num_attention_heads": 512,
    "num_key_value_heads": 512,
}
BUDGET = ("--budget", "1.5")
HEAVY = {"numpy", "torch", "optuna", "pandas", "msgspec", "gguf", "psutil", "rich", "archspec", "pynvml", "filelock"}


@dataclass(frozen=True)
class Answer:
    """What a process left: exit code, standard output and standard error."""

    code: int
    out: bytes
    err: str

    @property
    def document(self) -> Any:
        """Standard output as the one JSON document that it must be."""
        return json.loads(self.out)

    @property
    def result(self) -> Result:
        """The result in a printed entry."""
        return msgspec.json.decode(parse(self.out, "").result_json, type=Result)


class Shop:
    """A folder with model files, a cache in it, and a way to run autotune there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.model = folder / "small.json"

    def environment(self, **changes: str) -> dict[str, str]:
        """As a user has it, with caches below the folder."""
        ours = {name: value for name, value in os.environ.items() if name not in ("PYTHONUNBUFFERED", "COLUMNS")}
        named = {"AUTOTUNE_CACHE": str(self.cache), "XDG_CACHE_HOME": str(self.folder / "xdg")}
        return {**ours, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "kernels"))), **named, **changes}

    def start(self, *arguments: str | Path, start_new_session: bool = False) -> subprocess.Popen[bytes]:
        """Start autotune without waiting for it."""
        return subprocess.Popen(
            [sys.executable, "-m", "autotune", *map(str, arguments)],
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=start_new_session,
        )

    def run(self, *arguments: str | Path, stdout: Any = subprocess.PIPE, **changes: str) -> Answer:
        """Run autotune to its end; keywords are environment variables."""
        done = subprocess.run(
            [sys.executable, "-m", "autotune", *map(str, arguments)],
            cwd=self.folder,
            env=self.environment(**changes),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            timeout=60,
        )
        return Answer(done.returncode, done.stdout or b"", done.stderr.decode())

    def write(self, name: str, content: object) -> Path:
        """A file in the folder: bytes and texts as they are, anything else as JSON."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    def entries(self) -> list[Path]:
        """The saved results."""
        return sorted((self.cache / paths.LAYOUT).rglob("*.json"))

    def state(self) -> dict[str, tuple[int, bytes]]:
        """All that lies in the cache, byte for byte, with the times of last change."""
        return {
            str(path): (path.stat().st_mtime_ns, path.read_bytes())
            for folder in (self.cache, self.folder / "xdg")
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }


@pytest.fixture(scope="session")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """A folder in which the small model was tuned from cold, and what that run printed."""
    shop = Shop(tmp_path_factory.mktemp("tuned"))
    shop.write("small.json", SMALL)
    return shop.folder, shop.run("small.json", "--budget", "2", "--json")


@pytest.fixture
def empty(tmp_path: Path) -> Shop:
    """The small model and no cache."""
    shop = Shop(tmp_path)
    shop.write("small.json", SMALL)
    return shop


@pytest.fixture
def shop(tmp_path: Path, tuned: tuple[Path, Answer]) -> Shop:
    """The small model and a cache with its result, to change at will."""
    shutil.copytree(tuned[0], tmp_path, dirs_exist_ok=True)
    return Shop(tmp_path)


def assert_one_sentence(answer: Answer, code: int) -> None:
    """What bad input gets: its exit code, one sentence, and nothing on standard output."""
    assert answer.code == code, answer.err
    assert answer.out == b""
    assert re.fullmatch(r"autotune: [^\n]+\n", answer.err), answer.err


# The main job


def test_tuning_from_cold_prints_one_document(tuned: tuple[Path, Answer]) -> None:
    """Human text goes to standard error only; the document holds what was measured and what was chosen."""
    _, answer = tuned
    assert answer.code == 0, answer.err
    assert answer.out.count(b"\n") == answer.out.rstrip().count(b"\n") + 1
    result = answer.result
    assert result.provenance == "measured"
    assert result.workload.name == "server"
    assert result.model.name == "small"
    assert result.campaign.measurements()
    assert result.campaign.budget_s == 2
    assert [error.left_out for error in result.cost_model.held_out] == ["interior m", "site", "thread count"]
    assert result.decision.search.study is not None


def test_the_document_has_the_shape_of_serde(tuned: tuple[Path, Answer]) -> None:
    """Its device_config is what a Rust loader's plain derives read, and says what was chosen."""
    _, answer = tuned
    chosen = answer.result.decision.chosen.configuration
    assert answer.document["device_config"] == {
        "strategy": "CpuOnly",
        "cpu_threads": chosen.decode_threads,
        "gpu_memory_fraction": None,
        "recommended_batch_size": chosen.batch_size,
    }
    assert list(answer.document) == [
        *("format", "schema_version", "checksum", "key"),
        *("request", "device_config", "result"),
    ]


def test_the_document_is_saved_as_it_is_printed(tuned: tuple[Path, Answer]) -> None:
    """Under one file, and nothing half-written beside it."""
    folder, answer = tuned
    (saved,) = Shop(folder).entries()
    assert saved.read_bytes() == answer.out
    assert {path.name for path in saved.parent.iterdir()} == {saved.name, ".lock"}


def test_the_same_command_again_answers_from_the_cache(shop: Shop, tuned: tuple[Path, Answer]) -> None:
    """Byte for byte, without a word, and without touching the cache."""
    before = shop.state()
    assert shop.run("small.json", "--budget", "2", "--json") == Answer(0, tuned[1].out, "")
    assert shop.state() == before


def test_a_person_gets_a_summary(shop: Shop) -> None:
    """On standard error only: host, model, what was timed, the choice beside the fallback, why, and where it lies."""
    answer = shop.run("small.json", *BUDGET)
    assert answer.code == 0
    assert answer.out == b""
    for label in (
        *("host", "tier", "model", "workload", "timed", "noise", "held-out error", "chosen", "fallback"),
        *("why", "bound by", "searched", "saved"),
    ):
        assert re.search(rf"^{label} ", answer.err, re.MULTILINE), label
    assert f"{shop.entries()[0]} (answered from there; --force measures again)" in " ".join(answer.err.split())


@pytest.mark.parametrize(
    "arguments",
    [("tune", "small.json", "--json"), ("--json", "small.json"), ("--quick", "--json", "small.json")],
    ids=" ".join,
)
def test_the_command_and_the_order_of_options_do_not_matter(
    arguments: tuple[str, ...], shop: Shop, tuned: tuple[Path, Answer]
) -> None:
    """`tune` may be left out; a result measured for longer answers a shorter wish."""
    shop_answer = shop.run(*arguments, "--budget", "1")
    assert shop_answer == Answer(0, tuned[1].out, "")


def test_force_measures_again(shop: Shop, tuned: tuple[Path, Answer]) -> None:
    """And replaces what was saved; --quiet shows no progress."""
    answer = shop.run("small.json", *BUDGET, "--json", "--force", "--quiet")
    assert answer.code == 0
    assert answer.err == ""
    assert answer.result.campaign != tuned[1].result.campaign
    assert [path.read_bytes() for path in shop.entries()] == [answer.out]


def test_a_longer_budget_measures_again(shop: Shop, tuned: tuple[Path, Answer]) -> None:
    """Who allows more time wants better measurements."""
    answer = shop.run("small.json", "--budget", "2.2", "--json")
    assert answer.code == 0
    assert answer.result.campaign.budget_s == 2.2
    assert answer.result.campaign.outcomes != tuned[1].result.campaign.outcomes


@pytest.mark.parametrize(
    "options", [("--max-tpot-ms", "5000"), ("--workload", "chat"), ("--max-batch", "4")], ids=" ".join
)
def test_new_limits_are_answered_from_saved_measurements(
    options: tuple[str, ...], shop: Shop, tuned: tuple[Path, Answer]
) -> None:
    """The campaign is the saved one, to the last sample; and the answer is saved in its turn."""
    answer = shop.run("small.json", *BUDGET, *options, "--json")
    assert answer.code == 0
    assert answer.err == ""
    assert answer.result.campaign == tuned[1].result.campaign
    assert shop.run("small.json", *BUDGET, *options, "--json").out == answer.out


def test_other_lengths_that_were_not_timed_are_measured(shop: Shop, tuned: tuple[Path, Answer]) -> None:
    """A batch beyond the largest that was timed isn't extrapolated when there is a way to know."""
    answer = shop.run("small.json", *BUDGET, "--max-batch", "600", "--json", "--quiet")
    assert answer.code == 0
    assert answer.result.campaign != tuned[1].result.campaign
    assert answer.result.workload.max_batch == 600


def test_retune_chooses_again_without_measuring(shop: Shop, tuned: tuple[Path, Answer]) -> None:
    """Under new limits, from the same campaign; what it chose is then what is saved."""
    measured = tuned[1].result
    answer = shop.run("retune", "small.json", "--max-batch", "2", "--json")
    assert answer.code == 0
    assert answer.result.campaign == measured.campaign
    assert answer.result.workload.max_batch == 2
    assert answer.result.decision.chosen.configuration.batch_size <= 2
    assert answer.result.decision.search.study is None
    assert shop.run("show", "small.json", "--json").out == answer.out


def test_show_prints_the_saved_result(shop: Shop, tuned: tuple[Path, Answer]) -> None:
    """As a document, or as a summary with the place where it lies."""
    assert shop.run("show", "small.json", "--json") == Answer(0, tuned[1].out, "")
    answer = shop.run("show", "small.json")
    assert (answer.code, answer.out) == (0, b"")
    assert re.search(r"^chosen ", answer.err, re.MULTILINE)
    assert str(shop.entries()[0]) in answer.err


def test_model_prints_what_a_model_is(empty: Shop) -> None:
    """Without any tuning; a folder with a config.json counts as well, and is the model's name."""
    answer = empty.run("model", "small.json")
    assert (answer.code, answer.out) == (0, b"")
    assert "2 layers" in answer.err
    empty.write("tiny-bitnet/config.json", SMALL)
    answer = empty.run("model", "tiny-bitnet", "--json")
    assert (answer.code, answer.err) == (0, "")
    assert answer.document["name"] == "tiny-bitnet"
    assert len(answer.document["layers"]) == 2
    assert not empty.cache.exists()


def test_host_prints_what_a_host_is(empty: Shop) -> None:
    """With --no-measure nothing is timed, and the tier is unknown."""
    answer = empty.run("host", "--no-measure", "--json")
    assert (answer.code, answer.err) == (0, "")
    assert answer.document["tier"] is None
    assert answer.document["host"]["limits"]["usable_threads"] >= 1
    answer = empty.run("host", "--no-measure")
    assert (answer.code, answer.out) == (0, b"")
    assert "memory" in answer.err


def test_host_measures_its_tier(empty: Shop) -> None:
    """And gives the reason for it; nothing is saved."""
    answer = empty.run("host", "--json")
    assert answer.code == 0
    assert answer.document["tier"]["name"] in ("Low", "Medium", "High", "Extreme")
    assert "GB/s" in answer.document["tier"]["reason"]
    assert not empty.cache.exists()


def test_the_schema_describes_what_is_saved(empty: Shop, tuned: tuple[Path, Answer]) -> None:
    """It is valid JSON Schema, the printed document keeps it, and one with a field too many doesn't."""
    answer = empty.run("schema")
    assert (answer.code, answer.err) == (0, "")
    validator = jsonschema.Draft202012Validator(answer.document)
    validator.check_schema(answer.document)
    validator.validate(tuned[1].document)
    assert not validator.is_valid({**tuned[1].document, "surprise": 1})


def test_version_and_help_are_printed(empty: Shop) -> None:
    """Every command is in the help, and has its own."""
    assert empty.run("--version") == Answer(0, f"autotune {__version__}\n".encode(), "")
    answer = empty.run("--help")
    assert answer.code == 0
    for name in cli._COMMANDS:
        assert re.search(rf"^    {name} ", answer.out.decode(), re.MULTILINE), name
    for code in (*cli.EXIT_CODES.values(), cli.EXIT_SYSTEM, cli.EXIT_INTERRUPTED):
        assert re.search(rf" {code}  \w", answer.out.decode()), code


@pytest.mark.parametrize(
    "command", [*cli._COMMANDS, *(f"cache {name}" for name in ("list", "path", "forget", "export", "import"))]
)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """On standard output, with exit code 0."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([*command.split(), "--help"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: autotune {command} ")


def test_every_error_has_an_exit_code_of_its_own() -> None:
    """A new kind of error without one would end in a traceback."""
    kinds = {kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.AutotuneError)}
    assert set(cli.EXIT_CODES) == kinds - {errors.AutotuneError}
    codes = [*cli.EXIT_CODES.values(), cli.EXIT_SYSTEM, cli.EXIT_INTERRUPTED, 0]
    assert len(set(codes)) == len(codes)


# The cache


def test_the_cache_is_listed(shop: Shop) -> None:
    """For people and as a document."""
    answer = shop.run("cache", "list")
    assert (answer.code, answer.out) == (0, b"")
    assert str(shop.entries()[0]) in answer.err
    assert "small, server" in answer.err
    (listed,) = shop.run("cache", "list", "--json").document
    assert listed["path"] == str(shop.entries()[0])
    assert listed["model"] == "small"
    assert listed["workload"] == "server"
    assert listed["device_config"]["strategy"] == "CpuOnly"


def test_an_empty_cache_is_listed_as_such(empty: Shop) -> None:
    """In words, or as an empty list."""
    assert empty.run("cache", "list") == Answer(0, b"", "autotune: nothing is saved\n")
    assert empty.run("cache", "list", "--json") == Answer(0, b"[]\n", "")


def test_the_folders_of_the_cache_are_printed_in_order(empty: Shop) -> None:
    """One a line for scripts; any bytes that a path may have."""
    odd = os.fsdecode(os.fsencode(str(empty.folder)) + b"/\xff")
    answer = empty.run("cache", "path", AUTOTUNE_CACHE=odd)
    assert answer.code == 0
    user = empty.folder / "xdg" / "bitnet-autotune"
    assert answer.out == os.fsencode(f"{odd}\n{user}\n{paths.SYSTEM_LAYER}\n")


def test_an_exported_result_can_be_imported_after_it_was_forgotten(shop: Shop, tuned: tuple[Path, Answer]) -> None:
    """The round trip gives the same bytes back."""
    exported = shop.run("cache", "export", "small.json", "result.json")
    assert (exported.code, exported.out) == (0, b"")
    assert (shop.folder / "result.json").read_bytes() == tuned[1].out
    forgotten = shop.run("cache", "forget", "small.json")
    assert (forgotten.code, forgotten.out) == (0, b"")
    assert shop.entries() == []
    assert_one_sentence(shop.run("show", "small.json"), 9)
    imported = shop.run("cache", "import", "result.json")
    assert (imported.code, imported.out) == (0, b"")
    assert str(shop.entries()[0]) in imported.err
    assert shop.run("show", "small.json", "--json").out == tuned[1].out


def test_forgetting_is_as_narrow_as_asked_for(shop: Shop) -> None:
    """One workload, also with --all; then one model; then all that is left."""
    shop.write("other.json", {**SMALL, "num_hidden_layers": 3})
    for workload in ("chat", "offline"):
        assert shop.run("retune", "small.json", "--workload", workload).code == 0
    assert len(shop.entries()) == 3
    assert shop.run("cache", "forget", "small.json", "--workload", "chat").code == 0
    assert shop.run("cache", "forget", "--all", "--workload", "offline").code == 0
    assert [path.name.split(".")[1] for path in shop.entries()] == ["server"]
    assert_one_sentence(shop.run("cache", "forget", "other.json"), 9)
    assert_one_sentence(shop.run("cache", "forget", "small.json", "--format", "F16"), 9)
    assert len(shop.entries()) == 1
    assert shop.run("cache", "forget", "--all").code == 0
    assert_one_sentence(shop.run("cache", "forget", "--all"), 9)


# A cached answer is cheap


def modules_after(shop: Shop, script: str) -> set[str]:
    """The top-level modules that a fresh interpreter has after a script, without coverage's."""
    environment = {name: value for name, value in shop.environment().items() if not name.startswith("COV")}
    script += "; import sys; print('MODULES', *{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=shop.folder, env=environment, check=True, capture_output=True, text=True
    )
    return set(done.stdout.rpartition("MODULES ")[2].split())


def test_a_cached_document_imports_nothing_heavy(shop: Shop) -> None:
    """No numpy, no Optuna, not even what decodes records."""
    for arguments in (["small.json", "--json", "--budget", "1"], ["show", "small.json", "--json"]):
        modules = modules_after(shop, f"from autotune.cli import main; assert main({arguments}) == 0")
        assert "autotune" in modules
        assert not modules & (HEAVY | {"dataclasses", "pathlib"})


def test_importing_the_package_imports_nothing_heavy(shop: Shop) -> None:
    """A loader's start is not slowed down by a tuner that it doesn't use."""
    assert not modules_after(shop, "import autotune") & (HEAVY | {"typing", "json", "argparse"})


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
        (("--format", "Q4_0"), 2, "unknown weight format 'Q4_0': expected one of I2_S"),
        (("--max-tpot-ms", "1e-6"), 5, "on the time per output token can't be kept"),
        (("--max-ttft-ms", "1e-6"), 5, "on the time to the first token can't be kept"),
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
        (("cache", "import", "."), 8),
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


# Where nothing can be written


def test_a_result_that_cannot_be_saved_is_printed(shop: Shop, tuned: tuple[Path, Answer]) -> None:
    """With a warning that says why, and exit code 8: also for root, below a file there can be no folder."""
    shutil.copytree(shop.cache, shop.folder / "spare")
    shutil.rmtree(shop.cache)
    shop.cache.write_text("a file where a folder should be")
    blocked = {"XDG_CACHE_HOME": str(shop.cache), "AUTOTUNE_CACHE": str(shop.cache / "below")}
    answer = shop.run("small.json", *BUDGET, "--json", "--quiet", **blocked)
    assert answer.code == 8
    assert re.fullmatch(r"autotune: warning: the result was not saved: [^\n]*Not a directory[^\n]*\n", answer.err), (
        answer.err
    )
    assert answer.result.campaign.measurements()
    assert shop.cache.read_text() == "a file where a folder should be"


def test_a_result_goes_to_the_next_folder_if_the_first_is_not_writable(shop: Shop) -> None:
    """With a warning; it is saved, so the exit code is 0. Afterwards it is found there."""
    shop.write("blocked", "a file where a folder should be")
    answer = shop.run("cache", "import", shop.entries()[0], AUTOTUNE_CACHE=str(shop.folder / "blocked"))
    assert answer.code == 0
    assert answer.err.startswith("autotune: warning: the result was saved in ")
    shown = shop.run("show", "small.json", AUTOTUNE_CACHE=str(shop.folder / "blocked"))
    assert str(shop.folder / "xdg" / "bitnet-autotune") in shown.err


# Where output can't be written


def test_a_reader_that_goes_away_leaves_no_traceback(shop: Shop) -> None:
    """As `| head -c 1` does, for documents, for plain lines and for help."""
    for arguments in (("small.json", "--json", "--budget", "1"), ("schema",), ("cache", "path"), ("--help",)):
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "wb") as pipe:
            answer = shop.run(*arguments, stdout=pipe)
        assert (answer.code, answer.err) == (1, ""), arguments


def test_a_pipe_to_head_works(shop: Shop) -> None:
    """The reader gets what it wants; nobody complains."""
    with shop.start("small.json", "--json", "--budget", "1") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1) == b"{"
        process.stdout.close()
        assert process.stderr.read() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no /dev/full")
def test_a_full_disk_is_told(shop: Shop) -> None:
    """A document that wasn't written is no success."""
    for arguments in (("small.json", "--json", "--budget", "1"), ("cache", "path"), ("--version",)):
        with Path("/dev/full").open("wb") as full:
            answer = shop.run(*arguments, stdout=full)
        assert_one_sentence(answer, 1)
        assert "No space left on device" in answer.err


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_reason_to_stop(redirection: str, shop: Shop) -> None:
    """As some job schedulers start programs; what has no stream of its own goes nowhere."""
    printed = shop.entries()[0].read_bytes() if redirection == "2>&-" else b""
    command = [sys.executable, "-m", "autotune", "small.json", "--budget", "1"]
    for options, expected in (([], b""), (["--json"], printed), (["--max-batch", "2"], b"")):
        done = subprocess.run(
            ["/bin/sh", "-c", f'exec "$@" {redirection}', "sh", *command, *options],
            cwd=shop.folder,
            env=shop.environment(),
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, expected), done.stderr


# Interruption


def children(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def wait_until(happened: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.005)


def is_gone(process: psutil.Process) -> bool:
    """Ended, though perhaps nobody has asked for its exit status yet."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


@contextlib.contextmanager
def tuning(shop: Shop, *, budget: str = "30") -> Iterator[tuple[subprocess.Popen[bytes], list[psutil.Process]]]:
    """A tune that is under way in a session of its own, and its worker."""
    with shop.start("small.json", "--force", "--budget", budget, "--json", start_new_session=True) as process:
        try:
            wait_until(lambda: children(process), "the start of the worker")
            yield process, children(process)
        finally:
            process.kill()


@pytest.mark.parametrize("moment", ["at once", "while the worker starts", "while it samples", "while it decides"])
def test_ctrl_c_stops_at_once(moment: str, shop: Shop) -> None:
    """One sentence, exit code 130, no process left, and the cache as it was."""
    before = shop.state()
    with tuning(shop, budget="1" if moment == "while it decides" else "30") as (process, workers):
        if moment == "while the worker starts":
            time.sleep(0.1)
        elif moment == "while it samples":
            time.sleep(1)
        elif moment == "while it decides":
            wait_until(lambda: all(map(is_gone, workers)), "the end of the worker")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=5)
    # A process that dies of SIGINT has exit code 130 to a shell as well.
    assert process.returncode in (cli.EXIT_INTERRUPTED, -signal.SIGINT)
    assert out == b""
    lines = [line for line in err.decode().splitlines() if not line.startswith("timing: ")]
    assert lines == ["autotune: stopped by Ctrl-C"]
    wait_until(lambda: all(map(is_gone, workers)), "the end of the worker")
    assert shop.state() == before


def test_an_impatient_second_ctrl_c_changes_nothing(shop: Shop) -> None:
    """Still one sentence, and no process left."""
    with tuning(shop) as (process, workers):
        for _ in range(5):
            process.send_signal(signal.SIGINT)
            time.sleep(0.01)
        _, err = process.communicate(timeout=5)
    assert process.returncode in (cli.EXIT_INTERRUPTED, -signal.SIGINT)
    assert "Traceback" not in err.decode()
    wait_until(lambda: all(map(is_gone, workers)), "the end of the worker")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP], ids=lambda number: number.name)
def test_a_worker_does_not_outlive_its_parent(number: signal.Signals, shop: Shop) -> None:
    """However the parent ends; and the cache stays as it was."""
    before = shop.state()
    with tuning(shop) as (process, workers):
        time.sleep(0.5)
        process.send_signal(number)
        process.communicate(timeout=5)
        assert process.returncode == -number
        wait_until(lambda: all(map(is_gone, workers)), "the end of the worker")
    assert shop.state() == before


# In this process


def test_another_result_is_printed_in_whole_by_list(
    empty: Shop, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Also one of another host, and one whose folder's name is no text."""
    odd = os.fsdecode(os.fsencode(str(empty.folder)) + b"/\xff")
    monkeypatch.setenv("AUTOTUNE_CACHE", odd)
    cache.write(build_result(), {})
    assert cli.main(["cache", "list", "--json"]) == 0
    (listed,) = json.loads(capsysbinary.readouterr().out)
    assert listed["host"] == "synthetic-host"
    assert "\ufffd" in listed["path"]


def test_what_is_printed_is_filed_under_this_host(tuned: tuple[Path, Answer]) -> None:
    """And under the digest of the model's file, so a loader finds it."""
    entry = parse(tuned[1].out, "")
    assert entry.key.host == fingerprint.cheap()
    assert entry.key == Key(entry.key.host, tuned[1].result.model.source_digest, "server")
    assert tuned[1].document["schema_version"] == SCHEMA_VERSION
