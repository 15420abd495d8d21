"""TL1 and TL2: their tiles, the published converter's bytes, the layout loop by loop, and what is refused."""

import hashlib
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ternary_kernels.formats import Tiles, get_format, tl1_tiles, tl2_tiles

ROW_ORDER = [*range(8), *range(16, 24), *range(8, 16), *range(24, 32)]

# sha256 of what the published converter wrote (microsoft/BitNet 16da220, utils/convert-hf-to-gguf-bitnet.py,
# preprocess_weights_tl1 and _tl2, run once, with the tiles of setup_env.py) for the weights of `random_weights`.
PUBLISHED_DIGESTS = {
    ("TL1", 1536, 4096): "fcd2244232029330c7d22a47591b4fc713300255857f7deedcf35f8473170193",
    ("TL1", 1536, 1536): "4760f0d2508c6ff55f49bf65a409f2969ceacab25f1167359e0939fe8b65a849",
    ("TL1", 3200, 3200): "18506932d2b624d729091b8585105d13b0ba7a31d6623beeae0cb9039b91f1cc",
    ("TL1", 3200, 8640): "66e230c6e63efd7550679e919e42f781cb659da2da3f4631dfed5a4bf3ab24ba",
    ("TL1", 1024, 4096): "d7742c850ee763cb72494b1123b0e9b2e5ccfdb4025c38153c8bf05ca1c7146b",
    ("TL2", 1536, 4096): "199a380ddcc465390e9cf9deb3f66f73ad05404cc23ade01af928b7d33b259ca",
    ("TL2", 1536, 1536): "dd0eba72c2e40cee84564f39ada04af713f4476a24bd8578a94d788384ef7fc5",
    ("TL2", 3200, 3200): "0d16626c91cca1b78893eacd75d2d54a92af936ecc743264660fede1bb5fc74f",
    ("TL2", 3200, 8640): "88b8a3a867c0d3f49431d430052749fa7dcd73ecb5edab7016948fee367654bc",
    ("TL2", 1024, 4096): "ac1318c9c09eb31d36735bd7a46f1aca0847d2f47d546595225c26403dab05e4",
    # not a published shape: the converter was given the rule's tiles
    ("TL1", 640, 2560): "4057a7199c0356390eaf4d477ea88d81fe710a3fa79e4146dbbba49a3f27c2df",
    ("TL2", 640, 2560): "6152ca56e7e8eb91bbae7a6ca9b56b5332d5a9ef48827c1fda75e174aaddff13",
}
PUBLISHED_BYTES = {("TL2", 3200, 8640): 5_794_133, ("TL2", 3200, 3200): 2_167_466}
"""The converter's own size where it isn't rounded up to 32, as a file's is."""


def random_weights(n_out, k_in):
    seed = n_out * 100_000 + k_in
    return np.random.Generator(np.random.PCG64(seed)).integers(-1, 2, (n_out, k_in), np.int8)


@pytest.mark.parametrize(("name", "n_out", "k_in"), PUBLISHED_DIGESTS)
def test_the_bytes_are_those_of_the_published_converter(name, n_out, k_in):
    weights = random_weights(n_out, k_in)
    packed = get_format(name).pack(weights, 0.5)
    written = PUBLISHED_BYTES.get((name, n_out, k_in), len(packed) - 32)
    assert hashlib.sha256(packed[:written].tobytes()).hexdigest() == PUBLISHED_DIGESTS[name, n_out, k_in]
    assert not packed[written:-32].any()
    unpacked, scale = get_format(name).unpack(packed, n_out, k_in)
    assert np.array_equal(unpacked, weights)
    assert scale == 0.5


# The layouts as plain loops over the documented order: slow twins of what the formats do with reshapes.


def code(*weights):
    value = 0
    for weight in weights:
        value = 3 * value + int(weight)
    return value


def tl1_by_loops(weights, tiles):
    n_out, k_in = weights.shape
    run = 256 // tiles.group
    packed = bytearray()
    for top, left in product(range(0, n_out, tiles.rows), range(0, k_in, tiles.columns)):
        for row, column in product(range(top, top + tiles.rows, tiles.group), range(left, left + tiles.columns, run)):
            for part, four in product(range(row, row + tiles.group, 16), range(column, column + run, 4)):
                for line in weights[part : part + 16, four : four + 4]:
                    packed.append((code(*line[:2]) + 4) << 4 | code(*line[2:]) + 4)
    return bytes(packed)


