"""Teams and synthetic problems that the kernel tests share."""

import importlib

import numpy as np
import pytest

from ternary_kernels.activations import Quantized
from ternary_kernels.formats import get_format
from ternary_kernels.matmul import MODULES
from ternary_kernels.native import amx
from ternary_kernels.team import Team

for modules in MODULES.values():  # so that tests that run over KERNELS find every kernel there
    for module in modules:
        importlib.import_module(module)


def pytest_collection_modifyitems(items):
    """Where the system has no AMX, its kernels can't be tested."""
    if (unusable := amx.unusable()) is None:
        return
    for item in items:
        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if any(isinstance(value, tuple) and value[:1] == ("amx",) for value in values):
            item.add_marker(pytest.mark.skip(reason=unusable))


@pytest.fixture(scope="module", params=[1, 2, 5], ids=lambda threads: f"{threads}threads")
def team(request):
    """Teams of 1, 2 and 5 threads: 5 are more than most of these problems have blocks of rows for."""
    with Team(request.param) as team:
        yield team


@pytest.fixture(scope="session")
def fit():
    """Rounds a shape up to one that a format can hold: to whole blocks of columns and, where it must, of rows."""

    def fit(name, n_out, k_in):
        held = get_format(name)
        k_in = max(-(-k_in // held.block) * held.block, 256 if name == "TL2" else 1)
        try:
            held.size_bytes(n_out, k_in)
        except ValueError:
            n_out = -(-n_out // 32) * 32
        return n_out, k_in

    return fit


@pytest.fixture(scope="session")
def make_problem():
    """Random ternary weights, with int8 activations over the whole range and scales of very different sizes."""

    def make(n_out, k_in, m, seed=0):
        rng = np.random.default_rng(seed)
        weights = rng.integers(-1, 2, (n_out, k_in), np.int8)
        values = rng.integers(-128, 128, (m, k_in), np.int8)
        scale = np.exp(rng.uniform(-10, 15, m)).astype(np.float32)
        return weights, Quantized(values, scale)

    return make
