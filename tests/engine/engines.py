"""Engines whose process runs the synthetic model of ``standin`` in place of the real one."""

from __future__ import annotations

from typing import Any

from autotune.engine.reference import ReferenceEngine
from autotune.engine.stages import Kernels
from autotune.records import Configuration, Host, Workload
from tests.builders import build_host, build_model, build_workload

MODULES = ("tests.engine.standin_installed",)
WORKLOAD: Workload = build_workload()

_BEHAVIOURS: list[str] = ["fine"]


def behaving(name: str = "fine", **overrides: Any) -> Configuration:
    """A configuration whose kernels behave as the stand-in does under that name; its batch size stands for it."""
    if name not in _BEHAVIOURS:
        _BEHAVIOURS.append(name)
    fields: dict[str, Any] = {
        "device_layers": {"cpu": 2},
        "head_device": "cpu",
        "decode_threads": 1,
        "prefill_threads": 1,
        "batch_size": 1 + _BEHAVIOURS.index(name),
        "prefill_chunk": 4,
    }
    return Configuration(**{**fields, **overrides})


def kernels_for(configuration: Configuration) -> Kernels:
    """Kernels that behave as the configuration is to."""
    return Kernels((), {"cpu": _BEHAVIOURS[configuration.batch_size - 1]})


def build_engine(host: Host | None = None, **overrides: Any) -> ReferenceEngine:
    """An engine of a synthetic host and model."""
    return ReferenceEngine(
        build_model(), host or build_host(), kernels_for, **{"modules": MODULES, "seed": 7, **overrides}
    )
