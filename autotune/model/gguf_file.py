"""From a GGUF file, single or split, to a Model: from the tensors' own shapes and types, checked against the metadata.

Read through the gguf library, of which two steps are replaced: it stops at tensor types it doesn't know (BitNet's),
and spends seconds on a tokenizer's lists, of which nothing is needed here.
"""

from __future__ import annotations

import math
import os
import struct
from typing import Any, NamedTuple

import msgspec
import numpy as np
from gguf import GGMLQuantizationType, GGUFEndian, GGUFReader, GGUFValueType, ReaderField

from autotune.errors import ModelError
from autotune.model.keys import MAX_CONTEXT, MAX_DIMENSION, MAX_LAYERS, MAX_VOCABULARY, Keys
from autotune.model.memory import site_bytes
from autotune.model.sites import host_ternary_format, layer_shapes, make_site
from autotune.model.source import Source, digest, split_paths
from autotune.records import Attention, Layer, Model, Site
from autotune.records.model import ActivationFunction
from ternary_kernels.formats import FORMATS, get_format

_MAX_ENTRIES = 100_000
"""Keys and tensors per file: beyond it a damaged count would have the reader wander through the weights."""

_ACTIVATIONS: dict[str, ActivationFunction] = {
    "bitnet": "silu",
    "bitnet-25": "relu2",
    "bitnet-b1.58": "relu2",
    "llama": "silu",
}
"""Supported architectures, with the activation of files that don't name it.

Source: microsoft/BitNet's llama.cpp, build_bitnet, build_bitnet_158, build_llama; the key is llama.cpp's
LLM_KV_HIDDEN_ACT.
"""

_I2_S_LAYOUTS = ("I2_S", "I2_S_ARM")
_BITNET_ARCHITECTURES = ("bitnet", "bitnet-25", "bitnet-b1.58")
_BITNET_TYPES = {36: "I2_S", 37: "I8_S", 38: "TL1", 39: "TL2"}
"""Type ids of BitNet's llama.cpp. Upstream has retired 36 to 38 and uses 39 for MXFP4: only the architecture tells."""

_TENSORS = {
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
_UNREADABLE = (ValueError, IndexError, KeyError, OverflowError, RecursionError, TypeError, struct.error)
"""What the gguf library raises on bytes that make no sense; it checks little itself."""


class _Tensor(NamedTuple):
    """One entry of a file's list of tensors."""

    path: str
    name: str
    shape: tuple[int, ...]
    """Rows first, as everywhere here; the file has them the other way round."""
    type_id: int
    begin: int
    """Where its data begin in the file."""
    available_bytes: int
    """What the file holds from there on."""

    @property
    def where(self) -> str:
        """File and tensor, for messages."""
        return f"{self.path}: tensor {self.name}"


class _HeaderReader(GGUFReader):
    """Reads metadata and the list of tensors; leaves tokenizer lists and weights alone."""

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[GGUFValueType]]:
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        item = GGUFValueType(self._get(orig_offs, np.uint32)[0])
        length = int(self._get(orig_offs + 4, np.uint64)[0])
        if length <= MAX_LAYERS:  # one value per layer at most: may be worth having
            return super()._get_field_parts(orig_offs, raw_type)
        end = orig_offs + 12
        if item == GGUFValueType.STRING:
            end = self._end_of_strings(end, length)
        else:
            end += length * int(self.gguf_scalar_to_np[item]().nbytes)
        return end - orig_offs, [], [], [GGUFValueType.ARRAY, item]

    def _end_of_strings(self, begin: int, count: int) -> int:
        size = struct.Struct("<Q" if self.endianess == GGUFEndian.LITTLE else ">Q")
        data = self.data.data  # a memoryview: indexing the memory map itself is ten times slower
        for _ in range(count):
            begin += 8 + size.unpack_from(data, begin)[0]
        return begin

    def _build_fields(self, offs: int, count: int) -> int:
        return super()._build_fields(offs, _entries(count))

    def _build_tensor_info(self, offs: int, count: int) -> tuple[int, list[ReaderField]]:
        return super()._build_tensor_info(offs, _entries(count))

    def _build_tensors(self, start_offs: int, fields: list[ReaderField]) -> None:
        self.entries: list[_Tensor] = []
        for field in fields:
            _, _, _, dimensions, type_id, offset = field.parts
            begin = int(start_offs) + int(offset[0])
            self.entries.append(
                _Tensor(
                    path="",
                    name=field.name,
                    shape=tuple(reversed(dimensions.tolist())),
                    type_id=int(type_id[0]),
                    begin=begin,
                    available_bytes=len(self.data) - begin,
                )
            )


def _entries(count: int) -> int:
    if count > _MAX_ENTRIES:
        raise ValueError(f"it claims {count} keys or tensors")
    return int(count)


