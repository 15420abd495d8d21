"""What a host is: CPU, memory, GPUs, the limits on this process, and the tier that measuring puts it in."""

from __future__ import annotations

from typing import Literal

from autotune.records.base import Record

CoreKind = Literal["performance", "efficiency"]
TierName = Literal["Low", "Medium", "High", "Extreme"]


class Cache(Record, frozen=True):
    """One level of the data-cache hierarchy, as the first usable CPU sees it."""

    level: int
    size_bytes: int
    shared_by_cpus: int | None
    """How many logical CPUs share one instance."""


class Core(Record, frozen=True):
    """One physical core with those of its logical CPUs (SMT siblings) that this process may use."""

    cpus: tuple[int, ...]
    package: int | None
    numa_node: int | None
    kind: CoreKind | None
    """Performance or efficiency core on a hybrid CPU; None where the CPU has one kind or doesn't say."""
    max_frequency_hz: int | None


class Cpu(Record, frozen=True):
    """The processor: its name, instruction sets and topology."""

    name: str | None
    vendor: str | None
    architecture: str
    """Machine name as the kernel gives it: ``x86_64``, ``aarch64``."""
    microarchitecture: str | None
    """archspec's name, for example ``sapphirerapids``."""
    isa: tuple[str, ...]
    """SIMD and matrix extensions that ternary kernels can use, as the system names them, sorted: ``avx2``."""
    logical_cpus: int | None
    """Logical CPUs online on the machine, usable or not."""
    physical_cores: int | None
    """Physical cores online on the machine, usable or not."""
    cores: tuple[Core, ...]
    """The usable cores in the order threads should be pinned: performance before efficiency cores, one
    package after the other."""
    caches: tuple[Cache, ...]
    """Data and unified caches, level 1 first."""


class Limits(Record, frozen=True):
    """How many threads this process may use, and which limit says so."""

    affinity_cpus: tuple[int, ...]
    """Logical CPUs in this process's affinity mask (sched_getaffinity)."""
    cpuset_cpus: tuple[int, ...] | None
    """Logical CPUs that the cgroup's cpuset allows; None without a cpuset."""
    quota_cpus: float | None
    """CPU time the cgroup grants per second of wall time (quota / period); None without a quota."""
    usable_threads: int
    """min(affinity, cpuset, floor(quota)), at least 1."""
    decided_by: Literal["affinity", "cpuset", "quota", "online CPUs"]
    cgroup_version: Literal[1, 2] | None


class Memory(Record, frozen=True):
    """How much memory this process may use."""

    total_bytes: int
    available_bytes: int
    """What the system can give without swapping."""
    cgroup_limit_bytes: int | None
    cgroup_used_bytes: int | None
    """Memory charged to the cgroup, less file pages that it can drop at once."""
    usable_bytes: int
    """The smaller of what is available and what the cgroup leaves."""
    decided_by: Literal["available", "cgroup"]


class Gpu(Record, frozen=True):
    """One GPU (or MIG instance) as NVML lists it."""

    index: int
    name: str
    uuid: str | None
    memory_total_bytes: int | None
    memory_free_bytes: int | None
    compute_capability: tuple[int, int] | None
    mig: bool
    unusable_reason: str | None
    """Why it can't be used, or None where nothing speaks against it."""


class Gpus(Record, frozen=True):
    """What NVML said about GPUs."""

    devices: tuple[Gpu, ...]
    driver_version: str | None
    absent_reason: str | None
    """Why there are none in ``devices`` (no driver, no device, hidden by CUDA_VISIBLE_DEVICES)."""

    @property
    def usable(self) -> dict[str, Gpu]:
        """Those that can be used, by CUDA's name for them: ``cuda:0`` is the first."""
        able = [gpu for gpu in self.devices if gpu.unusable_reason is None]
        return {f"cuda:{index}": gpu for index, gpu in enumerate(able)}


class Versions(Record, frozen=True):
    """Software that changes what is measured."""

    autotune: str
    python: str
    libraries: dict[str, str]
    """Distribution name to version, for example ``{"numpy": "2.4.6"}``."""
    kernels: str
    """Digest of the kernel sources."""
    measuring_policy: int


class Fingerprint(Record, frozen=True):
    """Two digests of what changes the answer on this host."""

    full: str
    """Digest of the detected CPU, topology, limits, GPUs, driver major version and versions."""
    cheap: str
    """Digest of the raw sources that determine those, read in under a millisecond: the key of the cache."""
    hardware_class: str = ""
    """What equal hosts of a fleet share, readable and fit for a file name; empty in results older than it."""


class Kernel(Record, frozen=True):
    """Whether one kernel can run here with one weight format."""

    kernel: str
    """Name of the implementation: ``native``, ``amx``, ``numpy``; on GPUs ``triton``, ``torch``."""
    format: str
    path: str | None
    """The instruction set that it would use (``avx512_vnni``, ``sm_90``); None where it has no such thing, or can't
    run."""
    reason: str | None
    """Why it can't run here; None: it can."""
    device: Literal["cpu", "gpu"] = "cpu"


class Host(Record, frozen=True):
    """Everything detected about the host, without timing anything."""

    label: str
    """The hostname: only a label, no part of the fingerprint."""
    operating_system: str
    cpu: Cpu
    limits: Limits
    memory: Memory
    numa_nodes: int | None
    gpus: Gpus
    versions: Versions
    fingerprint: Fingerprint
    unknown: tuple[str, ...] = ()
    """What the host doesn't reveal, in words, for the summary."""


class Tier(Record, frozen=True):
    """How fast the host is for this kind of work, and why it counts as that."""

    name: TierName
    reason: str
