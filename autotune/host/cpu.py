"""The processor: name, vendor, microarchitecture, and the instruction sets that ternary kernels can use."""

from __future__ import annotations

import archspec.cpu.schema

from autotune.host.pseudofiles import Root
from autotune.host.system import System
from autotune.host.topology import Topology
from autotune.records import Cpu

# The SIMD and matrix extensions that a ternary product gains from, as Linux and archspec both name them: byte
# shuffles (lookup tables), wide integer multiply-adds, dot products, matrix tiles, half precision (the head).
_X86 = (
    "ssse3 sse4_1 avx avx2 fma f16c bmi2 avx_vnni avx_vnni_int8 avx512f avx512bw avx512dq avx512vl avx512vbmi "
    "avx512_vnni avx512_bf16 avx512_fp16 amx_tile amx_int8 amx_bf16 amx_fp16"
)
_ARM = "asimd asimdhp asimddp i8mm bf16 sve sve2 svei8mm svebf16 sme sme2"
_RELEVANT = frozenset(f"{_X86} {_ARM}".split())


def read_cpu(root: Root, system: System, topology: Topology, usable: tuple[int, ...]) -> Cpu:
    """Describe the processor from /proc/cpuinfo, /sys and, where those don't say, the running system.

    ``isa`` comes from the kernel's flags rather than from archspec's name for the microarchitecture: a
    hypervisor that masks one unrelated flag makes that name an older one.

    Args:
        root: The folder that stands for ``/``.
        system: What the running system says.
        topology: The arrangement of the CPUs under the same root.
        usable: Logical CPUs this process may use, not empty.
    """
    processor = root.first_processor()
    flags = (processor.get("flags") or processor.get("Features") or "").split()
    cores = topology.cores(usable)
    return Cpu(
        name=_name(root, processor) or system.cpu_name,
        vendor=_vendor(processor) or system.cpu_vendor,
        architecture=system.architecture,
        microarchitecture=system.microarchitecture,
        isa=tuple(sorted(_RELEVANT.intersection(flags or system.cpu_features))),
        logical_cpus=len(topology.online) if topology.online else system.online_cpus,
        physical_cores=topology.physical_cores() or system.physical_cores,
        cores=cores,
        caches=topology.caches(cores[0].cpus[0]),
    )


def _name(root: Root, processor: dict[str, str]) -> str | None:
    """The model name. Arm kernels seldom give one: then the board's, and failing that the part number."""
    board = (root.text("/proc/device-tree/model") or "").strip("\0\n ")
    part = processor.get("CPU part")
    return processor.get("model name") or board or (f"{_vendor(processor) or 'Arm'} part {part}" if part else None)


def _vendor(processor: dict[str, str]) -> str | None:
    if "vendor_id" in processor:
        return processor["vendor_id"]
    implementer = processor.get("CPU implementer")
    if implementer is None:
        return None
    vendors: dict[str, str] = archspec.cpu.schema.TARGETS_JSON["conversions"]["arm_vendors"]
    return vendors.get(implementer, implementer)
