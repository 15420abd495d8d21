"""GGUF files, single and split, written with the gguf library's own writer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFEndian, GGUFReader, GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autotune.errors import ModelError
from autotune.model.analyse import analyse
from autotune.model.memory import ends_bytes, site_bytes, weight_bytes
from autotune.records import Model

SaveGguf = Callable[..., Path]
F32, F16, BF16, Q4_K = 0, 1, 30, 12


def message(path: Path, weight_format: str | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        analyse(path, weight_format, machine="x86_64")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_bitnet_file_gives_the_model_that_its_tensors_are(save_gguf: SaveGguf) -> None:
    path = save_gguf()
    model = analyse(path, machine="x86_64")
    assert (model.name, model.architecture, model.activation) == ("tiny", "bitnet-b1.58", "relu2")
    assert (model.hidden_size, model.intermediate_size, model.vocab_size, model.max_context) == (256, 384, 1000, 512)
    assert (model.attention.heads, model.attention.kv_heads, model.attention.head_dim) == (4, 2, 64)
    assert [(site.name, site.n_out, site.k_in, site.format) for site in model.layers[1].sites] == [
        ("q", 256, 256, "I2_S"),
        ("k", 128, 256, "I2_S"),
        ("v", 128, 256, "I2_S"),
        ("o", 256, 256, "I2_S"),
        ("gate", 384, 256, "I2_S"),
        ("up", 384, 256, "I2_S"),
        ("down", 256, 384, "I2_S"),
    ]
    assert len(model.layers) == 2
    assert model.tied
    assert (model.embedding.format, model.head.name) == ("F16", "head")
    assert model.file_bytes == path.stat().st_size


def test_the_sizes_are_those_of_the_tensors_in_the_file(save_gguf: SaveGguf) -> None:
    """All of the file but metadata, the list of tensors and padding; a type the library knows, so that it can tell."""
    path = save_gguf(architecture="llama", weights=F16)
    model = analyse(path)
    stored = sum(int(tensor.n_bytes) for tensor in GGUFReader(path).tensors)
    assert sum(map(weight_bytes, model.layers)) + site_bytes(model.embedding) + model.norm_bytes == stored


def test_i2_s_is_taken_in_the_machines_layout_and_the_model_says_so(save_gguf: SaveGguf) -> None:
    model = analyse(save_gguf(), machine="aarch64")
    assert {site.format for layer in model.layers for site in layer.sites} == {"I2_S_ARM"}
    assert "taken as I2_S_ARM" in model.notes[0]


WIDE = {
    f"blk.{index}.{name}.weight": shape
    for index in (0, 1)
    for name, shape in {"ffn_gate": (512, 256), "ffn_up": (512, 256), "ffn_down": (256, 512)}.items()
}
"""A feed-forward of whole blocks of 256, which the small file's own isn't."""


@pytest.mark.parametrize(("weight_format", "type_id"), [("TL1", 38), ("TL2", 39)])
def test_a_bitnet_file_of_lut_weights(save_gguf: SaveGguf, weight_format: str, type_id: int) -> None:
    """The converter writes each matrix' scale as a tensor of its own besides; it is counted with the norms."""
    scales = {f"blk.{index}.attn_q.weight_scale": (F32, (1,)) for index in (0, 1)}
    model = analyse(save_gguf(weights=type_id, tensors=scales))
    assert {site.format for layer in model.layers for site in layer.sites} == {weight_format}
    assert model.norm_bytes == analyse(save_gguf("plain.gguf")).norm_bytes + 2 * 4
    assert not model.notes


@pytest.mark.parametrize("architecture", ["llama", "bitnet"])
@pytest.mark.parametrize(
    ("weight_format", "type_id"), [("TQ1_0", 34), ("TQ2_0", 35), ("IQ2_S", 22), ("Q6_K", 14), ("Q8_0", 8)]
)
def test_a_file_of_upstream_types(save_gguf: SaveGguf, weight_format: str, type_id: int, architecture: str) -> None:
    path = save_gguf(
        architecture=architecture,
        metadata={f"{architecture}.feed_forward_length": 512},
        weights=type_id,
        tensors={name: (type_id, shape) for name, shape in WIDE.items()} | {"token_embd.weight": (14, (1000, 256))},
    )
    model = analyse(path)
    assert {site.format for layer in model.layers for site in layer.sites} == {weight_format}
    assert (model.embedding.format, model.head.format) == ("Q6_K", "Q6_K")
    stored = sum(int(tensor.n_bytes) for tensor in GGUFReader(path).tensors)
    assert sum(map(weight_bytes, model.layers)) + site_bytes(model.embedding) + model.norm_bytes == stored
    assert any("IQ2_S is lossy" in note for note in model.notes) == (weight_format == "IQ2_S")


