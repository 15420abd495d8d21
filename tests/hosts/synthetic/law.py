"""Plain laws by which synthetic hosts take time. No host was timed: constants are plausible, see `machines`.

A CPU's operation takes the time to move its bytes, plus the time of its arithmetic, plus what a team of threads takes
to begin and end. A GPU's takes the longer of the two, plus what each kernel takes to launch. Everything a benchmark
would time on a host has one time by these laws, so the right decision follows from them by hand.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from autotune.host.topology import pin_order
from autotune.records import Core, Point
from ternary_kernels.formats import get_format

KEYS_AND_VALUES = 2
F16_BYTES = 2
F32_BYTES = 4


def weight_bytes(point: Point) -> int:
    """Bytes of a product's weights."""
    return get_format(point.format).size_bytes(point.n_out, point.k_in)


def passed_bytes(point: Point) -> int:
    """Bytes of a product's activations: int8 or float32 in, float32 out."""
    into = 1 if get_format(point.format).ternary else F32_BYTES
    return point.m * (point.k_in * into + point.n_out * F32_BYTES)


def product_operations(point: Point) -> float:
    """Multiplications and additions."""
    return 2.0 * point.m * point.n_out * point.k_in


def cache_bytes(point: Point) -> int:
    """Keys and values that attention reads: those before the step and those of the step."""
    return point.sequences * KEYS_AND_VALUES * F16_BYTES * point.k_in * (point.context + point.m)


def attention_operations(point: Point) -> float:
    """Scores and mixed values: token i of the step attends to the context and i tokens of the step."""
    return point.sequences * 4.0 * point.n_out * point.m * (point.context + (point.m + 1) / 2)


def small_ops_bytes(point: Point) -> int:
    """What norms, gate, rotation and quantisation pass over: about eight rows of hidden width, three of the FFN's."""
    return point.m * F32_BYTES * (8 * point.k_in + 3 * point.n_out)


@dataclass(frozen=True)
class CpuLaw:
    """How a CPU takes time.

    Attributes:
        cores: The usable cores, in pinning order.
        core_bytes_per_s: What one thread alone reads.
        package_bytes_per_s: What a package's memory gives, which a soft minimum joins with what its cores read:
            1 / bytes_per_s^4 = 1 / sum_of_cores^4 + 1 / package^4.
        core_operations_per_s: int8 operations of one thread that has a (performance) core for itself.
        efficiency: Speed of an efficiency core relative to a performance core, reading and calculating.
        smt: Speed of a thread that shares its core. It reads nothing more than the first one did.
        remote: What is left of the bandwidth if threads of several packages read from each other's memory.
        float_share: float16 operations relative to int8 ones.
        start_s: What a team of one takes to begin and end; every further thread adds ``join_s``.
        join_s: See ``start_s``.
    """

    cores: tuple[Core, ...]
    core_bytes_per_s: float
    package_bytes_per_s: float
    core_operations_per_s: float
    efficiency: float = 0.36
    smt: float = 0.6
    remote: float = 0.8
    float_share: float = 0.5
    start_s: float = 5e-7
    join_s: float = 3e-7

    @cached_property
    def _paces(self) -> list[tuple[float, float]]:
        """Bytes and int8 operations per second on 1, 2, ... threads."""
        core_of = {cpu: core for core in self.cores for cpu in core.cpus}
        on_core: dict[Core, int] = {}
        paces = []
        for threads, cpu in enumerate(pin_order(self.cores, len(core_of)), start=1):
            on_core[core_of[cpu]] = on_core.get(core_of[cpu], 0) + 1
            paces.append((self._bytes_per_s(list(on_core)), threads * self._slowest_per_s(on_core)))
        return paces

    def _bytes_per_s(self, cores: Sequence[Core]) -> float:
        """Every core in use adds what it reads, up to what its package's memory gives."""
        by_package: dict[int | None, float] = {}
        for core in cores:
            own = self.core_bytes_per_s * self._speed(core)
            by_package[core.package] = by_package.get(core.package, 0.0) + own
        total = sum((own**-4 + self.package_bytes_per_s**-4) ** -0.25 for own in by_package.values())
        return total if len(by_package) == 1 else self.remote * total

    def _slowest_per_s(self, on_core: Mapping[Core, int]) -> float:
        """All threads get equal shares of the work, so the slowest one sets the pace."""
        slowest = min(self._speed(core) * (self.smt if threads > 1 else 1.0) for core, threads in on_core.items())
        return slowest * self.core_operations_per_s

    def _speed(self, core: Core) -> float:
        return self.efficiency if core.kind == "efficiency" else 1.0

    def time_s(self, point: Point) -> float:
        """Seconds of an operation."""
        threads = point.threads
        bytes_per_s, operations_per_s = self._paces[threads - 1]
        byte_s, operation_s = 1 / bytes_per_s, 1 / operations_per_s
        float_s = operation_s / self.float_share
        team_s = self.start_s + self.join_s * (threads - 1)
        match point.op:
            case "read":
                return point.k_in * byte_s
            case "peak":  # every thread multiplies matrices of its own
                return threads * product_operations(point) * operation_s
            case "matmul":
                calculated_s = operation_s if get_format(point.format).ternary else float_s
                if point.kernel == "numpy":  # unpacks to integers that are wider, and adds them one by one
                    calculated_s *= 20
                moved = weight_bytes(point) + passed_bytes(point)
                return moved * byte_s + product_operations(point) * calculated_s + team_s
            case "attention":
                return cache_bytes(point) * byte_s + attention_operations(point) * float_s + team_s
            case "layer_ops":  # in cache, four times as fast as memory; three operations that a team shares
                return small_ops_bytes(point) * byte_s / 4 + 3 * team_s
        raise ValueError(f"expected an operation of a CPU, got {point.op}")


