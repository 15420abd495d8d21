"""Products on AMX tiles equal the oracle to the last bit; where there are no tiles, the refusal says why."""

import ctypes
import platform
import sys
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ternary_kernels import oracle
from ternary_kernels.activations import Quantized
from ternary_kernels.formats import get_format
from ternary_kernels.native import amx
from ternary_kernels.native.isa import AMX

BLOCKS = {"I2_S": 128, "I2_S_ARM": 64}
LIMIT_COLUMNS = 1 << 18

tiles = pytest.mark.skipif(amx.unusable() is not None, reason=f"no AMX: {amx.unusable()}")


@pytest.fixture(params=BLOCKS, scope="module")
def name(request):
    return request.param


@pytest.fixture(scope="session")
def exact(multiply):
    """Whether a product equals the oracle's to the last bit."""

    def exact(name, x, weights, scale, team):
        packed = get_format(name).pack(weights, scale)
        out = multiply(name, weights.shape, x, packed, team, kernel="amx")
        return np.array_equal(out, oracle.matmul(x, weights, scale))

    return exact


@tiles
def test_any_number_of_tokens_equals_the_oracle(exact, make_problem, name, teams):
    """1 to 70: whole tiles, parts of one, an odd last one after pairs."""
    weights, x = make_problem(37, 384, 70)
    for m in range(1, 71):
        some = Quantized(x.values[:m], x.scale[:m])
        assert exact(name, some, weights, 0.37, teams[2]), m


@tiles
@pytest.mark.parametrize("m", [1, 17, 33])
def test_any_rows_and_threads_equal_the_oracle(exact, make_problem, name, teams, m):
    """Rows that fill no tile, one, two, or three and a bit; more threads than tiles."""
    weights, x = make_problem(49, 384, m)
    for n_out, threads in product((1, 2, 9, 15, 16, 17, 31, 32, 33, 49), teams):
        assert exact(name, x, weights[:n_out], -3.0, teams[threads]), (n_out, threads)


@tiles
@pytest.mark.parametrize(
    ("name", "k_in"), [*(("I2_S", k_in) for k_in in (128, 640)), *(("I2_S_ARM", k_in) for k_in in (64, 192, 320))]
)
def test_rows_that_end_within_a_vector_equal_the_oracle(exact, make_problem, name, k_in, teams):
    for m in (3, 40):
        assert exact(name, *reversed(make_problem(21, k_in, m)), 1.5, teams[2]), m


@tiles
@pytest.mark.parametrize("m", [5, 48])
def test_all_groups_of_five_weights(multiply, name, teams, m):
    """All 3^5, a row each. Sums by hand, in int64, with scales of 1."""
    weights = np.array(list(product((-1, 0, 1), repeat=5)), np.int8)[:, np.arange(384) % 5]
    values = np.random.default_rng(0).integers(-128, 128, (m, 384), np.int8)
    x = Quantized(values, np.ones(m, np.float32))
    out = multiply(name, weights.shape, x, get_format(name).pack(weights, 1.0), teams[3], kernel="amx")
    assert np.array_equal(out, np.einsum("mk,nk->mn", values, weights, dtype=np.int64))


@tiles
@pytest.mark.parametrize("weight", [-1, 0, 1])
@pytest.mark.parametrize("value", [-128, 127])
def test_uniform_weights_and_extreme_activations(multiply, name, teams, weight, value):
    packed = get_format(name).pack(np.full((33, 384), weight, np.int8), 0.5)
    x = Quantized(np.full((18, 384), value, np.int8), np.full(18, 2, np.float32))
    out = multiply(name, (33, 384), x, packed, teams[2], kernel="amx")
    assert np.array_equal(out, np.full((18, 33), weight * value * 384 * 0.25))


@tiles
def test_many_rows_are_decoded_in_several_chunks(exact, make_problem, name, teams):
    weights, x = make_problem(277, 5120, 50)
    assert exact(name, x, weights, 0.1, teams[2])


@tiles
def test_the_longest_row_that_is_allowed(multiply, name, teams):
    packed = get_format(name).pack(np.ones((3, LIMIT_COLUMNS), np.int8), 1.0)
    x = Quantized(np.full((2, LIMIT_COLUMNS), -128, np.int8), np.ones(2, np.float32))
    out = multiply(name, (3, LIMIT_COLUMNS), x, packed, teams[2], kernel="amx")
    assert np.array_equal(out, np.full((2, 3), -128.0 * LIMIT_COLUMNS))


@tiles
def test_longer_rows_are_refused(name, teams):
    with pytest.raises(ValueError, match=f"{name} product: expected at most 262144 columns, got 262272"):
        amx.AmxTwoBit(name, 1, LIMIT_COLUMNS + 128, 1, teams[1])


