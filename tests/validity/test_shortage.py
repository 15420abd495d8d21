"""Saved configurations against the memory of simulated hosts."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from msgspec.structs import replace

from autotune.host import gpu
from autotune.host.pseudofiles import Root
from autotune.model.sizes import readable_bytes
from autotune.records import Candidate, DeviceConfig, Hybrid, HybridSplit, Result
from autotune.store.entry import Entry, Key
from autotune.store.seal import BadEntry
from autotune.validity.shortage import decode, find_shortage
from tests.builders import build_candidate, build_gpu_result, build_result

GB = 10**9


def needing(candidate: Candidate, **gigabytes: float) -> Candidate:
    """The same, with a plan that needs so much on each device (``cuda0`` stands for ``cuda:0``)."""
    use = replace(candidate.predicted.memory[0], kv_cache_bytes=0, activations_bytes=0, overhead_bytes=0)
    memory = tuple(
        replace(use, device=device.replace("cuda", "cuda:"), weights_bytes=int(size * GB))
        for device, size in gigabytes.items()
    )
    return replace(candidate, predicted=replace(candidate.predicted, memory=memory))


def planned(result: Result, chosen: Candidate, *smaller: Candidate) -> Result:
    return replace(result, decision=replace(result.decision, chosen=chosen), smaller=smaller)


def entry_of(result: Result) -> Entry:
    key = Key(result.host.fingerprint.cheap, result.model.source_digest, result.workload.name)
    return Entry(key, "", b"", b"{}", b"{}", msgspec.json.encode(result))


def host_with(folder: Path, available_gb: float | None) -> Root:
    """A simulated host with so much memory to give."""
    (folder / "proc").mkdir()
    if available_gb is not None:
        (folder / "proc" / "meminfo").write_text(f"MemAvailable: {int(available_gb * GB / 1024)} kB\n")
    return Root(folder)


CHOSEN = needing(build_candidate(200.0, batch_size=8), cpu=9.0)
HALF = needing(build_candidate(150.0, batch_size=4), cpu=5.0)
QUARTER = needing(build_candidate(100.0, batch_size=2), cpu=3.0)
ON_CPU = planned(build_result(), CHOSEN, HALF, QUARTER)


@pytest.mark.parametrize("available_gb", [9.1, 20.0])
def test_a_plan_is_kept_as_long_as_it_fits_at_all(tmp_path: Path, available_gb: float) -> None:
    """It was made with a tenth to spare, which may be used up by now."""
    assert find_shortage(decode(entry_of(ON_CPU)), host_with(tmp_path, available_gb)) is None


@pytest.mark.parametrize(
    ("available_gb", "batch"),
    [(8.9, 4), (5.6, 4), (5.5, 2), (3.4, 2), (3.3, None), (0.0, None)],
)
def test_what_replaces_it_is_the_first_that_fits_with_a_tenth_to_spare(
    tmp_path: Path, available_gb: float, batch: int | None
) -> None:
    shortage = find_shortage(decode(entry_of(ON_CPU)), host_with(tmp_path, available_gb))
    assert shortage is not None
    assert shortage.lacking == f"9 GB on cpu ({readable_bytes(available_gb * GB)} usable now)"
    assert (shortage.config and shortage.config.recommended_batch_size) == batch
    assert (shortage.instead and shortage.instead.configuration.batch_size) == batch


def test_it_says_what_is_other_and_what_that_costs(tmp_path: Path) -> None:
    shortage = find_shortage(decode(entry_of(ON_CPU)), host_with(tmp_path, 6.0))
    assert shortage is not None
    assert shortage.change == "batch 4 instead of 8 (predicted: 150 tokens/s instead of 200)"


def test_limits_that_are_broken_by_what_is_left_are_told(tmp_path: Path) -> None:
    """Whoever relies on them should hear of it; of a limit that is kept, or none, there is nothing to say."""
    search = replace(ON_CPU.decision.search, effective_max_tpot_s=HALF.predicted.tpot_s / 2)
    workload = replace(ON_CPU.workload, max_ttft_s=HALF.predicted.ttft_s / 2)
    strict = replace(ON_CPU, decision=replace(ON_CPU.decision, search=search), workload=workload)
    shortage = find_shortage(decode(entry_of(strict)), host_with(tmp_path, 6.0))
    assert shortage is not None
    tpot_ms, ttft_ms = HALF.predicted.tpot_s * 1e3, HALF.predicted.ttft_s * 1e3
    assert shortage.change.endswith(
        f"instead of 200), a token taking {tpot_ms:.4g} ms, over the limit of {tpot_ms / 2:.4g} ms, "
        f"a first token taking {ttft_ms:.4g} ms, over the limit of {ttft_ms / 2:.4g} ms"
    )


def test_memory_that_can_not_be_read_is_no_reason_to_shrink(tmp_path: Path) -> None:
    assert find_shortage(decode(entry_of(ON_CPU)), host_with(tmp_path, None)) is None


@pytest.fixture
def gpu_memory(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What is free on a synthetic GPU, and how often NVML was asked."""
    asked = SimpleNamespace(free_bytes={"cuda:0": 8 * GB}, times=0)

    def free_now_bytes(environ: object, nvml: object) -> dict[str, int]:
        assert environ is os.environ
        asked.times += 1
        return asked.free_bytes

    monkeypatch.setattr(gpu, "free_now_bytes", free_now_bytes)
    return asked


