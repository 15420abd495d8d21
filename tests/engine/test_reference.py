"""The engine as the search uses it: real processes, in which a synthetic model tells what is asked of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest
from msgspec.structs import replace

from autotune.engine.interface import Engine
from autotune.engine.reference import ReferenceEngine
from autotune.engine.stages import Kernels
from autotune.errors import BenchmarkError
from autotune.host.detect import detect
from autotune.model.fusion import fused
from autotune.model.memory import model_bytes
from autotune.model.sites import on_gpu
from autotune.records import Core, Gpu, Gpus, PartRun, RunFailure, SiteKernels
from autotune.records.runs import part_of
from tests.builders import build_host, build_model
from tests.engine import standin
from tests.engine.engines import WORKLOAD, behaving, build_engine


@pytest.fixture
def noted(tmp_path, monkeypatch):
    """What the stand-in was asked for so far, as lines without those that tell of its start."""
    log = tmp_path / "log"
    monkeypatch.setenv("STANDIN_LOG", str(log))

    def read(*words):
        lines = log.read_text().splitlines() if log.exists() else []
        return [line for line in lines if line.startswith(words)]

    return read


def measure(engine, configuration, phase="decode", at_least=1, workload=WORKLOAD):
    return engine.measure(configuration, workload, phase, at_least=at_least, at_most_s=0.0)


def test_a_run_holds_its_raw_samples_and_where_their_time_went(noted):
    configuration = behaving(decode_threads=2)
    with build_engine() as engine:
        found = measure(engine, configuration, at_least=3)
    assert isinstance(found, PartRun)
    assert found.part == part_of(configuration, WORKLOAD, "decode")
    assert found.samples_s == (standin.STEP_S["decode"],) * 3
    assert len(noted("sample")) == 3
    assert found.device_s == {"cpu": (standin.STEP_S["decode"] * 0.875,) * 3}


def test_each_half_of_a_configuration_is_run_by_itself():
    with build_engine() as engine:
        found = measure(engine, behaving(), "prefill", at_least=2)
    assert found.part == part_of(behaving(), WORKLOAD, "prefill")
    assert found.samples_s == (standin.STEP_S["prefill"],) * 2


def test_weights_are_loaded_when_they_are_first_needed_and_again_only_where_they_move(noted):
    split = {"cpu": 1, "cuda:0": 1}
    with build_engine(torch_devices={"cuda:0": "cpu"}) as engine:
        assert noted("place") == []
        for phase in ("decode", "prefill", "decode"):
            measure(engine, behaving(), phase)
            measure(engine, behaving(decode_threads=2), phase)
        assert noted("place") == ["place cpu=2 cpu"]
        measure(engine, behaving(device_layers=split))
        measure(engine, behaving(device_layers=split, head_device="cuda:0"), "prefill")
        measure(engine, behaving())
    assert noted("place")[1:] == ["place cpu=1 cuda:0=1 cpu", "place cpu=1 cuda:0=1 cuda:0", "place cpu=2 cpu"]
    assert len(noted("capacity")) == 1


def test_what_was_prepared_is_not_made_again_and_warms_up_once(noted):
    with build_engine() as engine:
        assert engine.prepare(behaving(), WORKLOAD) is None
        assert engine.prepare(behaving(), WORKLOAD) is None
        assert noted("part", "warm up") == ["part decode 1"]
        measure(engine, behaving())
        measure(engine, behaving())
        assert engine.prepare(behaving(), WORKLOAD) is None
        measure(engine, behaving())
        assert noted("part", "warm up") == ["part decode 1", "warm up decode"]
        measure(engine, behaving(), "prefill")
        measure(engine, behaving())
    assert noted("part", "warm up")[2:] == ["part prefill 4", "warm up prefill", "part decode 1", "warm up decode"]


def test_caches_have_room_for_the_largest_context_so_far(noted):
    """For a larger one the process is started anew, as all caches are laid out for their number of slots."""
    with build_engine() as engine:
        for context_tokens in (512, 256, 1024, 512):
            found = measure(engine, behaving(), workload=replace(WORKLOAD, context_tokens=context_tokens))
            assert isinstance(found, PartRun)
    assert noted("capacity") == ["capacity 512", "capacity 1024"]


def test_the_process_tells_what_it_holds_of_each_device_that_it_has_used():
    with build_engine(torch_devices={"cuda:0": "cpu"}) as engine:
        assert engine.memory_used() == {}
        measure(engine, behaving())
        before = engine.memory_used()
        measure(engine, behaving("killed"))
        measure(engine, behaving(device_layers={"cuda:0": 2}))
        after = engine.memory_used()
    assert before.keys() == {"cpu"}
    assert 10e6 < before["cpu"] < 2e9, "an interpreter with numpy, and nothing else"
    assert after.keys() == {"cpu", "cuda:0"}
    assert after["cpu"] >= before["cpu"], "the peak of all its processes"


def test_layers_without_weights_of_their_own_are_told():
    with build_engine() as engine:
        assert engine.reused_layers == 0
        measure(engine, behaving())
        assert engine.reused_layers == standin.REUSED_LAYERS


def test_the_time_outside_the_kernels_is_told_as_a_share(noted):
    with build_engine() as engine:
        measure(engine, behaving())
        assert engine.overhead_share(behaving(), WORKLOAD) == standin.OVERHEAD
    assert noted("warm up") == ["warm up decode"]


def test_it_is_an_engine():
    engine: Engine = build_engine()
    assert engine.name == "reference engine"


# The process' surroundings


def test_threads_are_pinned_to_one_cpu_per_core_first(noted):
    cores = tuple(
        Core(cpus=cpus, package=0, numa_node=0, kind=None, max_frequency_hz=None) for cpus in ((0, 4), (1, 5), (2,))
    )
    host = build_host()
    host = replace(host, cpu=replace(host.cpu, cores=cores), limits=replace(host.limits, usable_threads=4))
    with build_engine(host) as engine:
        measure(engine, behaving())
    assert noted("cpus") == ["cpus 0 1 2 4"]


def build_gpu(index, uuid, unusable_reason=None):
    return Gpu(index, "Synthetic GPU", uuid, 1 << 30, 1 << 30, (9, 0), mig=False, unusable_reason=unusable_reason)


def test_the_process_sees_the_usable_gpus_alone_in_their_order(noted, monkeypatch):
    """And BLAS keeps to one thread, as the engine splits its work itself."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "whatever the parent sees")
    gpus = (build_gpu(0, None), build_gpu(1, "GPU-b", "too old"), build_gpu(2, "GPU-c"))
    with build_engine(build_host(gpus=Gpus(gpus, "580.1", None))) as engine:
        measure(engine, behaving())
    assert noted("environment", "gpus") == ["gpus cuda:0=cuda:0 cuda:1=cuda:1", "environment 0,GPU-c 1"]


