"""What is decided for every recorded host: ``python tests/benchmarks/decisions.py [FILE ...]``.

Replays all recordings under tests/hosts, or those named, for every model that they hold and every workload, and prints
a Markdown table. "Over" compares with the best that has no layer on GPUs, and all of them there, wherever its head is:
output tokens/s, of chat the reciprocal of TPOT. A dash: there is no such configuration that fits.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from autotune.errors import AutotuneError, ResultNotFoundError
from autotune.model.source import PRESETS
from autotune.options import Options
from autotune.recorded import replay
from autotune.records import Result, SplitFigures
from autotune.store import recording
from autotune.store.entry import WORKLOADS
from autotune.store.recording import Recording

HOSTS = Path(__file__).parents[1] / "hosts"
MODELS = (*PRESETS, *map(str, sorted((HOSTS / "synthetic" / "models").glob("*.json"))))
COLUMNS = (
    "host",
    "model",
    "workload",
    "strategy",
    "layers",
    "head",
    "threads",
    "batch",
    "chunk",
    "tokens/s",
    "TPOT ms",
    "over no layers on GPUs",
    "over all layers on GPUs",
    "why",
)


def row(host: str, result: Result) -> tuple[str, ...]:
    """One decision."""
    chosen, predicted = result.decision.chosen.configuration, result.decision.chosen.predicted
    curve, strategy = result.decision.split_curve, result.device_config.strategy
    return (
        host,
        result.model.name,
        result.workload.name,
        strategy if isinstance(strategy, str) else "Hybrid",
        ", ".join(f"{device} {layers}" for device, layers in chosen.device_layers.items()),
        chosen.head_device,
        f"{chosen.decode_threads}/{chosen.prefill_threads}"
        if "cpu" in (*chosen.device_layers, chosen.head_device)
        else "-",
        str(chosen.batch_size),
        str(chosen.prefill_chunk),
        f"{predicted.tokens_per_s:.3g}",
        f"{predicted.tpot_s * 1e3:.3g}",
        over(result, curve[0]) if curve else "-",
        over(result, curve[-1]) if curve else "-",
        # On a host with GPUs the sentence on where the layers are says most.
        next((reason for reason in result.decision.reasons if "layers" in reason), result.decision.reasons[0]),
    )


def over(result: Result, other: SplitFigures) -> str:
    """How many times as fast the chosen configuration is as another, in the workload's own objective."""
    if other.tokens_per_s is None or other.tpot_s is None:
        return "-"
    chosen = result.decision.chosen.predicted
    chat = result.workload.name == "chat"
    return f"{other.tpot_s / chosen.tpot_s if chat else chosen.tokens_per_s / other.tokens_per_s:.2f}"


def rows(name: str, recorded: Recording) -> Iterator[tuple[str, ...]]:
    """All decisions for one host."""
    label = f"{name} (synthetic)" if recorded.synthetic else name
    for model in MODELS:
        for workload in WORKLOADS:
            try:
                yield row(label, replay(recorded, model, Options(workload=workload)))
            except ResultNotFoundError:
                break  # it was recorded with other models
            except AutotuneError as error:
                empty = [""] * (len(COLUMNS) - 5)
                yield label, Path(model).name.removesuffix(".json"), workload, "none", *empty, str(error)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    files = parser.parse_args().files or [
        path for folder in (HOSTS, HOSTS / "synthetic") for path in sorted(folder.glob("*.json"))
    ]
    print(f"| {' | '.join(COLUMNS)} |")
    print(f"|{' --- |' * len(COLUMNS)}")
    for path in files:
        for cells in rows(path.stem, recording.read(path)):
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
