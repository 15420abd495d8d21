"""A result in words: what was found, chosen and why, as label and value lines for a person."""

from __future__ import annotations

import os
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from msgspec.structs import replace

from autotune import checked
from autotune.model.sizes import readable_bytes
from autotune.records import (
    Campaign,
    Candidate,
    Gpu,
    GpuRun,
    HeldOut,
    Host,
    Measured,
    Measurement,
    Model,
    Origin,
    Point,
    Result,
    SiteKernels,
    Workload,
    median,
)

_WIDTH_ELSEWHERE = 120
"""Columns where standard error is no terminal."""

Lines = list[tuple[str, str]]


def summarize(result: Result, saved_in: str | None) -> Lines:
    """What a user wants to know of a result, most of it in one line each.

    Args:
        result: The result.
        saved_in: Where it is saved, or None.
    """
    decision = result.decision
    run = result.confirmation if result.confirmed else None
    lines = [
        ("host", _host(result.host)),
        *([] if result.origin is None else [("imported", _origin(result.origin))]),
        ("tier", f"{result.tier.name}: {result.tier.reason}"),
        ("model", _model(result.model)),
        ("workload", _workload(result.workload)),
        ("timed", _timed(result.campaign)),
        ("noise", _noise(result.campaign)),
        *gpu_runs(result),
        *held_out(result),
        *([("kernels", kernels(result))] if result.kernels else []),
        ("", ""),
        ("chosen", configuration(decision.chosen)),
        ("  predicted", figures(decision.chosen)),
        *measured(None if run is None else run.chosen),
        *((f"  {label}", value) for label, value in checked.lines(result)),
        ("  memory", memory_plan(decision.chosen)),
    ]
    if decision.default is not None:
        default_run, speedup = None if run is None else run.default, _speedup(decision.speedup_over_default)
        lines += [
            ("fallback", configuration(decision.default)),
            ("  predicted", f"{figures(decision.default)}{speedup if default_run is None else ''}"),
            *measured(default_run, speedup),
        ]
    if decision.runner_up is not None:
        lines.append(("runner-up", f"{configuration(decision.runner_up)}: {figures(decision.runner_up)}"))
    lines += [("why", reason) for reason in decision.reasons]
    lines += [("bound by", decision.bound_by), ("searched", searched(result))]
    lines += [*runs(result), ("", "")]
    lines += [("note", note) for note in (*result.model.notes, *result.warnings)]
    if saved_in is not None:
        lines.append(("saved", saved_in))
    return lines


def show(lines: Iterable[tuple[str, str]]) -> None:
    """Print label and value lines to standard error, wrapped to its terminal, a repeated label only once.

    Words stay whole, however long: a path can be copied.
    """
    lines = list(lines)
    margin = max((len(label) for label, _ in lines), default=0) + 2
    wrapper = textwrap.TextWrapper(
        max(_columns(), margin + 40),
        subsequent_indent=" " * margin,
        break_long_words=False,
        break_on_hyphens=False,
    )
    previous = None
    for label, value in lines:
        wrapper.initial_indent = f"{'' if label == previous else label:<{margin}}"
        print(wrapper.fill(value).rstrip(), file=sys.stderr)
        previous = label


def configuration(candidate: Candidate) -> str:
    """A configuration in words."""
    chosen = candidate.configuration
    devices = ", ".join(f"{_count(layers, 'layer')} on {device}" for device, layers in chosen.device_layers.items())
    if chosen.head_device not in chosen.device_layers or len(chosen.device_layers) > 1:
        devices += f", head on {chosen.head_device}"
    on_cpu = "cpu" in (*chosen.device_layers, chosen.head_device)
    threads = f"{_count(chosen.decode_threads, 'thread')} for decode, {chosen.prefill_threads} for prefill; "
    return (
        f"{devices}; {threads if on_cpu else ''}batch {chosen.batch_size}; prompts in chunks of {chosen.prefill_chunk}"
    )


def kernels(result: Result) -> str:
    """Which kernel was fastest for which format, from one token on, and from which m another one.

    Where the sites of a format differ, what most of them have counts.
    """
    paths = {(kernel.kernel, kernel.format): kernel.path for kernel in result.campaign.kernels}
    groups: dict[tuple[str, str], list[SiteKernels]] = {}
    for site in result.kernels:
        groups.setdefault((site.device, site.format), []).append(site)
    devices: dict[str, list[str]] = {}
    for (device, name), sites in groups.items():
        devices.setdefault(f"{name} {_fastest(sites, paths)}", []).append(device)
    return "; ".join(
        fastest if names == ["cpu"] else f"on {' and '.join(names)} {fastest}" for fastest, names in devices.items()
    )


