"""Shops: with a tuned model, and without."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli.shop import SMALL, Answer, Shop


@pytest.fixture(scope="session")
def tuned(compiled: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """A folder in which the small model was tuned from cold, and what that run printed."""
    shop = Shop(tmp_path_factory.mktemp("tuned"))
    shop.write("small.json", SMALL)
    return shop.folder, shop.run("small.json", "--budget", "4", "--no-confirm", "--json")


@pytest.fixture
def empty(compiled: None, tmp_path: Path) -> Shop:
    """The small model and no cache."""
    shop = Shop(tmp_path)
    shop.write("small.json", SMALL)
    return shop


@pytest.fixture
def shop(tmp_path: Path, tuned: tuple[Path, Answer]) -> Shop:
    """The small model and a cache with its result, to change at will."""
    shutil.copytree(tuned[0], tmp_path, dirs_exist_ok=True)
    return Shop(tmp_path)
