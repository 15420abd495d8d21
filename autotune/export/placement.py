"""Where a configuration has its layers and its head, as exports ask for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from autotune.records import Configuration, Model, Result


class Placement(NamedTuple):
    """A configuration's layers by device. The first layers are on the CPU, the last ones on GPUs.

    Attributes:
        cpu_layers: Layers on the CPU.
        gpus: CUDA's number and the layers of each GPU that has any, in the order data flows.
        head_on_gpu: Whether the head is on the last of them; else it is on the CPU.
    """

    cpu_layers: int
    gpus: tuple[tuple[int, int], ...]
    head_on_gpu: bool

    @property
    def gpu_layers(self) -> int:
        """Layers on all GPUs together."""
        return sum(layers for _, layers in self.gpus)

    @property
    def uses_cpu(self) -> bool:
        """Whether the CPU multiplies anything; else its threads are of no consequence."""
        return self.cpu_layers > 0 or not self.head_on_gpu

    @property
    def layers(self) -> int:
        """All layers."""
        return self.cpu_layers + self.gpu_layers


def placement_of(configuration: Configuration) -> Placement:
    """A configuration's placement."""
    return Placement(
        cpu_layers=configuration.device_layers.get("cpu", 0),
        gpus=tuple(
            (gpu_number(device), layers) for device, layers in configuration.device_layers.items() if device != "cpu"
        ),
        head_on_gpu=configuration.head_device != "cpu",
    )


def gpu_number(device: str) -> int:
    """CUDA's number of a GPU: 1 of ``cuda:1``."""
    return int(device.removeprefix("cuda:"))


def gpu_order_note(result: Result) -> Iterator[str]:
    """What must be set that a GPU's number means the same to CUDA; nothing where there is but one GPU."""
    if len(result.host.gpus.usable) > 1:
        yield "GPUs are numbered as NVML lists them: set CUDA_DEVICE_ORDER=PCI_BUS_ID, or CUDA counts the fastest first"


def formats_of(model: Model) -> tuple[str, ...]:
    """The weight formats in a model, each once: the layers', then the embedding's and the head's."""
    sites = (*(site for layer in model.layers for site in layer.sites), model.embedding, model.head)
    return tuple(dict.fromkeys(site.format for site in sites))
