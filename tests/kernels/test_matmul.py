"""The contract of every kernel: what it refuses, what it leaves alone, and how it is found."""

import subprocess
import sys

import numpy as np
import pytest

from ternary_kernels.activations import Quantized, quantize
from ternary_kernels.formats import get_format
from ternary_kernels.matmul import KERNELS, get_kernel
from ternary_kernels.reference import products
from ternary_kernels.team import Team

N_OUT, K_IN, M = 32, 256, 2


class Case:
    """A product that works, to be spoilt one operand at a time."""

    def __init__(self, kernel, name, team, n_out=N_OUT):
        rng = np.random.default_rng(n_out)
        self.ternary = get_format(name).ternary
        self.product = get_kernel(kernel, name)(name, n_out, K_IN, M, team)
        weights = rng.integers(-1, 2, (n_out, K_IN), np.int8)
        self.weights = get_format(name).pack(weights if self.ternary else weights.astype(np.float32))
        floats = rng.standard_normal((M, K_IN), np.float32)
        self.x = quantize(floats) if self.ternary else floats
        self.values = self.x.values if self.ternary else self.x
        self.out = np.full((M, n_out), np.nan, np.float32)

    def with_values(self, values):
        return Quantized(values, self.x.scale) if self.ternary else values


@pytest.fixture(scope="module", params=KERNELS, ids="-".join)
def key(request):
    """A kernel's name and a format it knows."""
    return request.param


@pytest.fixture
def case(key, team):
    return Case(*key, team)


def test_the_output_is_filled_and_returned(case):
    assert case.product(case.x, case.weights, case.out) is case.out
    assert np.isfinite(case.out).all()


def test_inputs_are_left_alone(case):
    """They may be read-only: a model file mapped into memory."""
    for array in (case.values, case.weights, *([case.x.scale] if case.ternary else [])):
        array.flags.writeable = False
    before = case.values.copy(), case.weights.copy()
    case.product(case.x, case.weights, case.out)
    assert np.array_equal(case.values, before[0])
    assert np.array_equal(case.weights, before[1])


def test_a_bound_product_multiplies_what_its_operands_hold_then(case):
    multiply = case.product.bind(case.x, case.weights, case.out)
    assert np.isnan(case.out).all(), "nothing is multiplied yet"
    for _ in range(2):
        multiply()
        assert np.array_equal(case.out, case.product(case.x, case.weights, np.empty_like(case.out)))
        case.values[:] = case.values[::-1].copy()


def test_operands_that_do_not_fit_are_refused_when_they_are_bound(case):
    with pytest.raises(ValueError, match="out: expected contiguous float32"):
        case.product.bind(case.x, case.weights, case.out[:, 1:])


def test_products_of_one_team_do_not_disturb_each_other(key, team):
    """They share scratch memory, one after the other: a larger one in between changes no result."""
    small, large = Case(*key, team), Case(*key, team, n_out=224)
    first = small.product(small.x, small.weights, small.out).copy()
    large.product(large.x, large.weights, large.out)
    assert np.array_equal(small.out, first)
    assert np.array_equal(small.product(small.x, small.weights, np.empty_like(small.out)), first)


def test_all_teams_give_the_same_result_as_one_thread_gives(key, team):
    """Integer-valued operands: no rounding, so the same to the last bit, but where a format itself rounds."""
    case = Case(*key, team)
    x = case.with_values(np.ones_like(case.values))
    case.product(x, case.weights, case.out)
    with Team(1) as alone:
        single = Case(*key, alone)
        single.product(x, single.weights, single.out)
    tolerance = 1e-5 if key[1] in ("Q8_0", "Q6_K", "IQ2_S") else 0
    assert np.allclose(single.out, case.out, rtol=tolerance, atol=tolerance)


def refused(case, message, x=None, weights=None, out=None):
    out = case.out if out is None else out
    before = out.copy()
    with pytest.raises(ValueError, match=message):
        case.product(case.x if x is None else x, case.weights if weights is None else weights, out)
    assert np.array_equal(out, before, equal_nan=True)


def test_activations_of_another_shape_are_refused(case):
    site = f"{case.product.format.name} {N_OUT} x {K_IN}"
    expected = rf"{site}, activations: expected contiguous {case.values.dtype} of shape \(2, 256\), got contiguous"
    for shape in [(3, 256), (2, 128), (512,), (1, 2, 256)]:
        values = np.zeros(shape, case.values.dtype)
        got = str(shape).replace("(", r"\(").replace(")", r"\)")
        refused(case, rf"{expected} {values.dtype} of shape {got}", x=case.with_values(values))


