"""What timing a GPU came to, from what its workers reported."""

from __future__ import annotations

from collections.abc import Sequence

from autotune.bench.gpu_plan import GpuTasks
from autotune.bench.ledger import Ledger
from autotune.bench.messages import Clocks
from autotune.bench.plan import describe, describe_first_missing
from autotune.records import Failure, Gpu, GpuClocks, GpuRun, Measurement, Noise


def visible_gpu(gpu: Gpu) -> str:
    """A GPU or MIG instance as CUDA_VISIBLE_DEVICES names it, where CUDA_DEVICE_ORDER is PCI_BUS_ID."""
    return gpu.uuid or str(gpu.index)


def describe_run(
    gpu: GpuTasks, ledger: Ledger, noise: Noise, *, spent_s: float, share_s: float, failure: str | None
) -> GpuRun:
    """What a kind of GPU's workers told beside its points.

    Args:
        gpu: What was to be timed.
        ledger: What they reported.
        noise: While they did.
        spent_s: Time that took.
        share_s: Time that they had.
        failure: Why there was no worker in the end; None: there was one.
    """
    facts = ledger.gpu
    return GpuRun(
        devices=gpu.devices,
        failure=ledger.unusable or failure or _missing(gpu, ledger, share_s),
        noise=noise,
        spent_s=spent_s,
        cold_bytes=ledger.cold_bytes,
        context_bytes=facts.context_bytes if facts else 0,
        host_bytes=facts.host_bytes if facts else 0,
        free_bytes=facts.free_bytes if facts else None,
        l2_bytes=facts.l2_bytes if facts else None,
        multiprocessors=facts.multiprocessors if facts else None,
        clocks=_clocks(ledger.clocks, facts.busy_before) if facts else None,
        libraries=facts.libraries if facts else {},
    )


def _missing(gpu: GpuTasks, ledger: Ledger, share_s: float) -> str | None:
    """What a decision about the GPU can't do without and wasn't timed, and why; None if it is all there."""
    outcomes = ledger.outcomes()
    missing = describe_first_missing(gpu.tasks, (found.point for found in outcomes if isinstance(found, Measurement)))
    if missing is None:
        return None
    why = [
        found.message
        for found in outcomes
        if isinstance(found, Failure) and found.kind != "budget" and describe(found.point) == missing
    ]
    if why:
        return f"{missing} could not be timed: {why[0]}"
    return f"its share of the time budget, {share_s:.3g} s, ended before {missing} was timed"


def _clocks(read: Sequence[Clocks], busy_before: float | None) -> GpuClocks:
    sm_hz = [clocks.sm_hz for clocks in read if clocks.sm_hz is not None]
    memory_hz = [clocks.memory_hz for clocks in read if clocks.memory_hz is not None]
    return GpuClocks(
        lowest_sm_hz=min(sm_hz, default=None),
        highest_sm_hz=max(sm_hz, default=None),
        memory_hz=memory_hz[-1] if memory_hz else None,
        throttle_reasons=tuple(sorted({reason for clocks in read for reason in clocks.throttle_reasons})),
        busy_before=busy_before,
    )
