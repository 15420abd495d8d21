"""Shops: with a tuned model, and without."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from autotune.conclusion import conclude
from autotune.evidence import gather, workload_of
from autotune.options import Options
from autotune.pipeline import request
from autotune.store import cache
from tests.cli.shop import SMALL, Answer, Shop


@pytest.fixture(scope="session")
def tuned(compiled: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """A folder in which the small model was tuned from cold, and what that run printed."""
    shop = Shop(tmp_path_factory.mktemp("tuned"))
    shop.write("small.json", SMALL)
    return shop.folder, shop.run("small.json", "--budget", "4", "--no-confirm", "--json")


@pytest.fixture(scope="session")
def thorough(tuned: tuple[Path, Answer], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """The same folder with a result of all points there are, which are enough for other wishes; and its bytes."""
    folder = tmp_path_factory.mktemp("thorough")
    shutil.copytree(tuned[0], folder, dirs_exist_ok=True)
    shop, options = Shop(folder), Options(confirm=False)
    evidence = gather(shop.model, options, budget_s=4.0, quick=False, whole=True)
    workload = workload_of(options, evidence.models[0], evidence.host)
    result = conclude(evidence, workload, started=0.0, trials=None)
    (entry,) = shop.entries()
    _, raw = cache.document(result, request(options, result))
    entry.write_bytes(raw)
    return folder, raw


@pytest.fixture(scope="session")
def confirmed(compiled: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """A folder in which the small model was tuned and run from cold, and what that printed."""
    shop = Shop(tmp_path_factory.mktemp("confirmed"))
    shop.write("small.json", SMALL)
    return shop.folder, shop.run("small.json", "--budget", "12", "--json")


@pytest.fixture
def empty(compiled: None, tmp_path: Path) -> Shop:
    """The small model and no cache."""
    shop = Shop(tmp_path)
    shop.write("small.json", SMALL)
    return shop


@pytest.fixture
def thorough_shop(tmp_path: Path, thorough: tuple[Path, bytes]) -> Shop:
    """The small model and a cache with a result that answers any wish without measuring."""
    shutil.copytree(thorough[0], tmp_path, dirs_exist_ok=True)
    return Shop(tmp_path)


@pytest.fixture
def shop(tmp_path: Path, tuned: tuple[Path, Answer]) -> Shop:
    """The small model and a cache with its result, to change at will."""
    shutil.copytree(tuned[0], tmp_path, dirs_exist_ok=True)
    return Shop(tmp_path)
