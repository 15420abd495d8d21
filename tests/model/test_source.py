"""What counts as a model, and what names it in the cache."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autotune.errors import ModelError
from autotune.model.source import CONFIG_LIMIT_BYTES, PRESETS, digest, resolve, split_paths

Save = Callable[..., Path]


@pytest.mark.parametrize(
    "spec", ["bitnet-b1.58-2B-4T", "BITNET-B1.58-2b-4t", "microsoft/bitnet-b1.58-2B-4T", "Microsoft/BitNet-b1.58-2B-4T"]
)
def test_a_preset_is_found_in_any_case_with_or_without_its_organisation(spec: str) -> None:
    source = resolve(spec)
    assert (source.kind, source.name) == ("preset", "bitnet-b1.58-2B-4T")
    assert Path(source.path).is_file()


def test_every_preset_has_its_file_and_every_file_its_preset() -> None:
    folder = Path(resolve("bitnet-b1.58-2B-4T").path).parent
    assert {path.stem for path in folder.iterdir()} == set(PRESETS)


def test_a_preset_name_wins_over_a_file_which_a_path_still_reaches(
    save: Save, bitnet: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(bitnet, "bitnet_b1_58-large")
    monkeypatch.chdir(tmp_path)
    assert resolve("bitnet_b1_58-large").kind == "preset"
    assert resolve("./bitnet_b1_58-large").kind == "config"


@pytest.mark.parametrize(
    ("file", "name"), [("model.json", "model"), ("my-model/config.json", "my-model"), ("my-model", "my-model")]
)
def test_a_config_is_named_after_its_file_or_of_config_json_its_folder(
    save: Save, bitnet: dict[str, Any], tmp_path: Path, file: str, name: str
) -> None:
    (tmp_path / "my-model").mkdir()
    save(bitnet, "my-model/config.json")
    save(bitnet, "model.json")
    source = resolve(tmp_path / file)
    assert (source.kind, source.name) == ("config", name)


def test_a_gguf_file_is_recognised_by_its_magic_or_its_suffix(save: Save) -> None:
    assert resolve(save(b"GGUF....", "weights.bin")).kind == "gguf"
    assert resolve(save(b"not yet", "model.GGUF")).kind == "gguf"


def test_an_unknown_name_is_told_close_presets() -> None:
    with pytest.raises(ModelError, match=r"'bitnet-2b-4t': expected a config.json.*bitnet-b1.58-2B-4T.*none of them"):
        resolve("bitnet-2b-4t")


@pytest.mark.parametrize("spec", ["", "/no/such/file", "qqqqqq"])
def test_a_name_close_to_no_preset_is_told_all(spec: str) -> None:
    with pytest.raises(ModelError) as caught:
        resolve(spec)
    assert all(name in str(caught.value) for name in PRESETS)


def test_paths_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match=r"expected a folder with a config\.json, got one"):
        resolve(tmp_path)
    with pytest.raises(ModelError, match="expected a readable file, got: No such file"):
        resolve(tmp_path / "dangling")
    with pytest.raises(ModelError, match="expected a regular file, got p"):
        resolve(tmp_path / "pipe")
    with pytest.raises(ModelError, match=r"expected a readable file, got: .*embedded null"):
        resolve("a\0b")


def test_a_file_that_fails_to_read_says_why() -> None:
    """/proc/self/mem is a regular file by its mode, but nothing is mapped at its beginning."""
    with pytest.raises(ModelError, match="expected a readable file, got: Input/output error"):
        resolve("/proc/self/mem")


def test_a_preset_and_a_copy_of_its_file_are_the_same_model(save: Save) -> None:
    preset = resolve("bitnet_b1_58-large")
    copy = resolve(save(Path(preset.path).read_bytes(), "copy.json"))
    assert digest(preset, None) == digest(copy, None)
    assert len(digest(preset, None)) == 32


def test_any_other_byte_or_format_is_another_model(save: Save, bitnet: dict[str, Any]) -> None:
    digests = {
        digest(resolve(save(bitnet)), None),
        digest(resolve(save(bitnet)), "F16"),
        digest(resolve(save(bitnet | {"hidden_size": 512})), None),
    }
    assert len(digests) == 3


def test_a_gguf_digest_sees_sizes_and_head_but_not_the_weights(save: Save) -> None:
    head, weights = b"GGUF" + bytes(70_000), bytes(1000)
    original = digest(resolve(save(head + weights, "m.gguf")), None)
    assert digest(resolve(save(head + b"\1" * 1000, "m.gguf")), None) == original
    assert digest(resolve(save(head + weights + b"\0", "m.gguf")), None) != original
    assert digest(resolve(save(b"GGUF\1" + head[5:] + weights, "m.gguf")), None) != original


def test_all_splits_are_found_from_any_and_give_one_digest(save: Save) -> None:
    paths = [save(b"GGUF" + bytes([number]), f"m-0000{number}-of-00003.gguf") for number in (1, 2, 3)]
    sources = [resolve(path) for path in paths]
    assert {source.name for source in sources} == {"m"}
    assert {split_paths(source) for source in sources} == {tuple(map(str, paths))}
    before = {digest(source, None) for source in sources}
    assert len(before) == 1
    save(b"GGUF\3more", "m-00003-of-00003.gguf")
    assert digest(sources[0], None) not in before


def test_a_missing_split_is_named(save: Save) -> None:
    path = save(b"GGUF", "m-00002-of-00003.gguf")
    with pytest.raises(ModelError, match=r"expected all 3 splits in one folder, m-00001-of-00003.gguf is missing"):
        digest(resolve(path), None)


@pytest.mark.parametrize("name", ["m-00004-of-00003.gguf", "m-00000-of-00003.gguf"])
def test_a_split_number_outside_its_count_is_refused(save: Save, name: str) -> None:
    with pytest.raises(ModelError, match="expected a split between 00001 and 00003"):
        split_paths(resolve(save(b"GGUF", name)))


@pytest.mark.parametrize("name", ["m-0001-of-00003.gguf", "m-00001-in-00003.gguf", "m-1e003-of-00003.gguf", "m.gguf"])
def test_other_names_are_files_of_their_own(save: Save, name: str) -> None:
    path = save(b"GGUF", name)
    assert split_paths(resolve(path)) == (str(path),)


def test_a_config_named_like_a_split_is_a_file_of_its_own(save: Save, bitnet: dict[str, Any]) -> None:
    path = save(bitnet, "m-00001-of-00003.json")
    assert split_paths(resolve(path)) == (str(path),)


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.json"
    with path.open("wb") as file:
        file.truncate(CONFIG_LIMIT_BYTES + 1)  # a hole: reading it would cost memory, not disk
    with pytest.raises(ModelError, match=r"config.json of at most 16,777,216 bytes, got 16,777,217 bytes"):
        digest(resolve(path), None)


def test_the_loaders_path_imports_nothing_heavy() -> None:
    code = (
        "import sys; before = set(sys.modules); from autotune.model.source import digest, resolve; "
        "digest(resolve('bitnet-b1.58-2B-4T'), None); print(*(set(sys.modules) - before))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    run = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    loaded = set(run.stdout.split())
    assert loaded & {"typing", "json", "re", "pathlib", "dataclasses", "numpy", "msgspec", "gguf", "difflib"} == set()
