"""What a worker finds out of a GPU, and what its errors mean. torch.cuda's answers are invented here."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from autotune.bench.messages import Clocks, Job, Started
from autotune.bench.rig import DeviceLostError, DeviceUnusableError

torch = pytest.importorskip("torch")

from autotune.bench import gpu_rig  # noqa: E402
from autotune.bench.gpu_rig import GpuRig  # noqa: E402

MIB = 1 << 20
TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by downloading "
    "and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
)
NO_IMAGE = "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might be reported"


class FakeMonitor:
    """NVML's view: free memory as it is read, one value after the other."""

    def __init__(self, *free_bytes, busy=None):
        self.readings = list(free_bytes)
        self.share = busy
        self.closed = False

    def free_bytes(self):
        return self.readings.pop(0) if self.readings else None

    def busy(self):
        return self.share

    def clocks(self):
        return Clocks(1.98e9, 2.6e9, ("sw_power_cap",))

    def close(self):
        self.closed = True


@pytest.fixture
def build(gpu_product):
    """Builds a rig on torch's CPU device; returns it with the events that it sends."""

    def build(monitor=None, tasks=None, torch_device="cpu"):
        deadline = time.monotonic() + 60
        tasks = tasks or (gpu_product(),)
        samples = ((),) * len(tasks)
        job = Job(None, tasks, samples, (), (), 0, 0, deadline, deadline, (), 0, torch_device=torch_device)
        events = []
        return GpuRig(job, events.append, monitor or FakeMonitor()), events

    return build


@pytest.fixture
def cuda(monkeypatch):
    """Makes torch's CPU device look like a GPU with so much free memory; returns what torch.cuda answers with."""
    answers = SimpleNamespace(free=[500 * MIB], error=None)
    properties = SimpleNamespace(L2_cache_size=20 * MIB, multi_processor_count=132)

    def synchronize():
        if answers.error:
            raise answers.error

    def free():
        return answers.free.pop(0) if len(answers.free) > 1 else answers.free[0]

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", synchronize)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free(), 1 << 40))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return answers


def as_cuda(rig):
    rig._is_cuda = True
    return rig


class TestFacts:
    """What is found before the GPU's memory is filled."""

    def test_the_context_costs_what_is_free_less_once_kernels_are_loaded(self, build, cuda):
        rig, _ = build(FakeMonitor(900 * MIB, 380 * MIB, busy=0.37))
        with as_cuda(rig):
            prepared = rig.prepare()
        facts = prepared.gpu
        assert (facts.free_bytes, facts.context_bytes, facts.busy_before) == (900 * MIB, 520 * MIB, 0.37)
        assert (facts.l2_bytes, facts.multiprocessors) == (20 * MIB, 132)
        assert facts.host_bytes > 50 * MIB
        assert facts.libraries["torch"] == torch.__version__
        assert facts.libraries["cuda"] == "13.0"

    def test_where_nvml_does_not_tell_memory_counts_from_when_there_is_a_context(self, build, cuda):
        cuda.free = [480 * MIB, 450 * MIB]
        rig, _ = build()
        with as_cuda(rig):
            facts = rig.prepare().gpu
        assert (facts.free_bytes, facts.context_bytes) == (480 * MIB, 30 * MIB)

    def test_memory_that_others_gave_back_meanwhile_makes_no_context_cheaper_than_free(self, build, cuda):
        rig, _ = build(FakeMonitor(400 * MIB, 600 * MIB))
        with as_cuda(rig):
            assert rig.prepare().gpu.context_bytes == 0

    @pytest.mark.parametrize(("l2_bytes", "cold_bytes"), [(50 * MIB, 100 * MIB), (1 * MIB, 64 * MIB), (0, 128 * MIB)])
    def test_weights_rotate_through_more_than_twice_the_cache(self, build, cuda, monkeypatch, l2_bytes, cold_bytes):
        """0: not told."""
        properties = SimpleNamespace(L2_cache_size=l2_bytes, multi_processor_count=1)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        rig, _ = build()
        with as_cuda(rig):
            assert cold_bytes < rig.prepare().cold_bytes < cold_bytes + MIB

    def test_the_clocks_are_read_between_blocks(self, build):
        rig, events = build()
        rig.between_blocks()
        assert events == [Clocks(1.98e9, 2.6e9, ("sw_power_cap",))]

    def test_leaving_lets_go_of_nvml(self, build):
        monitor = FakeMonitor()
        with build(monitor)[0]:
            assert not monitor.closed
        assert monitor.closed


