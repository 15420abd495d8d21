"""Products of compiled kernels, on every path of this machine: integers to the last bit, floats within rounding."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ternary_kernels import oracle
from ternary_kernels.activations import Quantized
from ternary_kernels.formats import get_format
from ternary_kernels.matmul import get_kernel
from ternary_kernels.native import isa
from ternary_kernels.native.isa import best
from ternary_kernels.native.products import NativeRows
from ternary_kernels.team import Team

BLOCKS = {"I2_S": 128, "I2_S_ARM": 64, "TQ2_0": 256}
FLOATS = {"F16": np.float16, "F32": np.float32}
PATHS = isa.runnable(*isa.this_machine())
LIMIT_COLUMNS = 1 << 18

MANY = 34
"""Tokens for which rows of all these lengths are decoded to scratch memory, not in registers; in tiles of two sizes."""
TOKENS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 24, 25, 33, MANY, 64)
FEWER_TOKENS = (2, 5, 25, MANY)
"""As kernels are compiled for each, for the other paths of a machine."""
ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 29)
ODD_LENGTHS = {"I2_S": (128, 256, 640), "I2_S_ARM": (64, 192, 320), "TQ2_0": (256, 768)}
"""Odd numbers of blocks: with long vectors a row ends within one."""


def str_of(value):
    """How a test's name shows a path or a number."""
    return getattr(value, "name", str(value))


@pytest.fixture(params=BLOCKS, scope="module")
def ternary(request):
    """A ternary format's name."""
    return request.param


@pytest.fixture(scope="session")
def exact(multiply):
    """Whether a product equals the oracle's to the last bit."""

    def exact(name, x, weights, scale, team, path):
        packed = get_format(name).pack(weights, scale)
        out = multiply(name, weights.shape, x, packed, team, path)
        return np.array_equal(out, oracle.matmul(x, weights, scale))

    return exact


# Integers


@pytest.mark.parametrize(
    ("path", "m"), [(path, m) for path in PATHS for m in TOKENS if path is PATHS[0] or m in FEWER_TOKENS], ids=str_of
)
def test_any_rows_tokens_and_threads_equal_the_oracle(exact, make_problem, ternary, path, teams, m):
    """From 1 row to 29, 5 threads sharing down to a single one."""
    weights, x = make_problem(max(ROWS), 3 * BLOCKS[ternary], m)
    for n_out, threads in product(ROWS, teams):
        assert exact(ternary, x, weights[:n_out], 0.5, teams[threads], path), (n_out, threads)


@pytest.mark.parametrize("m", [1, MANY])
@pytest.mark.parametrize(("name", "k_in"), [(name, k_in) for name, held in ODD_LENGTHS.items() for k_in in held])
def test_rows_that_end_within_a_vector_equal_the_oracle(exact, make_problem, name, k_in, path, teams, m):
    weights, x = make_problem(9, k_in, m, seed=k_in)
    for threads in teams:
        assert exact(name, x, weights, -2.0, teams[threads], path), threads


@pytest.mark.parametrize("m", [2, MANY])
def test_all_groups_of_five_weights(multiply, ternary, path, teams, m):
    """All 3^5, a row each, repeated along it: all codes of each byte. Sums by hand, in int64, with scales of 1."""
    groups = np.array(list(product((-1, 0, 1), repeat=5)), np.int8)
    weights = groups[:, np.arange(3 * BLOCKS[ternary]) % 5]
    values = np.random.default_rng(0).integers(-128, 128, (m, weights.shape[1]), np.int8)
    x = Quantized(values, np.ones(m, np.float32))
    out = multiply(ternary, weights.shape, x, get_format(ternary).pack(weights, 1.0), teams[2], path)
    assert np.array_equal(out, np.einsum("mk,nk->mn", values, weights, dtype=np.int64))


