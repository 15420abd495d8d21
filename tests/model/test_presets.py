"""The published models that ship with the package, against their published figures."""

from __future__ import annotations

import pytest

from autotune.model.analyse import analyse
from autotune.model.memory import kv_cache_bytes, model_bytes, site_bytes, weight_bytes
from autotune.model.source import PRESETS
from autotune.model.work import parameters

PUBLISHED = {
    # hidden, intermediate, layers, heads, kv heads, head dim, vocabulary, context, tied, activation, architecture
    "bitnet-b1.58-2B-4T": (2560, 6912, 30, 20, 5, 128, 128256, 4096, True, "relu2", "bitnet"),
    "bitnet_b1_58-large": (1536, 4096, 24, 16, 16, 96, 32002, 2048, True, "silu", "bitnet"),
    "bitnet_b1_58-3B": (3200, 8640, 26, 32, 32, 100, 32002, 2048, True, "silu", "bitnet"),
    "Llama3-8B-1.58-100B-tokens": (4096, 14336, 32, 32, 8, 128, 128256, 8192, False, "silu", "llama"),
    "Falcon3-1B-Instruct-1.58bit": (2048, 8192, 18, 8, 4, 256, 131072, 8192, False, "silu", "falcon"),
    "Falcon3-10B-Base-1.58bit": (3072, 23040, 40, 12, 4, 256, 131072, 32768, False, "silu", "falcon"),
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_published_shape(name: str) -> None:
    model = analyse(name, machine="x86_64")
    attention = model.attention
    assert (
        model.hidden_size,
        model.intermediate_size,
        len(model.layers),
        attention.heads,
        attention.kv_heads,
        attention.head_dim,
        model.vocab_size,
        model.max_context,
        model.tied,
        model.activation,
        model.architecture,
    ) == PUBLISHED[name]
    assert model.name == name
    for layer in model.layers:
        shapes = {site.name: (site.n_out, site.k_in) for site in layer.sites}
        query, key_value = attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim
        assert shapes == {
            "q": (query, model.hidden_size),
            "k": (key_value, model.hidden_size),
            "v": (key_value, model.hidden_size),
            "o": (model.hidden_size, query),
            "gate": (model.intermediate_size, model.hidden_size),
            "up": (model.intermediate_size, model.hidden_size),
            "down": (model.hidden_size, model.intermediate_size),
        }


def test_2b_4t_is_the_published_file_to_half_a_percent() -> None:
    """The published GGUF: 1,187,801,280 bytes, 332 tensors = 210 I2_S + 121 F32 + 1 F16."""
    model = analyse("bitnet-b1.58-2B-4T", machine="x86_64")
    sites = [site for layer in model.layers for site in layer.sites]
    assert [site.format for site in sites] == ["I2_S"] * 210
    assert model.norm_bytes == 4 * (30 * (3 * 2560 + 6912) + 2560)
    assert site_bytes(model.embedding) == 656_670_720
    assert sum(map(weight_bytes, model.layers)) == 2_084_044_800 // 4 + 210 * 32
    assert parameters(model) == 2_412_820_480
    assert kv_cache_bytes(model, 30, 1) == 76_800
    assert model_bytes(model) == pytest.approx(1_187_801_280, rel=0.0005)


def test_what_i2_s_cannot_hold_falls_back_to_f16_and_says_so() -> None:
    """bitnet_b1_58-3B's down matrix has 8,640 columns: 67.5 blocks of 128, but 135 of Arm's 64."""
    x86, arm = (analyse("bitnet_b1_58-3B", machine=machine) for machine in ("x86_64", "aarch64"))
    assert [site.format for site in x86.layers[0].sites] == ["I2_S"] * 6 + ["F16"]
    assert "I2_S can't hold down (8,640 columns): taken as F16; --format TL2 holds all" in " ".join(x86.notes)
    assert {site.format for site in arm.layers[0].sites} == {"I2_S_ARM"}
    tl2 = analyse("bitnet_b1_58-3B", "TL2", machine="x86_64")
    assert {site.format for site in tl2.layers[0].sites} == {"TL2"}
