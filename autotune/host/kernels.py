"""Which kernels can run on this host, with which weight formats, and why not."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import asdict

from autotune.records import Host, Kernel
from ternary_kernels.cuda.support import available_on_gpu
from ternary_kernels.formats import get_format
from ternary_kernels.registry import available


def find_kernels(host: Host) -> tuple[Kernel, ...]:
    """Every kernel with every format it is written for, the one expected to be fastest first, the CPU's before GPUs'.

    Where a host has GPUs of several compute capabilities, the latest counts; without any there are no kernels for them.
    """
    on_cpu = available(host.cpu.architecture, host.cpu.isa)
    gpus = host.gpus.usable.values()
    capabilities = [gpu.compute_capability for gpu in gpus if gpu.compute_capability is not None]
    on_gpu = available_on_gpu(max(capabilities, default=None)) if gpus else ()
    return (*(Kernel(*found) for found in on_cpu), *(Kernel(*found, "gpu") for found in on_gpu))


def to_json(kernels: Sequence[Kernel]) -> list[dict[str, object]]:
    """The same as plain values for a JSON document, with what the format does to ternary weights."""
    return [{**asdict(kernel), "lossy": get_format(kernel.format).lossy} for kernel in kernels]


def describe_kernels(kernels: Sequence[Kernel]) -> list[tuple[str, str]]:
    """Label and value lines for a person: what a kernel can run and by which path, and what it can't and why.

    Ternary formats come first.
    """
    lines = []
    in_order = sorted(kernels, key=lambda kernel: (not get_format(kernel.format).ternary, kernel.format))
    for name in dict.fromkeys(kernel.kernel for kernel in kernels):
        groups: dict[str, list[str]] = {}
        for kernel in in_order:
            if kernel.kernel == name:
                reason = kernel.reason and kernel.reason.replace(kernel.format, "these")
                where = f"not here: {reason}" if reason else kernel.path or "runs here"
                groups.setdefault(where, []).append(marked(kernel.format))
        lines += [(f"Kernel {name}", f"{', '.join(formats)} ({where})") for where, formats in groups.items()]
    return lines


def marked(weight_format: str) -> str:
    """A format's name, and that it is lossy if it is."""
    return f"{weight_format} (lossy)" if get_format(weight_format).lossy else weight_format