class TestUnusable:
    """Why nothing can be timed, in a sentence."""

    def enter(self, rig):
        with as_cuda(rig):
            pytest.fail("it could be entered")

    @pytest.mark.parametrize(
        ("message", "sentence"),
        [
            (TOO_OLD, "The NVIDIA driver on your system is too old (found version 11040)"),
            (NO_IMAGE, "CUDA error: no kernel image is available for execution on the device"),
            ("", "RuntimeError"),
        ],
        ids=["driver too old", "GPU too old", "no message"],
    )
    def test_torch_that_cannot_use_it_says_why(self, build, cuda, message, sentence):
        cuda.error = RuntimeError(message)
        with pytest.raises(DeviceUnusableError) as raised:
            self.enter(build()[0])
        assert str(raised.value) == f"torch {torch.__version__} can't use it: {sentence}"

    def test_a_context_that_finds_no_memory_is_told_with_what_is_free(self, build, cuda):
        cuda.error = RuntimeError("CUDA error: out of memory")
        with pytest.raises(DeviceUnusableError, match=r"out of memory, with 315 MB of its memory free$"):
            self.enter(build(FakeMonitor(300 * MIB))[0])

    def test_so_does_torch_where_it_wraps_its_errors(self, build, cuda):
        cuda.error = torch.cuda.DeferredCudaCallError("CUDA call failed lazily at initialization with error: unknown")
        with pytest.raises(DeviceUnusableError, match="can't use it: CUDA call failed lazily"):
            self.enter(build()[0])

    def test_torch_without_cuda_is_told(self, build, monkeypatch):
        monkeypatch.setattr(torch.version, "cuda", None)
        with pytest.raises(DeviceUnusableError, match="is built without CUDA"):
            self.enter(build()[0])

    def test_too_little_free_memory_is_told_with_how_much_there_is(self, build, cuda):
        cuda.free = [30 * MIB]
        with as_cuda(build()[0]) as rig, pytest.raises(DeviceUnusableError) as raised:
            rig.prepare()
        assert str(raised.value) == "timing needs 67 MB of its memory, and 31 MB is free"

    @pytest.mark.parametrize(
        ("error", "sentence"),
        [
            (
                torch.cuda.OutOfMemoryError("CUDA out of memory. Tried"),
                "timing needs 134 MB of its memory, and less is",
            ),
            (RuntimeError("what now?"), "RuntimeError: what now?"),
        ],
    )
    def test_memory_that_cannot_be_had_all_the_same_is_told(self, build, monkeypatch, error, sentence):
        def refuse(*arguments):
            raise error

        monkeypatch.setattr(gpu_rig, "DeviceArena", refuse)
        with build()[0] as rig, pytest.raises(DeviceUnusableError) as raised:
            rig.prepare()
        assert str(raised.value).startswith(sentence)

    def test_room_is_asked_for_what_is_left_to_time_alone(self, build, gpu_product):
        """A window that no memory holds belongs to a task that is out."""
        tasks = gpu_product(), gpu_product("abacus", n_out=1 << 40)
        rig, _ = build(tasks=tasks)
        with rig:
            assert rig.check(tasks, ()) == {1}
            assert rig.prepare().cold_bytes < 200 * MIB


def test_attention_is_left_to_the_kernels_that_need_no_plan_for_each_shape(build, cuda):
    torch.backends.cuda.enable_cudnn_sdp(True)
    with as_cuda(build()[0]):
        assert not torch.backends.cuda.cudnn_sdp_enabled()


class TestErrors:
    """What a kernel raised, as the kind and message of a failure."""

    @pytest.mark.parametrize(
        ("error", "kind", "message"),
        [
            (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out_of_memory",
             "not enough memory on the GPU: CUDA out of memory"),
            (RuntimeError("CUDA error: out of memory\nmore"), "out_of_memory",
             "not enough memory on the GPU: CUDA error: out of memory"),
            (RuntimeError("Triton Error [CUDA]: out of memory"), "out_of_memory",
             "not enough memory on the GPU: Triton Error [CUDA]: out of memory"),
            (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "out_of_memory",
             "not enough memory on the GPU: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
            (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasLtMatmul`"), "crashed",
             "RuntimeError: CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasLtMatmul`"),
            (ValueError("k_in: expected 128"), "unsupported", "ValueError: k_in: expected 128"),
            (RuntimeError("no luck\nin many words"), "crashed", "RuntimeError: no luck"),
        ],
    )  # fmt: skip
    def test_one_that_the_device_survives_is_a_value(self, build, cuda, error, kind, message):
        assert as_cuda(build()[0]).failure_of(error) == (kind, message)

    @pytest.mark.parametrize("message", ["CUDA error: misaligned address", "Triton Error [CUDA]: illegal instruction"])
    def test_one_after_which_all_fails_loses_the_device(self, build, message):
        with pytest.raises(DeviceLostError, match=r"^the GPU was lost to the process: "):
            build()[0].failure_of(RuntimeError(f"{message}\nadvice"))

    def test_an_error_that_hides_one_of_the_device_loses_it_too(self, build, cuda):
        cuda.error = RuntimeError("CUDA error: unspecified launch failure")
        with pytest.raises(DeviceLostError, match="lost to the process: cuDNN error"):
            as_cuda(build()[0]).failure_of(RuntimeError("cuDNN error"))


def test_building_waits_for_what_it_launched_so_that_no_other_task_is_blamed(build, cuda, gpu_product, monkeypatch):
    rig, _ = build()
    with as_cuda(rig):
        rig.prepare()
        monkeypatch.setattr(rig._subjects, "build", lambda task: "a subject")
        cuda.error = RuntimeError("CUDA error: misaligned address")
        with pytest.raises(RuntimeError, match="misaligned"):
            rig.build(gpu_product())


def test_the_check_announces_what_it_compiles(build, gpu_product):
    rig, events = build()
    with rig:
        assert rig.check((gpu_product(),), ()) == set()
    assert events == [Started((0,), None, compiles=True), Started((0,), None)]


def test_loading_leaves_errors_to_the_check(build, gpu_product):
    tasks = (gpu_product("abacus"), gpu_product())
    build()[0].load(tasks)
