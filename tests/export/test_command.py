"""`autotune export`: text on standard output or in a file, notes on standard error, errors that change nothing."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from autotune.cli.run import main
from autotune.export.targets import TARGETS, export
from autotune.host.fingerprint import cheap
from autotune.model.source import digest, resolve
from autotune.records import Result
from autotune.store import cache
from tests.cli.shop import Shop
from tests.export.cases import GPU, HYBRID, a_model, a_result

I2_S = a_result(model=a_model(weight_format="I2_S", architecture="bitnet", tied=True))


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a saved result of a model on the CPU, in the current folder."""
    monkeypatch.chdir(tmp_path)
    return _save(a_result(), tmp_path / "result.json")


def _save(result: Result, path: Path) -> Path:
    path.write_bytes(cache.document(result, {})[1])
    return path


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("target", TARGETS)
def test_each_target_and_form_is_printed_as_it_is(target: str, saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for form in TARGETS[target].forms:
        assert main(["export", str(saved), "--to", target, "--form", form]) == 0
        out, err = capfd.readouterr()
        expected = export(a_result(), target, form)
        assert out == expected.text
        assert [line for line in err.splitlines() if "stands for" not in line] == [
            f"autotune: note: {note}" for note in expected.notes
        ]


def test_the_first_form_is_the_default(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for target, (forms, _) in TARGETS.items():
        main(["export", str(saved), "--to", target])
        assert capfd.readouterr().out == export(a_result(), target, forms[0]).text


def test_a_command_line_names_the_models_file(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    main(["export", str(saved), "--to", "llama.cpp", "--model-path", "my models/a.gguf"])
    out, err = capfd.readouterr()
    assert shlex.split(out)[1:3] == ["--model", "my models/a.gguf"]
    assert err == ""
    main(["export", str(saved), "--to", "llama.cpp"])
    out, err = capfd.readouterr()
    assert shlex.split(out)[1:3] == ["--model", "MODEL.gguf"]
    assert err == "autotune: note: MODEL.gguf stands for the model's file: --model-path names it\n"


@pytest.mark.parametrize("split", [False, True])
def test_a_gguf_model_is_named_by_its_own_first_file(
    split: bool, saved: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"] if split else ["a.gguf"]
    for name in names:
        Path(name).write_bytes(b"GGUF" + bytes(100))
    monkeypatch.setenv("AUTOTUNE_CACHE", str(saved.parent / "cache"))
    result = a_result()
    fingerprint = replace(result.host.fingerprint, cheap=cheap())
    result = replace(
        result,
        host=replace(result.host, fingerprint=fingerprint),
        model=replace(result.model, source_digest=digest(resolve(names[-1]), None)),
    )
    cache.store(*cache.document(result, {}))
    assert main(["export", names[-1], "--to", "llama.cpp"]) == 0
    out, err = capfd.readouterr()
    assert shlex.split(out)[1:3] == ["--model", names[0]]
    assert "stands for" not in err


def test_a_file_is_written_whole_and_replaces_what_was_there(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("out.json").write_text("old, and longer than what is new" * 1000)
    assert main(["export", str(saved), "--to", "json", "-o", "out.json"]) == 0
    assert Path("out.json").read_text() == export(a_result(), "json").text
    assert capfd.readouterr() == ("", "wrote out.json\n")
    assert sorted(_files(saved.parent)) == ["out.json", "result.json"]


def test_a_link_stays_one(saved: Path) -> None:
    Path("link").symlink_to("out.json")
    assert main(["export", str(saved), "--to", "json", "-o", "link"]) == 0
    assert Path("link").is_symlink()
    assert Path("out.json").read_text() == export(a_result(), "json").text


BAD = {
    "an unknown form": (["--to", "env", "--form", "flags"], 2, "--form must be one of env for --to env, got 'flags'"),
    "a path nobody asked for": (["--to", "json", "--model-path", "a.gguf"], 2, "names no model"),
    "the result itself": (["--to", "json", "-o", "result.json"], 2, "would replace what it is made from"),
    "the model's file": (
        ["--to", "llama.cpp", "--model-path", "model.gguf", "-o", "model.gguf"],
        2,
        "would replace what it is made from",
    ),
    "a folder": (["--to", "json", "-o", "."], 8, "expected a file, or a new name"),
    "a device": (["--to", "json", "-o", "/dev/null"], 8, "expected a file, or a new name"),
    "a folder that isn't there": (
        ["--to", "json", "-o", "none/out.json"],
        8,
        "none/out.json: the export can't be written there: No such file or directory",
    ),
    "another workload": (["--to", "json", "--workload", "chat"], 2, "chat"),
    "a path that needs quotes": (
        ["--to", "llama.cpp", "--form", "env", "--model-path", "a b", "-o", "old"],
        12,
        "'a b'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_wishes_get_one_sentence_and_change_nothing(
    name: str, saved: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments, code, sentence = BAD[name]
    Path("model.gguf").write_bytes(b"GGUF")
    Path("old").write_text("old")
    before = _files(saved.parent)
    assert main(["export", str(saved), *arguments]) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert sentence in err
    assert err.count("\n") == 1
    assert _files(saved.parent) == before
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize(
    ("result", "target", "form"),
    [
        (I2_S, "llama.cpp", "flags"),
        (a_result(GPU, "cuda:0"), "bitnet.cpp", "run_inference"),
        (a_result(HYBRID, "cpu"), "bitnet-rs", "performance-toml"),
    ],
)
def test_what_can_not_be_expressed_is_exit_code_12_and_writes_nothing(
    result: Result, target: str, form: str, saved: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _save(result, saved)
    Path("old").write_text("old")
    before = _files(saved.parent)
    for output in ([], ["-o", "old"], ["-o", "new"]):
        assert main(["export", str(saved), "--to", target, "--form", form, *output]) == 12
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith("autotune: ")
        assert err.count("\n") == 1
    assert _files(saved.parent) == before


def test_an_unknown_target_names_those_there_are(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(saved), "--to", "vllm"])
    assert stopped.value.code == 2
    assert "llama.cpp" in capfd.readouterr().err


@pytest.mark.parametrize(("target", "form", "sentence"), [("vllm", None, "a target of"), ("env", "flags", "a form of")])
def test_callers_from_python_are_told_what_there_is(target: str, form: str | None, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"expected {sentence}"):
        export(a_result(), target, form)


def test_it_imports_nothing_heavy(saved: Path) -> None:
    """The command is to take less than 200 ms: numpy alone takes that long on a slow disk."""
    shop = Shop(saved.parent)
    script = (
        "import sys; from autotune.cli.run import main; main(sys.argv[1:]); "
        "print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "export", str(saved), "--to", "json"],
        env=shop.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["format"] == "bitnet-autotune-export"
    heavy = {"numpy", "torch", "optuna", "pandas", "gguf", "psutil", "rich", "archspec", "pynvml", "numba", "llvmlite"}
    assert not heavy & set(done.stderr.split())
