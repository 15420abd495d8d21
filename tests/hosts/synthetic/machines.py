"""The synthetic hosts: what each is, and the laws that its times follow.

Constants come from published figures of such machines where there are any (the notes say which), else from data
sheets. None of them was measured here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from autotune.records import Host
from tests.hosts.synthetic.hosts import MIB, make_cores, make_gpus, make_host
from tests.hosts.synthetic.law import CpuLaw, GpuLaw

SMALL = "bitnet-b1.58-2B-4T"
MEDIUM = "Llama3-8B-1.58-100B-tokens"
LARGE = str(Path(__file__).parent / "models" / "Llama-70B-class.json")
"""The shape of Llama 3's 70B: 17 GB of ternary weights between two ends of 2.1 GB each."""

GB = 10**9

CPU_OVERHEAD_BYTES = 85 * MIB
CONTEXT_BYTES = 420 * MIB
GPU_HOST_BYTES = 1100 * MIB
"""What a worker takes before it has a tensor: on the CPU; on a GPU; and for that one, with torch, in host memory."""


@dataclass(frozen=True)
class Machine:
    """A synthetic host.

    Attributes:
        note: What it is, and where its constants come from.
        host: As detection would describe it; its label names the file.
        cpu: How its CPU takes time.
        models: Those that its file is recorded with.
        gpus: How its GPUs take time, by device.
        gpu_failure: Why GPUs can't be timed; None: they can.
    """

    note: str
    host: Host
    cpu: CpuLaw
    models: tuple[str, ...]
    gpus: Mapping[str, GpuLaw] = field(default_factory=dict)
    gpu_failure: str | None = None


_I7_13700H = make_cores({"performance": 6, "efficiency": 8}, smt=("performance",))
_I9_12900K = make_cores({"performance": 8, "efficiency": 8}, smt=("performance",))
_RYZEN_7950X = make_cores({None: 16}, smt=(None,))
_CORTEX_A76 = make_cores({None: 4})
_EPYC_32 = make_cores({None: 32}, smt=(None,))
_EPYC_64 = make_cores({None: 64}, smt=(None,), packages=2)

_I5_12400 = {
    "cpu_name": "12th Gen Intel(R) Core(TM) i5-12400",
    "cores": make_cores({None: 6}, smt=(None,)),
    "microarchitecture": "alderlake",
    "caches": ((1, 48 << 10, 2), (2, 1280 << 10, 2), (3, 18 << 20, 12)),
}
_I5_12400_LAW = CpuLaw(
    _I5_12400["cores"], core_bytes_per_s=16e9, package_bytes_per_s=42e9, core_operations_per_s=2.2e11
)
_EPYC_7543 = {
    "cpu_name": "AMD EPYC 7543 32-Core Processor",
    "vendor": "AuthenticAMD",
    "microarchitecture": "zen3",
    "isa": ("avx2", "bmi2", "f16c", "fma"),
    "caches": ((1, 32 << 10, 2), (2, 512 << 10, 2), (3, 32 << 20, 8)),
}
_EPYC_LAW = {"core_bytes_per_s": 28e9, "core_operations_per_s": 1.78e11, "smt": 0.55}
_EPYC_NOTE = (
    "arithmetic as bitnet.cpp's published prefill of 2B-4T on an EPYC 7V13, 42.52 tokens/s on one thread; memory so "
    "that its published decode there, 15.49 to 66.25 tokens/s on 1 to 8 threads, comes out within a quarter"
)

