"""Synthetic results to export, by where their layers are; and what the options of other runtimes are."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from msgspec.structs import replace

from autotune.records import (
    Candidate,
    Configuration,
    DeviceConfig,
    Gpu,
    Gpus,
    Hybrid,
    HybridSplit,
    Layer,
    Model,
    Result,
    Site,
)
from autotune.records.model import ActivationFunction
from tests.builders import build_host, build_model, build_result, build_workload

LAYERS = 12
CPU = {"cpu": LAYERS}
GPU = {"cuda:0": LAYERS}
HYBRID = {"cpu": 5, "cuda:0": 7}
TWO_GPUS = {"cpu": 2, "cuda:0": 3, "cuda:1": 7}
PLACEMENTS: dict[str, tuple[dict[str, int], str]] = {
    "cpu": (CPU, "cpu"),
    "gpu": (GPU, "cuda:0"),
    "gpu, head on the cpu": (GPU, "cpu"),
    "hybrid": (HYBRID, "cuda:0"),
    "hybrid, head on the cpu": (HYBRID, "cpu"),
    "two gpus": (TWO_GPUS, "cuda:1"),
    "two gpus, head on the cpu": (TWO_GPUS, "cpu"),
    "the second of two gpus": ({"cpu": 4, "cuda:1": 8}, "cuda:1"),
}


def a_model(
    *,
    weight_format: str = "TQ2_0",
    architecture: str = "llama",
    tied: bool = False,
    activation: ActivationFunction = "silu",
) -> Model:
    """A model of a dozen layers."""
    small = build_model()
    sites = tuple(replace(site, format=weight_format) for site in small.layers[0].sites)
    return replace(
        small,
        layers=(Layer(sites),) * LAYERS,
        architecture=architecture,
        tied=tied,
        activation=activation,
        head=Site("head", 1000, 256, "F16"),
    )


def a_result(
    device_layers: dict[str, int] = CPU,
    head: str = "cpu",
    *,
    decode_threads: int = 6,
    prefill_threads: int = 8,
    batch_size: int = 4,
    prefill_chunk: int = 128,
    gpus: int | None = None,
    model: Model | None = None,
    **overrides: Any,
) -> Result:
    """A result whose layers are there.

    Args:
        device_layers: Layers by device, in the order data flows.
        head: The head's device.
        decode_threads: CPU threads of decode.
        prefill_threads: CPU threads of prefill.
        batch_size: Sequences decoded together.
        prefill_chunk: Prompt tokens processed at once.
        gpus: How many the host has; None: as many as the placement names.
        model: The model; None: one of a dozen layers in TQ2_0, with Llama's architecture.
        overrides: Other fields of the result.
    """
    used = [int(device[5:]) for device in device_layers if device != "cpu"]
    count = max(used, default=-1) + 1 if gpus is None else gpus
    devices = tuple(
        Gpu(number, "Synthetic GPU", f"GPU-{number}", 8 * 2**30, 7 * 2**30, (9, 0), mig=False, unusable_reason=None)
        for number in range(count)
    )
    on_cpu = device_layers.get("cpu", 0)
    on_gpus = sum(device_layers.values()) - on_cpu
    strategy: Any = Hybrid(HybridSplit(on_cpu, on_gpus))
    if not on_gpus:
        strategy = "CpuOnly"
    elif not on_cpu and head != "cpu":
        strategy = "GpuOnly"
    result = build_result(
        host=build_host(gpus=Gpus(devices, "580.65" if devices else None, None if devices else "no NVIDIA driver")),
        model=model or a_model(),
        device_config=DeviceConfig(strategy, decode_threads, 0.25 if on_gpus else None, batch_size),
    )
    chosen = result.decision.chosen
    on_each = tuple(
        replace(chosen.predicted.memory[0], device=device) for device in dict.fromkeys(("cpu", *device_layers))
    )
    configuration = Configuration(
        device_layers=device_layers,
        head_device=head,
        decode_threads=decode_threads,
        prefill_threads=prefill_threads,
        batch_size=batch_size,
        prefill_chunk=prefill_chunk,
    )
    candidate = Candidate(configuration, replace(chosen.predicted, memory=on_each))
    workload = build_workload(context_tokens=512, output_tokens=64)
    decision = replace(result.decision, chosen=candidate)
    return replace(result, **{"workload": workload, "decision": decision, **overrides})


class Option(NamedTuple):
    """An option as a runtime documents it: its names, what its value is called, and its environment variable."""

    names: tuple[str, ...]
    value: str | None
    env: str | None


def documented(runtime: str) -> dict[str, Option]:
    """The options in ``options/<runtime>.toml`` by each of their names."""
    table = tomllib.loads((Path(__file__).parent / "options" / f"{runtime}.toml").read_text())
    assert table["source"].startswith("https://github.com/")
    options = [Option(tuple(row["names"]), row.get("value"), row.get("env")) for row in table["option"]]
    return {name: option for option in options for name in option.names}


def parse(words: list[str], runtime: str) -> dict[str, str]:
    """Options and values as a runtime's parser reads them, by the first name that it documents for each.

    A name that isn't documented, a value that is missing or superfluous, or an option given twice fails the test.
    """
    options, found, rest = documented(runtime), dict[str, str](), list(words)
    while rest:
        option = options[rest.pop(0)]
        assert option.names[0] not in found
        found[option.names[0]] = "" if option.value is None else rest.pop(0)
        check_value(option, found[option.names[0]])
    return found


def check_value(option: Option, value: str) -> None:
    """What a runtime's parser asks of a value, by what its documentation calls it."""
    match option.value:
        case "N":
            assert int(value) >= 0
        case "N0,N1,N2,...":
            assert all(float(share) > 0 for share in value.split(","))
        case "<dev1,dev2,..>":
            assert value == "none" or all(name.removeprefix("CUDA").isdecimal() for name in value.split(","))
        case "<tensor name pattern>=<buffer type>,...":
            assert value.partition("=")[1:] == ("=", "CPU")
        case "FNAME" | "PROMPT" | None:
            assert value or option.value is None
        case other:
            raise AssertionError(f"no check for a value that is called {other}")