def test_a_file_with_an_output_matrix_is_not_tied(save_gguf: SaveGguf) -> None:
    path = save_gguf(tensors={"output.weight": (F32, (1000, 256)), "rope_freqs.weight": (F32, (32,))})
    untied, tied = analyse(path), analyse(save_gguf("tied.gguf"))
    assert (untied.tied, untied.head.format) == (False, "F32")
    assert untied.norm_bytes == tied.norm_bytes + 4 * 32
    assert ends_bytes(untied) == ends_bytes(tied) + 4 * 32 + 4 * 1000 * 256


def test_splits_give_the_model_of_the_whole_file_from_any_of_them(save_gguf: SaveGguf) -> None:
    first = save_gguf("parts.gguf", split_max_tensors=10)
    paths = sorted(first.parent.glob("parts-*.gguf"))
    assert len(paths) == 3
    whole = analyse(save_gguf("whole.gguf"))
    models = [analyse(path) for path in paths]
    assert models[0] == models[1] == models[2]
    assert models[0].name == "parts"
    assert (models[0].layers, models[0].norm_bytes) == (whole.layers, whole.norm_bytes)
    assert models[0].file_bytes == sum(path.stat().st_size for path in paths)


def test_long_tokenizer_lists_are_skipped_and_short_ones_do_no_harm(save_gguf: SaveGguf) -> None:
    for size in (3, 5000):
        lists = {
            "tokenizer.ggml.merges": ["a b"] * size,
            "tokenizer.ggml.token_type": [1] * size,
            "general.tags": ["x", "y"],
        }
        assert analyse(save_gguf(f"{size}.gguf", metadata=lists, vocabulary=size)).vocab_size == size


def test_a_format_asked_for_replaces_the_ternary_sites(save_gguf: SaveGguf) -> None:
    path = save_gguf(tensors={"blk.0.ffn_down.weight": (F16, (256, 384))})
    model = analyse(path, "F32")
    assert [site.format for site in model.layers[0].sites] == ["F32"] * 6 + ["F16"]
    assert "the layers are taken as F32, as asked for" in model.notes[-1]
    assert model.source_digest != analyse(path).source_digest


def test_a_format_asked_for_replaces_all_sites_where_none_is_ternary(save_gguf: SaveGguf) -> None:
    model = analyse(save_gguf(architecture="llama", weights=F16), "I2_S", machine="x86_64")
    assert {site.format for layer in model.layers for site in layer.sites} == {"I2_S"}


