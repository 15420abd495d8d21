"""Every command as a user meets it: real processes, real files, a small model."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from autotune import __version__, cli, errors, evidence
from autotune.cli.arguments import build_parser
from autotune.host import fingerprint
from autotune.records import Kernel
from autotune.store import cache, paths
from autotune.store.entry import SCHEMA_VERSION, Key, parse
from tests.builders import build_result
from tests.cli.shop import BUDGET, HEAVY, SMALL, Answer, Shop, assert_one_sentence

# The main job

COMMANDS = tuple(build_parser()[1].choices)


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
    assert result.campaign.budget_s == 4
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
    assert shop.run("small.json", "--budget", "4", "--no-confirm", "--json") == Answer(0, tuned[1].out, "")
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
    shop_answer = shop.run(*arguments, "--budget", "1", "--no-confirm")
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
    answer = shop.run("small.json", "--budget", "4.2", "--no-confirm", "--json")
    assert answer.code == 0
    assert answer.result.campaign.budget_s == 4.2
    assert answer.result.campaign.outcomes != tuned[1].result.campaign.outcomes


@pytest.mark.parametrize(
    "options", [("--max-tpot-ms", "5000"), ("--workload", "chat"), ("--max-batch", "4")], ids=" ".join
)
def test_new_limits_are_answered_from_saved_measurements(options: tuple[str, ...], thorough_shop: Shop) -> None:
    """The campaign is the saved one, to the last sample; and the answer is saved in its turn."""
    saved = thorough_shop.run("show", "small.json", "--json").result
    answer = thorough_shop.run("small.json", *BUDGET, *options, "--json")
    assert answer.code == 0
    assert answer.err == ""
    assert answer.result.campaign == saved.campaign
    assert thorough_shop.run("small.json", *BUDGET, *options, "--json").out == answer.out


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
    kernels = answer.document["kernels"]
    (numpy,) = (kernel for kernel in kernels if (kernel["kernel"], kernel["format"]) == ("numpy", "I2_S"))
    assert (numpy["reason"], numpy["lossy"]) == (None, False)
    assert all(kernel["reason"] is None or kernel["path"] is None for kernel in kernels)
    answer = empty.run("host", "--no-measure")
    assert (answer.code, answer.out) == (0, b"")
    assert "memory" in answer.err
    listed = set(re.findall(r"^Kernel (?!sources)(\w+) ", answer.err, re.MULTILINE))
    assert listed == {kernel["kernel"] for kernel in kernels}


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
    for name in COMMANDS:
        assert re.search(rf"^    {name}\s", answer.out.decode(), re.MULTILINE), name
    for code in (*cli.EXIT_CODES.values(), cli.EXIT_SYSTEM, cli.EXIT_INTERRUPTED):
        assert re.search(rf" {code}  \w", answer.out.decode()), code


@pytest.mark.parametrize(
    "command", [*COMMANDS, *(f"cache {name}" for name in ("list", "path", "forget", "export", "import"))]
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


# Kernels


def test_a_kernel_that_cannot_run_here_has_an_exit_code_of_its_own(
    empty: Shop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And one sentence with the registry's reason; nothing is measured."""
    monkeypatch.setenv("AUTOTUNE_CACHE", str(empty.cache))
    found = (*(Kernel("numpy", name, None, None) for name in ("I2_S", "F16")), Kernel("amx", "I2_S", None, "no tiles"))
    monkeypatch.setattr(evidence, "find_kernels", lambda host: found)
    monkeypatch.setattr(evidence.bench, "run", None)
    assert cli.main([str(empty.model), "--kernel", "amx", "--format", "I2_S"]) == 10
    assert capsys.readouterr().err == "autotune: the kernel 'amx' can't run this here: no tiles\n"


def test_a_forced_kernel_is_part_of_what_a_saved_result_answers(shop: Shop, tuned: tuple[Path, Answer]) -> None:
    """With --kernel it is measured again, with that kernel alone."""
    answer = shop.run("small.json", *BUDGET, "--kernel", "numpy", "--json", "--quiet")
    assert answer.code == 0, answer.err
    assert {found.point.kernel for found in answer.result.campaign.measurements()} == {"numpy"}
    assert shop.run("small.json", *BUDGET, "--kernel", "numpy", "--json") == Answer(0, answer.out, "")


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
    for arguments in (["small.json", "--json", "--budget", "1", "--no-confirm"], ["show", "small.json", "--json"]):
        modules = modules_after(shop, f"from autotune.cli import main; assert main({arguments}) == 0")
        assert "autotune" in modules
        assert not modules & (HEAVY | {"dataclasses", "pathlib"})


def test_importing_the_package_imports_nothing_heavy(shop: Shop) -> None:
    """A loader's start is not slowed down by a tuner that it doesn't use."""
    assert not modules_after(shop, "import autotune") & (HEAVY | {"typing", "json", "argparse"})


# In this process


def test_another_result_is_printed_in_whole_by_list(
    empty: Shop, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Also one of another host, and one whose folder's name is no text."""
    odd = os.fsdecode(os.fsencode(str(empty.folder)) + b"/\xff")
    monkeypatch.setenv("AUTOTUNE_CACHE", odd)
    monkeypatch.setenv("XDG_CACHE_HOME", str(empty.folder / "xdg"))  # the user's own cache may hold results
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
