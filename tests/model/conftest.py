"""Model files as the real tools write them, at small sizes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter

from ternary_kernels.formats import FORMATS

TINY_BITNET: dict[str, Any] = {
    "architectures": ["BitNetForCausalLM"],
    "model_type": "bitnet",
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "hidden_act": "relu2",
    "quantization_config": {"quant_method": "bitnet"},
}
TINY_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 1000,
}


I2_S = 36
"""Not among the gguf library's own types."""


@pytest.fixture
def bitnet() -> dict[str, Any]:
    """A config.json of a BitNet model, to change at will."""
    return json.loads(json.dumps(TINY_BITNET))


@pytest.fixture
def llama() -> dict[str, Any]:
    """A config.json of an unquantised Llama model, to change at will."""
    return json.loads(json.dumps(TINY_LLAMA))


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Writes a document as ``tiny.json``; a text or bytes as they are."""

    def write(document: object, name: str = "tiny.json") -> Path:
        path = tmp_path / name
        if isinstance(document, bytes):
            path.write_bytes(document)
        else:
            path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
        return path

    return write


@pytest.fixture
def save_gguf(tmp_path: Path) -> Callable[..., Path]:
    """Writes a small BitNet GGUF file with the gguf library and returns its path, of a split one the first split's.

    The arguments bend it: metadata to set, tensors to set (type and rows-first shape); None leaves one out.
    """

    def write(
        name: str = "tiny.gguf",
        architecture: str = "bitnet-b1.58",
        metadata: Mapping[str, Any] | None = None,
        tensors: Mapping[str, tuple[int, tuple[int, ...]] | None] | None = None,
        weights: int = I2_S,
        vocabulary: int = 1000,
        split_max_tensors: int = 0,
    ) -> Path:
        path = tmp_path / name
        writer = GGUFWriter(path, architecture, split_max_tensors=split_max_tensors)
        values: dict[str, Any] = {
            f"{architecture}.block_count": 2,
            f"{architecture}.context_length": 512,
            f"{architecture}.embedding_length": 256,
            f"{architecture}.feed_forward_length": 384,
            f"{architecture}.vocab_size": vocabulary,
            f"{architecture}.attention.head_count": 4,
            f"{architecture}.attention.head_count_kv": 2,
            f"{architecture}.rope.dimension_count": 64,
            "tokenizer.ggml.tokens": [f"<{index}>" for index in range(vocabulary)],
            "tokenizer.ggml.scores": [float(index) for index in range(vocabulary)],
            **(metadata or {}),
        }
        for key, value in values.items():
            if isinstance(value, list):
                writer.add_array(key, value)
            elif isinstance(value, str):
                writer.add_string(key, value)
            elif isinstance(value, float):
                writer.add_float32(key, value)
            elif value is not None:
                writer.add_uint32(key, value)
        for tensor, spec in {**tiny_tensors(weights, vocabulary), **(tensors or {})}.items():
            if spec is not None:
                add_tensor(writer, tensor, *spec)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path if path.exists() else next(tmp_path.glob(f"{path.stem}-00001-of-*.gguf"))

    return write


def tiny_tensors(weights: int, vocabulary: int) -> dict[str, tuple[int, tuple[int, ...]] | None]:
    """What the published 2B-4T file holds, for two layers of width 256: types and rows-first shapes."""
    f32, f16 = GGMLQuantizationType.F32, GGMLQuantizationType.F16
    tensors: dict[str, tuple[int, tuple[int, ...]] | None] = {"token_embd.weight": (f16, (vocabulary, 256))}
    for index in range(2):
        block = f"blk.{index}"
        tensors |= {
            f"{block}.attn_norm.weight": (f32, (256,)),
            f"{block}.attn_q.weight": (weights, (256, 256)),
            f"{block}.attn_k.weight": (weights, (128, 256)),
            f"{block}.attn_v.weight": (weights, (128, 256)),
            f"{block}.attn_sub_norm.weight": (f32, (256,)),
            f"{block}.attn_output.weight": (weights, (256, 256)),
            f"{block}.ffn_norm.weight": (f32, (256,)),
            f"{block}.ffn_gate.weight": (weights, (384, 256)),
            f"{block}.ffn_up.weight": (weights, (384, 256)),
            f"{block}.ffn_sub_norm.weight": (f32, (384,)),
            f"{block}.ffn_down.weight": (weights, (256, 384)),
        }
    return {**tensors, "output_norm.weight": (f32, (256,))}


def add_tensor(writer: GGUFWriter, name: str, type_id: int, shape: tuple[int, ...]) -> None:
    """Adds zeros of the type's exact size (2 bytes per weight for types that no test reads)."""
    held = next((known for known in FORMATS.values() if known.gguf_type == type_id), None)
    rows, columns = (1, shape[0]) if len(shape) == 1 else (shape[0], int(np.prod(shape[1:])))
    size = held.size_bytes(rows, columns) if held else 2 * rows * columns
    writer.add_tensor(name, np.zeros(size, np.int8), raw_shape=shape, raw_dtype=type_id)  # type: ignore[arg-type]
