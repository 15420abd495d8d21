"""A GPU, set up for timing by torch: its context and what that costs, cold memory, and what its errors mean."""

from __future__ import annotations

import gc
import importlib
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Self

import psutil
import torch

from autotune.bench import numerics
from autotune.bench.cold_memory import MIN_COLD_BYTES, window_bytes
from autotune.bench.gpu_monitor import GpuMonitor
from autotune.bench.gpu_numerics import GpuChecker
from autotune.bench.gpu_subjects import GpuSubjects
from autotune.bench.messages import GpuFacts, Job, Prepared
from autotune.bench.plan import Task
from autotune.bench.rig import DeviceLostError, DeviceUnusableError, Send, Subject
from autotune.model.sizes import readable_bytes
from autotune.records.measurement import FailureKind
from ternary_kernels.cuda.arena import ALIGNMENT, DeviceArena
from ternary_kernels.cuda.memory import is_out_of_memory
from ternary_kernels.cuda.product import get_product

_UNKNOWN_L2_BYTES = 64 << 20
"""More than most GPUs' L2 cache, where torch doesn't tell it."""

_LOST = re.compile(r"CUDA error: (?!CUBLAS_STATUS|no kernel image|invalid configuration)|Triton Error \[CUDA\]")
"""After most of these all that a process does with its GPU fails. Source: CUDA Runtime API, for example
cudaErrorLaunchFailure: "the process must be terminated and relaunched". The exceptions say that a library has no kernel
for this GPU or for what it was asked: then others still run, unless the GPU doesn't answer any more."""


