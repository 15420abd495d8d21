"""A folder with a small model that was tuned."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli.shop import SMALL, Shop


@pytest.fixture(scope="session")
def tuned_folder(compiled: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model's file, and a cache with its result."""
    shop = Shop(tmp_path_factory.mktemp("compared"))
    shop.write("small.json", SMALL)
    answer = shop.run("small.json", "--budget", "2.5", "--no-confirm", "--quiet", "--json")
    assert answer.code == 0, answer.err
    return shop.folder


@pytest.fixture
def shop(tmp_path: Path, tuned_folder: Path) -> Shop:
    """A copy of it, to change at will."""
    shutil.copytree(tuned_folder, tmp_path, dirs_exist_ok=True)
    return Shop(tmp_path)