def test_a_format_asked_for_must_hold_the_sites(save_gguf: SaveGguf) -> None:
    widths = {"llama.feed_forward_length": 400}
    tensors = {
        f"blk.{index}.{name}.weight": (F16, shape)
        for index in (0, 1)
        for name, shape in {"ffn_gate": (400, 256), "ffn_up": (400, 256), "ffn_down": (256, 400)}.items()
    }
    path = save_gguf(architecture="llama", weights=F16, metadata=widths, tensors=tensors)
    assert "the down matrix can't be stored: I2_S needs k_in to be a multiple of 128, got 400" in message(path, "I2_S")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            {"weights": 36, "architecture": "llama"},
            "expected type id 36 (I2_S) only where general.architecture is",
        ),
        ({"weights": 38, "architecture": "llama"}, "expected type id 38 (TL1) only where"),
        ({"weights": 39, "architecture": "llama"}, "got it with llama, where it is MXFP4, which isn't supported"),
        (
            {"weights": 37},
            "tensor blk.0.attn_q.weight: expected one of F32 (0), F16 (1), Q8_0 (8), Q6_K (14), IQ2_S (22), "
            "TQ1_0 (34), TQ2_0 (35), I2_S (36), TL1 (38), TL2 (39), got I8_S (37)",
        ),
        ({"weights": Q4_K, "architecture": "llama"}, "got Q4_K (12)"),
        ({"weights": BF16, "architecture": "llama"}, "got BF16 (30)"),
        ({"architecture": "mamba"}, "general.architecture: expected one of bitnet, bitnet-25, bitnet-b1.58, llama"),
        ({"metadata": {"bitnet-b1.58.embedding_length": 512}}, "tensor token_embd.weight: expected 1000 x 512"),
        ({"metadata": {"bitnet-b1.58.feed_forward_length": 512}}, "blk.0.ffn_gate.weight: expected 512 x 256, as the"),
        ({"metadata": {"bitnet-b1.58.attention.head_count_kv": 4}}, "blk.0.attn_k.weight: expected 256 x 256, as the"),
        ({"metadata": {"bitnet-b1.58.attention.head_count_kv": 3}}, "head_count_kv: expected a divisor of"),
        ({"metadata": {"bitnet-b1.58.attention.head_count_kv": [2, 4]}}, "head_count_kv: expected a whole number"),
        ({"metadata": {"bitnet-b1.58.attention.head_count": 6}}, "embedding_length: expected a multiple of"),
        ({"metadata": {"bitnet-b1.58.attention.key_length": 32}}, "rope.dimension_count: expected at most the head's"),
        ({"metadata": {"bitnet-b1.58.attention.key_length": 96}}, "blk.0.attn_q.weight: expected 384 x 256"),
        ({"metadata": {"bitnet-b1.58.vocab_size": 999}}, "vocab_size: expected 1000, the rows of tensor token_embd"),
        ({"metadata": {"bitnet-b1.58.block_count": 3}}, "expected a tensor blk.2.attn_q.weight, as the metadata says"),
        ({"metadata": {"bitnet-b1.58.block_count": 1}}, "blk.1.attn_q.weight: expected no matrix beside the 7 of each"),
        ({"metadata": {"bitnet-b1.58.block_count": 10**9}}, "block_count: expected a whole number from 1 to 1,000"),
        ({"metadata": {"bitnet-b1.58.block_count": None}}, "block_count: expected a whole number from 1 to 1,000, got"),
        ({"metadata": {"bitnet-b1.58.context_length": 0.5}}, "context_length: expected a whole number"),
        ({"metadata": {"bitnet-b1.58.embedding_length": "256"}}, "embedding_length: expected a whole number"),
        ({"metadata": {"split.count": 2}}, "split.count: expected 1, as the file's name says, got 2"),
        ({"tensors": {"token_embd.weight": None}}, "expected a tensor token_embd.weight"),
        ({"tensors": {"token_embd.weight": (F16, (256_000,))}}, "token_embd.weight: expected a matrix, got 256000"),
        ({"tensors": {"blk.1.ffn_up.weight": None}}, "expected a tensor blk.1.ffn_up.weight"),
        (
            {"tensors": {"blk.1.ffn_up.weight": (36, (384, 128))}},
            "expected 384 x 256, as the metadata says, got 384 x 128",
        ),
        ({"tensors": {"blk.0.ffn_gate_exps.weight": (F16, (8, 384, 256))}}, "got one of 8 x 384 x 256"),
        ({"tensors": {"blk.0.attn_q.bias": (BF16, (256,))}}, "blk.0.attn_q.bias: expected one of F32"),
    ],
)
def test_a_contradictory_or_unsupported_file(save_gguf: SaveGguf, arguments: dict[str, Any], expected: str) -> None:
    path = save_gguf(**arguments)
    text = message(path)
    assert expected in text
    assert str(path) in text


def test_columns_that_the_files_own_type_cannot_hold(save_gguf: SaveGguf) -> None:
    path = save_gguf(
        metadata={"bitnet-b1.58.feed_forward_length": 448},
        weights=F16,
        tensors={
            "blk.0.ffn_gate.weight": (F16, (448, 256)),
            "blk.0.ffn_up.weight": (F16, (448, 256)),
            "blk.0.ffn_down.weight": (F16, (256, 448)),
            "blk.1.ffn_gate.weight": (F16, (448, 256)),
            "blk.1.ffn_up.weight": (F16, (448, 256)),
            "blk.1.ffn_down.weight": (F16, (256, 448)),
        },
    )
    data = path.read_bytes()
    entry = data.index(b"blk.1.ffn_down.weight") + len(b"blk.1.ffn_down.weight") + 4 + 2 * 8
    path.write_bytes(data[:entry] + (36).to_bytes(4, "little") + data[entry + 4 :])
    assert "tensor blk.1.ffn_down.weight: the down matrix can't be stored: I2_S needs k_in" in message(path)


