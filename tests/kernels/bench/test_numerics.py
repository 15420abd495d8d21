"""What is compared before anything is timed."""

from __future__ import annotations

import numpy as np
import pytest

from ternary_kernels.bench import numerics
from ternary_kernels.bench.numerics import check_kernel
from ternary_kernels.formats import FORMATS
from ternary_kernels.matmul import KERNELS, get_kernel
from ternary_kernels.team import Team


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("m", [1, 40])
def test_numpys_kernels_pass_in_every_format_that_they_run(name, m):
    get_kernel("numpy", "F32")  # registers them
    if ("numpy", name) in KERNELS:
        with Team(1) as team:
            assert check_kernel("numpy", name, 512, m, team) is None


def test_a_matrix_that_a_format_cannot_hold_is_an_error():
    with Team(1) as team, pytest.raises(ValueError, match="I2_S needs k_in to be a multiple of 128, got 100"):
        check_kernel("numpy", "I2_S", 100, 1, team)


@pytest.mark.parametrize("name", ["F16", "Q8_0"])
def test_a_floating_point_kernel_may_round_but_not_be_off(name, monkeypatch):
    product = get_kernel("numpy", name)
    multiply = product._multiply

    def off(self, x, weights, out, *, factor):
        multiply(self, x, weights, out)
        out *= np.float32(factor)

    with Team(1) as team:
        monkeypatch.setattr(product, "_multiply", lambda *operands: off(*operands, factor=1.01))
        assert check_kernel("numpy", name, 256, 2, team) is None
        monkeypatch.setattr(product, "_multiply", lambda *operands: off(*operands, factor=1.05))
        assert check_kernel("numpy", name, 256, 2, team) == "it is 5.0% away from the exact product"
    assert numerics.MAX_TOKENS > 32  # beyond what kernels multiply at once
