"""Environment files are read alike by a shell and by Docker's parser; the JSON document has what it says."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from msgspec.structs import replace

from autotune.errors import ExportError
from autotune.export.shell import environment_file
from autotune.export.targets import export
from autotune.host.hardware_class import hardware_class
from autotune.records import Result
from tests.builders import build_confirmed_result
from tests.export.cases import PLACEMENTS, TWO_GPUS, a_result

WITH_VARIABLES = [
    ("env", "env", "two gpus, head on the cpu"),
    ("env", "env", "cpu"),
    ("llama.cpp", "env", "two gpus, head on the cpu"),
    ("llama.cpp", "env", "cpu"),
    ("bitnet-rs", "performance-env", "gpu"),
]


def _as_docker_reads(text: str) -> dict[str, str]:
    """Each line up to the first ``=`` is a name, and all behind it the value, quotes included.

    Source: docs.docker.com, ``docker container run --env-file``.
    """
    assert text.endswith("\n")
    return dict(line.split("=", 1) for line in text.splitlines())


@pytest.mark.parametrize(("target", "form", "name"), WITH_VARIABLES)
def test_a_shell_and_docker_read_the_same(target: str, form: str, name: str, tmp_path: Path) -> None:
    text = export(a_result(*PLACEMENTS[name]), target, form).text
    (tmp_path / "file.env").write_text(text)
    done = subprocess.run(
        ["sh", "-c", "set -a; . ./file.env; env"], cwd=tmp_path, env={}, capture_output=True, text=True, check=True
    )
    in_shell = dict(line.split("=", 1) for line in done.stdout.splitlines())
    expected = _as_docker_reads(text)
    assert {name: in_shell[name] for name in expected} == expected
    assert done.stderr == ""


def test_the_whole_configuration_is_in_the_environment() -> None:
    assert _as_docker_reads(export(a_result(TWO_GPUS, "cpu"), "env").text) == {
        "AUTOTUNE_STRATEGY": "Hybrid",
        "AUTOTUNE_CPU_LAYERS": "2",
        "AUTOTUNE_GPU_LAYERS": "10",
        "AUTOTUNE_DEVICE_LAYERS": "cpu=2,cuda:0=3,cuda:1=7",
        "AUTOTUNE_HEAD_DEVICE": "cpu",
        "AUTOTUNE_DECODE_THREADS": "6",
        "AUTOTUNE_PREFILL_THREADS": "8",
        "AUTOTUNE_BATCH_SIZE": "4",
        "AUTOTUNE_PREFILL_CHUNK": "128",
        "AUTOTUNE_CONTEXT_TOKENS": "512",
        "OMP_NUM_THREADS": "6",
        "AUTOTUNE_GPU_MEMORY_FRACTION": "0.25",
    }


def test_what_is_unknown_is_left_out_of_the_environment() -> None:
    assert "AUTOTUNE_GPU_MEMORY_FRACTION" not in _as_docker_reads(export(a_result(), "env").text)


@pytest.mark.parametrize("value", ["a b", "a'b", 'a"b', "a\\b", "$a", "`a`", "a;b", "a\nb", "a#b", "~", "a*"])
def test_a_value_that_a_shell_would_change_is_an_error(value: str) -> None:
    with pytest.raises(ExportError, match="can't hold NAME="):
        environment_file({"OTHER": "1", "NAME": value})


def _document(result: Result) -> dict[str, object]:
    found = json.loads(export(result, "json").text)
    assert isinstance(found, dict)
    return found


def test_the_document_has_the_configuration_its_figures_and_its_memory() -> None:
    document = _document(a_result(TWO_GPUS, "cuda:1"))
    assert (document["format"], document["version"]) == ("bitnet-autotune-export", 1)
    assert document["host"] == {
        "label": "synthetic-host",
        "hardware_class": hardware_class(a_result(TWO_GPUS, "cuda:1").host),
    }
    assert document["device_config"] == {
        "strategy": {"Hybrid": {"cpu_layers": 2, "gpu_layers": 10}},
        "cpu_threads": 6,
        "gpu_memory_fraction": 0.25,
        "recommended_batch_size": 4,
    }
    assert document["configuration"] == {
        "device_layers": TWO_GPUS,
        "head_device": "cuda:1",
        "decode_threads": 6,
        "prefill_threads": 8,
        "batch_size": 4,
        "prefill_chunk": 128,
    }
    assert document["predicted"] == {"tokens_per_s": 200.0, "tpot_s": 0.02, "ttft_s": 0.25}
    memory = document["memory"]
    assert isinstance(memory, list)
    assert [use["device"] for use in memory] == ["cpu", "cuda:0", "cuda:1"]
    parts = ("weights_bytes", "kv_cache_bytes", "activations_bytes", "overhead_bytes")
    assert all(use["total_bytes"] == sum(use[part] for part in parts) for use in memory)


def test_the_document_has_measured_figures_only_of_what_was_run() -> None:
    confirmed = build_confirmed_result()
    measured = _document(confirmed)["measured"]
    assert isinstance(measured, dict)
    assert measured["tokens_per_s"] == 190.0
    assert _document(a_result())["measured"] is None
    other = replace(confirmed, workload=replace(confirmed.workload, prompt_tokens=7))
    assert _document(other)["measured"] is None