@pytest.mark.parametrize("m", [2, MANY])
@pytest.mark.parametrize("weight", [-1, 0, 1])
def test_uniform_weights_and_extreme_activations(multiply, ternary, path, teams, weight, m):
    """The largest sums that bytes allow, wherever they lie: weight x value x columns, by hand."""
    n_out, k_in = 9, 3 * BLOCKS[ternary]
    packed = get_format(ternary).pack(np.full((n_out, k_in), weight, np.int8), 0.5)
    for value in (-128, 127):
        x = Quantized(np.full((m, k_in), value, np.int8), np.full(m, 2, np.float32))
        out = multiply(ternary, (n_out, k_in), x, packed, teams[2], path)
        assert np.array_equal(out, np.full((m, n_out), weight * value * k_in * 0.25))


@pytest.mark.parametrize("m", [1, MANY])
def test_each_column_meets_its_own_activation(multiply, ternary, path, teams, m):
    """One weight a row, in each column once: what comes out are the activations themselves."""
    k_in = 3 * BLOCKS[ternary]
    values = np.random.default_rng(1).integers(-128, 128, (m, k_in), np.int8)
    packed = get_format(ternary).pack(np.eye(k_in, dtype=np.int8), 1.0)
    x = Quantized(values, np.ones(m, np.float32))
    assert np.array_equal(multiply(ternary, (k_in, k_in), x, packed, teams[3], path), values)


@pytest.mark.parametrize("m", [1, MANY])
@pytest.mark.parametrize("name", ["I2_S", "I2_S_ARM"])
def test_the_longest_row_that_is_allowed_does_not_overflow(multiply, name, path, teams, m):
    """2^18 columns, all at -128 times +1, so that codes where they lie in the byte reach their largest sums."""
    packed = get_format(name).pack(np.ones((3, LIMIT_COLUMNS), np.int8), 1.0)
    x = Quantized(np.full((m, LIMIT_COLUMNS), -128, np.int8), np.ones(m, np.float32))
    out = multiply(name, (3, LIMIT_COLUMNS), x, packed, teams[2], path)
    assert np.array_equal(out, np.full((m, 3), -128.0 * LIMIT_COLUMNS))


@pytest.mark.parametrize("m", [4, 40])
def test_many_rows_are_decoded_in_several_chunks(exact, make_problem, ternary, path, teams, m):
    """More than fit the scratch memory at once; the last chunk cut short."""
    weights, x = make_problem(277, 5120, m)
    assert exact(ternary, x, weights, 0.25, teams[2], path)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_shape_values_and_threads(exact, make_problem, teams, data):
    name = data.draw(st.sampled_from(list(BLOCKS)))
    path = data.draw(st.sampled_from(PATHS))
    m = data.draw(st.one_of(st.integers(1, 8), st.sampled_from([25, MANY, 33])))
    k_in = BLOCKS[name] * data.draw(st.integers(1, 3))
    weights, x = make_problem(data.draw(st.integers(1, 70)), k_in, m, data.draw(st.integers(0, 2**32 - 1)))
    if data.draw(st.booleans()):
        x = Quantized(np.where(x.values < 0, np.int8(-128), np.int8(127)), x.scale)
    # A power of two: TQ2_0 multiplies each block by its scale, which rounds no sum then.
    scale = 2.0 ** data.draw(st.integers(-10, 10)) if name == "TQ2_0" else data.draw(st.floats(-1e6, 1e6, width=32))
    assert exact(name, x, weights, scale, teams[data.draw(st.sampled_from(list(teams)))], path)


def test_both_ways_of_multiplying_are_tested(teams):
    """Were the bounds between them to move, other numbers of tokens would have to be tested here."""
    for name, k_in in (("I2_S", 128), ("I2_S_ARM", 64), ("TQ2_0", 256), ("F16", 128), ("Q8_0", 32), ("Q6_K", 256)):
        for path, (m, few) in product(PATHS, ((1, True), (MANY, False))):
            assert NativeRows(name, 1, k_in, m, teams[1], path)._few is few, (name, path.name, m)


# Rounding


def within_rounding(out, exact, k_in):
    """Errors of a sum of k products grow like the root of k; 16 is far beyond any order of addition."""
    return np.all(np.abs(out - exact) <= 16 * np.sqrt(k_in) * np.finfo(np.float32).eps * np.abs(exact).max())


