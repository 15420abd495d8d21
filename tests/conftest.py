"""What all tests share: one cache of compiled kernels, filled before a test has to keep to a short budget; signals.

And which of them need the host for themselves.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from autotune.bench.plan import plan
from autotune.bench.rivals import choose_kernels
from autotune.bench.subjects import Subjects
from autotune.host.detect import detect
from autotune.host.kernels import find_kernels
from ternary_kernels.arena import Arena
from ternary_kernels.team import Team
from tests.builders import build_model, build_workload

TESTS = Path(__file__).parent
TIMED = (
    "bench",
    "cli",
    "compare",
    "engine",
    "verify",
    "test_confirmation.py",
    "test_guides.py",
    "test_pipeline.py",
    "test_pipeline_gpu.py",
    "test_recheck.py",
    "test_measured_storage.py",
)
"""Folders and files of tests that benchmark or run models within short budgets: beside others they would time those."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is not to be run beside other tests."""
    for item in items:
        if {item.path.relative_to(TESTS).parts[0], item.path.name} & set(TIMED):
            item.add_marker(pytest.mark.timed)


def pytest_configure(config: pytest.Config) -> None:
    """Set what child processes inherit: a folder of compiled kernels that isn't the user's, and signals that end them.

    A shell ignores Ctrl-C on behalf of what it starts in the background, and nohup a lost terminal.
    """
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)
    folder = tempfile.mkdtemp(prefix="ternary-kernels-")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ["TERNARY_KERNELS_CACHE"] = folder


@pytest.fixture(scope="session")
def compiled() -> None:
    """All kernels that a model in the usual formats needs are compiled: the budgets of tests are shorter than that."""
    host = detect()
    kernels = choose_kernels(find_kernels(host), ("I2_S", "I2_S_ARM", "F16"), None)
    model, arena = build_model(), Arena(65 << 20)
    tasks = plan((model,), host, build_workload(), kernels, quick=True)
    for count in sorted({task.point.threads for task in tasks}):
        with Team(count) as team:
            subjects = Subjects(model, arena, {count: team})
            for task in tasks:
                if task.point.threads == count:
                    subjects.build(task)()