def tl2_by_loops(weights, tiles):
    n_out, k_in = weights.shape
    in_triples = k_in // tiles.columns * tiles.columns
    nibbles, signs, pairs = bytearray(), bytearray(), bytearray()
    for top, left in product(range(0, n_out, tiles.rows), range(0, in_triples, tiles.columns)):
        for row in range(top, top + tiles.rows, 32):
            for column in range(left, left + tiles.columns, 6):
                for line in weights[row : row + 32, column : column + 6][ROW_ORDER]:
                    nibbles.append(abs(code(*line[:3])) << 4 | abs(code(*line[3:])))
            for column in range(left, left + tiles.columns, 24):
                for j in range(16):
                    word = 0
                    for i in range(8):
                        at = column + 3 * i
                        word |= (code(*weights[row + j, at : at + 3]) < 0) << 15 - 2 * i
                        word |= (code(*weights[row + 16 + j, at : at + 3]) < 0) << 14 - 2 * i
                    signs += word.to_bytes(2, "little")
    for top, left in product(range(0, n_out, tiles.rows), range(in_triples, k_in, 32)):
        for row, column in product(range(top, top + tiles.rows, 32), range(left, left + 32, 4)):
            for line in weights[row : row + 32, column : column + 4][ROW_ORDER]:
                pairs.append((code(*line[:2]) + 4) << 4 | code(*line[2:]) + 4)
    return bytes(nibbles + signs + pairs)


LOOPS = {"TL1": (tl1_by_loops, tl1_tiles), "TL2": (tl2_by_loops, tl2_tiles)}


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize(("n_out", "k_in"), [(32, 256), (352, 288), (64, 320), (96, 352), (704, 384)])
def test_the_bytes_are_in_the_documented_order(name, n_out, k_in):
    """One tile and several, with 0, 32 and 64 columns left over for pairs."""
    weights = random_weights(n_out, k_in)
    by_loops, tiles = LOOPS[name]
    expected = by_loops(weights, tiles(n_out, k_in))
    packed = get_format(name).pack(weights)
    assert packed[: len(expected)].tobytes() == expected
    assert not packed[len(expected) : -32].any()


@pytest.mark.parametrize("name", LOOPS)
@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_out=st.integers(1, 12),
    k_in=st.integers(8, 20),
    zeros=st.sampled_from([0.0, 1 / 3, 0.9, 1.0]),
    scale=st.floats(width=32, allow_nan=False),
)
def test_any_shape_that_the_blocking_allows_comes_back(name, seed, n_out, k_in, zeros, scale):
    rng = np.random.default_rng(seed)
    shape = 32 * n_out, 32 * k_in
    weights = np.where(rng.random(shape) < zeros, 0, rng.choice([-1, 1], shape)).astype(np.int8)
    packed = get_format(name).pack(weights, scale)
    assert packed.shape == (get_format(name).size_bytes(*shape),)
    unpacked, found = get_format(name).unpack(packed, *shape)
    assert unpacked.dtype == np.int8
    assert np.array_equal(unpacked, weights)
    assert found == scale


@pytest.mark.parametrize("name", LOOPS)
def test_all_groups_of_five_weights_come_back(name):
    groups = np.array(list(product((-1, 0, 1), repeat=5)), np.int8)
    weights = np.resize(groups, (256, 5))[:, np.arange(480) % 5]
    assert np.array_equal(get_format(name).unpack(get_format(name).pack(weights), 256, 480)[0], weights)


# Tiles