def test_without_a_gpu_the_process_sees_what_its_parent_does(noted, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-x")
    with build_engine() as engine:
        measure(engine, behaving())
    assert noted("environment", "gpus") == ["gpus", "environment GPU-x 1"]


# Start and end


def test_nothing_is_left_when_the_block_is(noted):
    with build_engine() as engine:
        measure(engine, behaving())
        (process,) = psutil.Process().children()
    assert not process.is_running()
    assert noted("close"), "it ended by itself"


def test_an_engine_that_is_not_used_ends_by_itself():
    with build_engine():
        (process,) = psutil.Process().children()
    assert not process.is_running()


def test_after_an_error_the_process_is_ended_without_waiting_for_it():
    engine = build_engine().__enter__()
    (process,) = psutil.Process().children()
    process.send_signal(signal.SIGSTOP)
    engine.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert not process.is_running()


def test_a_process_that_cannot_be_started_is_an_error(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with (
        pytest.raises(BenchmarkError, match="could not start the engine's process /no/such/python: No such file"),
        build_engine(),
    ):
        pass


def test_a_process_that_dies_before_it_is_ready_is_an_error():
    with (
        pytest.raises(BenchmarkError, match=r"could not start the engine: .*exited with status 1: .*'no_such_module'"),
        build_engine(modules=("no_such_module",)),
    ):
        pass
    assert not psutil.Process().children()


def test_a_process_whose_parent_has_nothing_to_say_ends_cleanly():
    command = [sys.executable, "-m", "autotune.engine.worker"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path)}
    done = subprocess.run(command, env=environment, input=b"", capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_where_no_other_process_can_be_started_that_is_a_failure(monkeypatch):
    with build_engine() as engine:
        measure(engine, behaving("exiting"))
        monkeypatch.setattr(sys, "executable", os.devnull)
        found = measure(engine, behaving())
    assert isinstance(found, RunFailure)
    assert (found.kind, found.message) == (
        "crashed",
        f"could not start the engine's process {os.devnull}: Permission denied",
    )


def test_after_five_processes_in_a_row_that_failed_no_other_is_started(noted):
    with build_engine() as engine:
        for _ in range(3):
            measure(engine, behaving("exiting"))
        measure(engine, behaving())
        kinds = [measure(engine, behaving("raising")).message for _ in range(5)]
        assert set(kinds) == {"RuntimeError: out of luck"}
        found = measure(engine, behaving())
        assert not psutil.Process().children()
    assert isinstance(found, RunFailure)
    assert found.kind == "crashed"
    assert found.message == (
        "the engine's process failed 5 times in a row, the last time with: RuntimeError: out of luck; "
        "it is not started again"
    )


# The real model, tiny

REAL = build_model()


def build_real_engine(backends, torch_devices=None):
    """An engine of this host with the real model in its process."""

    def kernels_for(configuration):
        devices = {"cpu": REAL, **dict.fromkeys(backends.keys() - {"cpu"}, on_gpu(REAL))}
        sites = {
            (device, site): SiteKernels(site.format, site.n_out, site.k_in, {"1": kernel}, {"1": kernel}, device)
            for device, kernel in backends.items()
            for layer in devices[device].layers
            for site in (*layer.sites, *fused(layer), devices[device].head)
        }
        return Kernels(tuple(sites.values()), backends)

    return ReferenceEngine(REAL, detect(), kernels_for, torch_devices=torch_devices)


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_a_real_model_is_run_as_configured(phase):
    with build_real_engine({"cpu": "numpy"}) as engine:
        found = measure(engine, behaving(prefill_chunk=48), phase, at_least=2)
        used = engine.memory_used()
        share = engine.overhead_share(behaving(), WORKLOAD)
    assert isinstance(found, PartRun), found
    assert len(found.samples_s) == len(found.device_s["cpu"]) >= 2
    for total_s, cpu_s in zip(found.samples_s, found.device_s["cpu"], strict=True):
        assert 0 < cpu_s <= total_s
    assert used["cpu"] > model_bytes(REAL)
    assert engine.reused_layers == 0
    assert 0 < share < 1


def test_a_kernel_that_a_real_model_has_not_is_unsupported_and_the_next_configuration_runs():
    with build_real_engine({"cpu": "numpy"}) as engine:
        beyond = engine.measure(behaving(), replace(WORKLOAD, prompt_tokens=600), "prefill", at_least=1, at_most_s=0.0)
        assert isinstance(beyond, RunFailure)
        assert beyond.kind == "unsupported"
        assert isinstance(measure(engine, behaving()), PartRun)


def test_a_real_model_is_split_between_devices():
    pytest.importorskip("torch")
    with build_real_engine({"cpu": "numpy", "cuda:0": "torch"}, {"cuda:0": "cpu"}) as engine:
        found = measure(engine, behaving(device_layers={"cpu": 1, "cuda:0": 1}, head_device="cuda:0"))
        used = engine.memory_used()
    assert isinstance(found, PartRun), found
    assert found.device_s.keys() == used.keys() == {"cpu", "cuda:0"}
    assert sum(device_s[0] for device_s in found.device_s.values()) <= found.samples_s[0]
