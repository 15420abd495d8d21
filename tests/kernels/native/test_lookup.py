"""TL1 and TL2 by compiled kernels: the oracle's results to the last bit, on every path, for every way of tiling."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ternary_kernels import oracle
from ternary_kernels.activations import Quantized
from ternary_kernels.formats import get_format
from ternary_kernels.formats.lookup import tl1_tiles, tl2_tiles
from ternary_kernels.native import compiler, isa
from ternary_kernels.native.isa import best
from ternary_kernels.native.lookup import NativeLookup
from ternary_kernels.native.lookup_codes import layout
from ternary_kernels.native.lookup_gemm import many_tokens
from ternary_kernels.native.lookup_gemv import few_tokens

MACHINE = isa.this_machine()
PATHS = [path for path in isa.PATHS if path.missing(*MACHINE) is None]

SHAPES = {
    "TL1": [
        (32, 32),  # the smallest tiles
        (96, 64),
        (320, 384),  # the largest
        (352, 320),  # a prime number of groups: tiles of one
        (1536, 1536),  # published, rows in groups of 64
    ],
    "TL2": [
        (32, 256),  # columns left over for pairs
        (96, 288),  # none left over
        (320, 352),
        (576, 320),  # tiles of 288 rows
        (352, 384),
        (1536, 1536),  # published, column tiles of 192
    ],
}
SITES = [(name, *shape) for name, shapes in SHAPES.items() for shape in shapes]
SMALL = [site for site in SITES if site[1] < 1000]
TOKENS = (1, 2, 3, 8, 17, 64)
"""1 is looked up on every path, 2 and 3 on some; the others are decoded, into register tiles of several sizes."""


@pytest.fixture(params=PATHS, ids=lambda path: path.name, scope="module")
def path(request):
    """Each instruction set that these kernels know and this machine has, forced."""
    return request.param


@pytest.fixture(scope="module")
def native():
    """Multiplies by a compiled kernel, into an output that holds NaN before."""

    def native(name, x, weights, scale, team, path=None):
        n_out, k_in = weights.shape
        m = len(x.values)
        out = np.full((m, n_out), np.nan, np.float32)
        kernel = NativeLookup(name, n_out, k_in, m, team, path)
        return kernel(x, get_format(name).pack(weights, scale), out)

    return native


def test_the_shapes_tested_are_tiled_in_every_way():
    tl1 = [tl1_tiles(*shape) for shape in SHAPES["TL1"]]
    tl2 = [(*tl2_tiles(*shape), shape[1] % tl2_tiles(*shape).columns) for shape in SHAPES["TL2"]]
    assert {tiles.group for tiles in tl1} == {32, 64}
    assert {tiles.columns for tiles in tl1} == {32, 64, 128}
    assert {32, 288, 320} <= {rows for rows, _, _, _ in tl2}
    assert {columns for _, columns, _, _ in tl2} == {96, 192}
    assert 0 in (left := {left for _, _, _, left in tl2})
    assert len(left) > 2


@pytest.mark.parametrize(("name", "n_out", "k_in"), SITES)
@pytest.mark.parametrize("m", TOKENS)
def test_random_weights_and_activations(native, make_problem, teams, path, name, n_out, k_in, m):
    weights, x = make_problem(n_out, k_in, m)
    assert np.array_equal(native(name, x, weights, 0.37, teams[2], path), oracle.matmul(x, weights, 0.37))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("m", [1, 3, 13])
def test_any_number_of_threads_up_to_more_than_there_are_groups_of_rows(native, make_problem, teams, path, name, m):
    for (n_out, k_in), (threads, team) in product([(32, 256), (96, 288), (640, 256)], teams.items()):
        weights, x = make_problem(n_out, k_in, m)
        expected = oracle.matmul(x, weights, 1.5)
        assert np.array_equal(native(name, x, weights, 1.5, team, path), expected), (n_out, threads)


@pytest.mark.parametrize(("name", "n_out", "k_in"), SMALL)
@pytest.mark.parametrize("value", [-128, -1, 0, 127])
@pytest.mark.parametrize("weight", [-1, 0, 1])
def test_uniform_weights_and_activations(native, teams, path, name, n_out, k_in, weight, value):
    """The sum is weight x value x columns, by hand: no oracle in between. No partial sum may overflow."""
    for m in (1, 5):
        x = Quantized(np.full((m, k_in), value, np.int8), np.full(m, 4, np.float32))
        out = native(name, x, np.full((n_out, k_in), weight, np.int8), 0.5, teams[1], path)
        assert np.array_equal(out, np.full((m, n_out), weight * value * k_in / 8, np.float32))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("m", [1, 5])
def test_the_largest_partial_sums(native, teams, path, name, m):
    """Weights with the activations' own signs, activations at both extremes: every table's largest entries, added up.

    The shape has the longest column tiles (192 for TL2), so the most sums are added up in 16 bits.
    """
    rng = np.random.default_rng(0)
    values = rng.choice(np.array([-128, 127], np.int8), (m, 1536))
    weights = np.where(rng.random((1536, 1536)) < 0.01, 0, np.where(values[0] < 0, -1, 1)).astype(np.int8)
    weights[::2] *= -1
    x = Quantized(values, np.ones(m, np.float32))
    assert np.array_equal(native(name, x, weights, 1.0, teams[1], path), oracle.matmul(x, weights, 1.0))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("m", [1, 4])
def test_every_group_of_five_weights_at_every_place(native, teams, path, name, m):
    """243 rows of one group each, repeated along the columns, so that each meets every place of a triple or pair."""
    groups = np.array(list(product((-1, 0, 1), repeat=5)), np.int8)
    weights = np.zeros((256, 320), np.int8)
    weights[:243] = np.tile(groups, (1, 64))
    values = np.random.default_rng(1).integers(-128, 128, (m, 320), np.int8)
    expected = np.einsum("mk,nk->mn", values, weights, dtype=np.int64)
    out = native(name, Quantized(values, np.ones(m, np.float32)), weights, 1.0, teams[1], path)
    assert np.array_equal(out, expected)


@pytest.mark.parametrize(("name", "n_out", "k_in"), [("TL1", 64, 64), ("TL2", 64, 352)])
@pytest.mark.parametrize("m", [1, 4])
def test_each_weight_meets_its_own_activation(native, teams, path, name, n_out, k_in, m):
    """One weight at a time, each of another row and column: the result is that column's activation, or less than 0."""
    values = (np.arange(m * k_in, dtype=np.int64).reshape(m, k_in) * 37 % 256 - 128).astype(np.int8)
    x = Quantized(values, np.ones(m, np.float32))
    for sign in (1, -1):
        for offset in range(0, k_in, n_out):
            weights = np.zeros((n_out, k_in), np.int8)
            columns = (np.arange(n_out) * 5 + offset) % k_in
            weights[np.arange(n_out), columns] = sign
            out = native(name, x, weights, 1.0, teams[1], path)
            assert np.array_equal(out, sign * values[:, columns].astype(np.float32))


