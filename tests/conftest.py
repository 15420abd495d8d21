"""What all tests share: one cache of compiled kernels, filled before a test has to keep to a short budget."""

from __future__ import annotations

import os
import shutil
import tempfile

import pytest

from autotune.bench.plan import plan
from autotune.bench.rivals import choose_kernels
from autotune.bench.subjects import Subjects
from autotune.host.detect import detect
from autotune.host.kernels import find_kernels
from ternary_kernels.arena import Arena
from ternary_kernels.team import Team
from tests.builders import build_model, build_workload


def pytest_configure(config: pytest.Config) -> None:
    """Keep compiled kernels in a folder of this session, its child processes' too, not in the user's cache."""
    folder = tempfile.mkdtemp(prefix="ternary-kernels-")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ["TERNARY_KERNELS_CACHE"] = folder


@pytest.fixture(scope="session")
def compiled() -> None:
    """All kernels that a model in the usual formats needs are compiled: the budgets of tests are shorter than that."""
    host = detect()
    kernels = choose_kernels(find_kernels(host.cpu), ("I2_S", "I2_S_ARM", "F16"), None)
    model, arena = build_model(), Arena(65 << 20)
    tasks = plan((model,), host, build_workload(), kernels, quick=True)
    for count in sorted({task.point.threads for task in tasks}):
        with Team(count) as team:
            subjects = Subjects(model, arena, {count: team})
            for task in tasks:
                if task.point.threads == count:
                    subjects.build(task)()
