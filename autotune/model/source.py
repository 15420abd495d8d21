"""Where a model comes from: a preset's name, a config.json or a GGUF file; and the digest that names it in the cache.

This module is on the loader's fast path: it imports nothing that the interpreter doesn't need anyway, but hashlib.
"""

# pathlib takes as long to import as all the rest of the loader
# ruff: noqa: PTH100, PTH110, PTH112, PTH116, PTH118, PTH119, PTH120, PTH122, PTH123

from __future__ import annotations

import hashlib
import os
import stat

from autotune.errors import ModelError

TYPE_CHECKING = False  # typing itself costs milliseconds; type checkers know this name
if TYPE_CHECKING:
    from typing import Literal

PRESETS = {
    "bitnet-b1.58-2B-4T": "microsoft",
    "bitnet_b1_58-large": "1bitLLM",
    "bitnet_b1_58-3B": "1bitLLM",
    "Llama3-8B-1.58-100B-tokens": "HF1BitLLM",
    "Falcon3-1B-Instruct-1.58bit": "tiiuae",
    "Falcon3-10B-Base-1.58bit": "tiiuae",
}
"""Published ternary models whose config.json ships with the package: name and Hugging Face organisation."""

CONFIG_LIMIT_BYTES = 16 * 2**20
"""Largest config.json that is read. Real ones have a few kilobytes."""

GGUF_MAGIC = b"GGUF"

_GGUF_HEAD_BYTES = 64 * 2**10
_PRESET_FOLDER = os.path.join(os.path.dirname(__file__), "presets")
_SPLIT_SUFFIX = "-00001-of-00001"


class Source:
    """A model input that exists and can be read.

    Attributes:
        kind: ``preset``, ``config`` (a Hugging Face config.json) or ``gguf``.
        path: The file; of a split GGUF the split that was given.
        name: The model's name: the preset's, or the file's (of a ``config.json`` its folder's).
    """

    __slots__ = ("kind", "name", "path")

    def __init__(self, kind: Literal["preset", "config", "gguf"], path: str, name: str) -> None:
        self.kind = kind
        self.path = path
        self.name = name


def resolve(spec: str | os.PathLike[str]) -> Source:
    """Finds what a user means by a model.

    Args:
        spec: A preset's name in any case, with or without its organisation (``microsoft/bitnet-b1.58-2B-4T``); or the
            path of a config.json, of a folder that holds one, or of a GGUF file. A preset's name wins over a path.

    Raises:
        ModelError: It is none of these, or can't be read.
    """
    text = os.fspath(spec)
    preset = _preset(text)
    if preset is not None:
        return Source("preset", os.path.join(_PRESET_FOLDER, f"{preset}.json"), preset)
    path = text
    if os.path.isdir(path):
        path = os.path.join(path, "config.json")
        if not os.path.exists(path):
            raise ModelError(f"{text}: expected a folder with a config.json, got one without")
    elif text == "" or ("\0" not in text and not os.path.lexists(path)):
        raise ModelError(_unknown(text))
    magic = _read(path, len(GGUF_MAGIC))
    # A file's name need not be UTF-8; the model's, which is printed and saved, is.
    stem, suffix = os.path.splitext(os.fsencode(os.path.basename(path)).decode(errors="replace"))
    if magic == GGUF_MAGIC or suffix.lower() == ".gguf":
        return Source("gguf", path, stem[: -len(_SPLIT_SUFFIX)] if _split_numbers(stem) else stem)
    if stem == "config":
        stem = os.path.basename(os.path.dirname(os.path.abspath(path))) or stem
    return Source("config", path, stem)