def test_activations_of_another_dtype_are_refused(case):
    values = case.values.astype(np.float64)
    refused(case, rf"expected contiguous {case.values.dtype} .*got contiguous float64", x=case.with_values(values))


def test_activations_in_another_memory_order_are_refused(case):
    values = np.asfortranarray(case.values)
    refused(case, r"activations: .*got non-contiguous", x=case.with_values(values))


def test_the_other_kind_of_activations_is_refused(case):
    """Raw int8 has no scale, and quantised activations mean nothing to floating-point weights."""
    if case.ternary:
        refused(case, "expected int8 values with a scale per token, got ndarray", x=case.values)
    else:
        quantized = Quantized(case.x, np.ones(M, np.float32))
        refused(case, "expected a float32 array, got Quantized", x=quantized)


@pytest.mark.parametrize("key", [key for key in KERNELS if get_format(key[1]).ternary], ids="-".join, scope="module")
def test_activation_scales_of_another_shape_or_dtype_are_refused(case):
    for scale in (np.ones(3, np.float32), np.ones((2, 1), np.float32), np.ones(2)):
        message = rf"activation scale: expected contiguous float32 of shape \(2,\), got .*{scale.dtype}"
        refused(case, message, x=Quantized(case.values, scale))


@pytest.mark.parametrize(
    ("out", "got"),
    [
        (np.zeros((M, N_OUT + 1), np.float32), r"contiguous float32 of shape \(2, 33\)"),
        (np.zeros((N_OUT, M), np.float32), r"contiguous float32 of shape \(32, 2\)"),
        (np.zeros((N_OUT, M), np.float32).T, r"non-contiguous float32 of shape \(2, 32\)"),
        (np.zeros((M, N_OUT)), r"contiguous float64 of shape \(2, 32\)"),
    ],
)
def test_another_output_is_refused(case, out, got):
    refused(case, rf"out: expected contiguous float32 of shape \(2, 32\), got {got}", out=out)


def test_weights_of_another_size_or_type_are_refused(case):
    expected = rf"expected .*\b{len(case.weights)}\b.*"
    for weights in (case.weights[:-4], np.append(case.weights, case.weights[:4])):
        refused(case, rf"{expected}, got .*uint8 of shape \({len(weights)},\)", weights=weights)
    refused(case, rf"{expected}, got .*int8 of shape", weights=case.weights.view(np.int8))
    refused(case, rf"{expected}, got .*uint8 of shape", weights=np.repeat(case.weights, 2)[::2])


def test_no_tokens_are_refused(key, team):
    for m in (0, -1):
        with pytest.raises(ValueError, match=f"{key[1]} product: expected at least 1 token, got m = {m}"):
            get_kernel(*key)(key[1], N_OUT, K_IN, m, team)


def test_a_shape_its_format_cannot_hold_is_refused(key, team):
    with pytest.raises(ValueError, match=f"{key[1]} needs at least 1 row and 1 column, got 0 x 256"):
        get_kernel(*key)(key[1], 0, K_IN, M, team)


def test_a_format_of_another_kernel_is_refused(key, team):
    with pytest.raises(ValueError, match=rf"expected a format of .*{key[1]}.*, got 'Q4_0'"):
        get_kernel(*key)("Q4_0", N_OUT, K_IN, M, team)


@pytest.mark.parametrize(("kernel", "name"), [("numpy", "Q4_0"), ("fortran", "I2_S"), ("", "")])
def test_an_unknown_kernel_is_refused_with_those_there_are(kernel, name):
    message = rf"no kernel '{kernel}' for format '{name}': expected one of .*numpy \(I2_S\).*numpy \(F16\)"
    with pytest.raises(ValueError, match=message):
        get_kernel(kernel, name)


def test_kernels_are_found_without_importing_their_modules_first():
    found = "from ternary_kernels.matmul import get_kernel; print(get_kernel('numpy', 'I2_S').__module__)"
    done = subprocess.run(
        [sys.executable, "-c", found],
        cwd=next(iter(sys.modules["ternary_kernels"].__path__)) + "/..",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == products.__name__
