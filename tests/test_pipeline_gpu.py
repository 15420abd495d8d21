"""The whole way with GPUs: real worker processes and kernels, with torch's CPU device in the GPUs' place.

Its times say nothing about a GPU; that all stages go on from each other's values does not depend on them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from autotune import evidence, pipeline
from autotune.bench import campaign, gpu_plan
from autotune.explanation import explain
from autotune.host import detect
from autotune.host.kernels import find_kernels
from autotune.options import Options
from autotune.recorded import replay
from autotune.records import Campaign, Gpu, Gpus, Kernel, Result
from autotune.store import paths, recording
from autotune.summary import summarize
from tests.cli.shop import SMALL

pytest.importorskip("torch")

GPUS = tuple(
    Gpu(index, "Synthetic GPU", f"GPU-{index}", 1 << 30, 1 << 30, (9, 0), mig=False, unusable_reason=None)
    for index in range(2)
)
BUDGET_S = 40.0
"""Far more than is needed: what counts is that nothing is left out."""

DEVICES = ("cpu", "cuda:0", "cuda:1")


really_detect = detect.detect


def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two identical GPUs that torch's CPU device stands for; a product that takes a GPU a moment takes that minutes."""
    own = really_detect()
    host = replace(own, gpus=Gpus(GPUS, "999.0", None))
    on_gpu = tuple(Kernel("torch", name, "sm_90", None, "gpu") for name in ("I2_S", "I2_S_ARM", "F16"))
    monkeypatch.setattr(pipeline, "detect", lambda: host)
    monkeypatch.setattr(detect, "detect", lambda: host)
    for module in (pipeline, evidence):
        monkeypatch.setattr(module, "find_kernels", lambda _: (*find_kernels(own), *on_gpu))
    monkeypatch.setattr(campaign, "run", partial(campaign.run, torch_device="cpu"))
    monkeypatch.setattr(gpu_plan, "PEAK_SIZE", (32, 64, 64))


@pytest.fixture(scope="module")
def tuned(compiled: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Result]]:
    """The small model, tuned from cold and saved."""
    folder = tmp_path_factory.mktemp("tuned")
    path = folder / "small.json"
    path.write_text(json.dumps(SMALL))
    with pytest.MonkeyPatch.context() as patch:
        pretend(patch)
        patch.setenv("AUTOTUNE_CACHE", str(folder / "cache"))
        patch.setattr(paths, "SYSTEM_LAYER", str(folder / "system"))
        # All points, so that what other wishes need doesn't depend on how this host did.
        patch.setattr(pipeline, "gather", partial(evidence.gather, whole=True))
        limits = {"prompt": 8, "output": 8, "context": 16, "max_batch": 2}
        yield path, pipeline.tune(path, Options(**limits, confirm=False), budget_s=BUDGET_S)


def test_identical_gpus_are_timed_once_and_counted_as_two(tuned: tuple[Path, Result]) -> None:
    _, result = tuned
    (run,) = result.campaign.gpus
    assert (run.devices, run.failure) == (("cuda:0", "cuda:1"), None)
    assert {found.point.device for found in result.campaign.measurements()} == {"cpu", "cuda:0"}
    assert [report.device for report in (result.cost_model, *result.gpu_cost_models)] == ["cpu", "cuda:0"]


def test_the_decision_is_over_all_devices_and_its_curve_covers_every_split(tuned: tuple[Path, Result]) -> None:
    """Two layers give three placements on two GPUs for each number on them, each with the head at two places."""
    _, result = tuned
    layers = len(result.model.layers)
    assert [point.gpu_layers for point in result.decision.split_curve] == list(range(layers + 1))
    chosen = result.decision.chosen
    assert sum(chosen.configuration.device_layers.values()) == layers
    assert set(chosen.configuration.device_layers) <= set(DEVICES)
    assert all(use.total_bytes <= use.available_bytes for use in chosen.predicted.memory)
    best = max(point.tokens_per_s or 0.0 for point in result.decision.split_curve)
    assert chosen.predicted.tokens_per_s == pytest.approx(best, rel=0.05)


def test_the_summary_and_the_explanation_tell_of_the_gpus(tuned: tuple[Path, Result]) -> None:
    _, result = tuned
    summary = dict(summarize(result, None))
    assert "the same for cuda:1" in summary["cuda:0"]
    assert "interior m" in summary["  on cuda:0"]
    assert len([value for label, value in explain(result) if label == "split"]) == 1 + len(result.decision.split_curve)


def test_other_limits_are_decided_from_what_is_saved(
    tuned: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By retune, and by tune where all points are there: nothing is timed again."""
    path, result = tuned
    monkeypatch.setattr(campaign, "run", None)
    smaller = Options(prompt=8, output=8, context=16, max_batch=1, confirm=False)
    for again in (pipeline.retune(path, smaller), pipeline.tune(path, smaller, budget_s=BUDGET_S)):
        assert again.campaign == result.campaign
        assert again.decision.chosen.configuration.batch_size == 1
        assert len(again.decision.split_curve) == len(result.decision.split_curve)


def test_a_recording_decides_as_the_host_did(tuned: tuple[Path, Result], tmp_path: Path) -> None:
    """From a file, without the host: the same evidence gives the same decision."""
    path, result = tuned
    recorded = recording.Recording(
        recorded_at=result.created_at, synthetic=False, note="a test", host=result.host, campaigns=(result.campaign,)
    )
    recording.write(tmp_path / "host.json", recorded)
    limits = Options(prompt=8, output=8, context=16, max_batch=2)
    replayed = replay(recording.read(tmp_path / "host.json"), path, limits)
    assert replayed.decision.chosen == result.decision.chosen
    assert replayed.decision.split_curve == result.decision.split_curve
    assert replayed.device_config == result.device_config


def test_the_tier_is_measured_on_gpus_as_well(compiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With their ceilings alone."""
    pretend(monkeypatch)
    benchmark, tried = campaign.run, []

    def run(*arguments: Any, **options: Any) -> Campaign:
        found = benchmark(*arguments, **options)
        tried.extend(f"{measured.point.device} {measured.point.op}" for measured in found.measurements())
        return found

    monkeypatch.setattr(campaign, "run", run)
    assert pipeline.measure_tier(pipeline.detect()).name in ("Low", "Medium", "High", "Extreme")
    assert {"cpu read", "cpu peak", "cuda:0 read", "cuda:0 peak"} <= set(tried)


def test_a_gpu_without_torch_leaves_the_cpu_and_one_line(
    compiled: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason is the registry's own, which says how to get it."""
    own = find_kernels(really_detect())
    pretend(monkeypatch)
    path = tmp_path / "small.json"
    path.write_text(json.dumps(SMALL))
    missing = "torch isn't installed (the extra gpu): pip install torch"
    found = (*own, Kernel("torch", "I2_S", None, missing, "gpu"))
    monkeypatch.setattr(evidence, "find_kernels", lambda _: (*found, replace(found[-1], format="F16")))
    result = pipeline.measure(path, Options(confirm=False), budget_s=3.0)
    assert result.device_config.strategy == "CpuOnly"
    assert [line for line in result.warnings if "torch" in line] == [f"no layer is put on cuda:0 and cuda:1: {missing}"]