MACHINES = (
    Machine(
        note=(
            "Laptop with an 8 GB GPU: i7-13700H and RTX 4060 Laptop. CPU memory at 50 GB/s as bitnet.cpp's published "
            "decode of a 70B model there, 2.44 tokens/s of some 20 GB; GPU by its data sheet."
        ),
        host=make_host(
            "laptop-8gb-gpu",
            "13th Gen Intel(R) Core(TM) i7-13700H",
            _I7_13700H,
            microarchitecture="raptorlake",
            caches=((1, 48 << 10, 2), (2, 1280 << 10, 2), (3, 24 << 20, 20)),
            memory_bytes=(33 * GB, 28 * GB),
            gpus=make_gpus(("NVIDIA GeForce RTX 4060 Laptop GPU", (8, 9), 8188, 7600)),
        ),
        cpu=CpuLaw(_I7_13700H, core_bytes_per_s=18e9, package_bytes_per_s=50e9, core_operations_per_s=3.2e11),
        models=(SMALL,),
        gpus={"cuda:0": GpuLaw(256e9, 1.2e14, 6e13, link_bytes_per_s=12e9, link_s=9e-6)},
    ),
    Machine(
        note=(
            "Workstation with a 24 GB GPU: Ryzen 9 7950X and RTX 4090. CPU memory as ik_llama.cpp's published decode "
            "of Falcon3-7B (2.22 GB) there: 12.83, 22.46, 27.62 and 28.03 tokens/s on 1, 2, 4 and 8 threads; prefill "
            "465 tokens/s on 16; GPU by its data sheet."
        ),
        host=make_host(
            "workstation-24gb-gpu",
            "AMD Ryzen 9 7950X 16-Core Processor",
            _RYZEN_7950X,
            vendor="AuthenticAMD",
            microarchitecture="zen4",
            isa=(
                "avx2",
                "avx512_vnni",
                "avx512bw",
                "avx512dq",
                "avx512f",
                "avx512vbmi",
                "avx512vl",
                "bmi2",
                "f16c",
                "fma",
            ),
            caches=((1, 32 << 10, 2), (2, 1 << 20, 2), (3, 32 << 20, 16)),
            memory_bytes=(64 * GB, 58 * GB),
            gpus=make_gpus(("NVIDIA GeForce RTX 4090", (8, 9), 24564, 23040)),
        ),
        cpu=CpuLaw(_RYZEN_7950X, core_bytes_per_s=45e9, package_bytes_per_s=68e9, core_operations_per_s=4.5e11),
        models=(LARGE,),
        gpus={"cuda:0": GpuLaw(1008e9, 6.6e14, 3.3e14, link_bytes_per_s=24e9, link_s=7e-6)},
    ),
    Machine(
        note=(
            "Office computer with a 4 GB GPU, 3.2 GB of it free: i5-12400 and RTX 3050 with 4 GB. Two channels of DDR4 "
            "at 42 GB/s; GPU by its data sheet."
        ),
        host=make_host(
            "office-4gb-gpu",
            **_I5_12400,
            memory_bytes=(16 * GB, 13 * GB),
            gpus=make_gpus(("NVIDIA GeForce RTX 3050 Laptop GPU", (8, 6), 4096, 3200)),
        ),
        cpu=_I5_12400_LAW,
        models=(MEDIUM,),
        gpus={"cuda:0": GpuLaw(192e9, 4.4e13, 2.2e13, link_bytes_per_s=6e9, link_s=9e-6)},
    ),
    Machine(
        note=(
            "Edge board with 4 GB and no GPU: four Cortex-A76. Memory at 8 GB/s and a quarter of a desktop core's "
            "arithmetic, as such boards' data sheets suggest."
        ),
        host=make_host(
            "edge-4gb-board",
            "Cortex-A76",
            _CORTEX_A76,
            vendor="ARM",
            architecture="aarch64",
            microarchitecture="cortex_a76",
            isa=("asimd", "asimddp", "fphp"),
            caches=((1, 64 << 10, 1), (2, 512 << 10, 1), (3, 2 << 20, 4)),
            memory_bytes=(4 * GB, 34 * GB // 10),
        ),
        cpu=CpuLaw(_CORTEX_A76, core_bytes_per_s=5e9, package_bytes_per_s=8e9, core_operations_per_s=8e10),
        models=(SMALL,),
    ),
    Machine(
        note=(
            f"Server with two sockets of 32 cores and two A100 of 40 GB. CPU: {_EPYC_NOTE}; 150 GB/s a socket. GPU: a "
            "copy at 1,300 GB/s, so that the published W2A8 products there, 10.4 us + bytes / 856 GB/s one by one, "
            "come out within a fifth."
        ),
        host=make_host(
            "server-two-sockets-two-gpus",
            cores=_EPYC_64,
            **_EPYC_7543,
            memory_bytes=(512 * GB, 500 * GB),
            gpus=make_gpus(*[("NVIDIA A100-PCIE-40GB", (8, 0), 40960, 40300)] * 2),
        ),
        cpu=CpuLaw(_EPYC_64, package_bytes_per_s=150e9, **_EPYC_LAW),
        models=(LARGE,),
        gpus=dict.fromkeys(("cuda:0", "cuda:1"), GpuLaw(1300e9, 5e14, 2.5e14, link_bytes_per_s=22e9, link_s=8e-6)),
    ),
    Machine(
        note=(
            "The same two sockets with two RTX A5000 of 24 GB, of which the second has 6 GB free. CPU: "
            f"{_EPYC_NOTE}; 150 GB/s a socket; GPUs by their data sheet."
        ),
        host=make_host(
            "server-two-sockets-unequal-gpus",
            cores=_EPYC_64,
            **_EPYC_7543,
            memory_bytes=(256 * GB, 240 * GB),
            gpus=make_gpus(
                ("NVIDIA RTX A5000", (8, 6), 24564, 23000),
                ("NVIDIA RTX A5000", (8, 6), 24564, 6144),
            ),
        ),
        cpu=CpuLaw(_EPYC_64, package_bytes_per_s=150e9, **_EPYC_LAW),
        models=(LARGE,),
        gpus=dict.fromkeys(("cuda:0", "cuda:1"), GpuLaw(768e9, 2.2e14, 1.1e14, link_bytes_per_s=22e9, link_s=8e-6)),
    ),
    Machine(
        note=(
            "Desktop with performance and efficiency cores, eight of each, and no GPU: i9-12900K. Two channels of DDR5 "
            "at 62 GB/s; an efficiency core at 0.36 of a performance core: half the vector units at 0.72 of the clock."
        ),
        host=make_host(
            "desktop-p-and-e-cores",
            "12th Gen Intel(R) Core(TM) i9-12900K",
            _I9_12900K,
            microarchitecture="alderlake",
            caches=((1, 48 << 10, 2), (2, 1280 << 10, 2), (3, 30 << 20, 24)),
            memory_bytes=(32 * GB, 28 * GB),
        ),
        cpu=CpuLaw(_I9_12900K, core_bytes_per_s=22e9, package_bytes_per_s=62e9, core_operations_per_s=3.6e11),
        models=(SMALL,),
    ),
    Machine(
        note=f"Container that gets the time of 2 of a server's 64 CPUs and 8 GB. CPU: {_EPYC_NOTE}.",
        host=make_host(
            "container-2-of-64-cpus",
            cores=_EPYC_32,
            **_EPYC_7543,
            memory_bytes=(256 * GB, 200 * GB),
            quota=(2.0, 8 << 30),
        ),
        cpu=CpuLaw(_EPYC_32, package_bytes_per_s=150e9, **_EPYC_LAW),
        models=(SMALL, MEDIUM),
    ),
    Machine(
        note=(
            "Computer whose 12 GB GPU other programs fill but for 300 MB: less than the GPU's context takes. i5-12400 "
            "and RTX 3060."
        ),
        host=make_host(
            "gpu-almost-full",
            **_I5_12400,
            memory_bytes=(32 * GB, 24 * GB),
            gpus=make_gpus(("NVIDIA GeForce RTX 3060", (8, 6), 12288, 300)),
        ),
        cpu=_I5_12400_LAW,
        models=(SMALL,),
        gpu_failure="torch 2.13.0 can't use it: CUDA error: out of memory, with 315 MB of its memory free",
    ),
    Machine(
        note=(
            "Server whose GPU is slower than its CPU: a GTX 1650, for which there is no Triton, on one lane of PCIe 3, "
            f"beside 32 cores. CPU: {_EPYC_NOTE}; 150 GB/s; GPU by its data sheet."
        ),
        host=make_host(
            "server-slow-gpu",
            cores=_EPYC_32,
            **_EPYC_7543,
            memory_bytes=(128 * GB, 120 * GB),
            gpus=make_gpus(("NVIDIA GeForce GTX 1650", (7, 5), 4096, 3900)),
        ),
        cpu=CpuLaw(_EPYC_32, package_bytes_per_s=150e9, **_EPYC_LAW),
        models=(SMALL,),
        gpus={"cuda:0": GpuLaw(128e9, 6e12, 6e12, link_bytes_per_s=0.8e9, link_s=4e-5, launch_s=5e-6, triton=False)},
    ),
)
"""All of them, simplest explanations in their notes."""