@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from(sorted(SHAPES)),
    seed=st.integers(0, 2**32 - 1),
    groups=st.integers(1, 24),
    columns=st.integers(8, 30),
    m=st.integers(1, 30),
    scale=st.floats(-(2.0**20), 2.0**20, width=32),
    path=st.sampled_from(PATHS),
    threads=st.sampled_from([1, 2, 3, 5]),
)
def test_any_shape_values_and_scale(native, make_problem, teams, name, seed, groups, columns, m, scale, path, threads):
    weights, x = make_problem(32 * groups, 32 * columns, m, seed)
    out = native(name, x, weights, scale, teams[threads], path)
    assert np.array_equal(out, oracle.matmul(x, weights, scale))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("m", [1, 4])
def test_bytes_that_are_no_codes_do_no_harm(teams, path, name, m):
    """A file may hold anything: what comes out means nothing, but it comes out, and nothing else is touched."""
    shape = (64, 352)
    size = get_format(name).size_bytes(*shape)
    weights = np.random.default_rng(2).integers(0, 256, size, np.uint8)
    weights[-32:-28] = np.array([1], np.float32).view(np.uint8)
    held = np.full((m + 2, 64), 7, np.float32)
    x = Quantized(np.ones((m, 352), np.int8), np.ones(m, np.float32))
    out = NativeLookup(name, *shape, m, teams[2], path)(x, weights, held[1:-1])
    assert np.isfinite(out).all()
    assert (held[[0, -1]] == 7).all()


def test_products_of_one_team_share_memory_and_do_not_disturb_each_other(make_problem, teams, path):
    problems = [(name, n_out, k_in, m) for name, n_out, k_in in SMALL for m in (1, 9)]
    calls = []
    for name, n_out, k_in, m in problems:
        weights, x = make_problem(n_out, k_in, m)
        kernel = NativeLookup(name, n_out, k_in, m, teams[2], path)
        packed, expected = get_format(name).pack(weights, 0.5), oracle.matmul(x, weights, 0.5)
        calls.append((kernel, x, packed, np.empty((m, n_out), np.float32), expected))
    for _ in range(2):
        for kernel, x, packed, out, expected in calls:
            assert np.array_equal(kernel(x, packed, out), expected)


def test_without_a_path_the_best_of_this_machine_is_taken(native, make_problem, teams):
    assert NativeLookup("TL2", 32, 256, 1, teams[1]).isa is best() is PATHS[0]
    weights, x = make_problem(64, 256, 1)
    assert np.array_equal(native("TL2", x, weights, 1.0, teams[1]), oracle.matmul(x, weights, 1.0))


@pytest.mark.parametrize("name", SHAPES)
def test_weights_of_another_size_type_or_order_are_refused(teams, name):
    size = get_format(name).size_bytes(32, 256)
    x = Quantized(np.zeros((1, 256), np.int8), np.ones(1, np.float32))
    kernel = NativeLookup(name, 32, 256, 1, teams[1])
    for weights in (np.zeros(size - 1, np.uint8), np.zeros(size, np.int8), np.zeros(2 * size, np.uint8)[::2]):
        out = np.full((1, 32), np.nan, np.float32)
        with pytest.raises(ValueError, match=rf"{name} 32 x 256, weights: expected contiguous uint8 .*{size}.*got"):
            kernel(x, weights, out)
        assert np.isnan(out).all()


@pytest.mark.parametrize(
    ("name", "n_out", "k_in", "message"),
    [
        ("TL1", 33, 256, "TL1 needs rows and columns to be multiples of 32, got 33 x 256"),
        ("TL1", 32, 40, "TL1 needs k_in to be a multiple of 32, got 40"),
        ("TL2", 32, 224, "TL2 needs at least 256 columns, got 224"),
    ],
)
def test_a_shape_that_cannot_be_tiled_is_refused(teams, name, n_out, k_in, message):
    with pytest.raises(ValueError, match=message):
        NativeLookup(name, n_out, k_in, 1, teams[1])


@pytest.mark.parametrize("name", SHAPES)
def test_kernels_compile_for_arm(name):
    """This machine can't run them, but the compiler takes every instruction that is asked for."""
    arm = next(path for path in isa.PATHS if path.name == "neon_dot")
    held = layout(name, 1536, 1536)
    kernels = {"few": few_tokens(held), "many": many_tokens(held, 12)}
    assert compiler.compile_object(f"arm_{name}", kernels, arm, "aarch64-unknown-linux-gnu")[:4] == b"\x7fELF"