def digest(source: Source, weight_format: str | None) -> str:
    """Names what a model was read from: half of the cache's key.

    Of a config.json all bytes count, so a preset and a copy of its file are the same model. Of a GGUF file the first
    64 KiB of every split and the sizes of all splits are enough: writers put architecture and dimensions before the
    tokenizer's lists, the sizes tell a file apart whose tensors are of other types, and speed doesn't depend on the
    weights' values. Reading more of it would cost the loader more than its millisecond.

    Args:
        source: What ``resolve`` found.
        weight_format: The weight format that the user asked for instead of the input's own; None for the input's own.

    Returns:
        32 hexadecimal digits.

    Raises:
        ModelError: The file can't be read, is too large for a config.json, or a split is missing.
    """
    state = hashlib.blake2b(repr((source.kind == "gguf", weight_format)).encode(), digest_size=16)
    if source.kind == "gguf":
        for path in split_paths(source):
            state.update(repr(_stat(path).st_size).encode())
            state.update(_read(path, _GGUF_HEAD_BYTES))
    else:
        state.update(read_config(source))
    return state.hexdigest()


def read_config(source: Source) -> bytes:
    """All bytes of a config.json.

    Raises:
        ModelError: The file can't be read, or is larger than any config.json.
    """
    size_bytes = _stat(source.path).st_size
    if size_bytes > CONFIG_LIMIT_BYTES:
        raise ModelError(
            f"{source.path}: expected a GGUF file or a config.json of at most {CONFIG_LIMIT_BYTES:,} bytes, "
            f"got {size_bytes:,} bytes"
        )
    return _read(source.path, CONFIG_LIMIT_BYTES)


def split_paths(source: Source) -> tuple[str, ...]:
    """The files of a model in order: one, or all the splits of a GGUF model of which any was given.

    Source: llama.cpp, ``llama_split_path``: name-00001-of-00003.gguf, counted from 1.

    Raises:
        ModelError: A split is missing, or the name's own numbers contradict each other.
    """
    base, suffix = os.path.splitext(source.path)
    numbers = _split_numbers(base)
    if source.kind != "gguf" or numbers is None:
        return (source.path,)
    number, count = numbers
    if not 1 <= number <= count:
        raise ModelError(f"{source.path}: expected a split between 00001 and {count:05d}, got {number:05d}")
    paths = [f"{base[: -len(_SPLIT_SUFFIX)]}-{split:05d}-of-{count:05d}{suffix}" for split in range(1, count + 1)]
    for path in paths:
        if not os.path.exists(path):
            raise ModelError(
                f"{source.path}: expected all {count} splits in one folder, {os.path.basename(path)} is missing"
            )
    return tuple(paths)


def _preset(text: str) -> str | None:
    wanted = text.lower()
    for name, organisation in PRESETS.items():
        if wanted in (name.lower(), f"{organisation}/{name}".lower()):
            return name
    return None


def _unknown(text: str) -> str:
    import difflib  # only on the way out: it takes longer to import than a loader has

    by_lower_case = {name.lower(): name for name in PRESETS}
    close = difflib.get_close_matches(text.lower().rpartition("/")[2], by_lower_case, n=3, cutoff=0.5)
    names = ", ".join(by_lower_case[name] for name in close) or ", ".join(PRESETS)
    return f"{text!r}: expected a config.json, a GGUF file or a preset ({names}), got a name that is none of them"


def _split_numbers(stem: str) -> tuple[int, int] | None:
    """Number and count of a split from the end of its name without suffix, or None if it is a file of its own."""
    tail = stem[-len(_SPLIT_SUFFIX) :]
    number, count = tail[1:6], tail[10:]
    if tail != f"-{number}-of-{count}" or not (number + count).isascii() or not (number + count).isdecimal():
        return None
    return int(number), int(count)


def _stat(path: str) -> os.stat_result:
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path!r}: expected a readable file, got: {_reason(error)}") from None
    if not stat.S_ISREG(found.st_mode):  # a pipe would wait for ever, a device never end
        raise ModelError(f"{path}: expected a regular file, got {stat.filemode(found.st_mode)}")
    return found


def _read(path: str, size_bytes: int) -> bytes:
    _stat(path)
    try:
        with open(path, "rb") as file:
            return file.read(size_bytes)
    except OSError as error:
        raise ModelError(f"{path!r}: expected a readable file, got: {_reason(error)}") from None


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)
