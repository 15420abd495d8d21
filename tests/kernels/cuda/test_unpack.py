"""Unpacking on a device gives what the formats themselves give, code by code, whichever rows are asked for."""

import numpy as np
import pytest
import torch

from ternary_kernels.cuda.product import get_product
from ternary_kernels.cuda.unpack import unpack_rows
from ternary_kernels.formats import FORMATS, get_format

TERNARY = [name for name in FORMATS if get_format(name).ternary]
SHAPES = [(96, 256), (32, 384), (352, 512), (160, 1280), (1536, 1536), (128, 14336), (1, 128), (5, 768)]


def held(name, shape):
    try:
        get_format(name).size_bytes(*shape)
    except ValueError:
        return False
    return True


CASES = [(name, shape) for name in TERNARY for shape in SHAPES if held(name, shape)]


@pytest.mark.parametrize(("name", "shape"), CASES, ids=str)
def test_rows_are_those_that_were_packed(name, shape, device):
    """From the first row, from one in the middle, and all at once; multiples of a tile where rows are interleaved."""
    weights = np.random.default_rng(0).integers(-1, 2, shape, np.int8)
    codes = get_product("torch", name)(name, *shape, 1, device).load([get_format(name).pack(weights)], [shape[0]]).codes
    multiple = get_format(name).row_multiple(*shape)
    middle = shape[0] // multiple // 2 * multiple
    for first, last in ((0, shape[0]), (0, middle), (middle, shape[0]), (middle, middle + multiple)):
        if last == first:
            continue
        found = unpack_rows(get_format(name), codes, shape, first, last)
        assert found.dtype == torch.uint8
        assert np.array_equal(found.cpu().numpy(), (weights[first:last] + 1).astype(np.uint8))


@pytest.mark.parametrize("name", TERNARY)
def test_bits_that_mean_nothing_do_not_disturb_those_beside_them(name, device):
    """Over random bytes: where the format itself finds a weight of -1, 0 or +1, the code is that."""
    shape = (64, 768)
    kind = get_format(name)
    data = np.random.default_rng(0).integers(0, 256, kind.size_bytes(*shape), np.uint8)
    if name.startswith("TQ"):
        data.reshape(-1, kind.block_bytes)[:, -2:] = np.frombuffer(np.float16(0.5).tobytes(), np.uint8)
    stored, scale = kind.split(data, *shape)
    expected, _ = kind.unpack_rows(stored, scale, shape, 0, shape[0])
    found = unpack_rows(kind, torch.tensor(stored.reshape(-1), device=device), shape, 0, shape[0]).cpu().numpy()
    means = expected <= 1
    assert means.any()
    assert np.array_equal(found[means], (expected[means] + 1).astype(np.uint8))