def _fastest(sites: Sequence[SiteKernels], paths: Mapping[tuple[str, str], str | None]) -> str:
    """The fastest kernels of one format's sites on a device, each from the m on from which it is."""
    by_tokens = [{int(m): kernel for m, kernel in {**site.prefill, **site.decode}.items()} for site in sites]
    runs: list[str] = []
    previous = None
    for m in sorted({m for kernels in by_tokens for m in kernels}):
        kernel = Counter(kernels[m] for kernels in by_tokens if m in kernels).most_common(1)[0][0]
        if kernel != previous:
            path = paths.get((kernel, sites[0].format))
            named = path in (None, kernel) or any(run.startswith(kernel) for run in runs)
            known = kernel if named else f"{kernel} ({path})"
            runs.append(f"{known} from m = {m}" if runs else known)
            previous = kernel
    return ", ".join(runs)


def figures(candidate: Candidate) -> str:
    """Predicted figures in words."""
    predicted = candidate.predicted
    times = f"TPOT {duration(predicted.tpot_s)}, TTFT {duration(predicted.ttft_s)}"
    return f"{three_digits(predicted.tokens_per_s)} tokens/s, {times}"


def measured(found: Measured | None, speedup: str = "") -> Lines:
    """Measured figures in words; nothing where there are none."""
    if found is None:
        return []
    interval = "" if found.relative_interval is None else f" ±{found.relative_interval:.1%}"
    times = f"TPOT {duration(found.tpot_s)}, TTFT {duration(found.ttft_s)}"
    return [("  measured", f"{three_digits(found.tokens_per_s)} tokens/s{interval}, {times}{speedup}")]


def runs(result: Result) -> Lines:
    """What was run, why it ended, and what that told about the predictions; nothing where nothing was run."""
    found = result.confirmation
    if found is None:
        return []
    states = Counter(trial.state for trial in found.trials)
    told = ", ".join(f"{count} {state}" for state, count in states.items())
    what = f"{_count(len(found.trials), 'configuration')} ({told}) on the {found.engine} in {found.spent_s:.1f} s"
    if found.workload != result.workload:
        what += f", for another workload ({found.workload.name})"
    ends = {"decided": "nothing else could win", "budget": "the time was up", "failed": "none could be run"}
    lines = [("run", f"{what}; {ends[found.stopped]}")]
    if found.overhead_share is not None:
        lines.append(("run", f"{found.overhead_share:.1%} of a decode step is spent outside the kernels"))
    if found.reused_layers:
        lines.append(
            ("run", f"{_count(found.reused_layers, 'layer')} had another one's weights: not all fit the memory")
        )
    for report in found.corrections:
        after = ""
        if report.median_error_after is not None:
            after = f", {report.median_error_after:.1%} when each is predicted from the others"
        lines.append(
            (
                "corrected",
                f"{report.phase} on {report.device}: {report.factor:.3f} times the predicted time in "
                f"{_count(report.runs, 'run')}; median error {report.median_error_before:.1%} as predicted{after}",
            )
        )
    return lines


def _origin(origin: Origin) -> str:
    return f"measured on {origin.host_label}, of the same hardware class {origin.hardware_class}, {origin.measured_at}"


def _host(host: Host) -> str:
    threads = f"{_count(host.limits.usable_threads, 'usable thread')} (limit: {host.limits.decided_by})"
    gpus = ", ".join(map(_gpu, host.gpus.devices)) or f"no GPU ({host.gpus.absent_reason})"
    return (
        f"{host.cpu.name or host.cpu.architecture}, {threads}, "
        f"{readable_bytes(host.memory.usable_bytes)} of usable memory, {gpus}"
    )


def _gpu(gpu: Gpu) -> str:
    if gpu.unusable_reason is not None:
        return f"{gpu.name} (not usable: {gpu.unusable_reason})"
    return gpu.name if gpu.memory_free_bytes is None else f"{gpu.name} ({readable_bytes(gpu.memory_free_bytes)} free)"


def _model(model: Model) -> str:
    from autotune.model.memory import model_bytes  # imports numpy, which no other line needs

    return f"{model.name}, {_count(len(model.layers), 'layer')}, {readable_bytes(model_bytes(model))}"


def _workload(workload: Workload) -> str:
    limits = [
        f"{name} within {duration(limit_s)}"
        for name, limit_s in (("TPOT", workload.max_tpot_s), ("TTFT", workload.max_ttft_s))
        if limit_s is not None
    ]
    return ", ".join(
        [
            f"{workload.name}: prompt {workload.prompt_tokens}, output {workload.output_tokens}",
            f"context {workload.context_tokens}, batch up to {workload.max_batch}",
            *limits,
        ]
    )


def _timed(campaign: Campaign) -> str:
    points = [found.point for found in campaign.measurements() if found.point.device == "cpu"]
    tried = sum(1 for outcome in campaign.outcomes if outcome.point.device == "cpu")
    kernels = Counter(f"{point.kernel} {point.format}" for point in points if point.op == "matmul")
    threads = sorted({point.threads for point in points})
    return (
        f"{len(points)} of {tried} points in {campaign.spent_s - sum(run.spent_s for run in campaign.gpus):.1f} s "
        f"({', '.join(f'{count} {name} products' for name, count in kernels.items())}, "
        f"threads {', '.join(map(str, threads))}; weights rotate through {readable_bytes(campaign.cold_bytes)})"
    )