class GpuRig:
    """A GPU as a device to time on: the only one that this process sees.

    Args:
        job: Gives the tasks and the device.
        send: Takes the events.
        monitor: NVML's view of the GPU; None: that of the job's.
    """

    def __init__(self, job: Job, send: Send, monitor: GpuMonitor | None = None) -> None:
        self._job = job
        self._send = send
        self._device = torch.device(job.torch_device)
        self._is_cuda = self._device.type == "cuda"
        self._monitor = monitor or GpuMonitor(job.visible_gpu)
        self._out: set[int] = set()

    def load(self, tasks: Sequence[Task]) -> None:
        """Import what the tasks need."""
        for kernel, weight_format in {
            (task.point.kernel, task.point.format) for task in tasks if task.point.op == "matmul"
        }:
            with suppress(Exception):
                get_product(kernel, weight_format)
        if any(task.point.op in ("attention", "layer_ops") for task in tasks):
            with suppress(Exception):
                importlib.import_module("ternary_kernels.cuda.backends")

    def __enter__(self) -> Self:
        self._busy_before = self._monitor.busy()
        told = self._monitor.free_bytes()
        if self._is_cuda:
            self._make_context(told)
        # Where NVML doesn't tell, memory counts from when there was a context to ask in, and so without it.
        self._free_before = told if told is not None else self._free_bytes()
        return self

    def _make_context(self, free_bytes: int | None) -> None:
        """Have torch take hold of the GPU, and run something on it.

        Args:
            free_bytes: Memory that NVML says is free; None: it doesn't say.

        Raises:
            DeviceUnusableError: It can't; says why.
        """
        if torch.version.cuda is None:
            raise DeviceUnusableError(f"torch {torch.__version__} is built without CUDA: it needs a build with it")
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
            # cuDNN's attention, torch's first choice on some GPUs, is planned anew for every shape, which takes longer
            # than timing it; and on one GPU all contexts are to be timed with the same kernel.
            torch.backends.cuda.enable_cudnn_sdp(False)
            torch.ones(1, device=self._device).add_(1)
            torch.cuda.synchronize()
        except Exception as error:  # torch wraps what goes wrong at its start in errors of several kinds
            why = _sentence(error)
            if free_bytes is not None and is_out_of_memory(error):
                why += f", with {readable_bytes(free_bytes)} of its memory free"
            raise DeviceUnusableError(f"torch {torch.__version__} can't use it: {why}") from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._monitor.close()

    def check(self, tasks: Sequence[Task], skip: Collection[int]) -> set[int]:
        """Check kernels against the oracle."""
        threads = max(len(self._job.cpus), 1)
        failed = GpuChecker(self._device, threads, self.failure_of, self._send).check(tasks, skip)
        self._out = failed | set(skip)
        return failed

    def prepare(self) -> Prepared:
        """Tell what the context costs now that kernels are loaded, and fill the memory that weights rotate through.

        Raises:
            DeviceUnusableError: There isn't so much.
        """
        facts = self._facts()
        cold_bytes = max(2 * (facts.l2_bytes or _UNKNOWN_L2_BYTES), MIN_COLD_BYTES)
        left = (task for index, task in enumerate(self._job.tasks) if index not in self._out)
        # Keys and values are windows of their own.
        size_bytes = cold_bytes + max(map(window_bytes, left), default=0) + 2 * ALIGNMENT
        free_bytes = self._free_bytes()
        if free_bytes is not None and size_bytes > free_bytes:
            raise DeviceUnusableError(_too_little(free_bytes, size_bytes))
        try:
            arena = DeviceArena(size_bytes, self._device)
        except RuntimeError as error:
            kind, message = self.failure_of(error)
            reason = _too_little(free_bytes, size_bytes) if kind == "out_of_memory" else message
            raise DeviceUnusableError(reason) from error
        self._subjects = GpuSubjects(self._job.model, arena, self._device, cold_bytes)
        return Prepared(arena.size_bytes, facts)

    def _facts(self) -> GpuFacts:
        """What was found of the GPU, before its memory is filled."""
        gc.collect()
        if self._is_cuda:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()  # what is left is the libraries' own
        told = self._monitor.free_bytes()
        free_bytes = told if told is not None else self._free_bytes()
        before = self._free_before
        properties = torch.cuda.get_device_properties(self._device) if self._is_cuda else None
        return GpuFacts(
            context_bytes=max(before - free_bytes, 0) if before is not None and free_bytes is not None else 0,
            host_bytes=psutil.Process().memory_info().rss,
            free_bytes=before,
            l2_bytes=getattr(properties, "L2_cache_size", None),
            multiprocessors=getattr(properties, "multi_processor_count", None),
            busy_before=self._busy_before,
            libraries=_libraries(),
        )

    def _free_bytes(self) -> int | None:
        """Memory that torch can still allocate; None where the device has none of its own."""
        return int(torch.cuda.mem_get_info(self._device)[0]) if self._is_cuda else None

    def build(self, task: Task) -> Subject:
        """What is to be timed of a task."""
        subject = self._subjects.build(task)
        if self._is_cuda:
            torch.cuda.synchronize()  # what went wrong until here is this task's
        return subject

    def between_blocks(self) -> None:
        """Read the clocks while they are still up."""
        self._send(self._monitor.clocks())

    def failure_of(self, error: Exception) -> tuple[FailureKind, str]:
        """An error that a kernel raised, as the kind and message of a failure; memory is given back.

        Raises:
            DeviceLostError: This process can't use the GPU any more.
        """
        sentence = _sentence(error)
        if is_out_of_memory(error):
            if self._is_cuda:
                torch.cuda.empty_cache()
            return "out_of_memory", f"not enough memory on the GPU: {sentence}"
        if _LOST.search(str(error)) or not self._answers():
            raise DeviceLostError(f"the GPU was lost to the process: {sentence}") from error
        kind, message = numerics.failure_of(error)
        return kind, message.strip().splitlines()[0]

    def _answers(self) -> bool:
        """Whether the GPU still does what it is asked: an error may hide another that came before it."""
        if self._is_cuda:
            try:
                torch.cuda.synchronize()
            except RuntimeError:
                return False
        return True


def _too_little(free_bytes: int | None, size_bytes: int) -> str:
    free = "less" if free_bytes is None else f"{free_bytes / 1e6:.0f} MB"
    return f"timing needs {size_bytes / 1e6:.0f} MB of its memory, and {free} is free"


def _sentence(error: Exception) -> str:
    """The first sentence of an error's message: torch adds advice and addresses."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.split(r"\.\s", lines[0], maxsplit=1)[0].rstrip(".")


def _libraries() -> dict[str, str]:
    """Libraries that run on the GPU, name to version."""
    found = {"torch": str(torch.__version__)}
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
    with suppress(PackageNotFoundError):
        found["triton"] = version("triton")
    return found
