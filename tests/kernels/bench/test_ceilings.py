"""The host's ceilings: those of compiled code where it can be had, numpy's where not."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np

from ternary_kernels.backends import get_backend
from ternary_kernels.bench import ceilings
from ternary_kernels.team import Team


def test_they_are_those_of_the_best_backend_that_runs_here():
    best = next(name for name in ("amx", "native", "numpy") if _runs(name))
    assert ceilings.load() == get_backend(best)


def test_without_llvmlite_they_are_numpys_on_floats():
    script = (
        "import sys; sys.modules['llvmlite'] = None\n"
        "from ternary_kernels.bench import ceilings\n"
        "found = ceilings.load(); print(found.name, found.arithmetic)"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment()
    )
    assert found.stdout.split() == ["numpy", "float32"]


def test_they_run_on_a_team_and_say_how_much_they_do():
    found = ceilings.load()
    with Team(2) as team:
        found.read(team, np.ones(1 << 16, np.uint8))
        peak = found.peak(team)
        peak()
    assert peak.operations > 0


def _runs(name):
    try:
        get_backend(name)
    except ValueError:
        return False
    return True


def environment():
    """This process', with the packages that it imports from."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
