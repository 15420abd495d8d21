"""BitNet-rs: what real serde reads of an export, in a crate with the structs' names and plain derives."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from autotune.errors import ExportError
from autotune.export.targets import export
from autotune.records import DeviceConfig
from tests.export.cases import GPU, HYBRID, PLACEMENTS, TWO_GPUS, a_result

REGISTRY = Path("/usr/share/cargo/registry")
"""Where Debian's packages librust-serde-dev, -serde-derive-dev, -serde-json-dev and -toml-dev put the crates."""
CRATES = ("serde", "serde_derive", "serde_json", "toml")
PERFORMANCE = ("performance-toml", "performance-json", "performance-env")


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The crate in tests/export/rust, built outside the tree and without a network."""
    cargo = shutil.which("cargo")
    if cargo is None:
        pytest.skip("cargo is not installed")
    missing = [name for name in CRATES if not any(REGISTRY.glob(f"{name}-[0-9]*"))]
    if missing:
        pytest.skip(f"{REGISTRY} lacks the crates {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("rust") / "crate"
    shutil.copytree(Path(__file__).parent / "rust", folder)
    (folder / ".cargo").mkdir()
    (folder / ".cargo" / "config.toml").write_text(
        f'[source.crates-io]\nreplace-with = "debian"\n\n[source.debian]\ndirectory = "{REGISTRY}"\n'
    )
    environment = {**os.environ, "CARGO_TARGET_DIR": str(folder / "target"), "CARGO_PROFILE_DEV_DEBUG": "0"}
    built = subprocess.run(
        [cargo, "build", "--offline", "--quiet"], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    return folder / "target" / "debug" / "read-exports"


def _read(reader: Path, form: str, text: str) -> Any:
    done = subprocess.run([reader, form], input=text, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", PLACEMENTS)
def test_serde_reads_a_device_config_and_prints_the_same(reader: Path, name: str) -> None:
    text = export(a_result(*PLACEMENTS[name]), "bitnet-rs").text
    assert _read(reader, "device-config", text) == json.loads(text)


def test_serde_reads_each_strategy_and_what_is_unknown(reader: Path) -> None:
    def read(*placement: Any) -> Any:
        return _read(reader, "device-config", export(a_result(*placement), "bitnet-rs").text)

    assert read() == {
        "strategy": "CpuOnly",
        "cpu_threads": 6,
        "gpu_memory_fraction": None,
        "recommended_batch_size": 4,
    }
    assert read(GPU, "cuda:0")["strategy"] == "GpuOnly"
    assert read(HYBRID, "cuda:0")["strategy"] == {"Hybrid": {"cpu_layers": 5, "gpu_layers": 7}}
    assert read(HYBRID, "cuda:0")["gpu_memory_fraction"] == 0.25


@pytest.mark.parametrize("form", ["performance-toml", "performance-json"])
@pytest.mark.parametrize(("placement", "use_gpu"), [(("cpu",), False), (("gpu",), True)])
def test_serde_reads_a_performance_config(reader: Path, form: str, placement: tuple[str], use_gpu: bool) -> None:
    text = export(a_result(*PLACEMENTS[placement[0]]), "bitnet-rs", form).text
    assert _read(reader, form, text) == {
        "performance": {"num_threads": 6, "use_gpu": use_gpu, "batch_size": 4, "memory_limit": None}
    }


@pytest.mark.parametrize("form", ["performance-toml", "performance-json"])
def test_an_unknown_number_of_threads_is_left_to_bitnet_rs(reader: Path, form: str) -> None:
    result = a_result(device_config=DeviceConfig("CpuOnly", None, None, 2))
    read = _read(reader, form, export(result, "bitnet-rs", form).text)["performance"]
    assert (read["num_threads"], read["batch_size"]) == (None, 2)


def test_the_reader_refuses_what_has_another_shape(reader: Path) -> None:
    """Else the tests above could not fail."""
    for text in ('{"strategy":"Cpu","recommended_batch_size":4}', '{"strategy":"CpuOnly"}', "[]"):
        done = subprocess.run([reader, "device-config"], input=text, capture_output=True, text=True)
        assert done.returncode != 0


def test_the_variables_are_those_that_override_the_file() -> None:
    assert export(a_result(GPU, "cuda:0"), "bitnet-rs", "performance-env").text.splitlines() == [
        "BITNET_NUM_THREADS=6",
        "BITNET_USE_GPU=true",
        "BITNET_BATCH_SIZE=4",
    ]


@pytest.mark.parametrize("form", PERFORMANCE)
@pytest.mark.parametrize(
    ("device_layers", "head", "where"), [(HYBRID, "cuda:0", "head on a GPU"), (GPU, "cpu", "head on the CPU")]
)
def test_a_performance_config_can_not_split(device_layers: dict[str, int], head: str, where: str, form: str) -> None:
    with pytest.raises(ExportError, match=f"{where}: take --form device-config"):
        export(a_result(device_layers, head), "bitnet-rs", form)


def test_what_has_no_field_is_said() -> None:
    def notes(*placement: Any, form: str = "device-config", **changes: Any) -> str:
        return "\n".join(export(a_result(*placement, **changes), "bitnet-rs", form).notes)

    assert "prefill's 8 have no field" in notes()
    assert "prefill's" not in notes(prefill_threads=6)
    assert "chunk of 128 tokens" in notes(form="performance-toml")
    assert "shared among 2 GPUs" in notes(TWO_GPUS, "cuda:1")
    assert "head is on the GPU" in notes(HYBRID, "cuda:0")
    assert "head is on the CPU" in notes(HYBRID, "cpu")
    assert "head" not in notes(GPU, "cuda:0") + notes()
