"""From a Hugging Face config.json to a Model: BitNet, Llama and Falcon3 (which is Llama-shaped).

Keys and defaults are those of transformers. A key that occurs twice counts with its last value, as in Python's own
JSON reader and so in transformers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from autotune.errors import ModelError
from autotune.model.keys import MAX_CONTEXT, MAX_DIMENSION, MAX_LAYERS, MAX_VOCABULARY, Keys, shown
from autotune.model.sites import holds, host_lookup_format, host_ternary_format, layer_shapes, make_site
from autotune.model.source import Source, digest, read_config
from autotune.records import Attention, Layer, Model, Site

_MODULES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
"""Site names and what transformers calls the modules that hold them."""

_DEFAULT_CONTEXT = 2048
_NORM_ELEMENT_BYTES = 4  # converters to GGUF write norms and biases as float32


@dataclass(frozen=True)
class _Family:
    """What a configuration class of transformers fixes or takes as default.

    Attributes:
        name: The Model's architecture.
        model_types: Values of ``model_type`` that go with it.
        kv_heads: Default of ``num_key_value_heads``; None: as many as heads.
        activation: Default of ``hidden_act``.
        ternary: Whether the layers are ternary without a ``quantization_config`` that says so.
        sub_norms: Whether there is a norm before the o and before the down matrix.
    """

    name: str
    model_types: tuple[str, ...]
    kv_heads: int | None
    activation: str
    ternary: bool
    sub_norms: bool


# Source: transformers, configuration_bitnet.py and modeling_bitnet.py.
_BITNET = _Family("bitnet", ("bitnet",), kv_heads=5, activation="relu2", ternary=True, sub_norms=True)
# Source: 1bitLLM/bitnet_b1_58-3B, configuration_bitnet.py and modeling_bitnet.py, whose model_type is that of Llama.
_BITNET_1BITLLM = _Family("bitnet", ("llama", "bitnet"), kv_heads=None, activation="silu", ternary=True, sub_norms=True)
# Source: transformers, configuration_llama.py.
_LLAMA = _Family("llama", ("llama",), kv_heads=None, activation="silu", ternary=False, sub_norms=False)

_BY_ARCHITECTURE = {
    "BitNetForCausalLM": _BITNET,
    "BitnetForCausalLM": _BITNET_1BITLLM,
    "LlamaForCausalLM": _LLAMA,
}
_BY_MODEL_TYPE = {"bitnet": _BITNET, "llama": _LLAMA}


@dataclass(frozen=True)
class _Quantization:
    """What the file says about its weights: whether the layers are ternary, and which modules are not."""

    ternary: bool
    unconverted: frozenset[str] = frozenset()


def read_model(source: Source, weight_format: str | None, machine: str | None) -> Model:
    """Reads a config.json.

    Args:
        source: A config or preset.
        weight_format: Format of the layers' sites; None: I2_S for ternary weights, F16 or F32 for others.
        machine: Machine name that decides I2_S' layout; None for this machine.

    Raises:
        ModelError: The file is not a config.json of a supported, consistent model.
    """
    keys = _parse(source)
    family = _family(keys)
    hidden = keys.integer("hidden_size", MAX_DIMENSION)
    intermediate = keys.integer("intermediate_size", MAX_DIMENSION)
    layer_count = keys.integer("num_hidden_layers", MAX_LAYERS)
    vocab = keys.integer("vocab_size", MAX_VOCABULARY)
    attention = _attention(keys, family, hidden)
    activation = keys.activation("hidden_act", family.activation)
    quantization = _quantization(keys, family, weight_format)
    notes: list[str] = []
    context = keys.integer("max_position_embeddings", MAX_CONTEXT, _DEFAULT_CONTEXT)
    if not keys.has("max_position_embeddings"):
        notes.append(f"the context length isn't given: taken as {_DEFAULT_CONTEXT} tokens, as transformers does")

    shapes = layer_shapes(hidden, intermediate, attention)
    formats = _site_formats(keys, shapes, quantization, weight_format, machine, notes)
    layers = _layers(source.path, shapes, formats, quantization.unconverted, layer_count)
    # Converters keep the embedding and the head of a ternary model in F16, and all of a float32 model in F32.
    ends_format = "F32" if not quantization.ternary and formats["q"] == "F32" else "F16"
    return Model(
        name=source.name,
        architecture="falcon" if family is _LLAMA and _is_falcon3(source, keys) else family.name,
        hidden_size=hidden,
        intermediate_size=intermediate,
        vocab_size=vocab,
        max_context=context,
        activation=activation,
        attention=attention,
        layers=layers,
        embedding=make_site(source.path, "embedding", vocab, hidden, ends_format),
        head=make_site(source.path, "head", vocab, hidden, ends_format),
        tied=keys.flag("tie_word_embeddings", default=False),
        norm_bytes=_norm_bytes(keys, family, shapes, layer_count),
        source_digest=digest(source, weight_format),
        notes=tuple(notes),
    )


def _parse(source: Source) -> Keys:
    data = read_config(source)
    if not data.strip():
        raise ModelError(f"{source.path}: expected a config.json, got an empty file")
    try:
        document = msgspec.json.decode(data)
    except UnicodeDecodeError as error:
        raise ModelError(f"{source.path}: expected UTF-8 text, got byte {error.object[error.start]:#04x}") from None
    except RecursionError:
        raise ModelError(f"{source.path}: expected a config.json, got JSON nested too deeply to read") from None
    except ValueError as error:
        raise ModelError(f"{source.path}: expected JSON, got something else: {error}") from None
    if not isinstance(document, dict):
        raise ModelError(f"{source.path}: expected a JSON object, got {shown(document)}")
    return Keys(source.path, document)


def _family(keys: Keys) -> _Family:
    names = keys.texts("architectures")
    model_type = keys.text("model_type", "")
    if model_type == "falcon" or any(name in ("FalconForCausalLM", "RWForCausalLM") for name in names):
        raise ModelError(
            f"{keys.path}: model_type: expected a gated feed-forward of three matrices, as Falcon3 has (model_type "
            f"llama), got the older Falcon, which has two"
        )
    if not names:
        if model_type not in _BY_MODEL_TYPE:
            raise keys.error("model_type", f"one of {', '.join(_BY_MODEL_TYPE)}")
        return _BY_MODEL_TYPE[model_type]
    if names[0] not in _BY_ARCHITECTURE:
        raise ModelError(
            f"{keys.path}: architectures: expected one of {', '.join(_BY_ARCHITECTURE)}, got {shown(names[0])}"
        )
    family = _BY_ARCHITECTURE[names[0]]
    if model_type and model_type not in family.model_types:
        raise keys.error("model_type", f"{' or '.join(family.model_types)}, as {names[0]} has")
    return family


def _attention(keys: Keys, family: _Family, hidden: int) -> Attention:
    heads = keys.integer("num_attention_heads", MAX_DIMENSION)
    kv_heads = keys.integer("num_key_value_heads", MAX_DIMENSION, _default_kv_heads(keys, family, heads))
    if heads % kv_heads:
        raise keys.error("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
    if not keys.has("head_dim") and hidden % heads:
        raise keys.error("hidden_size", f"a multiple of num_attention_heads ({heads})")
    head_dim = keys.integer("head_dim", MAX_DIMENSION, hidden // heads)
    if family.sub_norms and head_dim * heads != hidden:
        # the norm before the o matrix is hidden_size wide
        raise keys.error("head_dim", f"hidden_size / num_attention_heads = {hidden} / {heads} in a BitNet model")
    if head_dim % 2:
        raise ModelError(
            f"{keys.path}: head_dim: expected an even number, whose halves rotary embedding turns, got {head_dim}"
        )
    if head_dim * heads > MAX_DIMENSION:
        raise keys.error("head_dim", f"at most {MAX_DIMENSION:,} / num_attention_heads ({heads})")
    return Attention(heads=heads, kv_heads=kv_heads, head_dim=head_dim)


def _default_kv_heads(keys: Keys, family: _Family, heads: int) -> int:
    # An explicit null means "as many as heads" in every family; only an absent key means the class's own default.
    return heads if family.kv_heads is None or keys.is_null("num_key_value_heads") else family.kv_heads


def _quantization(keys: Keys, family: _Family, weight_format: str | None) -> _Quantization:
    if not keys.has("quantization_config"):
        return _Quantization(family.ternary)
    section = keys.section("quantization_config")
    if section.text("quantization_config.quant_method") == "bitnet":
        unconverted = section.texts("quantization_config.modules_to_not_convert")
        return _Quantization(True, frozenset(unconverted))
    if weight_format is None:
        raise section.error("quantization_config.quant_method", "'bitnet', or a --format to take the weights in")
    return _Quantization(family.ternary)


def _site_formats(
    keys: Keys,
    shapes: dict[str, tuple[int, int]],
    quantization: _Quantization,
    weight_format: str | None,
    machine: str | None,
    notes: list[str],
) -> dict[str, str]:
    """Format of each site; what had to be assumed goes to ``notes``."""
    if weight_format is not None:
        return dict.fromkeys(shapes, weight_format)
    if not quantization.ternary:
        stored = keys.text("dtype", keys.text("torch_dtype", "float16"))
        weight_format = "F32" if stored == "float32" else "F16"
        notes.append(
            f"the weights are not ternary (no quantization_config): taken as {weight_format}; --format sets another"
        )
        return dict.fromkeys(shapes, weight_format)
    weight_format = host_ternary_format(machine)
    notes.append(
        f"ternary weights are taken as {weight_format}, embedding and head as F16; --format sets another for the layers"
    )
    unheld = [name for name, shape in shapes.items() if not holds(weight_format, *shape)]
    if len(unheld) == len(shapes):
        return dict.fromkeys(shapes, weight_format)  # and the first site will say what is wrong
    if unheld:
        widths = ", ".join(f"{name} ({shapes[name][1]:,} columns)" for name in unheld)
        lookup = host_lookup_format(machine)
        holds_all = all(holds(lookup, *shape) for shape in shapes.values())
        advice = f"; --format {lookup} holds all" if holds_all else ""
        notes.append(f"{weight_format} can't hold {widths}: taken as F16{advice}")
    return {name: "F16" if name in unheld else weight_format for name in shapes}


def _layers(
    path: str, shapes: dict[str, tuple[int, int]], formats: dict[str, str], unconverted: Iterable[str], count: int
) -> tuple[Layer, ...]:
    def sites(index: int) -> tuple[Site, ...]:
        return tuple(
            make_site(
                path,
                name,
                *shape,
                "F16" if _named_in(f"model.layers.{index}.{_MODULES[name]}", unconverted) else formats[name],
            )
            for name, shape in shapes.items()
        )

    if not unconverted:
        return (Layer(sites(0)),) * count
    return tuple(Layer(sites(index)) for index in range(count))


def _named_in(module: str, names: Iterable[str]) -> bool:
    """Whether a module, a part it lies in, or the end of its path is among names (``mlp``, ``model.layers.0``)."""
    parts = module.split(".")
    runs = (".".join(parts[start:end]) for start in range(len(parts)) for end in range(start + 1, len(parts) + 1))
    return any(run in names for run in runs)


def _norm_bytes(keys: Keys, family: _Family, shapes: dict[str, tuple[int, int]], layer_count: int) -> int:
    """Norms before attention, before the feed-forward and before the head; sub-norms; biases."""
    hidden, intermediate = shapes["down"]
    per_layer = 2 * hidden
    if family.sub_norms:
        per_layer += hidden + intermediate
    if keys.flag("attention_bias", default=False):
        per_layer += sum(shapes[name][0] for name in ("q", "k", "v", "o"))
    if keys.flag("mlp_bias", default=False):
        per_layer += sum(shapes[name][0] for name in ("gate", "up", "down"))
    return _NORM_ELEMENT_BYTES * (layer_count * per_layer + hidden)


def _is_falcon3(source: Source, keys: Keys) -> bool:
    """Falcon3's files say model_type llama: only names tell them apart, and nothing but the label depends on it."""
    return "falcon" in f"{source.name} {keys.text('_name_or_path', '')}".lower()
