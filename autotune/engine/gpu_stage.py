"""A stage on a GPU: the weights and KV caches of some layers and ends, and the passes that are made over them."""

from __future__ import annotations

from weakref import WeakSet, WeakValueDictionary

import torch
from torch import Tensor

from autotune.engine.gpu_pass import (
    Caches,
    Forward,
    GpuPass,
    LayerWeights,
    Link,
    Matrix,
    StageWeights,
    Tools,
    memory_errors,
)
from autotune.engine.stages import Kernels, Pass
from autotune.engine.structure import FINAL_NORM, norm_widths
from autotune.engine.weights import WeightSource
from autotune.model.fusion import fused
from autotune.model.sites import on_gpu
from autotune.records import Model, Site
from ternary_kernels.cuda.product import Weights, get_product

Uploaded = dict[tuple[int | None, Site], Weights]
"""Matrices on a GPU by layer, None for embedding and head, and site."""

_LOADER = "torch"
"""The kernel whose products put weights on the device: it has all formats, and they lie the same for every kernel."""


class GpuStage:
    """Consecutive layers on a GPU, with the embedding before them or the head after them where those are there.

    Weights are held as GPU kernels read them, matrices with the same input as one. Passes share the memory in which
    they compute, so they are to be called one after the other.

    Args:
        model: The model, in the formats that its file has.
        layers: Indices of the layers; none where it has only an end.
        device: Its name: ``cuda:0``.
        torch_device: Where torch finds it; its ``cpu`` does everything as well, for tests.
        weights: Gives the matrices and norms.
        embedding: Whether it has the embedding: its passes take tokens.
        head: Whether it has the head: its passes return tokens.
        capacity: Slots of the KV cache per sequence.
        uploaded: Matrices that are on the GPU already, from stages that were closed: those that it needs are taken
            over, the others are let go, and its own are added. None: there are none, and nobody wants its own.

    Raises:
        MemoryError: There isn't enough for the weights.
    """

    def __init__(
        self,
        model: Model,
        layers: range,
        *,
        device: str,
        torch_device: str,
        weights: WeightSource,
        embedding: bool,
        head: bool,
        capacity: int,
        uploaded: Uploaded | None = None,
    ) -> None:
        self.device = device
        self._model = on_gpu(model)
        self._source = weights
        self._uploaded = {} if uploaded is None else uploaded
        with memory_errors(device, "its weights"):
            # A tensor's device has an index, which a name may lack.
            self._place = torch.empty(0, device=torch_device).device
            # As where kernels are timed: cuDNN's attention is planned anew for every shape.
            torch.backends.cuda.enable_cudnn_sdp(False)
            self._weights = self._load(layers, embedding=embedding, head=head)
        self._caches = Caches(capacity)
        self._filled = 0
        self._tools: Tools | None = None
        # They go with the last pass that needs them.
        self._streams: WeakValueDictionary[int, Link] = WeakValueDictionary()
        self._passes: WeakSet[GpuPass] = WeakSet()

    def reserve(self, sequences: int, tokens: int) -> None:
        """Make room in the KV cache for so many sequences; there is none less than before.

        Args:
            sequences: How many.
            tokens: How many tokens of each are to have keys and values, random ones.

        Raises:
            MemoryError: There isn't so much memory.
            ValueError: More tokens than a sequence has slots.
        """
        caches = self._caches
        if tokens > caches.capacity:
            raise ValueError(f"KV cache: expected at most {caches.capacity} tokens per sequence, got {tokens}")
        with memory_errors(self.device, f"the KV cache of {sequences} sequences"):
            if sequences > caches.slots:
                self._drop_caches()
                heads = self._model.attention
                shape = sequences, heads.kv_heads, caches.capacity, heads.head_dim
                for _ in self._weights.layers:
                    for held in (caches.keys, caches.values):
                        held.append(torch.zeros(shape, dtype=torch.float16, device=self._place))
                caches.slots = sequences
            for cache in (*caches.keys, *caches.values):
                cache[:, :, self._filled : tokens].normal_()
        self._filled = max(self._filled, tokens)

    def bind(self, step: Pass, threads: int, kernels: Kernels) -> GpuPass:  # noqa: ARG002 - the host has but to launch
        """Everything of one pass, recorded as one graph.

        Raises:
            MemoryError: There isn't enough.
            ValueError: No room was made for its sequences or tokens, or there is no such kernel.
        """
        if step.slot + step.sequences > self._caches.slots:
            raise ValueError(
                f"KV cache: expected room for {step.slot + step.sequences} sequences, got {self._caches.slots}: "
                "reserve them first"
            )
        if self._tools is None or self._tools.kernels != kernels:
            self._tools = Tools(kernels, self.device, self._place)
        with memory_errors(self.device, f"a pass of {step.rows} tokens"):
            stream = self._streams.get(step.rows)
            if stream is None:
                stream = Link((step.rows, self._model.hidden_size), torch.float32, self._place)
                self._streams[step.rows] = stream
            forward = Forward(self._model, step, self._weights, self._caches, stream, self._tools, self._place)
        hands_on = self._weights.head is None
        bound = GpuPass(forward, stream, hands_on=hands_on, place=self._place, device=self.device)
        self._passes.add(bound)
        return bound

    def close(self) -> None:
        """Give its memory back; no pass of it may be called any more."""
        self._weights = StageWeights(None, (), None, None)
        self._uploaded = {}
        self._tools = None
        self._drop_caches()

    def _drop_caches(self) -> None:
        """Give the caches back, and with them the graphs of passes, which know them by their addresses."""
        for bound in self._passes:
            bound.forget()
        self._caches.keys.clear()
        self._caches.values.clear()
        self._caches.slots = self._filled = 0
        torch.cuda.empty_cache()  # else it would stay with torch, in pieces too small for larger caches

    def _load(self, layers: range, *, embedding: bool, head: bool) -> StageWeights:
        model = self._model
        tied_head = model.embedding if model.tied else model.head
        wanted: set[tuple[int | None, Site]] = {
            (index, site) for index in layers for site in fused(model.layers[index])
        }
        wanted |= {(None, site) for site, here in ((model.embedding, embedding), (tied_head, head)) if here}
        for key in self._uploaded.keys() - wanted:
            del self._uploaded[key]
        torch.cuda.empty_cache()  # before others take as much memory
        widths = norm_widths(model)
        return StageWeights(
            embedding=self._matrix(None, model.embedding) if embedding else None,
            layers=tuple(
                LayerWeights(
                    {site.name: self._matrix(index, site) for site in fused(model.layers[index])},
                    {name: self._norm(index, name, width) for name, width in widths.items()},
                )
                for index in layers
            ),
            final_norm=self._norm(None, FINAL_NORM, model.hidden_size) if head else None,
            head=Matrix(model.head, self._matrix(None, tied_head).weights) if head else None,
        )

    def _matrix(self, layer: int | None, site: Site) -> Matrix:
        key = layer, site
        if key not in self._uploaded:
            product = get_product(_LOADER, site.format)(site.format, site.n_out, site.k_in, 1, self._place)
            self._uploaded[key] = product.load([self._source.matrix(layer, site)], [site.n_out])
        return Matrix(site, self._uploaded[key])

    def _norm(self, layer: int | None, name: str, width: int) -> Tensor:
        return torch.tensor(self._source.norm(layer, name, width), device=self._place)
