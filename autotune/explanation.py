"""Why a saved result is what it is, in words: reasons, what binds it, and the curve over the layers on GPUs."""

from __future__ import annotations

from autotune.records import Configuration, Result, SplitFigures
from autotune.summary import Lines, configuration, figures, gpu_runs, runs, three_digits

_BAR = 30
"""Characters of the longest bar."""

_BROKEN = {"memory": "does not fit the memory", "limits": "fits, but not within the limits"}


def explain(result: Result) -> Lines:
    """Label and value lines for a person."""
    decision = result.decision
    return [
        ("chosen", configuration(decision.chosen)),
        ("  predicted", figures(decision.chosen)),
        *[("why", reason) for reason in decision.reasons],
        ("bound by", decision.bound_by),
        *runs(result),
        *gpu_runs(result),
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


def _figures(point: SplitFigures, best: float) -> str:
    if point.best is None or point.tokens_per_s is None or point.tpot_s is None:
        return _BROKEN[point.broken or "memory"]
    bar = "█" * max(1, round(_BAR * point.tokens_per_s / best))
    head = "" if point.best.head_device == "cpu" else ", head on GPU"
    details = f"batch {point.best.batch_size}, TPOT {three_digits(point.tpot_s * 1e3)} ms{head}"
    return f"{bar} {three_digits(point.tokens_per_s)} ({details})"


def _on_gpus(chosen: Configuration) -> int:
    return sum(layers for device, layers in chosen.device_layers.items() if device != "cpu")
