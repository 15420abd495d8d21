"""The contract of every product on a GPU: exact where it must be, and clear about what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ternary_kernels import oracle
from ternary_kernels.activations import Quantized
from ternary_kernels.cuda import product as products
from ternary_kernels.cuda.product import MODULES, PRODUCTS, Weights, get_product
from ternary_kernels.cuda.support import KERNEL_FORMATS
from ternary_kernels.cuda.torch_products import BLOCK_WEIGHTS, EXACT_COLUMNS
from ternary_kernels.formats import get_format

TERNARY = [key for key in PRODUCTS if get_format(key[1]).ternary]
FLOATING = [key for key in PRODUCTS if not get_format(key[1]).ternary]
FUSED = [key for key in TERNARY if not key[1].startswith("TL")]
TOKENS = [(35, 384, m) for m in (1, 2, 3, 5, 8, 15, 16, 17, 32, 33)]
ROWS = [(n_out, 256, m) for n_out in (1, 3, 7, 16, 31, 64, 65, 129, 352) for m in (1, 4, 40)]
COLUMNS = [(32, k_in, m) for k_in in (64, 128, 192, 640, 1152, 2048) for m in (1, 3)]
FEW = [(1, 64, 1), (5, 192, 1), (3, 384, 2), (35, 256, 4), (31, 384, 5), (9, 128, 16), (2, 640, 17), (65, 128, 33)]
"""Shapes for Triton's interpreter, which takes seconds for the others; its kernels' own tests look at their edges."""
SHAPES = [
    (key, *shape)
    for key in TERNARY
    for shape in (FEW if key[0] == "triton" and not torch.cuda.is_available() else FEW + TOKENS + ROWS + COLUMNS)
]
TILED = [key for key in TERNARY if key[1].startswith("TL")]


def stored(name, scale):
    """The nearest scale that the format can store."""
    return float(np.float16(scale)) if name.startswith("TQ") else scale


class Case:
    """A kernel and a format, and what the format can hold."""

    def __init__(self, key, fit, put, device):
        (self.kernel, self.name), self._fit, self.put, self.device = key, fit, put, device

    def fit(self, n_out, k_in):
        return self._fit(self.name, n_out, k_in)

    def make(self, n_out, k_in, m):
        return get_product(self.kernel, self.name)(self.name, n_out, k_in, m, self.device)

    def check(self, x, *matrices):
        """Whether the product with all (weights, scale), one below the other, equals the oracle's to the last bit."""
        matrices = [(weights, stored(self.name, scale)) for weights, scale in matrices]
        rows = [len(weights) for weights, _ in matrices]
        product = self.make(sum(rows), x.values.shape[1], len(x.values))
        weights = product.load([get_format(self.name).pack(*matrix) for matrix in matrices], rows)
        out = torch.full((len(x.values), sum(rows)), np.nan, device=self.device)
        assert product(self.put(x), weights, out) is out
        expected = np.concatenate([oracle.matmul(x, *matrix) for matrix in matrices], axis=1)
        return np.array_equal(out.cpu().numpy(), expected)


@pytest.fixture(scope="module", params=TERNARY, ids="-".join)
def case(request, fit, put, device):
    return Case(request.param, fit, put, device)


@pytest.fixture(scope="module", params=FLOATING, ids="-".join)
def floating(request, fit, put, device):
    return Case(request.param, fit, put, device)


@pytest.mark.parametrize(
    ("key", "n_out", "k_in", "m"), SHAPES, ids=lambda value: "-".join(value) if isinstance(value, tuple) else str(value)
)
def test_any_shape(key, n_out, k_in, m, fit, put, device, make_problem):
    case = Case(key, fit, put, device)
    weights, x = make_problem(*case.fit(n_out, k_in), m)
    assert case.check(x, (weights, 0.37))


@settings(deadline=None, max_examples=10)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_out=st.integers(1, 12),
    blocks=st.integers(1, 3),
    m=st.integers(1, 20),
    scale=st.floats(2.0**-10, 2.0**10, width=32),
)
def test_any_shape_and_scale(case, make_problem, seed, n_out, blocks, m, scale):
    weights, x = make_problem(*case.fit(n_out, blocks * 128), m, seed)
    assert case.check(x, (weights, -scale))


@pytest.mark.parametrize("value", [-128, 127, 0])
@pytest.mark.parametrize("weight", [-1, 0, 1])
def test_extreme_activations_times_weights_all_alike(case, value, weight):
    """The largest sums there can be, and none at all."""
    n_out, k_in = case.fit(3, 512)
    x = Quantized(np.full((2, k_in), value, np.int8), np.array([3e-5, 1.27e7], np.float32))
    assert case.check(x, (np.full((n_out, k_in), weight, np.int8), 0.37))


