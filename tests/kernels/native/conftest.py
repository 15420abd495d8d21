"""The instruction-set paths of this machine, teams of several sizes, and products to be checked on them."""

import ctypes
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from ternary_kernels.matmul import get_kernel
from ternary_kernels.native import compiler, isa
from ternary_kernels.native.crew import callable_at
from ternary_kernels.team import Team

PATHS = isa.runnable(*isa.this_machine())
THREADS = (1, 2, 3, 5)
KERNELS_FOLDER = Path(compiler.__file__).parents[2]


@pytest.fixture(params=PATHS, ids=lambda path: path.name, scope="session")
def path(request):
    """Each instruction set this machine has, forced."""
    return request.param


@pytest.fixture(scope="session")
def teams():
    """A living team per thread count; all of them at once, on however few cores."""
    with ExitStack() as stack:
        yield {threads: stack.enter_context(Team(threads)) for threads in THREADS}


@pytest.fixture(scope="session")
def multiply():
    """Multiplies with a forced path, into an output that holds NaN before."""

    def multiply(name, shape, x, packed, team, path=None, kernel="native"):
        m = len(x.values if hasattr(x, "values") else x)
        out = np.full((m, shape[0]), np.nan, np.float32)
        return get_kernel(kernel, name)(name, *shape, m, team, isa=path)(x, packed, out)

    return multiply


@pytest.fixture(scope="session")
def execute():
    """Compiles one kernel and calls it with integers and arrays as arguments."""

    def execute(name, build, path, *arguments, member=0, members=1):
        address = compiler.load(f"test_{name}", {"kernel": build}, path)["kernel"]
        words = [value.ctypes.data if isinstance(value, np.ndarray) else value for value in arguments]
        held = (ctypes.c_int64 * len(words))(*words)
        callable_at(address)(ctypes.addressof(held), member, members)

    return execute


@pytest.fixture(scope="session")
def child():
    """Starts a Python process that can import the kernels; its standard input and output are pipes."""

    def start(script, *arguments):
        return subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            cwd=KERNELS_FOLDER,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start
