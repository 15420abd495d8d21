"""What the engine's process says while it works: how long things may take, and what became of errors."""

from __future__ import annotations

import gc

import msgspec
import pytest
from msgspec.structs import replace

from autotune.engine import gauge as gauge_module
from autotune.engine.gauge import MemoryGauge, peak_resident_bytes
from autotune.engine.messages import (
    Measure,
    Overhead,
    Patience,
    Prepare,
    Prepared,
    TellOverhead,
    Usage,
    Working,
    request_decoder,
)
from autotune.engine.stages import Kernels
from autotune.engine.worker import Worker
from autotune.model.work import decode_work, prefill_work
from autotune.records import Part, PartRun, RunFailure, SiteKernels
from tests.builders import build_model
from tests.engine import standin

MODEL = build_model()
FINE = Kernels((SiteKernels("I2_S", 256, 256, {"1": "numpy"}, {}),), {"cpu": "fine"})
DECODE = Part("decode", (("cpu", 2),), "cpu", threads=2, size=4, context=160)
PREFILL = Part("prefill", (("cpu", 2),), "cpu", threads=2, size=32, context=128)


@pytest.fixture
def ask():
    """Sends requests to one worker; returns what it said, the answer last."""
    events = []
    gpus = {"cuda:0": "cpu"}

    def build(capacity):
        return standin.Transformer(MODEL, None, capacity=capacity, cpus=(), gpus=gpus, room_bytes=0, cache_bytes=0)

    worker = Worker(
        MODEL,
        Patience(factor=1.0, floor_s=0.0, compile_s=1000.0, gpu_s=2000.0),
        build,
        MemoryGauge(gpus, {}),
        events.append,
    )

    def send(request):
        events.clear()
        worker.answer(request)
        return list(events)

    return send


def measure(part, kernels=FINE, at_least=1):
    return Measure(part, kernels, 512, at_least, 0.0)


def allowed_s(events, what):
    """How long the first thing of that kind was to take, without the grace that compiling has."""
    found = [event.allowed_s for event in events if isinstance(event, Working) and event.what == what]
    return pytest.approx(found[0] % 1000)


@pytest.mark.parametrize(
    "request_", [Prepare(DECODE, FINE, 512), measure(PREFILL, at_least=3), TellOverhead(DECODE, FINE, 512)]
)
def test_requests_and_what_they_hold_survive_the_way_to_the_process(request_):
    assert request_decoder.decode(msgspec.json.encode(request_)) == request_


def test_each_thing_is_announced_and_the_memory_told_before_the_answer(ask):
    *announced, usage, answer = ask(measure(DECODE))
    assert [event.what for event in announced] == ["loading weights", "preparing kernels", "warming up", "running"]
    assert isinstance(usage, Usage)
    assert isinstance(answer, PartRun)
    assert [type(event) for event in ask(Prepare(DECODE, FINE, 512))] == [Usage, Prepared]


def test_a_prompt_on_the_cpu_is_warmed_up_again_only_where_its_weights_or_kernels_are_others(ask):
    """A prompt in one piece takes as long to warm up as to sample, and finalists are sampled in turns."""

    def warmed_up(part, kernels=FINE):
        return "warming up" in [event.what for event in ask(measure(part, kernels)) if isinstance(event, Working)]

    split = {part: replace(part, device_layers=(("cpu", 1), ("cuda:0", 1))) for part in (DECODE, PREFILL)}
    others = Kernels((), {"cpu": "fine"})
    assert [warmed_up(part) for part in (DECODE, PREFILL, DECODE, PREFILL)] == [True, True, True, False]
    assert [warmed_up(PREFILL, kernels) for kernels in (others, others, FINE)] == [True, False, True]
    assert [warmed_up(split[part]) for part in (DECODE, DECODE, PREFILL, DECODE)] == [True, False, True, True]
    assert warmed_up(DECODE)


