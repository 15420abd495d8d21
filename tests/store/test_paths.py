from __future__ import annotations

from pathlib import Path

import platformdirs
import pytest

from autotune.store import paths


def test_the_named_folder_comes_before_the_users_and_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    """$AUTOTUNE_CACHE is read and written first, and doesn't replace the other layers."""
    monkeypatch.setenv("AUTOTUNE_CACHE", "/srv/cache")
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/somebody/cache")
    assert paths.layers() == ("/srv/cache", "/home/somebody/cache/bitnet-autotune", paths.SYSTEM_LAYER)
    assert paths.writable_layers() == ("/srv/cache", "/home/somebody/cache/bitnet-autotune")


@pytest.mark.parametrize("xdg", [None, "", "/elsewhere", "relative/is/ignored"])
def test_the_users_folder_is_the_one_that_platformdirs_names(xdg: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder follows the XDG specification as the well-known library does."""
    monkeypatch.delenv("AUTOTUNE_CACHE", raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    if xdg is None:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    assert paths.writable_layers() == (platformdirs.user_cache_dir("bitnet-autotune"),)


def test_a_relative_named_folder_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A later change of the working folder doesn't move the cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOTUNE_CACHE", "here")
    assert paths.layers()[0] == str(tmp_path / "here")


def test_a_tilde_in_the_named_folder_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """No shell expands it where it comes from a service file or a container's environment."""
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("AUTOTUNE_CACHE", "~/cache")
    assert paths.layers()[0] == "/home/somebody/cache"


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """AUTOTUNE_CACHE="" doesn't mean the working folder."""
    monkeypatch.setenv("AUTOTUNE_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert paths.layers() == ("/caches/bitnet-autotune", paths.SYSTEM_LAYER)


def test_the_named_folder_may_be_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is then one layer, not two."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    monkeypatch.setenv("AUTOTUNE_CACHE", "/caches/bitnet-autotune")
    assert paths.writable_layers() == ("/caches/bitnet-autotune",)


def test_without_a_home_folder_there_is_no_users_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is ever written below the working folder by accident."""
    monkeypatch.setenv("AUTOTUNE_CACHE", "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "not/absolute")
    assert paths.layers() == (paths.SYSTEM_LAYER,)
