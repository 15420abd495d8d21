"""Triton's products beyond the contract: columns shared among programs, launch rules, and how exact F16 is."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from ternary_kernels import oracle
from ternary_kernels.cuda import triton_products
from ternary_kernels.cuda.product import get_product
from ternary_kernels.cuda.triton_products import (
    GEMV_TOKENS,
    HALF_TILES,
    TWO_BIT_TILES,
    half_gemm_launch,
    half_gemv_launch,
    two_bit_gemm_launch,
    two_bit_gemv_launch,
)
from ternary_kernels.formats import get_format

TWO_BIT = ("I2_S", "I2_S_ARM")


@pytest.mark.parametrize("name", TWO_BIT)
@pytest.mark.parametrize(
    ("n_out", "k_in", "m", "multiprocessors"),
    [(3, 2560, 5, 8), (67, 2048, 16, 8), (130, 1152, 33, 16), (64, 4096, 20, 132), (1, 8192, 64, 132)],
)
def test_columns_shared_among_programs_give_the_same_bits(
    monkeypatch, make_problem, put, device, name, n_out, k_in, m, multiprocessors
):
    """Call after call: what the programs add up in is left as it was found."""
    monkeypatch.setattr(triton_products, "MULTIPROCESSORS", multiprocessors)
    weights, x = make_problem(n_out, k_in, m)
    product = get_product("triton", name)(name, n_out, k_in, m, device)
    if device == "cpu":
        assert product._launch.shares > 1
    loaded = product.load([get_format(name).pack(weights, 0.37)], [n_out])
    for _ in range(3):
        out = product(put(x), loaded, torch.full((m, n_out), np.nan, device=device))
        assert np.array_equal(out.cpu().numpy(), oracle.matmul(x, weights, 0.37))
        assert not product._sums.any()
        assert not product._arrivals.any()


@pytest.mark.parametrize("name", TWO_BIT)
@pytest.mark.parametrize(("m", "multiprocessors"), [(5, 1), (17, 1), (40, 1), (64, 1), (65, 1), (129, 1), (130, 99)])
def test_every_tile_is_exact(monkeypatch, make_problem, put, device, name, m, multiprocessors):
    """The largest, too, which is chosen where its tiles are many; rows and tokens that fill none of them."""
    monkeypatch.setattr(triton_products, "MULTIPROCESSORS", multiprocessors)
    weights, x = make_problem(131, 576 if name == "I2_S_ARM" else 640, m)
    product = get_product("triton", name)(name, *weights.shape, m, device)
    loaded = product.load([get_format(name).pack(weights, -2.5)], [len(weights)])
    out = product(put(x), loaded, torch.full((m, len(weights)), np.nan, device=device))
    assert np.array_equal(out.cpu().numpy(), oracle.matmul(x, weights, -2.5))


def test_a_row_of_several_steps_is_exact(make_problem, put, device):
    """Longer than all that a thread has in flight, and no multiple of it."""
    for m, k_in in ((1, 10368), (2, 6272), (4, 10368)):
        weights, x = make_problem(2, k_in, m)
        product = get_product("triton", "I2_S")("I2_S", 2, k_in, m, device)
        assert product._launch.constants["STEPS"] > 1
        loaded = product.load([get_format("I2_S").pack(weights, 0.1)], [2])
        out = product(put(x), loaded, torch.empty(m, 2, device=device))
        assert np.array_equal(out.cpu().numpy(), oracle.matmul(x, weights, 0.1))


def test_any_bytes_of_an_arena_are_weights(put, device, make_problem):
    """A window has scale 1 per row."""
    weights, x = make_problem(5, 256, 1)
    product = get_product("triton", "I2_S")("I2_S", 5, 256, 1, device)
    packed = get_format("I2_S").pack(weights, 1.0)[: product.code_bytes]
    out = product(put(x), product.window(torch.tensor(packed, device=device)), torch.empty(1, 5, device=device))
    assert np.array_equal(out.cpu().numpy(), oracle.matmul(x, weights, 1.0))


@given(st.integers(1, 40000), st.integers(1, 800), st.integers(1, GEMV_TOKENS), st.sampled_from([8, 48, 132]))
def test_gemv_launches_cover_the_matrix(n_out, groups, m, multiprocessors):
    k_in = 64 * groups
    launch = two_bit_gemv_launch(n_out, k_in, m, 4, multiprocessors)
    sizes = launch.constants
    assert sizes["WIDTH"] * sizes["LANES"] == 128 * launch.warps
    assert 0 <= sizes["WIDTH"] * sizes["LOADS"] * sizes["STEPS"] - k_in // 16 < sizes["WIDTH"] * sizes["STEPS"]
    rows = sizes["ROWS"] * sizes["LANES"]
    assert (launch.grid[0] - 1) * rows < n_out <= launch.grid[0] * rows


@given(st.integers(1, 40000), st.integers(1, 800), st.integers(5, 600), st.sampled_from([1, 8, 48, 132]))
def test_gemm_launches_cover_the_matrix_and_leave_no_share_empty(n_out, groups, m, multiprocessors):
    k_in = 64 * groups
    launch = two_bit_gemm_launch(n_out, k_in, m, 16, multiprocessors)
    sizes = launch.constants
    tokens, rows, shares = launch.grid
    assert (tokens - 1) * sizes["TOKENS"] < m <= tokens * sizes["TOKENS"]
    assert (rows - 1) * sizes["ROWS"] < n_out <= rows * sizes["ROWS"]
    steps = -(-k_in // 4 // sizes["BYTES"])
    each = -(-steps // shares)
    assert (shares - 1) * each < steps <= shares * each
    assert sizes["SHARED"] == (shares > 1)
    if shares > 1:
        assert tokens * rows * shares <= multiprocessors
        assert each >= 2


def test_rules_fill_a_large_gpu_with_the_shapes_of_a_small_model():
    """2B-4T on an H100: at least one program to a multiprocessor wherever the columns allow it."""
    for n_out, k_in in ((3840, 2560), (13824, 2560), (2560, 2560), (2560, 6912)):
        for m in (1, 2, 4):
            assert two_bit_gemv_launch(n_out, k_in, m, 8, 132).grid[0] >= 132
        for m in (8, 16, 32, 64):
            assert np.prod(two_bit_gemm_launch(n_out, k_in, m, 32, 132).grid) >= 80


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("n_out", "k_in", "m"), [(5, 640, 1), (3, 333, 2), (2, 2600, 4), (70, 640, 5), (130, 200, 20), (67, 129, 70)]
)
def test_half_precision_weights_are_multiplied_as_exactly_as_in_float32(device, put, dtype, n_out, k_in, m):
    """Ragged sizes too; the tolerance is that of a float32 product, in whatever order it adds."""
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((n_out, k_in)).astype(np.float16)
    for magnitude in (1e-5, 1.0, 1e4):
        x = put((rng.standard_normal((m, k_in)) * magnitude).astype(np.float32)).to(dtype)
        product = get_product("triton", "F16")("F16", n_out, k_in, m, device)
        loaded = product.load([get_format("F16").pack(weights)], [n_out])
        out = product(x, loaded, torch.full((m, n_out), np.nan, device=device)).cpu().numpy()
        expected = x.double().cpu().numpy() @ weights.astype(np.float64).T
        tolerance = 16 * np.sqrt(k_in) * np.finfo(np.float32).eps * np.abs(expected).max()
        np.testing.assert_allclose(out, expected, rtol=0, atol=tolerance)


def test_a_float32_activation_keeps_the_bits_that_a_half_has_no_room_for(device):
    """Rounded to float16, 1 + 2^-20 would be 1: on tensor cores its rest is multiplied on its own."""
    product = get_product("triton", "F16")("F16", 1, 16, 8, device)
    loaded = product.load([np.ones(16, np.float16).view(np.uint8)], [1])
    x = torch.full((8, 16), 1 + 2.0**-20, device=device)
    assert torch.equal(product(x, loaded, torch.empty(8, 1, device=device)), x.sum(dim=1, keepdim=True))


@given(st.integers(1, 300000), st.integers(1, 20000), st.integers(1, 600))
@settings(max_examples=50)
def test_half_launches_cover_the_matrix(n_out, k_in, m):
    if m <= GEMV_TOKENS:
        launch = half_gemv_launch(n_out, k_in, m)
        sizes = launch.constants
        assert 0 <= sizes["WIDTH"] * sizes["LOADS"] * sizes["STEPS"] - k_in < sizes["WIDTH"] * sizes["STEPS"]
        assert 0 <= launch.grid[0] * sizes["ROWS"] - n_out < sizes["ROWS"]
    else:
        launch = half_gemm_launch(n_out, m)
        sizes = launch.constants
        assert 0 <= launch.grid[0] * sizes["TOKENS"] - m < sizes["TOKENS"]
        assert 0 <= launch.grid[1] * sizes["ROWS"] - n_out < sizes["ROWS"]


def test_tiles_are_ordered_by_tokens():
    """The rules take the first that is large enough."""
    for tiles in (TWO_BIT_TILES, HALF_TILES):
        assert [tile.tokens for tile in tiles] == sorted({tile.tokens for tile in tiles})


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a device that is no GPU")
def test_without_a_gpu_or_the_interpreter_a_product_is_refused(monkeypatch):
    monkeypatch.setattr(triton_products, "INTERPRETED", False)
    with pytest.raises(ValueError, match="kernel 'triton': expected a CUDA device, or TRITON_INTERPRET=1, got cpu"):
        get_product("triton", "I2_S")("I2_S", 8, 128, 1, "cpu")