def test_what_may_compile_is_given_the_time_for_it_and_more_on_a_gpu(ask):
    def grace_s(part):
        return {event.what: event.allowed_s // 1000 for event in ask(measure(part)) if isinstance(event, Working)}

    assert grace_s(DECODE) == {"loading weights": 0, "preparing kernels": 1, "warming up": 1, "running": 0}
    on_gpu = replace(DECODE, device_layers=(("cuda:0", 2),))
    assert grace_s(on_gpu) == {"loading weights": 2, "preparing kernels": 2, "warming up": 2, "running": 0}


def test_timing_each_kernel_may_take_as_long_as_its_steps(ask):
    ask(measure(DECODE))
    events = ask(TellOverhead(DECODE, FINE, 512))
    assert events[-1] == Overhead(standin.OVERHEAD)
    assert allowed_s(events, "timing each kernel") == 10 * standin.STEP_S["decode"]


def test_before_anything_was_run_a_step_is_expected_to_take_as_long_as_on_the_slowest_host(ask):
    assert allowed_s(ask(measure(DECODE)), "warming up") == decode_work(MODEL, 4, 160).operations / 2e9


def test_then_a_step_is_expected_to_take_what_others_in_the_same_places_took_for_their_work(ask):
    """More rows take as many times longer at most, and so do fewer threads; less work is expected to take as long."""
    ask(measure(DECODE))
    step_s = standin.STEP_S["decode"]
    one, prompt = decode_work(MODEL, 4, 160).operations, prefill_work(MODEL, 128).operations
    assert allowed_s(ask(measure(PREFILL)), "warming up") == step_s * prompt / one
    assert allowed_s(ask(measure(replace(DECODE, size=1))), "warming up") == step_s
    assert allowed_s(ask(measure(replace(DECODE, threads=1))), "warming up") == 2 * step_s
    elsewhere = replace(DECODE, device_layers=(("cpu", 1), ("cuda:0", 1)))
    assert allowed_s(ask(measure(elsewhere)), "warming up") == one / 2e9


def test_a_prompt_in_smaller_pieces_may_take_as_many_times_longer(ask):
    """A pass of few rows may take as long as one of many: both read all weights."""
    ask(measure(PREFILL))
    prefill_s = standin.STEP_S["prefill"]
    assert allowed_s(ask(measure(replace(PREFILL, size=4))), "warming up") == 8 * prefill_s
    assert allowed_s(ask(measure(replace(PREFILL, size=64))), "warming up") == prefill_s


def test_samples_of_earlier_requests_tell_what_to_expect_now(ask):
    first = allowed_s(ask(measure(DECODE)), "running")
    assert first == 0.5, "a block"
    prefill_s = standin.STEP_S["prefill"]
    ask(measure(PREFILL))
    assert allowed_s(ask(measure(PREFILL)), "running") == prefill_s


def test_garbage_is_not_collected_while_a_part_runs_and_again_afterwards(ask, monkeypatch):
    seen = []
    sample = standin.Running.sample
    monkeypatch.setattr(standin.Running, "sample", lambda running: (seen.append(gc.isenabled()), sample(running))[1])
    ask(measure(DECODE))
    assert seen == [False]
    assert gc.isenabled()
    found = ask(measure(DECODE, Kernels((), {"cpu": "late-raising"})))[-1]
    assert isinstance(found, RunFailure)
    assert gc.isenabled()


def test_after_weights_could_not_be_moved_they_are_placed_anew(ask, monkeypatch):
    assert isinstance(ask(Prepare(replace(DECODE, device_layers=(("misplaced", 2),)), FINE, 512))[-1], RunFailure)
    assert [event.what for event in ask(Prepare(DECODE, FINE, 512))[:2]] == ["loading weights", "preparing kernels"]


def test_what_torch_says_of_memory_is_told_as_such(ask):
    found = ask(measure(DECODE, Kernels((), {"cpu": "late-exhausting a GPU"})))[-1]
    assert (found.kind, found.message) == (
        "out_of_memory",
        "RuntimeError: CUDA out of memory. Tried to allocate 7 GiB.",
    )


def test_an_error_without_words_is_a_failure_all_the_same(ask, monkeypatch):
    monkeypatch.setitem(standin.FAULTS, "speechless", standin.raising(RuntimeError()))
    found = ask(measure(DECODE, Kernels((), {"cpu": "speechless"})))[-1]
    assert (found.kind, found.message) == ("crashed", "RuntimeError:")


# Memory


def test_the_peak_of_this_process_is_at_least_what_it_holds(monkeypatch, tmp_path):
    block = bytearray(b"x" * (64 << 20))
    peak = peak_resident_bytes()
    assert peak > len(block)
    del block
    assert peak_resident_bytes() >= peak, "it is a peak"
    monkeypatch.setattr(gauge_module, "_STATUS", tmp_path / "missing")
    assert peak_resident_bytes() > 0, "where there is no such file, what it holds now"


class Monitor:
    """NVML's view of a synthetic GPU."""

    def __init__(self, free_bytes):
        self._free_bytes = iter(free_bytes)

    def free_bytes(self):
        return next(self._free_bytes)


def test_of_a_gpu_what_has_gone_from_its_free_memory_counts_at_the_peak(monkeypatch):
    told = {"GPU-a": Monitor([1000, 300, 700]), "GPU-b": Monitor([500])}
    monkeypatch.setattr(gauge_module, "GpuMonitor", told.__getitem__)
    gauge = MemoryGauge({"cuda:0": "cuda:0", "cuda:1": "cuda:1"}, {"cuda:0": "GPU-a", "cuda:1": "GPU-b"})
    assert gauge.read(frozenset()).keys() == {"cpu"}
    used = frozenset({"cuda:0"})
    assert gauge.read(used)["cuda:0"] == 700
    assert gauge.read(used)["cuda:0"] == 700
    assert "cuda:1" not in gauge.read(frozenset())


def test_without_nvml_torch_says_what_it_reserved(monkeypatch):
    class Cuda:
        @staticmethod
        def max_memory_reserved(place):
            assert place == "cuda:0"
            return 123

    class Torch:
        cuda = Cuda

    monkeypatch.setattr(gauge_module, "GpuMonitor", lambda visible: Monitor([None, None]))
    monkeypatch.setitem(gauge_module.sys.modules, "torch", Torch)
    assert MemoryGauge({"cuda:0": "cuda:0"}, {}).read(frozenset({"cuda:0"}))["cuda:0"] == 123