def test_a_file_without_tensors(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.gguf"
    writer = GGUFWriter(path, "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "expected the tensors of a model, got none (a vocabulary only?)" in message(path)


def test_a_big_endian_file_is_read_as_well(save_gguf: SaveGguf, tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    writer = GGUFWriter(path, "llama", endianess=GGUFEndian.BIG)
    writer.add_array("tokenizer.ggml.tokens", ["x"] * 2000)
    writer.add_uint32("llama.embedding_length", 256)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "expected the tensors of a model, got none" in message(path)  # past all lists to the end of its header


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "expected a GGUF file of version 2 or 3, got one that can't be read"),
        (b"GGUF", "its header is damaged or cut off"),
        (b"PK\3\4" + bytes(100), "GGUF magic invalid"),
        (b"GGUF\1\0\0\0" + bytes(16), "version 1"),
        (b"GGUF\3\0\0\0" + b"\xff" * 16, "can't be read"),
        (b"GGUF\3\0\0\0" + (10**6).to_bytes(8, "little") + bytes(8), "it claims 1000000 keys or tensors"),
        (b"GGUF\3\0\0\0" + bytes(8) + (10**6).to_bytes(8, "little"), "it claims 1000000 keys or tensors"),
    ],
)
def test_a_file_that_is_no_gguf(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    assert expected in message(path)


def test_a_file_cut_off_within_its_weights_names_the_tensor(save_gguf: SaveGguf) -> None:
    path = save_gguf()
    path.write_bytes(path.read_bytes()[:-1000])
    text = message(path)
    assert "tensor output_norm.weight: expected 1,024 bytes from offset" in text
    assert "the file is cut off" in text


def test_a_missing_or_foreign_split_is_named(save_gguf: SaveGguf) -> None:
    first = save_gguf("parts.gguf", split_max_tensors=10)
    second, third = sorted(first.parent.glob("parts-*.gguf"))[1:]
    content = second.read_bytes()
    second.write_bytes(third.read_bytes())
    assert "split.no: expected 1, as the file's name says, got 2" in message(first)
    key = content.index(b"split.no") + len(b"split.no")
    second.write_bytes(content[:key] + b"\3\0\0\0\xff\xff" + content[key + 6 :])  # a signed number, -1
    assert "split.no: expected a whole number from 0 on, got -1" in message(first)
    second.unlink()
    assert f"{second.name} is missing" in message(first)
    second.write_bytes(content)
    assert analyse(first).vocab_size == 1000


def test_a_split_renamed_to_stand_alone_is_refused(save_gguf: SaveGguf) -> None:
    first = save_gguf("parts.gguf", split_max_tensors=10)
    alone = first.rename(first.with_name("alone.gguf"))
    assert "split.count: expected 1, as the file's name says, got 3" in message(alone)


def test_a_tensor_in_two_splits_is_refused(save_gguf: SaveGguf) -> None:
    first = save_gguf("parts.gguf", split_max_tensors=10)
    second = first.with_name(first.name.replace("00001", "00002", 1))
    second.write_bytes(second.read_bytes().replace(b"blk.1.attn_q.weight", b"blk.0.attn_q.weight"))
    assert "tensor blk.0.attn_q.weight: expected each tensor once, got it a second time" in message(first)


def test_a_split_count_of_tensors_that_is_not_theirs_is_refused(save_gguf: SaveGguf) -> None:
    first = save_gguf("parts.gguf", split_max_tensors=10)
    content = first.read_bytes()
    at = content.index(b"split.tensors.count") + len(b"split.tensors.count") + 4
    first.write_bytes(content[:at] + (99).to_bytes(4, "little") + content[at + 4 :])
    assert "split.tensors.count: expected 24, the number of tensors in all splits, got 99" in message(first)


def test_types_unknown_to_everyone_are_named_by_number(save_gguf: SaveGguf) -> None:
    path = save_gguf(architecture="llama", weights=F16)
    content = path.read_bytes()
    at = content.index(b"output_norm.weight") + len(b"output_norm.weight") + 4 + 8
    path.write_bytes(content[:at] + (777).to_bytes(4, "little") + content[at + 4 :])
    assert "got type id 777, which is unknown" in message(path)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_gives_a_model_or_a_model_error(
    save_gguf: SaveGguf, tmp_path: Path, data: st.DataObject
) -> None:
    """Bytes of the header overwritten, and the file cut anywhere."""
    original = tmp_path / "original.gguf"
    if not original.exists():
        save_gguf("original.gguf", vocabulary=2000)
    content = bytearray(original.read_bytes())
    metadata, entries = len(b"GGUF") + 1500, content.index(b"token_embd.weight")
    offsets = st.one_of(st.integers(4, metadata), st.integers(entries, entries + 1500))
    for at, patch in data.draw(st.lists(st.tuples(offsets, st.binary(min_size=1, max_size=9)), max_size=3)):
        content[at : at + len(patch)] = patch
    cut = data.draw(st.none() | st.integers(0, len(content)))
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(content[:cut])
    with contextlib.suppress(ModelError):
        assert isinstance(analyse(damaged), Model)


def test_a_file_that_names_its_activation_is_believed(save_gguf: SaveGguf) -> None:
    """Newer converters do; of older files the architecture tells."""
    key = "bitnet.hidden_activation"
    assert analyse(save_gguf(architecture="bitnet")).activation == "silu"
    assert analyse(save_gguf(architecture="bitnet", metadata={key: "relu2"})).activation == "relu2"
    with pytest.raises(ModelError, match=f"{key}: expected one of silu, .*, got 'tanh'"):
        analyse(save_gguf(architecture="bitnet", metadata={key: "tanh"}))
