"""One small JSON document: the configuration with its figures, without the evidence."""

from __future__ import annotations

import msgspec

from autotune.export.targets import Exported
from autotune.host.hardware_class import hardware_class
from autotune.records import Result

FORMAT = "bitnet-autotune-export"
VERSION = 1
"""1: as first published. A field that is added leaves it as it is."""


def export(result: Result, form: str, model_path: str) -> Exported:  # noqa: ARG001 (one form, and no model's path)
    """One JSON object; docs/loaders.md has its fields."""
    chosen = result.decision.chosen
    confirmation = result.confirmation
    document = {
        "format": FORMAT,
        "version": VERSION,
        "created_at": result.created_at,
        "provenance": result.provenance,
        "host": {"label": result.host.label, "hardware_class": hardware_class(result.host)},
        "model": {
            "name": result.model.name,
            "architecture": result.model.architecture,
            "format": result.model.layers[0].sites[0].format,
            "layers": len(result.model.layers),
            "source_digest": result.model.source_digest,
        },
        "workload": result.workload,
        "device_config": result.device_config,
        "configuration": chosen.configuration,
        "predicted": {
            "tokens_per_s": chosen.predicted.tokens_per_s,
            "tpot_s": chosen.predicted.tpot_s,
            "ttft_s": chosen.predicted.ttft_s,
        },
        "measured": confirmation.chosen if confirmation is not None and result.confirmed else None,
        "memory": [
            {
                "device": use.device,
                "total_bytes": use.total_bytes,
                "weights_bytes": use.weights_bytes,
                "kv_cache_bytes": use.kv_cache_bytes,
                "activations_bytes": use.activations_bytes,
                "overhead_bytes": use.overhead_bytes,
                "available_bytes": use.available_bytes,
            }
            for use in chosen.predicted.memory
        ],
    }
    return Exported(msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n")