def _noise(campaign: Campaign) -> str:
    noise = campaign.noise
    width = noise.median_relative_interval
    parts = [
        "median interval unknown" if width is None else f"median interval ±{width:.1%}",
        f"{noise.converged} of {noise.points} points within 2 %",
        f"{_count(noise.disturbed_samples, 'sample')} repeated",
        f"control drifted {noise.control_drift:.1%}",
    ]
    if noise.steal_fraction is not None:
        parts.append(f"steal {noise.steal_fraction:.1%}")
    if noise.throttled_s is not None:
        parts.append(f"throttled {noise.throttled_s:.1f} s")
    return f"{noise.label} ({', '.join(parts)})"


def gpu_runs(result: Result) -> Lines:
    """What was found out about each kind of GPU, or why it wasn't."""
    return [(run.devices[0], _gpu_run(run, result.campaign)) for run in result.campaign.gpus]


def _gpu_run(run: GpuRun, campaign: Campaign) -> str:
    if run.failure is not None:
        return f"not used: {run.failure}"
    own = [found for found in campaign.measurements() if found.point.device == run.devices[0]]
    all_points = [found for found in campaign.outcomes if found.point.device == run.devices[0]]
    parts = [f"{len(own)} of {len(all_points)} points in {run.spent_s:.1f} s"]
    if len(run.devices) > 1:
        parts.append(f"the same for {', '.join(sorted(run.devices[1:]))}")
    if run.free_bytes is not None:
        parts.append(
            f"{readable_bytes(run.free_bytes)} free, of which a context takes {readable_bytes(run.context_bytes)}"
        )
    if run.noise is not None and run.noise.median_relative_interval is not None:
        parts.append(f"median interval ±{run.noise.median_relative_interval:.1%}")
    if run.clocks is not None and run.clocks.lowest_sm_hz and run.clocks.highest_sm_hz:
        parts.append(f"clock {run.clocks.lowest_sm_hz / 1e6:.0f} to {run.clocks.highest_sm_hz / 1e6:.0f} MHz")
    slower = eager_slowdown(own)
    if slower is not None:
        parts.append(f"predictions are of CUDA graphs; products of one token launched one by one take {slower:.1f}x")
    return "; ".join(parts)


def eager_slowdown(measurements: Sequence[Measurement]) -> float | None:
    """How many times as long products of one token take that aren't replayed from a graph; None: not timed."""
    times: dict[str | None, dict[Point, float]] = {"graph": {}, "eager": {}}
    for found in measurements:
        if found.point.op == "matmul" and found.point.m == 1 and found.point.launch in times:
            times[found.point.launch][replace(found.point, launch=None)] = found.median_s
    both = [point for point in times["eager"] if point in times["graph"]]
    return median([times["eager"][point] / times["graph"][point] for point in both]) if both else None


def held_out(result: Result) -> Lines:
    """How well what a fit didn't see was predicted, of each kind of device."""
    return [
        (
            "held-out error" if report.device == "cpu" else f"  on {report.device}",
            "; ".join(map(_held_out, report.held_out)),
        )
        for report in (result.cost_model, *result.gpu_cost_models)
    ]


def _held_out(error: HeldOut) -> str:
    if error.median is None or error.p90 is None:
        return f"{error.left_out}: nothing to leave out"
    return f"{error.left_out} {error.median:.1%} median, {error.p90:.1%} p90 ({error.predictions})"


def memory_plan(candidate: Candidate) -> str:
    """What a configuration needs on each device, of what it may use there."""
    return "; ".join(
        f"{readable_bytes(use.total_bytes)} of {readable_bytes(use.available_bytes)} on {use.device} "
        f"(weights {readable_bytes(use.weights_bytes)}, KV cache {readable_bytes(use.kv_cache_bytes)}, "
        f"activations {readable_bytes(use.activations_bytes)}, runtime {readable_bytes(use.overhead_bytes)})"
        for use in candidate.predicted.memory
    )


def searched(result: Result) -> str:
    """What was searched, and how."""
    search = result.decision.search
    line = (
        f"{search.feasible:,} of {search.points:,} configurations feasible, "
        f"all ranked in {search.ranking_time_s * 1e3:.1f} ms"
    )
    if search.study is not None and search.study.gap is not None:
        line += f"; the best that Optuna found in {search.study.trials} trials is {search.study.gap:.1%} slower"
    return line


def _speedup(speedup: float | None) -> str:
    return "" if speedup is None else f" (chosen: {speedup:.2f}x as fast)"


def duration(time_s: float) -> str:
    """A time in seconds or milliseconds."""
    return f"{three_digits(time_s)} s" if time_s >= 1 else f"{three_digits(time_s * 1e3)} ms"


def three_digits(value: float) -> str:
    """Three significant digits, and no exponent for large numbers."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or _WIDTH_ELSEWHERE
    except OSError:  # also io.UnsupportedOperation, of a stream without a file
        return _WIDTH_ELSEWHERE
