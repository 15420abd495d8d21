"""Teams and synthetic problems that the kernel tests share."""

import numpy as np
import pytest

from ternary_kernels.activations import Quantized
from ternary_kernels.team import Team


@pytest.fixture(scope="module", params=[1, 2, 5], ids=lambda threads: f"{threads}threads")
def team(request):
    """Teams of 1, 2 and 5 threads: 5 are more than most of these problems have blocks of rows for."""
    with Team(request.param) as team:
        yield team


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
