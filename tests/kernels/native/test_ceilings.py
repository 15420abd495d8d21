"""The read reads every byte, and the peak does every multiply-add that it claims."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ternary_kernels.native import ceilings, compiler, isa
from ternary_kernels.team import Team

PATHS = isa.runnable(*isa.this_machine())


@pytest.fixture(scope="module", params=PATHS, ids=lambda path: path.name)
def path(request):
    return request.param


@pytest.fixture(scope="module", params=[1, 3], ids=lambda threads: f"{threads}threads")
def team(request):
    with Team(request.param) as team:
        yield team


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 255, 256, 1000, 100_003])
def test_the_or_of_all_bytes_comes_out(team, path, size):
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8) & 0b0101_1010
    assert ceilings.read(team, data, path) == np.bitwise_or.reduce(data, initial=0)


@settings(deadline=None)
@given(size=st.integers(1, 2000), place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_single_bit_anywhere_is_seen(team, size, place, bit):
    """Also at addresses that are aligned to nothing."""
    data = np.zeros(size + 1, np.uint8)[1:]
    data[int(place * size)] = 1 << bit
    assert ceilings.read(team, data) == 1 << bit


@pytest.mark.parametrize(
    ("data", "got"),
    [
        (np.zeros(8, np.int8), "int8 of rank 1"),
        (np.zeros((2, 8), np.uint8), "uint8 of rank 2"),
        (np.zeros(16, np.uint8)[::2], "non-contiguous uint8 of rank 1"),
    ],
)
def test_only_plain_bytes_are_read(team, data, got):
    with pytest.raises(ValueError, match=f"read: expected contiguous uint8 of rank 1, got {got}"):
        ceilings.read(team, data)


@pytest.mark.parametrize("kind", ["int8", "float32"])
def test_every_member_does_the_multiply_adds_of_the_product(team, path, kind):
    """All factors are 1, so that the sum counts them; only the last turn of the loop may be too much."""
    peak = ceilings.Peak(team, (16, 24, 1024), kind, path)
    assert peak.operations == 2 * 16 * 24 * 1024 * team.threads
    for _ in range(2):
        peak.sums[:] = 0
        peak()
        assert len(peak.sums) == team.threads
        assert np.all(peak.sums >= 16 * 24 * 1024)
        assert np.all(peak.sums <= 16 * 24 * 1024 + 64 * 20 * 32)


def test_the_peak_is_that_of_bytes_unless_told_otherwise(team):
    assert ceilings.arithmetic == "int8"
    assert ceilings.Peak(team).sums.dtype == np.uint32


@pytest.mark.parametrize(
    ("size", "kind", "message"),
    [
        ((0, 1, 1), "int8", r"expected a positive m, n_out and k_in, got \(0, 1, 1\)"),
        ((1, 1, 1), "int4", "expected int8 or float32, got 'int4'"),
    ],
)
def test_a_peak_that_cannot_be_is_refused(team, size, kind, message):
    with pytest.raises(ValueError, match=message):
        ceilings.Peak(team, size, kind)


def test_they_compile_for_arm():
    neon = next(path for path in isa.PATHS if path.name == "neon_dot")
    image = compiler.compile_object("ceilings", ceilings.KERNELS, neon, triple="aarch64-unknown-linux-gnu")
    assert int.from_bytes(image[18:20], "little") == 183  # EM_AARCH64