@pytest.mark.parametrize("key", FUSED, ids="-".join)
@pytest.mark.parametrize("m", [1, 2, 17])
def test_matrices_one_below_the_other_keep_their_own_scales(key, fit, put, device, make_problem, m):
    """q, k and v of one layer: three matrices of the same columns, and their rows need not be even."""
    k_in = 256
    _, x = make_problem(1, k_in, m)
    parts = [make_problem(rows, k_in, 1, seed=rows)[0] for rows in (8, 5, 3)]
    assert Case(key, fit, put, device).check(x, *zip(parts, (0.5, 3.25, -0.0625), strict=True))


@pytest.mark.parametrize("key", TILED, ids="-".join)
def test_matrices_whose_rows_are_interleaved_are_not_put_together(key, device):
    held = get_format(key[1])
    product = get_product(*key)(key[1], 64, 256, 1, device)
    parts = [held.pack(np.zeros((32, 256), np.int8))] * 2
    with pytest.raises(
        ValueError, match=f"{key[1]} 64 x 256: expected one matrix, as {key[1]} interleaves rows, got 2"
    ):
        product.load(parts, [32, 32])


def test_the_largest_matrix_unpacked_in_blocks_is_still_exact(fit, put, device, make_problem):
    """More weights than are unpacked at once, the last block cut short, and rows as long as exact sums can be."""
    for name, n_out, k_in in (("I2_S", 2 * BLOCK_WEIGHTS // 8192 + 3, 8192), ("TL2", 3200, 2880)):
        weights, x = make_problem(n_out, k_in, 2)
        assert Case(("torch", name), fit, put, device).check(x, (weights, 0.37))
    k_in = EXACT_COLUMNS // 128 * 128
    weights, x = np.ones((2, k_in), np.int8), Quantized(np.full((1, k_in), -128, np.int8), np.ones(1, np.float32))
    assert Case(("torch", "I2_S"), fit, put, device).check(x, (weights, 1.0))


def test_rows_whose_sums_float32_cannot_hold_are_refused(device):
    with pytest.raises(
        ValueError, match="I2_S 1 x 65536: expected at most 65535 columns, whose float32 sums are exact"
    ):
        get_product("torch", "I2_S")("I2_S", 1, 65536, 1, device)


def test_a_reduced_precision_of_float32_products_changes_nothing(fit, put, device, make_problem):
    """A user may let the library round float32 operands to TF32 or bfloat16: these are exact in both."""
    weights, x = make_problem(64, 1024, 3)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert Case(("torch", "I2_S"), fit, put, device).check(x, (weights, 0.37))
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("name", ["TQ1_0", "TQ2_0"])
def test_a_block_without_a_scale_counts_as_zeros(name, put, device, make_problem):
    """Its codes mean nothing, as for the format itself."""
    weights, x = make_problem(3, 512, 2)
    held = get_format(name)
    data = held.pack(weights, 0.5)
    for block, sign in ((1, 0), (4, 0x80)):  # 0 and -0
        data[block * held.block_bytes + held.block_bytes - 2 :][:2] = 0, sign
    expected, scale = held.unpack(data, 3, 512)
    assert not expected.reshape(-1, 256)[[1, 4]].any()
    product = get_product("torch", name)(name, 3, 512, 2, device)
    out = product(put(x), product.load([data], [3]), torch.empty(2, 3, device=device))
    assert np.array_equal(out.cpu().numpy(), oracle.matmul(x, expected, scale))


@pytest.mark.parametrize("name", ["TQ1_0", "TQ2_0"])
def test_blocks_whose_scales_differ_are_refused(name, device):
    held = get_format(name)
    data = np.concatenate([held.pack(np.ones((1, 256), np.int8), scale) for scale in (1.0, 2.0)])
    product = get_product("torch", name)(name, 1, 512, 1, device)
    with pytest.raises(ValueError, match=f"{name}: expected one scale in all blocks of a ternary matrix, got 1 to 2"):
        product.load([data], [1])


@pytest.mark.parametrize(("n_out", "k_in", "m"), [(1, 64, 1), (37, 200, 3), (130, 512, 17)])
def test_floating_point_weights_match_float64(floating, n_out, k_in, m):
    check_halves(floating, n_out, k_in, m)


def test_floating_point_weights_beyond_one_block_match_float64(fit, put, device):
    """A head has more rows than are widened at once; the last block is cut short."""
    check_halves(Case(("torch", "F16"), fit, put, device), BLOCK_WEIGHTS // 1024 + 5, 1024, 2)


def check_halves(case, n_out, k_in, m):
    """Operands are exact in float16, so only the sums are rounded: to float32."""
    rng = np.random.default_rng(0)
    weights, x = (rng.standard_normal((rows, k_in)).astype(np.float16) for rows in (n_out, m))
    product = case.make(n_out, k_in, m)
    loaded = product.load([get_format(case.name).pack(weights)], [n_out])
    assert loaded.scales is None
    expected = x.astype(np.float64) @ weights.astype(np.float64).T
    magnitude = np.abs(x).astype(np.float64) @ np.abs(weights).astype(np.float64).T
    for operand in (case.put(x), case.put(x.astype(np.float32))):
        out = product(operand, loaded, torch.full((m, n_out), np.nan, device=case.device)).cpu().numpy()
        assert (np.abs(out - expected) <= 2.0**-17 * magnitude).all()


def test_a_window_of_bytes_on_the_device_is_multiplied_as_it_lies(case, make_problem):
    """What a benchmark's arena holds: packed weights without a scale of their own count as scaled by 1."""
    n_out, k_in = case.fit(32, 256)
    weights, x = make_problem(n_out, k_in, 2)
    product = case.make(n_out, k_in, 2)
    loaded = product.load([get_format(case.name).pack(weights, 1.0)], [n_out])
    room = torch.zeros(512 + product.code_bytes, dtype=torch.uint8, device=case.device)
    window = room[256 : 256 + product.code_bytes]
    window.copy_(loaded.codes)
    found = product.window(window)
    assert found.codes.data_ptr() == window.data_ptr()
    out = product(case.put(x), found, torch.empty(2, n_out, device=case.device))
    assert np.array_equal(out.cpu().numpy(), oracle.matmul(x, weights, 1.0))


def test_any_bit_pattern_can_be_timed(case, make_problem):
    """Also codes that mean nothing: numbers come out, and come out again."""
    n_out, k_in = case.fit(32, 512)
    _, x = make_problem(1, k_in, 2)
    product = case.make(n_out, k_in, 2)
    window = product.window(torch.randint(256, (product.code_bytes,), dtype=torch.uint8, device=case.device))
    first, second = (product(case.put(x), window, torch.empty(2, n_out, device=case.device)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.isfinite(first).all()


def test_weights_are_a_copy(device):
    """The caller's memory may go, also where the device has the same."""
    data = get_format("F16").pack(np.ones((3, 32), np.float32))
    product = get_product("torch", "F16")("F16", 3, 32, 1, device)
    weights = product.load([data], [3])
    data[:] = 0
    assert product(torch.ones(1, 32, device=device), weights, torch.empty(1, 3, device=device)).tolist() == [[32.0] * 3]


def test_weights_may_be_read_only_and_are_left_alone(case, make_problem):
    """A model file mapped into memory."""
    n_out, k_in = case.fit(32, 256)
    weights, x = make_problem(n_out, k_in, 1)
    data = get_format(case.name).pack(weights)
    before = data.copy()
    data.flags.writeable = False
    product = case.make(n_out, k_in, 1)
    product(case.put(x), product.load([data], [n_out]), torch.empty(1, n_out, device=case.device))
    assert np.array_equal(data, before)


@pytest.mark.parametrize("key", PRODUCTS, ids="-".join)
class TestRefusals:
    """One operand spoilt at a time."""

    N_OUT, K_IN, M = 32, 256, 2

    @pytest.fixture
    def product(self, key, device):
        return get_product(*key)(key[1], self.N_OUT, self.K_IN, self.M, device)

    @pytest.fixture
    def x(self, product, put):
        if not product.format.ternary:
            return put(np.ones((self.M, self.K_IN), np.float32))
        return put(Quantized(np.ones((self.M, self.K_IN), np.int8), np.ones(self.M, np.float32)))

    def refused(self, product, x, message, weights=None, out=None):
        weights = weights or product.window(torch.zeros(product.code_bytes, dtype=torch.uint8, device=product.device))
        out = torch.zeros(self.M, self.N_OUT, device=product.device) if out is None else out
        with pytest.raises(ValueError, match=f"{product.format.name} 32 x 256, {message}"):
            product(x, weights, out)

    def test_activations_of_another_shape_dtype_or_order(self, product, x):
        values = x.values if product.format.ternary else x
        for wrong in (values[:1], values[:, :128], values.to(torch.float64), values.repeat(1, 2)[:, ::2]):
            message = (
                rf"activations: expected contiguous torch.* of shape \(2, 256\) on {product.device}, "
                rf"got .*contiguous {wrong.dtype} of shape \({wrong.shape[0]}, {wrong.shape[1]}\)"
            )
            self.refused(product, x._replace(values=wrong) if product.format.ternary else wrong, message)

    def test_activations_of_the_other_kind(self, product, x, put):
        if product.format.ternary:
            self.refused(product, x.values, "activations: expected int8 values with a scale per token, got Tensor")
            self.refused(product, x._replace(scale=x.scale[:1]), r"activation scale: expected .*\(2,\).*got .*\(1,\)")
            self.refused(product, x._replace(sums=x.sums.long()), r"activation sums: expected .*int32.*got .*int64")
        else:
            quantized = put(Quantized(np.ones((2, 256), np.int8), np.ones(2, np.float32)))
            self.refused(product, quantized, "activations: expected a floating-point tensor, got Quantized")

    def test_another_output(self, product, x):
        for wrong in (
            torch.zeros(self.N_OUT, self.M, device=product.device),
            torch.zeros(self.M, self.N_OUT, dtype=torch.float16, device=product.device),
            torch.zeros(self.N_OUT, self.M, device=product.device).T,
            torch.zeros(self.M, self.N_OUT, device="meta"),
        ):
            self.refused(product, x, r"out: expected contiguous torch.float32 of shape \(2, 32\)", out=wrong)

    def test_weights_of_another_size_or_type(self, product, x):
        codes = torch.zeros(product.code_bytes, dtype=torch.uint8, device=product.device)
        scales = torch.ones(self.N_OUT, device=product.device) if product.format.ternary else None
        message = rf"weights: expected contiguous torch.uint8 of shape \({product.code_bytes},\)"
        for wrong in (codes[:-2], codes.view(torch.int8), codes.repeat(2)[::2]):
            self.refused(product, x, message, Weights(wrong, scales))
            with pytest.raises(ValueError, match=message):
                product.window(wrong)
        if scales is not None:
            message = r"weight scales: expected .*\(32,\).*got .*\(31,\)"
            self.refused(product, x, message, Weights(codes, scales[:-1]))

    def test_a_window_at_an_odd_address(self, product):
        room = torch.zeros(product.code_bytes + 1, dtype=torch.uint8, device=product.device)
        with pytest.raises(ValueError, match="weights: expected bytes aligned to 2, got an odd address"):
            product.window(room[1:])

    def test_a_file_of_another_size_or_other_rows(self, product):
        data = np.zeros(product.format.size_bytes(self.N_OUT, self.K_IN), np.uint8)
        with pytest.raises(ValueError, match=rf"expected {len(data)} contiguous uint8 bytes, got .*{len(data) - 2}"):
            product.load([data[:-2]], [self.N_OUT])
        for matrices, rows in (([data], [31]), ([data], [16, 16]), ([], [])):
            message = rf"expected matrices that have 32 rows together, got {len(matrices)} with rows \("
            with pytest.raises(ValueError, match=message):
                product.load(matrices, rows)

    def test_no_tokens_an_impossible_shape_or_a_format_of_another_kernel(self, key, device):
        kernel, name = key
        for m in (0, -1):
            with pytest.raises(ValueError, match=f"{name} product: expected at least 1 token, got m = {m}"):
                get_product(*key)(name, 32, 256, m, device)
        with pytest.raises(ValueError, match=f"{name} needs at least 1 row and 1 column, got 0 x 256"):
            get_product(*key)(name, 0, 256, 1, device)
        with pytest.raises(ValueError, match=f"kernel '{kernel}': expected a format of .*{name}.*, got 'Q4_0'"):
            get_product(*key)("Q4_0", 32, 256, 1, device)


@pytest.mark.parametrize(("kernel", "name"), [("torch", "Q4_0"), ("native", "I2_S"), ("", "")])
def test_an_unknown_kernel_is_refused_with_those_there_are(kernel, name):
    with pytest.raises(ValueError, match=rf"no kernel '{kernel}' for format '{name}': expected one of .*torch \(F16\)"):
        get_product(kernel, name)


def test_a_kernel_whose_compiler_is_missing_says_so(monkeypatch):
    monkeypatch.setitem(products.MODULES, "triton", "ternary_kernels.cuda.there_is_no_such_module")
    with pytest.raises(ValueError, match=r"kernel 'triton': No module named .*: it needs triton"):
        get_product("triton", "I2_S")


def test_what_is_promised_without_torch_is_what_there_is():
    for kernel, formats in KERNEL_FORMATS.items():
        registered = {name for other, name in PRODUCTS if other == kernel}
        assert not registered or registered == set(formats)
    assert list(MODULES) == list(KERNEL_FORMATS)
    assert ("torch", "I2_S") in PRODUCTS