@tiles
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_any_shape_values_and_threads(exact, make_problem, teams, data):
    name = data.draw(st.sampled_from(list(BLOCKS)))
    k_in = BLOCKS[name] * data.draw(st.integers(1, 5))
    shape = data.draw(st.integers(1, 100)), k_in, data.draw(st.integers(1, 70))
    weights, x = make_problem(*shape, data.draw(st.integers(0, 2**32 - 1)))
    if data.draw(st.booleans()):
        x = Quantized(np.where(x.values < 0, np.int8(-128), np.int8(127)), x.scale)
    scale = data.draw(st.floats(-1e6, 1e6, width=32))
    assert exact(name, x, weights, scale, teams[data.draw(st.sampled_from(list(teams)))])


@tiles
def test_weights_may_start_at_any_address(multiply, make_problem, name, teams):
    weights, x = make_problem(37, 384, 20)
    packed = get_format(name).pack(weights, 0.5)
    expected = oracle.matmul(x, weights, 0.5)
    for offset in (1, 2, 4):
        memory = np.empty(packed.size + offset, np.uint8)
        memory[offset:] = packed
        assert np.array_equal(multiply(name, (37, 384), x, memory[offset:], teams[2], kernel="amx"), expected)


@tiles
def test_other_weights_are_refused(make_problem, name, teams):
    weights, x = make_problem(37, 384, 20)
    packed = get_format(name).pack(weights, 0.5)
    kernel = amx.AmxTwoBit(name, 37, 384, 20, teams[1])
    for spoilt in (packed[:-1], packed.view(np.int8), np.repeat(packed, 2)[::2], packed[None]):
        with pytest.raises(ValueError, match=r"37 x 384, weights: expected contiguous uint8 of shape \(3584,\), got"):
            kernel(x, spoilt, np.zeros((20, 37), np.float32))


@tiles
def test_a_product_beside_it_on_the_same_team_changes_nothing(exact, make_problem, teams):
    """The tiles' configuration belongs to a thread: each product sets and releases its own."""
    small, large = make_problem(16, 128, 3), make_problem(90, 640, 60)
    for _ in range(3):
        assert exact("I2_S", *reversed(small), 1.0, teams[2])
        assert exact("I2_S", *reversed(large), 1.0, teams[2])


# Refusals


@tiles
@pytest.mark.parametrize("threads", [1, 2])
def test_every_member_does_all_multiply_adds_of_the_peak(teams, threads):
    """Sums of products of ones count them: 64 in each sum of a tile's product, rounded up to four products."""
    peak = amx.Peak(teams[threads], (40, 50, 100))
    assert peak.operations == 2 * 40 * 50 * 100 * threads
    for _ in range(2):
        peak.sums[:] = -1
        peak()
        assert np.all(peak.sums == 4 * 64)
    assert peak.sums.size * 64 // threads == 4 * 16 * 16 * 64


@tiles
def test_a_peak_of_nothing_is_refused(teams):
    with pytest.raises(ValueError, match=r"expected a positive m, n_out and k_in, got \(4, 0, 16\)"):
        amx.Peak(teams[1], (4, 0, 16))


@pytest.fixture
def asked_anew():
    amx.unusable.cache_clear()
    yield
    amx.unusable.cache_clear()


def refusal(teams):
    with pytest.raises(ValueError, match=r"^kernel 'amx': ") as caught:
        amx.AmxTwoBit("I2_S", 16, 128, 16, teams[1])
    return str(caught.value).removeprefix("kernel 'amx': ")


def test_a_cpu_without_tiles_is_refused_by_what_it_lacks(asked_anew, monkeypatch, teams):
    flags = frozenset(AMX.flags) - {"amx_tile", "amx_int8"}
    monkeypatch.setattr(amx, "this_machine", lambda: ("x86_64", flags))
    assert refusal(teams) == "amx needs amx_tile, amx_int8, which this CPU lacks"


@pytest.mark.parametrize(("system", "machine"), [("darwin", "x86_64"), ("win32", "AMD64"), ("linux", "AMD64")])
def test_a_system_that_hands_out_no_tiles_is_refused(asked_anew, monkeypatch, teams, system, machine):
    monkeypatch.setattr(amx, "this_machine", lambda: ("x86_64", frozenset(AMX.flags)))
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert refusal(teams) == "expected Linux on x86_64, which hands out AMX"


@pytest.mark.skipif((sys.platform, platform.machine()) != ("linux", "x86_64"), reason="only Linux on x86_64 is asked")
def test_a_system_that_says_no_is_refused_with_its_error(asked_anew, monkeypatch, teams):
    """As a kernel older than 5.16 does: it knows no such request (error 22, EINVAL)."""
    monkeypatch.setattr(amx, "this_machine", lambda: ("x86_64", frozenset(AMX.flags)))
    asked = []

    def syscall(*numbers):
        asked.append(numbers)
        ctypes.set_errno(22)
        return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda name, use_errno: SimpleNamespace(syscall=syscall))
    assert refusal(teams) == "the system refuses it (arch_prctl: error 22)"
    assert asked == [(158, 0x1023, 18)]
