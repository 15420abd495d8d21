"""One call per observation, for loaders that keep no tuner of their own."""

from __future__ import annotations

import os
import threading
from typing import NamedTuple

from autotune.adapt.metrics import PerformanceMetrics
from autotune.adapt.tuner import AdaptiveTuner
from autotune.device_config import device_config
from autotune.errors import AutotuneError
from autotune.loader import get_optimal_device_config, load_result
from autotune.records import DeviceConfig


class _Following(NamedTuple):
    """What follows a model; the saved configuration that it began with tells whether it still applies."""

    saved: DeviceConfig
    tuner: AdaptiveTuner | None


_following: dict[tuple[str, str, str | None], _Following] = {}
_lock = threading.Lock()


def get_adaptive_device_config(
    model: str | os.PathLike[str],
    metrics: PerformanceMetrics,
    workload: str = "server",
    format: str | None = None,  # noqa: A002 (the option's name)
) -> DeviceConfig:
    """The configuration that a running model should go on with, by what was just observed of it.

    Each call is an observation of what the last one returned; a change is made as soon as one asks for it, and none
    that isn't predicted to be better (see ``AdaptiveTuner``). Never benchmarks. Where nothing is saved it is the
    fallback with a `FallbackWarning`, whatever is observed: nothing is known of what else would be better. A new result
    is seen, and starts anew. After the first call it takes well below a millisecond.

    Args:
        model: What ``autotune`` was run on: a model file, or the name of a preset.
        metrics: What was observed since the last call.
        workload: ``chat``, ``server`` or ``offline``.
        format: Weight format, where ``autotune`` was run with ``--format``.

    Raises:
        UsageError: Where there is no such workload.
    """
    name = os.fspath(model)
    question = name, workload, format
    with _lock:
        saved = get_optimal_device_config(name, workload, format)
        following = _following.get(question)
        if following is None or following.saved is not saved:
            following = _following[question] = _Following(saved, _follow(name, workload, format, saved))
        return saved if following.tuner is None else following.tuner.observe(metrics).device_config


def _follow(model: str, workload: str, weight_format: str | None, saved: DeviceConfig) -> AdaptiveTuner | None:
    """A tuner that starts with what the loader gave: the chosen configuration, or one that needs less memory."""
    try:
        result = load_result(model, workload, weight_format)
        if result is None:
            return None
        for candidate in (result.decision.chosen, *result.smaller):
            if device_config(candidate, result.host.gpus) == saved:
                start = candidate.configuration
                return AdaptiveTuner(result, start=start, model=model, format=weight_format, patience=1)
    except AutotuneError:
        pass  # the model can't be read, of which the loader has warned; or too little was measured to predict from
    return None