class _Weights:
    """The tensors of all splits by name; each is taken once."""

    def __init__(self, path: str, tensors: dict[str, _Tensor], architecture: str, machine: str | None) -> None:
        self._path = path
        self._tensors = tensors
        self._architecture = architecture
        self._machine = machine

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def rows(self, name: str) -> int:
        """Rows of a matrix that isn't taken yet."""
        return self._matrix(name).shape[0]

    def site(self, name: str, tensor_name: str, shape: tuple[int, int]) -> Site:
        """Takes a tensor as a site.

        Raises:
            ModelError: There is none of that name, its shape isn't what the metadata says, its type isn't supported,
                or the file ends within it.
        """
        tensor = self._matrix(tensor_name)
        if tensor.shape != shape:
            raise ModelError(
                f"{tensor.where}: expected {shape[0]} x {shape[1]}, as the metadata says, got {_times(tensor.shape)}"
            )
        del self._tensors[tensor_name]
        return self._checked(tensor, name, *shape)

    def vector_bytes(self) -> int:
        """Takes all that is left, which must be vectors: norms and biases.

        Raises:
            ModelError: There is a matrix among them, or they are as ``site`` wouldn't have them.
        """
        size_bytes = 0
        for tensor in self._tensors.values():
            if len(tensor.shape) > 1:
                raise ModelError(
                    f"{tensor.where}: expected no matrix beside the {len(_TENSORS)} of each layer and the ends, "
                    f"as the metadata says, got one of {_times(tensor.shape)}"
                )
            size_bytes += site_bytes(self._checked(tensor, "norm", 1, math.prod(tensor.shape)))
        return size_bytes

    def _matrix(self, name: str) -> _Tensor:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise ModelError(f"{self._path}: expected a tensor {name}, as the metadata says, got none of that name")
        if len(tensor.shape) != 2:
            raise ModelError(f"{tensor.where}: expected a matrix, got {_times(tensor.shape)}")
        return tensor

    def _checked(self, tensor: _Tensor, name: str, n_out: int, k_in: int) -> Site:
        site = make_site(tensor.where, name, n_out, k_in, self._format(tensor))
        if site_bytes(site) > tensor.available_bytes:
            raise ModelError(
                f"{tensor.where}: expected {site_bytes(site):,} bytes from offset {tensor.begin:,} on, got "
                f"{max(0, tensor.available_bytes):,}: the file is cut off"
            )
        return site

    def _format(self, tensor: _Tensor) -> str:
        bitnet = self._architecture in _BITNET_ARCHITECTURES
        if tensor.type_id in _BITNET_TYPES and not bitnet:
            meant = "MXFP4, which isn't supported" if tensor.type_id == 39 else "retired"
            raise ModelError(
                f"{tensor.where}: expected type id {tensor.type_id} ({_BITNET_TYPES[tensor.type_id]}) only where "
                f"general.architecture is one of {', '.join(_BITNET_ARCHITECTURES)}, got it with "
                f"{self._architecture}, where it is {meant}"
            )
        names = [known.name for known in FORMATS.values() if known.gguf_type == tensor.type_id]
        if not names:
            by_id = {known.gguf_type: known.name for known in reversed(FORMATS.values())}  # of two layouts the first
            supported = ", ".join(f"{by_id[type_id]} ({type_id})" for type_id in sorted(by_id))
            raise ModelError(f"{tensor.where}: expected one of {supported}, got {_type_name(tensor.type_id, bitnet)}")
        return host_ternary_format(self._machine) if "I2_S" in names else names[0]


def read_model(source: Source, weight_format: str | None, machine: str | None) -> Model:
    """Reads a GGUF file, or all splits of one.

    Args:
        source: The file, or any split.
        weight_format: Format of the layers' ternary sites instead of the file's, or of all sites where none is ternary.
        machine: Machine name that decides I2_S' layout, which the file doesn't say; None for this machine.

    Raises:
        ModelError: The file is damaged, incomplete or contradictory, or its architecture or a tensor's type isn't
            supported.
    """
    paths = split_paths(source)
    keys, tensors = _read_all(paths)
    architecture = keys.text("general.architecture")
    if architecture not in _ACTIVATIONS:
        raise keys.error("general.architecture", f"one of {', '.join(_ACTIVATIONS)}")
    hidden = keys.integer(f"{architecture}.embedding_length", MAX_DIMENSION)
    intermediate = keys.integer(f"{architecture}.feed_forward_length", MAX_DIMENSION)
    layer_count = keys.integer(f"{architecture}.block_count", MAX_LAYERS)
    attention = _attention(keys, architecture, hidden)
    weights = _Weights(paths[0], tensors, architecture, machine)

    vocab = weights.rows("token_embd.weight")
    if keys.integer(f"{architecture}.vocab_size", MAX_VOCABULARY, vocab) != vocab:
        raise keys.error(f"{architecture}.vocab_size", f"{vocab}, the rows of tensor token_embd.weight")
    tied = "output.weight" not in weights  # Source: llama.cpp, llama_model::load_tensors
    embedding = weights.site("embedding", "token_embd.weight", (vocab, hidden))
    head = (
        msgspec.structs.replace(embedding, name="head")
        if tied
        else weights.site("head", "output.weight", (vocab, hidden))
    )
    shapes = layer_shapes(hidden, intermediate, attention)
    layers = tuple(
        Layer(tuple(weights.site(name, f"blk.{index}.{_TENSORS[name]}.weight", shapes[name]) for name in shapes))
        for index in range(layer_count)
    )
    norm_bytes = weights.vector_bytes()

    notes = []
    if any(site.format in _I2_S_LAYOUTS for layer in layers for site in layer.sites):
        notes.append(
            f"I2_S has another layout on Arm and the file doesn't say which: taken as {host_ternary_format(machine)}"
        )
    if weight_format is not None:
        layers = _in_format(source.path, layers, weight_format)
        notes.append(f"the layers are taken as {weight_format}, as asked for, not as the file has them")
    return Model(
        name=source.name,
        architecture=architecture,
        hidden_size=hidden,
        intermediate_size=intermediate,
        vocab_size=vocab,
        max_context=keys.integer(f"{architecture}.context_length", MAX_CONTEXT),
        activation=keys.activation(f"{architecture}.hidden_activation", _ACTIVATIONS[architecture]),
        attention=attention,
        layers=layers,
        embedding=embedding,
        head=head,
        tied=tied,
        norm_bytes=norm_bytes,
        source_digest=digest(source, weight_format),
        file_bytes=sum(os.stat(path).st_size for path in paths),  # noqa: PTH116 (paths are strings all through)
        notes=tuple(notes),
    )