@dataclass(frozen=True)
class GpuLaw:
    """How a GPU, and the link to it, take time.

    Attributes:
        bytes_per_s: What a copy reads and writes.
        int8_per_s: Operations per second of its int8 tensor cores.
        f16_per_s: The same of float16; a float32 product outside of tensor cores runs at an eighth.
        link_bytes_per_s: Between pinned host memory and the GPU, each way.
        link_s: Latency of a transfer, its synchronisation included. A handover goes up and down: two of them.
        launch_s: One kernel in a replayed graph.
        eager_s: What launching a call from Python adds.
        triton: Whether Triton runs on it; else weights are unpacked by torch operations.
    """

    bytes_per_s: float
    int8_per_s: float
    f16_per_s: float
    link_bytes_per_s: float
    link_s: float
    launch_s: float = 3e-6
    eager_s: float = 8e-6
    triton: bool = True

    def time_s(self, point: Point) -> float:
        """Seconds of an operation, or of a transfer."""
        match point.op:
            case "read":
                return point.k_in / self.bytes_per_s
            case "peak":
                return product_operations(point) / (self.int8_per_s if point.format == "I8" else self.f16_per_s)
            case "upload" | "download":
                pageable = point.kernel == "pageable"
                return self.link_s * (2 if pageable else 1) + point.k_in / self.link_bytes_per_s * (
                    2.5 if pageable else 1
                )
            case "handover":
                return self.handover_s(point.k_in)
        eager_s = self.eager_s if point.launch == "eager" else 0.0
        match point.op:
            case "matmul":
                return eager_s + self._product_s(point)
            case "attention":
                return eager_s + self._longer_s(
                    2, cache_bytes(point), attention_operations(point), 0.3 * self.f16_per_s
                )
            case "layer_ops":
                return (
                    eager_s
                    + (4 if point.kernel == "triton" else 25) * self.launch_s
                    + (small_ops_bytes(point) / self.bytes_per_s)
                )
        raise ValueError(f"expected an operation of a GPU, got {point.op}")

    def handover_s(self, size_bytes: float) -> float:
        """Up, through an empty kernel, and down again."""
        return 2 * (self.link_s + size_bytes / self.link_bytes_per_s) + self.launch_s

    def _product_s(self, point: Point) -> float:
        weights, moved = point.n_out * point.k_in, weight_bytes(point) + passed_bytes(point)
        if not get_format(point.format).ternary:
            kernels = 1 if point.kernel == "torch" else 2
            return self._longer_s(kernels, moved, product_operations(point), 0.6 * self.f16_per_s)
        if point.kernel == "triton":
            return self._longer_s(1, moved, product_operations(point), 0.4 * self.int8_per_s)
        # torch unpacks to float32 in three passes, writes and reads that, and multiplies outside of tensor cores.
        unpacked = moved + 3 * 2 * F32_BYTES * weights
        return self._longer_s(8, unpacked, product_operations(point), self.f16_per_s / 8)

    def _longer_s(self, kernels: int, moved_bytes: float, operations: float, operations_per_s: float) -> float:
        """Memory at 85 % of a copy's bandwidth, or arithmetic, whichever takes longer; plus the kernels' launches."""
        return kernels * self.launch_s + max(moved_bytes / (0.85 * self.bytes_per_s), operations / operations_per_s)


def samples_s(point: Point, time_s: float, *, count: int = 6, spread: float = 0.01) -> tuple[float, ...]:
    """Samples around a time, evenly spread to both sides: the same from any Python on any machine.

    Args:
        point: Seeds the noise.
        time_s: Seconds by the law.
        count: How many samples.
        spread: Largest deviation, relative.
    """
    noise = random.Random(repr(point))
    return tuple(float(f"{time_s * (1 + spread * (2 * noise.random() - 1)):.4g}") for _ in range(count))
