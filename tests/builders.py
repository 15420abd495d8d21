"""Synthetic records for tests: consistent with each other, but measured on no real host.

Each builder takes the record's own fields as overrides.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from autotune.bench.rivals import Kernels
from autotune.records import (
    Attention,
    BaselineExam,
    Cache,
    Campaign,
    Candidate,
    Check,
    Configuration,
    Confirmation,
    Core,
    CorrectionReport,
    CostModelReport,
    Cpu,
    Decision,
    DeviceConfig,
    Errors,
    Exam,
    Failure,
    Figures,
    Fingerprint,
    Gpu,
    GpuClocks,
    GpuRun,
    Gpus,
    Grid,
    GridPart,
    HeldOut,
    Host,
    Hybrid,
    HybridSplit,
    Kernel,
    Layer,
    Limits,
    Measured,
    Measurement,
    Memory,
    MemoryExam,
    MemoryUse,
    Model,
    Noise,
    Origin,
    PartRun,
    Point,
    PredictionExam,
    Result,
    RunFailure,
    SearchReport,
    Site,
    SiteKernels,
    SplitFigures,
    Study,
    Tier,
    Trial,
    Verification,
    Versions,
    Workload,
    part_of,
)

NUMPY = Kernels(dict.fromkeys(("I2_S", "I2_S_ARM", "F16", "F32"), ("numpy",)))
"""As on a host where no other kernel can run."""

HOST_FINGERPRINT = "0123456789abcdef" * 2
MODEL_DIGEST = "fedcba9876543210" * 2


def build_host(fingerprint: str = HOST_FINGERPRINT, **overrides: Any) -> Host:
    """A synthetic host with two cores and no GPU, under the given cheap fingerprint."""
    host = Host(
        label="synthetic-host",
        operating_system="Linux 6.1",
        cpu=Cpu(
            name="Synthetic CPU",
            vendor=None,
            architecture="x86_64",
            microarchitecture="haswell",
            isa=("avx2",),
            logical_cpus=2,
            physical_cores=2,
            cores=tuple(Core(cpus=(cpu,), package=0, numa_node=0, kind=None, max_frequency_hz=None) for cpu in (0, 1)),
            caches=(Cache(level=3, size_bytes=32 * 2**20, shared_by_cpus=2),),
        ),
        limits=Limits(
            affinity_cpus=(0, 1),
            cpuset_cpus=None,
            quota_cpus=None,
            usable_threads=2,
            decided_by="online CPUs",
            cgroup_version=2,
        ),
        memory=Memory(
            total_bytes=8 * 2**30,
            available_bytes=6 * 2**30,
            cgroup_limit_bytes=None,
            cgroup_used_bytes=None,
            usable_bytes=6 * 2**30,
            decided_by="available",
        ),
        numa_nodes=1,
        gpus=Gpus(devices=(), driver_version=None, absent_reason="no NVIDIA driver"),
        versions=Versions(
            autotune="0.1.0",
            python="3.11.7",
            libraries={"numpy": "2.4.6"},
            kernels="0" * 32,
            measuring_policy=1,
        ),
        fingerprint=Fingerprint(full="f" * 32, cheap=fingerprint),
    )
    return replace(host, **overrides)


def build_model(source_digest: str = MODEL_DIGEST, **overrides: Any) -> Model:
    """A synthetic model of two small layers."""
    sites = (
        Site("q", 256, 256, "I2_S"),
        Site("k", 128, 256, "I2_S"),
        Site("v", 128, 256, "I2_S"),
        Site("o", 256, 256, "I2_S"),
        Site("gate", 768, 256, "I2_S"),
        Site("up", 768, 256, "I2_S"),
        Site("down", 256, 768, "I2_S"),
    )
    model = Model(
        name="synthetic/model",
        architecture="bitnet",
        hidden_size=256,
        intermediate_size=768,
        vocab_size=1000,
        max_context=4096,
        activation="relu2",
        attention=Attention(heads=4, kv_heads=2, head_dim=64),
        layers=(Layer(sites), Layer(sites)),
        embedding=Site("embedding", 1000, 256, "F16"),
        head=Site("head", 1000, 256, "F16"),
        tied=True,
        norm_bytes=5 * 256 * 4,
        source_digest=source_digest,
    )
    return replace(model, **overrides)


def build_workload(**overrides: Any) -> Workload:
    """The server workload, small."""
    workload = Workload(
        name="server",
        prompt_tokens=128,
        output_tokens=64,
        context_tokens=512,
        max_batch=8,
        max_tpot_s=0.1,
        max_ttft_s=None,
        relaxed_tpot_ratio=1.25,
    )
    return replace(workload, **overrides)


def build_candidate(tokens_per_s: float = 200.0, threads: int = 2, batch_size: int = 4) -> Candidate:
    """A CPU-only configuration with synthetic figures."""
    return Candidate(
        configuration=Configuration(
            device_layers={"cpu": 2},
            head_device="cpu",
            decode_threads=threads,
            prefill_threads=threads,
            batch_size=batch_size,
            prefill_chunk=128,
        ),
        predicted=Figures(
            tokens_per_s=tokens_per_s,
            tpot_s=batch_size / tokens_per_s,
            ttft_s=0.25,
            memory=(
                MemoryUse(
                    device="cpu",
                    weights_bytes=800_000,
                    kv_cache_bytes=2_000_000,
                    activations_bytes=100_000,
                    overhead_bytes=50_000_000,
                    available_bytes=6 * 2**30,
                ),
            ),
        ),
    )


def build_campaign(points: int = 3, samples: int = 8, **overrides: Any) -> Campaign:
    """Synthetic measurements of one product at several m, and one failure."""
    measured = tuple(
        Measurement(
            point=Point(op="matmul", device="cpu", kernel="numpy", threads=1, m=m, format="I2_S", n_out=256, k_in=256),
            samples_s=tuple(1e-4 * m * (1 + sample / 1000) for sample in range(samples)),
            calls_per_sample=16,
            stopped="converged",
        )
        for m in range(1, points + 1)
    )
    failed = Failure(
        point=Point(op="peak", device="cpu", kernel="numpy", threads=2),
        kind="budget",
        message="the time was up",
    )
    campaign = Campaign(
        outcomes=(*measured, failed),
        noise=Noise(
            median_relative_interval=0.01,
            converged=points,
            points=points + 1,
            disturbed_samples=0,
            control_drift=0.01,
            steal_fraction=None,
            throttled_s=None,
        ),
        budget_s=30.0,
        spent_s=1.5,
        cold_bytes=64 * 2**20,
        runtime_overhead_bytes=50_000_000,
        kernels=(
            Kernel("native", "I2_S", None, "llvmlite is not installed"),
            Kernel("numpy", "I2_S", None, None),
            Kernel("numpy", "F16", None, None),
        ),
    )
    return replace(campaign, **overrides)


def build_result(
    host_fingerprint: str = HOST_FINGERPRINT,
    model_digest: str = MODEL_DIGEST,
    workload: str = "server",
    **overrides: Any,
) -> Result:
    """A synthetic result, as tuning a CPU-only host gives it."""
    chosen, default = build_candidate(), build_candidate(tokens_per_s=80.0, batch_size=1)
    result = Result(
        device_config=DeviceConfig(
            strategy="CpuOnly", cpu_threads=2, gpu_memory_fraction=None, recommended_batch_size=4
        ),
        provenance="measured",
        created_at="2026-01-02T03:04:05Z",
        host=build_host(host_fingerprint),
        tier=Tier(name="Low", reason="reads 10 GB/s from memory"),
        model=build_model(model_digest),
        workload=build_workload(name=workload),
        decision=Decision(
            chosen=chosen,
            runner_up=None,
            default=default,
            speedup_over_default=2.5,
            bound_by="memory bandwidth",
            reasons=("decode reads every weight once per step",),
            search=SearchReport(
                objective="tokens_per_s",
                points=64,
                feasible=60,
                effective_max_tpot_s=0.1,
                ranking_time_s=0.001,
                study=Study(
                    sampler="TPESampler",
                    seed=0,
                    trials=40,
                    feasible_trials=38,
                    best=chosen.configuration,
                    gap=0.0,
                ),
            ),
        ),
        cost_model=CostModelReport(
            roofline="sum",
            read_bytes_per_s={"1": 8e9, "2": 1.2e10},
            operations_per_s={"1": 5e10, "2": 9e10},
            held_out=(HeldOut(left_out="interior m", predictions=4, median=0.03, p90=0.08, worst=0.1),),
        ),
        campaign=build_campaign(),
        tune_time_s=2.5,
        kernels=(SiteKernels("I2_S", 256, 256, {"1": "numpy", "2": "numpy"}, {"1": "numpy", "2": "numpy"}),),
    )
    return replace(result, **overrides)


def build_gpu_result(**overrides: Any) -> Result:
    """A synthetic result of a host with a GPU, over which the layers are split."""
    gpu = Gpu(0, "Synthetic GPU", "GPU-1", 8 * 2**30, 7 * 2**30, (8, 9), mig=False, unusable_reason=None)
    result = build_result(host=build_host(gpus=Gpus((gpu,), driver_version="580.65", absent_reason=None)))
    chosen = build_candidate(tokens_per_s=400.0)
    split = replace(chosen.configuration, device_layers={"cpu": 1, "cuda:0": 1}, head_device="cuda:0")
    on_gpu = replace(chosen.predicted.memory[0], device="cuda:0", available_bytes=6 * 2**30)
    chosen = Candidate(split, replace(chosen.predicted, memory=(*chosen.predicted.memory, on_gpu)))
    product = Point("matmul", "cuda:0", "triton", 1, 1, "I2_S", 768, 256, launch="graph")
    timed = tuple(
        Measurement(replace(product, launch=launch), (time_s,) * 8, 64, "converged")
        for launch, time_s in (("graph", 4e-6), ("eager", 1e-5))
    )
    run = GpuRun(
        devices=("cuda:0",),
        failure=None,
        noise=result.campaign.noise,
        spent_s=0.5,
        cold_bytes=128 * 2**20,
        context_bytes=400_000_000,
        host_bytes=1_500_000_000,
        free_bytes=7 * 2**30,
        l2_bytes=32 * 2**20,
        multiprocessors=46,
        clocks=GpuClocks(2.1e9, 2.5e9, 9e9, ("sw_power_cap",), 0.0),
        libraries={"torch": "2.13.0"},
    )
    curve = (
        SplitFigures(0, build_candidate().configuration, 200.0, 0.02, None),
        SplitFigures(1, split, 400.0, 0.01, None),
        SplitFigures(2, None, None, None, "memory"),
    )
    kernels = (*result.kernels, SiteKernels("I2_S", 768, 256, {"1": "triton"}, {"1": "triton"}, "cuda:0"))
    report = replace(result.cost_model, roofline="waves", device="cuda:0", held_out=result.cost_model.held_out[:1])
    return replace(
        result,
        **{
            "device_config": DeviceConfig(Hybrid(HybridSplit(1, 1)), 2, 0.01, 4),
            "decision": replace(result.decision, chosen=chosen, split_curve=curve),
            "campaign": replace(result.campaign, outcomes=(*result.campaign.outcomes, *timed), gpus=(run,)),
            "kernels": kernels,
            "gpu_cost_models": (report,),
            **overrides,
        },
    )


def build_confirmation(workload: Workload, chosen: Configuration, default: Configuration) -> Confirmation:
    """A synthetic search: the chosen and the default were run, the rest was not, each for a reason of its own."""
    decode, prefill = (part_of(chosen, workload, phase) for phase in ("decode", "prefill"))
    measured = Measured(tokens_per_s=190.0, tpot_s=0.02, ttft_s=0.1, relative_interval=0.012)
    slower = replace(measured, tokens_per_s=76.0)
    larger = replace(chosen, batch_size=8)
    return Confirmation(
        engine="synthetic engine",
        budget_s=20.0,
        spent_s=9.5,
        stopped="decided",
        workload=workload,
        trials=(
            Trial(chosen, "predicted best", "complete", None, measured),
            Trial(default, "fallback", "complete", None, slower),
            Trial(larger, "could win", "pruned", "it could not become the best any more"),
            Trial(replace(chosen, decode_threads=1), "could win", "failed", "the process died"),
        ),
        runs=(
            PartRun(decode, (0.02,) * 6, {"cpu": (0.0199,) * 6}),
            PartRun(prefill, (0.1, 0.101), {"cpu": (0.0999, 0.1009)}),
        ),
        failures=(RunFailure(decode, "crashed", "the process died"),),
        corrections=(CorrectionReport("cpu", "decode", 2, 1.05, 0.05, 0.01),),
        chosen=measured,
        default=slower,
        runner_up=default,
        overhead_share=0.012,
        memory_used={"cpu": 3_000_000},
        reused_layers=0,
    )


def build_confirmed_result(**overrides: Any) -> Result:
    """A synthetic result whose configuration was run."""
    result = build_result()
    decision = result.decision
    assert decision.default is not None
    confirmation = build_confirmation(result.workload, decision.chosen.configuration, decision.default.configuration)
    return replace(result, confirmation=confirmation, **overrides)


def build_imported_result(**overrides: Any) -> Result:
    """A confirmed result that came from another host and was checked on this one."""
    confirmed = build_confirmed_result()
    assert confirmed.confirmation is not None
    assert confirmed.confirmation.chosen is not None
    chosen = confirmed.confirmation.chosen
    imported = replace(
        confirmed,
        provenance="imported",
        origin=Origin("synthetic-twin", "haswell-2t-8g-cpu-00000000", "2026-01-01T00:00:00+00:00"),
        smaller=(build_candidate(tokens_per_s=100.0, batch_size=2),),
        check=Check(
            checked_at="2026-01-03T00:00:00+00:00",
            spent_s=4.0,
            expected=chosen,
            found=replace(chosen, tpot_s=chosen.tpot_s * 1.01),
            tolerance=0.05,
            holds=True,
        ),
    )
    return replace(imported, **overrides)


def build_exam(**overrides: Any) -> Exam:
    """A synthetic exam: the best by a hair was not chosen, and one of two baselines doesn't fit."""
    chosen = replace(build_candidate().configuration, prefill_threads=1)
    measured = Measured(tokens_per_s=12.5, tpot_s=0.0801, ttft_s=1.25, relative_interval=0.01)
    errors = Errors(count=8, median=0.021, p90=0.05, worst=0.123)
    single = replace(chosen, batch_size=1)
    exam = Exam(
        workload=build_workload(),
        confirmed=True,
        chosen=chosen,
        measured=measured,
        kept_limits=True,
        max_tpot_s=0.1,
        best=replace(chosen, batch_size=8),
        best_measured=replace(measured, tokens_per_s=1250.0),
        regret=0.0123,
        regret_interval=(-0.004, 0.03),
        configurations=1400,
        feasible_configurations=1700,
        baselines=(
            BaselineExam("fallback", "the loader", single, None, measured, 1.5, (1.4, 1.6), 2.47, (2.4, 2.5)),
            BaselineExam("everything", "guides", single, "does not fit", None, None, None, None, None),
        ),
        predictions=(
            PredictionExam("before correction", errors, Errors(0, None, None, None), errors, errors, 0.9876),
            PredictionExam("after correction", errors, errors, errors, errors, None),
        ),
        tune_time_s=30.0,
        exhaustive_time_s=1500.0,
        memory=(MemoryExam("cpu", 1_030_000_000, 1_000_000_000), MemoryExam("cuda:0", 90_000_000, 100_000_000)),
        notes=("a note for the reader",),
    )
    return replace(exam, **overrides)


def build_verification(*exams: Exam) -> Verification:
    """A synthetic verification, by default of one exam; of its grid one part ran and one failed."""
    exams = exams or (build_exam(),)
    decode, prefill = (part_of(exams[0].chosen, exams[0].workload, phase) for phase in ("decode", "prefill"))
    samples_s = (0.08, 0.081)
    return Verification(
        created_at="2026-01-02T03:04:05+00:00",
        host="synthetic-host",
        fingerprint=build_host().fingerprint,
        model="synthetic/model",
        format="I2_S",
        grid=Grid(
            engine="synthetic engine",
            parts=(
                GridPart(PartRun(decode, samples_s, {"cpu": samples_s}), spent_s=0.2),
                GridPart(RunFailure(prefill, "crashed", "the process died"), spent_s=0.1),
            ),
            feasible_parts=20,
            rounds=3,
            spent_s=100.0,
        ),
        exams=exams,
    )
