"""Why a saved result is what it is, in words: the decision and its reasons, where time and memory go, the evidence.

Light: it needs no numerical library, so that it is there at once.
"""

from __future__ import annotations

from autotune.model.sizes import readable_bytes
from autotune.records import Candidate, Configuration, Result, SplitFigures, Trial
from autotune.search.objective import cost_s
from autotune.search.wording import compared
from autotune.summary import (
    Lines,
    configuration,
    duration,
    figures,
    gpu_runs,
    held_out,
    measured,
    memory_plan,
    runs,
    searched,
    three_digits,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from autotune.outlook import Prospect
    from autotune.whatif import Answer

_BAR = 30
"""Characters of the longest bar."""

_BROKEN = {"memory": "does not fit the memory", "limits": "fits, but not within the limits"}
_NO_BASELINES = ("predicted best", "predicted runner-up", "could win")
"""Origins of trials that nobody would have come to without the cost model."""


def explain(result: Result) -> Lines:
    """Label and value lines for a person."""
    decision = result.decision
    run = result.confirmation if result.confirmed else None
    return [
        ("chosen", configuration(decision.chosen)),
        ("  predicted", figures(decision.chosen)),
        *measured(None if run is None else run.chosen),
        *[("why", reason) for reason in decision.reasons],
        ("", ""),
        ("bound by", decision.bound_by),
        ("time", _request(result)),
        ("memory", memory_plan(decision.chosen)),
        *_memory_used(result),
        ("", ""),
        *_baselines(result),
        ("searched", searched(result)),
        *runs(result),
        *held_out(result),
        *gpu_runs(result),
        *[("note", note) for note in result.warnings],
        ("", ""),
        *curve(result),
    ]


def to_json(result: Result) -> dict[str, object]:
    """The same as plain values for a JSON document."""
    decision = result.decision
    return {
        "chosen": decision.chosen,
        "reasons": decision.reasons,
        "bound_by": decision.bound_by,
        "split_curve": decision.split_curve,
    }


def explain_answer(answer: Answer) -> Lines:
    """Label and value lines for a person who asked about other settings."""
    lines = [
        *_prospect("asked", answer.asked),
        ("", ""),
        *_prospect("chosen", answer.chosen),
        ("", ""),
        ("verdict", answer.verdict),
        *[("why", reason) for reason in answer.reasons],
        ("bound by", answer.bound_by),
    ]
    if answer.better is not None:
        change = _differences(answer.asked.configuration, answer.better.configuration)
        kept = answer.asked.obstacles and not answer.better.obstacles
        what = "the memory and the limits are kept" if kept else "it would be faster"
        lines.append(("better", f"with what was asked for {what} with {change}:"))
        lines += _prospect("", answer.better)[1:]
    return lines


def answer_to_json(answer: Answer) -> dict[str, object]:
    """The same as plain values for a JSON document."""
    prospects = {
        name: None if prospect is None else prospect._asdict()
        for name, prospect in (("asked", answer.asked), ("chosen", answer.chosen), ("better", answer.better))
    }
    return {**answer._asdict(), **prospects}


def curve(result: Result) -> Lines:
    """Tokens/s of the best with so many layers on GPUs, as bars."""
    points, chosen = result.decision.split_curve, result.decision.chosen.configuration
    if not points:
        return [("split", "all layers are on the CPU: there is no GPU that was timed")]
    best = max(point.tokens_per_s or 0.0 for point in points)
    width = len(str(points[-1].gpu_layers))
    lines = [("split", "tokens/s of the best configuration by layers on GPUs:")]
    for point in points:
        here = " <- chosen" if point.gpu_layers == _on_gpus(chosen) else ""
        lines.append(("split", f"{point.gpu_layers:>{width}} {_figures(point, best)}{here}"))
    return lines


def _request(result: Result) -> str:
    """How the time of whole requests divides into prompts and output."""
    workload, chosen = result.workload, result.decision.chosen
    found = result.confirmation.chosen if result.confirmed and result.confirmation is not None else None
    times = found or chosen.predicted
    batch = chosen.configuration.batch_size
    prompts_s, steps_s = batch * times.ttft_s, (workload.output_tokens - 1) * times.tpot_s
    requests, take = ("a request", "takes") if batch == 1 else (f"{batch} requests", "take")
    total_s = prompts_s + steps_s
    return (
        f"{requests} of {workload.prompt_tokens} prompt and {workload.output_tokens} output tokens {take} "
        f"{duration(total_s)}: {prompts_s / total_s:.0%} for prompts, {steps_s / total_s:.0%} for decode steps"
    )


def _memory_used(result: Result) -> Lines:
    """What the engine's process held at its peak."""
    run = result.confirmation
    used = {} if run is None or not result.confirmed else run.memory_used
    held = " and ".join(f"{readable_bytes(size)} on {device}" for device, size in used.items())
    return [("memory", f"the engine held at most {held} while it ran configurations")] if held else []


def _baselines(result: Result) -> Lines:
    """What would have been instead: without tuning, the next best, other formats; as measured where it was run."""
    decision = result.decision
    own = decision.chosen.configuration
    trials = list(result.confirmation.trials) if result.confirmed and result.confirmation is not None else []
    others = [("fallback", decision.default), ("runner-up", decision.runner_up)]
    others += [(other.format, other.candidate) for other in decision.other_formats]
    lines: Lines = []
    for name, other in others:
        if other is None:
            continue
        tried = [trial for trial in trials if trial.configuration == other.configuration]
        trials = [trial for trial in trials if trial not in tried]
        if other == decision.chosen:
            told = "it is the chosen configuration"
        else:
            told = f"{configuration(other)}: {_against(result, other, tried[0] if tried else None)}"
        lines.append(("instead", f"{name}: {told}"))
    for trial in trials:
        if trial.origin not in _NO_BASELINES and trial.configuration != own:
            candidate = Candidate(trial.configuration, decision.chosen.predicted)
            lines.append(("instead", f"{trial.origin}: {configuration(candidate)}: {_against(result, None, trial)}"))
    return lines


def _against(result: Result, predicted: Candidate | None, trial: Trial | None) -> str:
    """Another configuration's figures against the chosen one's, both measured or both predicted."""
    own = result.confirmation.chosen if result.confirmed and result.confirmation is not None else None
    if trial is not None and trial.measured is not None and own is not None:
        times = compared(cost_s(result.workload, trial.measured), cost_s(result.workload, own))
        return f"{three_digits(trial.measured.tokens_per_s)} tokens/s measured, {times}"
    if predicted is None:
        assert trial is not None, "one of both is there"
        return f"{trial.state}: {trial.reason}" if trial.reason else trial.state
    times = compared(*(cost_s(result.workload, one.predicted) for one in (predicted, result.decision.chosen)))
    return f"{three_digits(predicted.predicted.tokens_per_s)} tokens/s predicted, {times}"


def _prospect(label: str, prospect: Prospect) -> Lines:
    """A configuration with its predicted figures, each with its interval, and its measured ones."""
    predicted = prospect.predicted
    ranges = (
        (prospect.tokens_per_s_within, three_digits),
        (prospect.tpot_s_within, duration),
        (prospect.ttft_s_within, duration),
    )
    rate, tpot, ttft = (f"{text(low)} to {text(high)}" for (low, high), text in ranges)
    return [
        (label, configuration(Candidate(prospect.configuration, predicted))),
        (
            "  predicted",
            f"{three_digits(predicted.tokens_per_s)} tokens/s (95 %: {rate}), "
            f"TPOT {duration(predicted.tpot_s)} ({tpot}), TTFT {duration(predicted.ttft_s)} ({ttft})",
        ),
        *measured(prospect.measured),
    ]


def _differences(asked: Configuration, other: Configuration) -> str:
    """The settings of another configuration that differ, in words."""
    parts = [f"{count} layers on {device}" for device, count in other.device_layers.items()]
    settings = [", ".join(parts)] if other.device_layers != asked.device_layers else []
    for name, field in (
        ("head on", "head_device"),
        ("decode threads", "decode_threads"),
        ("prefill threads", "prefill_threads"),
        ("batch", "batch_size"),
        ("chunk", "prefill_chunk"),
    ):
        if getattr(other, field) != getattr(asked, field):
            settings.append(f"{name} {getattr(other, field)}")
    return ", ".join(settings)


def _figures(point: SplitFigures, best: float) -> str:
    if point.best is None or point.tokens_per_s is None or point.tpot_s is None:
        return _BROKEN[point.broken or "memory"]
    bar = "█" * max(1, round(_BAR * point.tokens_per_s / best))
    head = "" if point.best.head_device == "cpu" else ", head on GPU"
    details = f"batch {point.best.batch_size}, TPOT {three_digits(point.tpot_s * 1e3)} ms{head}"
    return f"{bar} {three_digits(point.tokens_per_s)} ({details})"


def _on_gpus(chosen: Configuration) -> int:
    return sum(layers for device, layers in chosen.device_layers.items() if device != "cpu")
