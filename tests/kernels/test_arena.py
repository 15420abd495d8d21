"""The memory that weights rotate through: cold, aligned, and valid in every format."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from ternary_kernels.arena import Arena
from ternary_kernels.formats import FORMATS

CACHE_LINE = 64
SIZE = 9 << 20  # more than two of the tiles that fill it, and no multiple


@pytest.fixture(scope="module")
def arena():
    return Arena(SIZE)


def place(window):
    start = window.ctypes.data
    return start, start + window.nbytes


@pytest.mark.parametrize("size", [SIZE, SIZE // 2, 1 << 20, 4999, 64, 1])
def test_no_byte_comes_again_before_the_rest_of_the_arena_was_used(size):
    """Only a remainder that is too small for a window is left out."""
    arena = Arena(SIZE)
    first = arena.take(size)
    places = [place(first)]
    while (window := place(arena.take(size))) != places[0]:
        places.append(window)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(places))
    padding = CACHE_LINE * len(places)
    assert len(places) * size > SIZE - size - padding


def test_windows_of_different_sizes_share_the_rotation():
    arena = Arena(SIZE)
    places = [place(arena.take(size)) for size in (1 << 20, 3 << 20, 100, 2 << 20)]
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(places))
    assert place(arena.take(4 << 20))[0] == places[0][0]


def test_where_memory_comes_slowly_it_makes_do_with_less_but_not_with_too_little():
    """The time is up before it begins; what is needed is filled all the same, in whole tiles."""
    arena = Arena(SIZE, least_bytes=5 << 20, until=0.0)
    assert 5 << 20 <= arena.size_bytes < SIZE
    window = place(arena.take(5 << 20))
    assert place(arena.take(5 << 20)) == window
    assert Arena(SIZE).size_bytes == Arena(SIZE, until=time.monotonic() + 3600).size_bytes == SIZE


def test_every_window_has_its_size_and_begins_at_a_cache_line(arena):
    for size in (1, 63, 64, 65, 12345, SIZE // 3, SIZE, 7):
        window = arena.take(size)
        assert window.shape == (size,)
        assert window.ctypes.data % CACHE_LINE == 0


@pytest.mark.parametrize("name", ["I2_S", "I2_S_ARM"])
def test_as_ternary_weights_all_codes_are_valid_and_all_occur(arena, name):
    held = FORMATS[name]
    weights, scale = held.unpack(arena.take(held.size_bytes(1000, 1280)), 1000, 1280)
    shares = [np.mean(weights == value) for value in (-1, 0, 1)]
    assert min(shares) > 0.1
    assert np.isfinite(scale)


@pytest.mark.parametrize("name", ["F16", "F32"])
def test_as_floating_point_weights_are_normal_numbers_of_both_signs(arena, name):
    held = FORMATS[name]
    weights, _ = held.unpack(arena.take(held.size_bytes(500, 1000)), 500, 1000)
    magnitudes = np.abs(weights)
    assert np.isfinite(weights).all()
    assert magnitudes.min() >= np.finfo(weights.dtype).smallest_normal
    assert magnitudes.max() < 1
    assert 0.2 < np.mean(weights < 0) < 0.8


def test_the_weights_differ_from_row_to_row(arena):
    rows = arena.take(4096 * 64).reshape(64, 4096)
    assert len(np.unique(rows, axis=0)) == 64