def _read_all(paths: tuple[str, ...]) -> tuple[Keys, dict[str, _Tensor]]:
    """Metadata of the first split, which has it all, and the tensors of every one."""
    read = [_read(path) for path in paths]
    for number, (keys, _) in enumerate(read):
        if keys.integer("split.count", _MAX_ENTRIES, 1) != len(paths):
            raise keys.error("split.count", f"{len(paths)}, as the file's name says")
        if len(paths) > 1 and keys.count("split.no") != number:
            raise keys.error("split.no", f"{number}, as the file's name says")
    tensors: dict[str, _Tensor] = {}
    for _, entries in read:
        for tensor in entries:
            if tensor.name in tensors:
                raise ModelError(f"{tensor.where}: expected each tensor once, got it a second time")
            tensors[tensor.name] = tensor
    keys = read[0][0]
    if not tensors:
        raise ModelError(f"{keys.path}: expected the tensors of a model, got none (a vocabulary only?)")
    if keys.has("split.tensors.count") and keys.count("split.tensors.count") != len(tensors):
        raise keys.error("split.tensors.count", f"{len(tensors)}, the number of tensors in all splits")
    return keys, tensors


def _read(path: str) -> tuple[Keys, list[_Tensor]]:
    try:
        reader = _HeaderReader(path)
        values = {name: field.contents() for name, field in reader.fields.items()}
    except _UNREADABLE as error:
        # A ValueError says what is wrong with the file, unless it is numpy's about an array that ended too early.
        told = isinstance(error, ValueError) and "dtype" not in str(error)
        reason = str(error) if told else "its header is damaged or cut off"
        raise ModelError(
            f"{path}: expected a GGUF file of version 2 or 3, got one that can't be read: {reason}"
        ) from None
    return Keys(path, values), [tensor._replace(path=path) for tensor in reader.entries]


def _attention(keys: Keys, architecture: str, hidden: int) -> Attention:
    prefix = f"{architecture}.attention"
    heads = keys.integer(f"{prefix}.head_count", MAX_DIMENSION)
    kv_heads = keys.integer(f"{prefix}.head_count_kv", MAX_DIMENSION, heads)
    if heads % kv_heads:
        raise keys.error(f"{prefix}.head_count_kv", f"a divisor of {prefix}.head_count ({heads})")
    if not keys.has(f"{prefix}.key_length") and hidden % heads:
        raise keys.error(f"{architecture}.embedding_length", f"a multiple of {prefix}.head_count ({heads})")
    head_dim = keys.integer(f"{prefix}.key_length", MAX_DIMENSION, hidden // heads)
    if keys.integer(f"{architecture}.rope.dimension_count", MAX_DIMENSION, head_dim) > head_dim:
        raise keys.error(f"{architecture}.rope.dimension_count", f"at most the head's dimension, {head_dim}")
    return Attention(heads=heads, kv_heads=kv_heads, head_dim=head_dim)


def _in_format(path: str, layers: tuple[Layer, ...], weight_format: str) -> tuple[Layer, ...]:
    any_ternary = any(get_format(site.format).ternary for layer in layers for site in layer.sites)

    def changed(site: Site) -> Site:
        if any_ternary and not get_format(site.format).ternary:
            return site
        return make_site(path, site.name, site.n_out, site.k_in, weight_format)

    return tuple(Layer(tuple(changed(site) for site in layer.sites)) for layer in layers)


def _type_name(type_id: int, bitnet: bool) -> str:
    if bitnet and type_id in _BITNET_TYPES:
        return f"{_BITNET_TYPES[type_id]} ({type_id})"
    try:
        return f"{GGMLQuantizationType(type_id).name} ({type_id})"
    except ValueError:
        return f"type id {type_id}, which is unknown"


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in shape) or "a single value"
