"""NVIDIA GPUs as NVML lists them: what they are, what is free on them, and why one can't be used."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec
import pynvml

from autotune.records import Gpu, Gpus

_T = TypeVar("_T")
_NAMELESS = "NVIDIA GPU"

# Errors by which NVML says that a device has no such property; any other says that something is wrong with it.
_NO_SUCH_PROPERTY = (
    pynvml.NVMLError_NotSupported,
    pynvml.NVMLError_FunctionNotFound,
    pynvml.NVMLError_InvalidArgument,
)


def read_gpus(environ: Mapping[str, str], nvml: Any) -> Gpus:
    """List the GPUs that a CUDA program started from here would see, in its order.

    CUDA_VISIBLE_DEVICES is followed as CUDA does: indices, unambiguous beginnings of UUIDs and MIG UUIDs;
    the first entry that names no device ends the list. Indices are NVML's (PCI order), which are CUDA's where
    all GPUs are of one kind or CUDA_DEVICE_ORDER is PCI_BUS_ID. A GPU in MIG mode is listed as its instances;
    of these CUDA opens one per process, so the others are not usable.
    Source: CUDA Programming Guide, "CUDA Environment Variables"; NVIDIA MIG User Guide.

    Args:
        environ: The environment variables of this process.
        nvml: The module ``pynvml``, or one with its functions; None: GPUs are not looked for.
    """
    if nvml is None:
        return Gpus(devices=(), driver_version=None, absent_reason="GPUs were not looked for")
    try:
        nvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Gpus(devices=(), driver_version=None, absent_reason=_why_no_nvml(error))
    try:
        return _list_devices(environ, nvml)
    finally:
        _or_none(nvml.nvmlShutdown)


def free_now_bytes(environ: Mapping[str, str], nvml: Any) -> dict[str, int]:
    """Memory free on each usable GPU now, with what this process holds there already; without those that don't tell.

    In a container NVML may not know which processes are in it: then what this one holds doesn't count.

    Args:
        environ: The environment variables of this process.
        nvml: The module ``pynvml``, or one with its functions.

    Returns:
        Bytes by CUDA's name of the device, ``cuda:0``.
    """
    try:
        nvml.nvmlInit()
    except pynvml.NVMLError:
        return {}
    try:
        usable = read_gpus(environ, nvml).usable
        return {
            device: gpu.memory_free_bytes + _held_bytes(gpu, nvml)
            for device, gpu in usable.items()
            if gpu.memory_free_bytes is not None
        }
    finally:
        _or_none(nvml.nvmlShutdown)


def _held_bytes(gpu: Gpu, nvml: Any) -> int:
    """What this process holds on a GPU, as far as NVML tells."""
    handle = None if gpu.uuid is None else _or_none(nvml.nvmlDeviceGetHandleByUUID, gpu.uuid)
    processes = None if handle is None else _or_none(nvml.nvmlDeviceGetComputeRunningProcesses, handle)
    return sum(process.usedGpuMemory or 0 for process in processes or () if process.pid == os.getpid())


def _list_devices(environ: Mapping[str, str], nvml: Any) -> Gpus:
    driver = _or_none(nvml.nvmlSystemGetDriverVersion)
    try:
        count = nvml.nvmlDeviceGetCount()
    except pynvml.NVMLError as error:
        return Gpus(devices=(), driver_version=driver, absent_reason=f"NVML can't list GPUs: {error}")
    boards = [_read_board(index, nvml) for index in range(count)]
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    devices = [gpu for board in boards for gpu in board.devices]
    absent_reason = None if devices else "the NVIDIA driver lists no GPU"
    if devices and visible is not None:
        devices = _select(boards, visible)
        absent_reason = None if devices else f"hidden by CUDA_VISIBLE_DEVICES={visible!r}"
    return Gpus(devices=tuple(_one_instance(devices)), driver_version=driver, absent_reason=absent_reason)


def _one_instance(devices: list[Gpu]) -> list[Gpu]:
    """The same, those unusable that CUDA hides from a process: it shows whole GPUs, or a single MIG instance."""
    able = [gpu for gpu in devices if gpu.unusable_reason is None]
    if able and able[0].mig:
        hidden, reason = able[1:], "CUDA shows a process a single MIG instance, and that is another one"
    else:
        hidden, reason = [gpu for gpu in able if gpu.mig], "CUDA shows a process no MIG instance beside whole GPUs"
    reason += ": CUDA_VISIBLE_DEVICES can name this one"
    return [msgspec.structs.replace(gpu, unusable_reason=reason) if gpu in hidden else gpu for gpu in devices]


class _Board(NamedTuple):
    """A physical GPU: itself as the only device, or the instances that MIG mode cuts it into."""

    uuid: str | None
    devices: list[Gpu]


def _read_board(index: int, nvml: Any) -> _Board:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
    except pynvml.NVMLError as error:
        return _Board(None, [_unreadable(index, str(error))])
    whole = _read_device(index, handle, handle, nvml, mig=False)
    mode = _or_none(nvml.nvmlDeviceGetMigMode, handle)
    if mode is None or mode[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
        return _Board(whole.uuid, [whole])
    slots = _or_none(nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0
    handles = [_or_none(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, slot) for slot in range(slots)]
    instances = [_read_device(index, mig, handle, nvml, mig=True) for mig in handles if mig is not None]
    no_instance = msgspec.structs.replace(whole, unusable_reason="in MIG mode, but has no MIG instance")
    return _Board(whole.uuid, instances or [no_instance])


def _read_device(index: int, handle: Any, board_handle: Any, nvml: Any, *, mig: bool) -> Gpu:
    """Describe a GPU or a MIG instance (whose compute capability and mode only its board knows)."""
    problems: list[str] = []

    def ask(query: Callable[[Any], _T], device: Any) -> _T | None:
        try:
            return query(device)
        except _NO_SUCH_PROPERTY:
            return None
        except pynvml.NVMLError as error:
            problems.append(str(error))
            return None

    name = ask(nvml.nvmlDeviceGetName, handle)
    memory = ask(nvml.nvmlDeviceGetMemoryInfo, handle)
    capability = ask(nvml.nvmlDeviceGetCudaComputeCapability, board_handle)
    if ask(nvml.nvmlDeviceGetComputeMode, board_handle) == pynvml.NVML_COMPUTEMODE_PROHIBITED:
        problems.append("its compute mode forbids CUDA contexts (prohibited)")
    return Gpu(
        index=index,
        name=name or _NAMELESS,
        uuid=ask(nvml.nvmlDeviceGetUUID, handle),
        memory_total_bytes=None if memory is None else memory.total,
        memory_free_bytes=None if memory is None else memory.free,
        compute_capability=None if capability is None else (capability[0], capability[1]),
        mig=mig,
        unusable_reason=problems[0] if problems else None,
    )


def _unreadable(index: int, reason: str) -> Gpu:
    return Gpu(
        index=index,
        name=_NAMELESS,
        uuid=None,
        memory_total_bytes=None,
        memory_free_bytes=None,
        compute_capability=None,
        mig=False,
        unusable_reason=reason,
    )


def _select(boards: list[_Board], visible: str) -> list[Gpu]:
    """The devices that a value of CUDA_VISIBLE_DEVICES names, in its order."""
    selected: list[Gpu] = []
    for entry in visible.split(","):
        named = _named_by(entry.strip(), boards)
        if not named:
            break
        selected += [gpu for gpu in named if gpu not in selected]
    return selected


def _named_by(entry: str, boards: list[_Board]) -> list[Gpu]:
    """The devices that one entry names; none if it is invalid or ambiguous."""
    if entry.isascii() and entry.isdigit():
        return boards[int(entry)].devices if int(entry) < len(boards) else []
    if entry.startswith("GPU-"):
        matches = [board.devices for board in boards if (board.uuid or "").startswith(entry)]
    elif entry.startswith("MIG-"):
        devices = [gpu for board in boards for gpu in board.devices]
        matches = [[gpu] for gpu in devices if gpu.mig and (gpu.uuid or "").startswith(entry)]
    else:
        return []
    return matches[0] if len(matches) == 1 else []


def _why_no_nvml(error: pynvml.NVMLError) -> str:
    if isinstance(error, pynvml.NVMLError_LibraryNotFound):
        return "no NVIDIA driver is installed (NVML library not found)"
    if isinstance(error, pynvml.NVMLError_DriverNotLoaded):
        return "the NVIDIA driver is installed but not loaded"
    return f"NVML can't be used: {error}"


def _or_none(query: Callable[..., _T], *arguments: Any) -> _T | None:
    try:
        return query(*arguments)
    except pynvml.NVMLError:
        return None