@pytest.mark.parametrize(
    ("n_out", "k_in", "tl1", "tl2"),
    [
        (1536, 4096, (256, 128, 32), (256, 96, 32)),
        (1536, 1536, (128, 64, 64), (128, 192, 32)),
        (4096, 1536, (256, 128, 32), (256, 96, 32)),
        (3200, 8640, (160, 64, 32), (160, 96, 32)),
        (3200, 3200, (320, 128, 64), (320, 96, 32)),
        (8640, 3200, (320, 64, 32), (320, 96, 32)),
        (14336, 4096, (256, 128, 32), (256, 96, 32)),
        (4096, 14336, (128, 64, 64), (128, 96, 32)),
        (1024, 4096, (256, 128, 32), (256, 96, 32)),
        (4096, 4096, (128, 64, 64), (128, 96, 32)),
        # bitnet-b1.58-2B-4T, by the rule
        (2560, 2560, (320, 128, 32), (320, 96, 32)),
        (640, 2560, (320, 128, 32), (320, 96, 32)),
        (6912, 2560, (288, 128, 32), (288, 96, 32)),
        (2560, 6912, (320, 128, 32), (320, 96, 32)),
        # an odd number of groups, and columns that only 32 or 64 divide
        (32 * 11, 288, (32, 32, 32), (32, 96, 32)),
        (32 * 22, 320, (64, 64, 32), (64, 96, 32)),
    ],
)
def test_tiles_are_the_published_ones_or_the_rules(n_out, k_in, tl1, tl2):
    assert tl1_tiles(n_out, k_in) == Tiles(*tl1)
    assert tl2_tiles(n_out, k_in) == Tiles(*tl2)
    for tiles, unit in ((tl1, 32), (tl2, 24)):
        assert n_out % tiles[0] == tiles[0] % tiles[2] == tiles[1] % unit == 0


@pytest.mark.parametrize(
    ("name", "n_out", "k_in", "message"),
    [
        ("TL1", 24, 256, "TL1 needs rows and columns to be multiples of 32, got 24 x 256"),
        ("TL2", 48, 256, "TL2 needs rows and columns to be multiples of 32, got 48 x 256"),
        ("TL1", 32, 48, "TL1 needs k_in to be a multiple of 32, got 48"),
        ("TL2", 32, 272, "TL2 needs k_in to be a multiple of 32, got 272"),
        ("TL2", 32, 224, "TL2 needs at least 256 columns, got 224"),
        ("TL2", 0, 256, "TL2 needs at least 1 row and 1 column, got 0 x 256"),
    ],
)
def test_shapes_that_no_tiles_fit_are_refused(name, n_out, k_in, message):
    with pytest.raises(ValueError, match=message):
        get_format(name).size_bytes(n_out, k_in)


@pytest.mark.parametrize("tiles", [tl1_tiles, tl2_tiles])
def test_there_are_no_tiles_for_columns_off_32(tiles):
    with pytest.raises(ValueError, match="needs rows and columns to be multiples of 32, got 32 x 300"):
        tiles(32, 300)


# Codes that mean nothing


@pytest.mark.parametrize("nibble", range(16))
@pytest.mark.parametrize("shift", [0, 4])
@pytest.mark.parametrize(("name", "at", "last"), [("TL1", 77, 8), ("TL2", 77, 13), ("TL2", 64 * 288 * 5 // 24 - 1, 13)])
def test_each_nibble_is_read_or_refused(name, at, last, nibble, shift):
    """TL2's second byte lies among the signs, where anything means something."""
    held = get_format(name)
    packed = held.pack(np.zeros((64, 288), np.int8))
    packed[at] = nibble << shift | (packed[at] & (0xF0 >> shift))
    if nibble <= last or at > 1000:
        held.unpack(packed, 64, 288)
    else:
        with pytest.raises(ValueError, match=rf"{name}: expected codes of -1, 0 and \+1, got one that means nothing"):
            held.unpack(packed, 64, 288)


def test_codes_of_pairs_in_tl2_are_looked_at_too():
    packed = get_format("TL2").pack(np.zeros((32, 256), np.int8))
    packed[32 * 192 * 5 // 24] = 0x49
    with pytest.raises(ValueError, match="TL2: expected codes of -1, 0"):
        get_format("TL2").unpack(packed, 32, 256)


def test_the_sign_of_a_zero_means_nothing():
    packed = get_format("TL2").pack(np.zeros((32, 288), np.int8))
    packed[32 * 288 // 6 :][: 32 * 288 // 24] = 0xFF
    assert not get_format("TL2").unpack(packed, 32, 288)[0].any()


@pytest.mark.parametrize("name", LOOPS)
def test_padding_and_the_tail_behind_the_scale_mean_nothing(name):
    weights = random_weights(32, 256)
    packed = get_format(name).pack(weights, 0.25)
    packed[-28:] = 0xFF
    shifted = np.empty(len(packed) + 1, np.uint8)[1:]
    shifted[:] = packed
    unpacked, scale = get_format(name).unpack(shifted, 32, 256)
    assert np.array_equal(unpacked, weights)
    assert scale == 0.25
