"""The cost model of one device: from its points to the time of its share of any step."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autotune.costmodel.handovers import HandoverCosts, Handovers
from autotune.costmodel.layers import AttentionTimes, SmallOpsTimes
from autotune.costmodel.passes import Passes
from autotune.costmodel.placement import model_on, products_on
from autotune.costmodel.products import Products, measured_products
from autotune.costmodel.roofline import Ceilings, Form, product_of
from autotune.records import Campaign, Layer, Model

Floats = NDArray[np.float64]


class DeviceSteps(NamedTuple):
    """One device's rows of ``StepCosts``, in seconds; T is 1 on a GPU."""

    decode_layer_s: Floats
    """Shape (G, T, B)."""
    decode_ends_s: Floats
    """Shape (T, B)."""
    prefill_layer_s: Floats
    """Shape (G, T, C)."""
    prefill_ends_s: Floats
    """Shape (T, C)."""
    handovers: HandoverCosts


class DeviceModel:
    """Predicts layers, head and handovers on one device.

    A layer is the sum of its sites' products, attention and the small operations. Gathering embedding rows (a few
    kilobytes a token) is not counted. A GPU is driven by one thread.

    Args:
        campaign: What was measured.
        form: How the roofline combines memory and compute time; ``heldout.fit`` chooses it.
        device: Which device was measured.

    Raises:
        BenchmarkError: The campaign lacks the device's ceilings.
    """

    def __init__(self, campaign: Campaign, form: Form, device: str = "cpu") -> None:
        self.device = device
        self.form: Form = form
        self.ceilings = Ceilings(campaign, device)
        self.products = Products(measured_products(campaign, device), self.ceilings, form)
        self.attention = AttentionTimes(campaign, device)
        self.small_ops = SmallOpsTimes(campaign, device)
        self.handovers = Handovers(campaign, device)

    def steps(self, model: Model, kinds: list[int], passes: Passes, threads: NDArray[np.int64]) -> DeviceSteps:
        """Time of each kind of layer, of the head and of handovers, in all passes.

        Args:
            model: The model as its file holds it.
            kinds: Index of one layer of each kind.
            passes: Batches and chunks.
            threads: CPU thread counts; of a GPU 1 alone.

        Raises:
            BenchmarkError: A site can't be predicted.
        """
        held = model_on(self.device, model)
        layers = [products_on(self.device, held.layers[index]) for index in kinds]
        times = {
            product: self.products.time_s(product, passes.tokens, threads)
            for product in dict.fromkeys(product for layer in layers for product in layer)
        }
        small_ops = self.small_ops.time_s(passes.tokens, threads)
        passes_s = [small_ops + np.sum([times[product] for product in layer], axis=0) for layer in layers]
        decode_attention = self.attention.decode_s(passes.batches, passes.decode_context, threads)
        prefill_attention = self.prefill_attention_s(passes, threads)
        head = self.products.time_s(product_of(held.head), passes.tokens, threads)
        return DeviceSteps(
            decode_layer_s=np.stack([each[:, passes.per_batch] + decode_attention for each in passes_s]),
            decode_ends_s=head[:, passes.per_batch],
            prefill_layer_s=np.stack([each @ passes.per_prompt + prefill_attention for each in passes_s]),
            prefill_ends_s=np.repeat(head[:, [passes.one]], len(passes.chunks), axis=1),
            handovers=self.handovers.costs(model.hidden_size, passes),
        )

    def prefill_attention_s(self, passes: Passes, threads: NDArray[np.int64]) -> Floats:
        """A layer's attention over a whole prompt, shape (T, C)."""
        total = np.zeros((len(threads), len(passes.chunks)))
        for column, found in enumerate(passes.prompt_pieces):
            for size, count, first in found:
                contexts = first + size * np.arange(count, dtype=np.float64)
                total[:, column] += self.attention.time_s(size, contexts, threads)
        return total


def kinds_of(model: Model) -> tuple[NDArray[np.int64], list[int]]:
    """For each layer the index of its kind, shape (L,), and for each kind the index of its first layer."""
    kinds: dict[Layer, int] = {}
    indices = [kinds.setdefault(layer, len(kinds)) for layer in model.layers]
    return np.array(indices), [indices.index(kind) for kind in range(len(kinds))]
