"""``python -m ternary_kernels.bench`` as a user runs it."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from ternary_kernels.bench.__main__ import main
from ternary_kernels.bench.ggml import PACKAGE
from ternary_kernels.bench.report import Report

KERNELS = Path(__file__).parents[3] / "kernels"
TINY = ("--shape", "64x256", "--m", "1", "2", "--threads", "1", "--seconds", "0.3", "--arena-mib", "8")
WITHOUT_PEER = """
import runpy, sys
sys.modules["libggml"] = None
runpy.run_module("ternary_kernels.bench", run_name="__main__", alter_sys=True)
"""
needs_peer = pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason="libggml-python is not installed")


def start(*arguments, command=("-m", "ternary_kernels.bench")):
    return subprocess.Popen(
        [sys.executable, *command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(KERNELS), "COLUMNS": "80"},
    )


def run(*arguments, **options):
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_without_the_peer_it_says_so_and_times_ours(tmp_path):
    target = tmp_path / "bench.json"
    code, out, err = run(*TINY, "--format", "I2_S", "--json", str(target), command=("-c", WITHOUT_PEER))
    assert code == 0, err
    assert "note: ggml is not installed: pip install libggml-python to time it too" in out
    assert out.splitlines()[-1] == f"samples were written to {target}"
    assert "64 x 256" in out
    assert "Traceback" not in err
    report = msgspec.json.decode(target.read_bytes(), type=Report)
    assert report.peer is None
    assert {row.timing.case.format for row in report.rows} == {"I2_S"}
    assert {row.figures.times_peer for row in report.rows} == {None}


@needs_peer
def test_with_the_peer_every_case_is_compared_with_it(tmp_path):
    target = tmp_path / "bench.json"
    code, out, err = run(*TINY, "--format", "I2_S", "TQ2_0", "--kernel", "numpy", "--json", str(target))
    assert code == 0, err
    report = msgspec.json.decode(target.read_bytes(), type=Report)
    assert report.peer is not None
    assert f"peer: ggml {report.peer.version}" in out
    cases = {(row.timing.case.kernel, row.timing.case.format) for row in report.rows}
    assert cases == {("numpy", "I2_S"), ("numpy", "TQ2_0"), ("ggml", "TQ2_0")}
    assert len(report.rows) == 3 * 2 * 2
    for row in report.rows:
        assert row.figures.times_peer is not None
        assert (row.figures.times_peer == 1.0) == (row.timing.case.kernel == "ggml")


@needs_peer
@pytest.mark.parametrize(("flags", "noted"), [(("sve", "avx512f"), True), ((), False)])
def test_a_peer_that_does_without_what_the_cpu_has_is_noted(capsys, monkeypatch, flags, noted):
    monkeypatch.setattr("ternary_kernels.bench.__main__.this_machine", lambda: ("x86_64", frozenset(flags)))
    monkeypatch.setattr("ternary_kernels.bench.ggml.Ggml._has", lambda library, feature: feature == "avx2")
    assert main([*TINY, "--format", "I2_S"]) == 0
    note = "note: ggml: this build does without avx512, sve, which this CPU has; --ggml takes another build"
    assert (note in capsys.readouterr().out) == noted


def test_the_document_holds_raw_samples_machine_versions_and_ceilings(tmp_path):
    target = tmp_path / "bench.json"
    assert run(*TINY, "--format", "I2_S", "--no-peer", "--seed", "3", "--json", str(target))[0] == 0
    document = json.loads(target.read_text())
    assert document["machine"]["cpu"]
    assert {"python", "numpy"} <= set(document["versions"])
    assert (document["seed"], document["seconds"], document["arena_bytes"]) == (3, 0.3, 8 << 20)
    assert {ceiling["what"] for ceiling in document["ceilings"]} == {"read", "peak"}
    for row in document["rows"]:
        timing, figures = row["timing"], row["figures"]
        assert min(timing["samples_s"]) <= figures["median_s"] <= max(timing["samples_s"])
        assert figures["weight_bytes_per_s"] == pytest.approx(timing["weight_bytes"] / figures["median_s"])
    assert {row["timing"]["case"]["cold"] for row in document["rows"]} == {True, False}


def test_a_model_has_its_layers_and_its_head_timed(capsys):
    asked = ["--model", "BITNET_B1_58-large", "--m", "1", "--threads", "1", "--seconds", "2", "--memory", "cold"]
    assert main([*asked, "--kernel", "numpy", "--format", "I2_S", "F16", "--no-peer", "--arena-mib", "192"]) == 0
    out = capsys.readouterr().out
    assert "q/k/v/o 1536 x 1536" in out
    assert "head (a slice) x 1536" in out
    assert "warm ms" not in out
    assert out.splitlines()[-1] == "samples were not written: name a file with --json"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--m", "0"], "argument --m: expected a number of at least 1, got '0'"),
        (["--m", "5000"], "argument --m: expected at most 4096 tokens, got '5000'"),
        (["--m"], "argument --m: expected at least one argument"),
        (["--shape", "12"], "argument --shape: expected rows x columns like 6912x2560, got '12'"),
        (["--shape", "64x100", "--format", "I2_S"], "I2_S needs k_in to be a multiple of 128, got 100"),
        (["--model", "GPT"], "argument --model: expected one of bitnet-b1.58-2B-4T, "),
        (["--format", "Q9"], "--format: unknown weight format 'Q9'"),
        (["--kernel", "abacus"], "--kernel: expected one of "),
        (["--threads", "100000"], "argument --threads: expected at most "),
        (["--seconds", "soon"], "argument --seconds: expected seconds above 0 and at most a day, got 'soon'"),
        (["--seconds", "nan"], "argument --seconds: expected seconds above 0"),
        (["--memory", "hot"], "argument --memory: invalid choice: 'hot'"),
        (["--json", "/"], "argument --json: expected a file in a folder that can be written, got '/'"),
        (["--json", "/no/such/folder/x"], "argument --json: expected a file in a folder"),
        (["--ggml", "/no/such/folder"], "argument --ggml: ggml: expected libggml-cpu*.so in /no/such/folder"),
        (["--ggml", "/", "--no-peer"], "argument --ggml: expected no --no-peer beside it"),
        (["--arena-mib", "1", "--shape", "4096x4096"], "expected memory for the largest matrix twice, "),
        (["--arena-mib", "9999999"], "--arena-mib: expected at most "),
        (["--frobnicate"], "unrecognized arguments: --frobnicate"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(capsys, arguments, sentence):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    captured = capsys.readouterr()
    assert end.value.code == 2
    assert captured.out == ""
    assert captured.err.startswith("python -m ternary_kernels.bench: ")
    assert sentence in captured.err
    assert captured.err.count("\n") == 1


def test_help_names_every_model(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    assert "Falcon3-10B-Base-1.58bit" in capsys.readouterr().out


def test_too_little_memory_is_said_in_one_sentence(capsys, monkeypatch):
    def run_out(*arguments):
        raise MemoryError("unable to allocate 9 GiB")

    monkeypatch.setattr("ternary_kernels.bench.__main__.Arena", run_out)
    with pytest.raises(SystemExit) as end:
        main([*TINY, "--no-peer"])
    assert end.value.code == 2
    assert capsys.readouterr().err.endswith("not enough memory: unable to allocate 9 GiB\n")


def test_interrupted_it_ends_without_a_traceback():
    process = start(*TINY, "--no-peer", "--seconds", "60")
    assert "cases" in process.stderr.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "interrupted: nothing was written\n")
