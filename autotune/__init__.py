"""An empirical autotuner for ternary (BitNet b1.58) language models."""

from __future__ import annotations

__version__ = "0.1.0"

__all__ = [
    "AdaptiveTuner",
    "AutotuneError",
    "DeviceConfig",
    "Options",
    "PerformanceMetrics",
    "Result",
    "__version__",
    "get_adaptive_device_config",
    "get_fallback_config",
    "get_optimal_device_config",
    "load_result",
    "tune",
]

TYPE_CHECKING = False  # typing alone would double the time that importing this package takes
if TYPE_CHECKING:
    from autotune.adapt.loading import get_adaptive_device_config
    from autotune.adapt.metrics import PerformanceMetrics
    from autotune.adapt.tuner import AdaptiveTuner
    from autotune.errors import AutotuneError
    from autotune.loader import get_fallback_config, get_optimal_device_config, load_result
    from autotune.options import Options
    from autotune.pipeline import tune
    from autotune.records.configuration import DeviceConfig
    from autotune.records.result import Result

# Imported when first used (PEP 562): a program that only loads a configuration doesn't pay for the tuner.
_HOMES = {
    "AdaptiveTuner": "autotune.adapt.tuner",
    "AutotuneError": "autotune.errors",
    "DeviceConfig": "autotune.records.result",
    "Options": "autotune.options",
    "PerformanceMetrics": "autotune.adapt.metrics",
    "Result": "autotune.records.result",
    "get_adaptive_device_config": "autotune.adapt.loading",
    "get_fallback_config": "autotune.loader",
    "get_optimal_device_config": "autotune.loader",
    "load_result": "autotune.loader",
    "tune": "autotune.pipeline",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