@pytest.mark.parametrize("m", [1, 4, MANY])
def test_blocks_of_different_scales_count_by_their_own(multiply, make_problem, path, teams, m):
    """Such a TQ2_0 matrix isn't ternary with one scale; zero, negative and subnormal scales are among its."""
    weights, x = make_problem(29, 768, m)
    packed = get_format("TQ2_0").pack(weights, 1.0).reshape(-1, 66)
    rng = np.random.default_rng(3)
    scales = rng.standard_normal(len(packed)).astype(np.float16)
    scales[:4] = 0, 2.0**-24, -(2.0**-15), 100
    packed[:, 64:] = scales.view(np.uint8).reshape(-1, 2)
    x = Quantized(x.values, rng.uniform(0.5, 2, m).astype(np.float32))
    scaled = weights * np.repeat(scales.astype(np.float64), 256).reshape(29, 768)
    expected = x.values.astype(np.float64) @ scaled.T / x.scale[:, None].astype(np.float64)
    for threads in teams:
        out = multiply("TQ2_0", (29, 768), x, packed.reshape(-1), teams[threads], path)
        # Sums of codes are corrected by sums of activations, so errors are as large as those, not as the difference.
        bound = np.abs(expected).max() + np.abs(x.values.astype(np.float64)).sum(axis=1).max() * 100 / 256
        assert np.all(np.abs(out - expected) <= 16 * np.sqrt(768) * np.finfo(np.float32).eps * bound), threads


def float_problem(name, n_out, k_in, m):
    """Weights whose rows differ in size by up to 10^4, as they unpack, and activations."""
    rng = np.random.default_rng(k_in)
    weights = rng.standard_normal((n_out, k_in)) * 10.0 ** rng.uniform(-3, 1, (n_out, 1))
    held = get_format(name)
    packed = held.pack(weights.astype(FLOATS.get(name, np.float32)))
    x = rng.standard_normal((m, k_in), np.float32)
    unpacked, _ = held.unpack(packed, n_out, k_in)
    return x, packed, x.astype(np.float64) @ unpacked.astype(np.float64).T