def on_gpu(rate: float, cpu_layers: int, gpu_layers: int, **gigabytes: float) -> Candidate:
    candidate = needing(build_candidate(rate), **gigabytes)
    layers = {"cpu": cpu_layers, "cuda:0": gpu_layers}
    head = "cuda:0" if gpu_layers else "cpu"
    configuration = replace(
        candidate.configuration,
        device_layers={device: count for device, count in layers.items() if count},
        head_device=head,
    )
    return replace(candidate, configuration=configuration)


ON_GPU = planned(
    build_gpu_result(),
    on_gpu(400.0, 0, 2, cpu=1.0, cuda0=6.0),
    on_gpu(300.0, 1, 1, cpu=2.0, cuda0=3.0),
    on_gpu(200.0, 2, 0, cpu=3.0),
)


@pytest.mark.parametrize(
    ("free_gb", "config"),
    [
        (6.1, None),
        (5.9, DeviceConfig(Hybrid(HybridSplit(1, 1)), 2, 0.35, 4)),
        (3.0, DeviceConfig("CpuOnly", 2, None, 4)),
    ],
)
def test_layers_leave_a_gpu_that_something_else_has_filled(
    tmp_path: Path, gpu_memory: SimpleNamespace, free_gb: float, config: DeviceConfig | None
) -> None:
    """The share of its memory that is told to a loader is of what it has in all, 8 GiB."""
    gpu_memory.free_bytes = {"cuda:0": int(free_gb * GB)}
    shortage = find_shortage(decode(entry_of(ON_GPU)), host_with(tmp_path, 20.0))
    assert (shortage and shortage.config) == config
    if shortage is not None and shortage.config == DeviceConfig("CpuOnly", 2, None, 4):
        assert shortage.change.startswith(
            "0 layers on cuda:0 instead of 2, 2 layers on cpu instead of 0, head on cpu instead of cuda:0 (predicted"
        )


def test_both_devices_are_named_where_both_lack(tmp_path: Path, gpu_memory: SimpleNamespace) -> None:
    gpu_memory.free_bytes = {"cuda:0": GB}
    shortage = find_shortage(decode(entry_of(ON_GPU)), host_with(tmp_path, 0.5))
    assert shortage is not None
    assert shortage.lacking == "1 GB on cpu (500 MB usable now) and 6 GB on cuda:0 (1 GB usable now)"
    assert shortage.instead is None


def test_a_gpu_that_does_not_tell_is_no_reason_to_shrink(tmp_path: Path, gpu_memory: SimpleNamespace) -> None:
    gpu_memory.free_bytes = {}
    assert find_shortage(decode(entry_of(ON_GPU)), host_with(tmp_path, 20.0)) is None


def test_nvml_is_left_alone_where_no_gpu_is_used(tmp_path: Path, gpu_memory: SimpleNamespace) -> None:
    """Starting it takes longer than all of a look-up."""
    saved = decode(entry_of(planned(build_gpu_result(), CHOSEN, ON_GPU.smaller[0])))
    assert find_shortage(saved, host_with(tmp_path, 20.0)) is None
    assert gpu_memory.times == 0


def test_a_result_of_an_older_version_has_nothing_smaller(tmp_path: Path) -> None:
    shortage = find_shortage(decode(entry_of(replace(ON_CPU, smaller=()))), host_with(tmp_path, 1.0))
    assert shortage is not None
    assert (shortage.instead, shortage.config, shortage.change) == (None, None, "")


@pytest.mark.parametrize("content", [b"", b"{}", b'{"device_config":{}}', b"[1]", b'{"host":'])
def test_what_is_no_result_is_a_bad_entry(content: bytes) -> None:
    entry = entry_of(ON_CPU)
    entry.result_json = content
    with pytest.raises(BadEntry, match="holds a result that can't be read"):
        decode(entry)
