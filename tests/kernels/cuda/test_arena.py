"""The memory on a device that weights rotate through: cold, aligned, the same bytes as on the CPU."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ternary_kernels.arena import Arena
from ternary_kernels.cuda.arena import ALIGNMENT, DeviceArena

SIZE = 9 << 20  # more than two of the tiles that fill it, and no multiple


def place(window):
    return window.data_ptr(), window.data_ptr() + window.numel()


@pytest.mark.parametrize("size", [SIZE, SIZE // 2, 1 << 20, 4999, 1])
def test_no_byte_comes_again_before_the_rest_of_the_arena_was_used(device, size):
    """Only a remainder that is too small for a window is left out."""
    arena = DeviceArena(SIZE, device)
    places = [place(arena.take(size))]
    while (window := place(arena.take(size))) != places[0]:
        places.append(window)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(places))
    assert len(places) * size > SIZE - size - ALIGNMENT * len(places)


def test_every_window_has_its_size_and_its_alignment(device):
    arena = DeviceArena(SIZE, device)
    start = arena.take(1).data_ptr()
    for size in (63, 256, 12345, SIZE // 3, SIZE, 7):
        window = arena.take(size)
        assert (window.shape, str(window.dtype), window.device.type) == ((size,), "torch.uint8", device)
        assert (window.data_ptr() - start) % ALIGNMENT == 0


def test_its_bytes_are_those_of_the_arena_on_the_cpu(device):
    found = DeviceArena(SIZE, device).take(SIZE).cpu().numpy()
    assert np.array_equal(found, Arena(SIZE).take(SIZE))


@pytest.mark.parametrize("size", [0, -1])
def test_an_arena_of_no_bytes_is_refused(device, size):
    with pytest.raises(ValueError, match=f"^arena: expected at least 1 byte, got {size}$"):
        DeviceArena(size, device)


def test_a_window_larger_than_the_arena_is_refused(device):
    with pytest.raises(ValueError, match=r"^arena: expected a window of at most 64 bytes, got 65$"):
        DeviceArena(64, device).take(65)