@pytest.mark.parametrize(
    ("name", "k_in", "m"),
    [
        *product(FLOATS, (1, 7, 65, 100), (1, MANY)),  # odd ends: always decoded to scratch memory
        *product(FLOATS, (128,), (1, 5, 13, MANY)),
        *product(["Q8_0"], (32, 96), (1, MANY)),
        ("Q8_0", 96, 5),
        *product(["Q6_K"], (256, 768), (1,)),
        ("Q6_K", 256, 5),
        ("Q6_K", 768, MANY),
    ],
)
def test_floating_point_is_within_the_rounding_of_its_sums(multiply, name, k_in, path, teams, m):
    """Odd ends of rows too, and rows of fewer columns than a vector has lanes."""
    x, packed, expected = float_problem(name, 29, k_in, m)
    for n_out, threads in ((29, 1), (29, 3), (5, 5), (1, 2)):
        out = multiply(name, (n_out, k_in), x, packed[: packed.size // 29 * n_out], teams[threads], path)
        assert within_rounding(out, expected[:, :n_out], k_in), (n_out, threads)


@pytest.mark.parametrize("name", ["F16", "F32", "Q8_0", "Q6_K"])
@pytest.mark.parametrize("m", [4, 40])
def test_many_floating_point_rows_are_decoded_in_several_chunks(multiply, name, path, teams, m):
    x, packed, expected = float_problem(name, 77, 2560, m)
    assert within_rounding(multiply(name, (77, 2560), x, packed, teams[2], path), expected, 2560)


@pytest.mark.parametrize("k_in", [1, 64])
def test_every_finite_half_is_widened_exactly(multiply, path, teams, k_in):
    """All 63,488 of them, subnormals, zeros and 65,504 included; decoded one by one, and in vectors."""
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    weights = every[np.isfinite(every)].reshape(-1, k_in)
    x = np.eye(k_in, dtype=np.float32)
    if k_in == 64:
        x = x[:4]  # few tokens: widened in registers
    out = multiply("F16", weights.shape, x, get_format("F16").pack(weights), teams[2], path)
    assert np.array_equal(out, weights.astype(np.float32).T[: len(x)])


@pytest.mark.parametrize("magnitude", [3e38, 1e-38, 1e-45])
@pytest.mark.parametrize("m", [1, MANY])
def test_the_ends_of_float32_stay_what_they_are(multiply, path, teams, magnitude, m):
    """Largest, smallest and subnormal weights times 1: no overflow between, and nothing flushed to zero."""
    weights = np.zeros((5, 100), np.float32)
    weights[np.arange(5), [0, 31, 64, 96, 99]] = np.float32(magnitude)
    x = np.ones((m, 100), np.float32)
    out = multiply("F32", (5, 100), x, get_format("F32").pack(weights), teams[2], path)
    assert np.array_equal(out, np.full((m, 5), np.float32(magnitude)))


# Operands


FORMATS = (*BLOCKS, *FLOATS, "Q8_0", "Q6_K")


@pytest.fixture(params=FORMATS, scope="module")
def operands(request):
    """A format's name, and small-integer operands, whose product no order of addition rounds; and that product."""
    name = request.param
    held = get_format(name)
    rng = np.random.default_rng(5)
    weights = rng.integers(-1, 2, (7, 768), np.int8)
    packed = held.pack(weights if held.ternary else weights.astype(FLOATS.get(name, np.float32)))
    values = rng.integers(-8, 8, (MANY, 768)).astype(np.int8 if held.ternary else np.float32)
    return name, packed, values


def tokens(name, values, m):
    return Quantized(values[:m], np.ones(m, np.float32)) if name in BLOCKS else values[:m]


@pytest.mark.parametrize("m", [1, MANY])
def test_weights_may_start_at_any_address(multiply, operands, path, teams, m):
    """They lie wherever a model file put them: the same product, to the last bit."""
    name, packed, values = operands
    x = tokens(name, values, m)
    expected = multiply(name, (7, 768), x, packed, teams[1], path)
    memory = np.empty(packed.size + 128, np.uint8)
    for offset in (0, 1, 2, 4, 63):
        start = -memory.ctypes.data % 64 + offset
        moved = memory[start : start + packed.size]
        moved[:] = packed
        assert np.array_equal(multiply(name, (7, 768), x, moved, teams[2], path), expected), offset


@pytest.mark.parametrize("m", [1, MANY])
def test_operands_may_be_new_arrays_at_every_call_and_read_only(operands, teams, m):
    """A product keeps addresses; it must not keep those of arrays that are gone."""
    name, packed, values = operands
    kernel = get_kernel("native", name)(name, 7, 768, m, teams[2])
    held = get_format(name)
    zeros = held.pack(np.zeros((7, 768), np.int8 if held.ternary else FLOATS.get(name, np.float32)))
    expected = kernel(tokens(name, values, m), packed, np.empty((m, 7), np.float32)).copy()
    for factor in (1, 2, 0, -1, 0, 2):
        new = tokens(name, values * np.array(factor or 3, values.dtype), m)
        weights = packed.copy() if factor else zeros
        for array in (weights, new.values if name in BLOCKS else new):
            array.flags.writeable = False
        out = np.full((m, 7), np.nan, np.float32)
        assert kernel(new, weights, out) is out
        assert np.array_equal(out, factor * expected)


@pytest.mark.parametrize("m", [1, MANY])
@pytest.mark.parametrize(
    ("spoil", "got"),
    [
        (lambda packed: packed[:-1], r"contiguous uint8 of shape \(\d+,\)"),
        (lambda packed: np.append(packed, packed[:1]), r"contiguous uint8 of shape \(\d+,\)"),
        (lambda packed: packed[None], r"contiguous uint8 of shape \(1, \d+\)"),
        (lambda packed: packed.view(np.int8), r"contiguous int8 of shape \(\d+,\)"),
        (lambda packed: packed.astype(np.float32), r"contiguous float32 of shape \(\d+,\)"),
        (lambda packed: np.repeat(packed, 2)[::2], r"non-contiguous uint8 of shape \(\d+,\)"),
        (lambda packed: packed[::-1], r"non-contiguous uint8 of shape \(\d+,\)"),
    ],
)
def test_other_weights_are_refused_and_the_output_left_alone(operands, teams, spoil, got, m):
    name, packed, values = operands
    kernel = get_kernel("native", name)(name, 7, 768, m, teams[1])
    out = np.full((m, 7), 3, np.float32)
    message = rf"{name} 7 x 768, weights: expected contiguous uint8 of shape \({packed.size},\), got {got}"
    with pytest.raises(ValueError, match=message):
        kernel(tokens(name, values, m), spoil(packed), out)
    assert np.array_equal(out, np.full((m, 7), 3))


@pytest.mark.parametrize(
    ("out", "got"),
    [
        (np.zeros((1, 8), np.float32), r"contiguous float32 of shape \(1, 8\)"),
        (np.zeros(7, np.float32), r"contiguous float32 of shape \(7,\)"),
        (np.zeros((1, 7)), r"contiguous float64 of shape \(1, 7\)"),
        (np.zeros((1, 7), np.dtype(np.float32).newbyteorder()), r"contiguous .f4 of shape \(1, 7\)"),
        (np.zeros((1, 14), np.float32)[:, ::2], r"non-contiguous float32 of shape \(1, 7\)"),
    ],
)
def test_another_output_is_refused(operands, teams, out, got):
    name, packed, values = operands
    kernel = get_kernel("native", name)(name, 7, 768, 1, teams[1])
    with pytest.raises(ValueError, match=rf"out: expected contiguous float32 of shape \(1, 7\), got {got}"):
        kernel(tokens(name, values, 1), packed, out)


def test_an_output_that_cannot_be_written_is_refused(operands, teams):
    """Compiled code would write all the same: into a file's mapped pages it would crash."""
    name, packed, values = operands
    out = np.zeros((1, 7), np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match=r"out: expected a writable array, got a read-only one"):
        get_kernel("native", name)(name, 7, 768, 1, teams[1])(tokens(name, values, 1), packed, out)
    assert not out.any()


def test_activations_and_scales_that_do_not_fit_are_refused(operands, teams):
    name, packed, values = operands
    kernel = get_kernel("native", name)(name, 7, 768, 2, teams[1])
    out = np.zeros((2, 7), np.float32)
    wrong = [values[:1], values[:2, :512], values[:4:2], values[:2].astype(np.float64), values[:2].astype(np.uint8)]
    for spoilt in wrong:
        x = Quantized(spoilt, np.ones(2, np.float32)) if name in BLOCKS else spoilt
        with pytest.raises(ValueError, match=r"activations: expected contiguous \w+ of shape \(2, 768\), got"):
            kernel(x, packed, out)
    if name in BLOCKS:
        for scale in (np.ones(1, np.float32), np.ones(2), np.ones(4, np.float32)[::2], np.ones((2, 1), np.float32)):
            with pytest.raises(ValueError, match=r"activation scale: expected contiguous float32 of shape \(2,\), got"):
                kernel(Quantized(values[:2], scale), packed, out)


@pytest.mark.parametrize("name", FORMATS)
def test_rows_longer_than_the_sums_allow_are_refused(teams, name):
    message = rf"{name} product: expected at most 262144 columns, got 262400"
    with pytest.raises(ValueError, match=message):
        NativeRows(name, 1, LIMIT_COLUMNS + 256, 1, teams[1])


def test_the_best_path_of_the_machine_is_taken_unless_one_is_forced(teams):
    assert NativeRows("I2_S", 7, 384, 1, teams[1]).isa is best() is PATHS[0]
    assert NativeRows("I2_S", 7, 384, 1, teams[1], isa=PATHS[-1]).isa is PATHS[-1]


@pytest.mark.parametrize("m", [1, MANY])
def test_a_product_outside_its_teams_block_is_refused(operands, m):
    name, packed, values = operands
    with Team(2) as team:
        kernel = NativeRows(name, 7, 768, m, team)
    with pytest.raises(RuntimeError, match="expected a call within its with block, got 1 of 2 members"):
        kernel(tokens(name, values, m), packed, np.zeros((m, 7), np.float32))
