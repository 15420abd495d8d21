"""Formats: sizes exact to the byte, the published byte order, round trips, and what is refused."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ternary_kernels.formats import FORMATS, get_format

TERNARY = ("I2_S", "I2_S_ARM")
BLOCKS = {"I2_S": 128, "I2_S_ARM": 64}
FLOATS = {"F16": np.float16, "F32": np.float32}
UNSCALED = (*FLOATS, "Q8_0", "Q6_K", "IQ2_S")


def published_order(weights, block):
    """The published loop: weight j of a block in byte j % (block / 4), shifted left by 6 - 2 (j // (block / 4))."""
    quarter = block // 4
    packed = bytearray(weights.size // 4)
    for index, weight in enumerate(weights.reshape(-1).tolist()):
        number, j = divmod(index, block)
        packed[number * quarter + j % quarter] |= (weight + 1) << (6 - 2 * (j // quarter))
    return bytes(packed)


def ternary_matrices(block):
    shapes = st.tuples(st.integers(1, 5), st.integers(1, 4)).map(lambda shape: (shape[0], shape[1] * block))
    return shapes.flatmap(lambda shape: hnp.arrays(np.int8, shape, elements=st.integers(-1, 1)))


@pytest.mark.parametrize(
    ("name", "n_out", "k_in", "size_bytes"),
    [
        ("I2_S", 1, 128, 32 + 32),
        ("I2_S", 640, 2560, 409_600 + 32),
        ("I2_S", 6912, 2560, 4_423_680 + 32),
        ("I2_S_ARM", 1, 64, 16 + 32),
        ("I2_S_ARM", 2560, 6912, 4_423_680 + 32),
        ("TL1", 3200, 8640, 6_912_000 + 32),
        ("TL2", 3200, 8640, 5_794_144 + 32),
        ("TL2", 4096, 1536, 1_354_432 + 32),
        ("TL2", 2560, 2560, 1_392_640 + 32),
        ("TQ1_0", 1, 256, 54),
        ("TQ1_0", 6912, 2560, 3_732_480),
        ("TQ2_0", 1, 256, 66),
        ("TQ2_0", 6912, 2560, 4_561_920),
        ("IQ2_S", 6912, 2560, 5_667_840),
        ("Q8_0", 1, 32, 34),
        ("Q8_0", 128_256, 2560, 348_856_320),
        ("Q6_K", 128_256, 2560, 269_337_600),
        ("F16", 128_256, 2560, 656_670_720),
        ("F16", 1, 1, 2),
        ("F32", 3, 5, 60),
    ],
)
def test_sizes_are_exact_with_a_tail_where_there_is_one(name, n_out, k_in, size_bytes):
    assert get_format(name).size_bytes(n_out, k_in) == size_bytes


@pytest.mark.parametrize(
    ("name", "gguf_type", "ternary", "bits_per_weight"),
    [
        ("I2_S", 36, True, 2),
        ("I2_S_ARM", 36, True, 2),
        ("TL1", 38, True, 2),
        ("TL2", 39, True, 5 / 3),
        ("TQ1_0", 34, True, 1.6875),
        ("TQ2_0", 35, True, 2.0625),
        ("IQ2_S", 22, False, 2.5625),
        ("Q8_0", 8, False, 8.5),
        ("Q6_K", 14, False, 6.5625),
        ("F16", 1, False, 16),
        ("F32", 0, False, 32),
    ],
)
def test_a_format_knows_its_gguf_type_and_bits(name, gguf_type, ternary, bits_per_weight):
    found = get_format(name)
    assert (found.name, found.gguf_type, found.ternary, found.bits_per_weight) == (
        name,
        gguf_type,
        ternary,
        bits_per_weight,
    )


@pytest.mark.parametrize("name", FORMATS)
def test_the_bits_are_those_of_a_large_matrix(name):
    """1 % more where a format pads: TL2 counts 256 columns as pairs, however many are."""
    bits = 8 * get_format(name).size_bytes(3072, 24_576) / (3072 * 24_576)
    assert get_format(name).bits_per_weight <= bits < 1.01 * get_format(name).bits_per_weight


def test_only_iq2_s_is_lossy():
    assert [name for name, held in FORMATS.items() if held.lossy] == ["IQ2_S"]


def test_the_formats_are_there_without_the_slow_gguf_library():
    done = subprocess.run(
        [sys.executable, "-c", "import sys, ternary_kernels.formats; print('gguf' in sys.modules)"],
        cwd=next(iter(sys.modules["ternary_kernels"].__path__)) + "/..",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"


def test_an_unknown_format_is_refused_with_the_names_there_are():
    names = "F16, F32, I2_S, I2_S_ARM, IQ2_S, Q6_K, Q8_0, TL1, TL2, TQ1_0, TQ2_0"
    with pytest.raises(ValueError, match=rf"'I2_M'.*expected one of {names}$"):
        get_format("I2_M")


# The bytes, by hand. All weights are -1 (code 0) but those named.


def test_x86_bytes_are_the_published_ones():
    """Weights 0, 32, 64 and 96 share byte 0, from its high bits down; weight 127 ends byte 31; then the scale."""
    weights = np.full((1, 128), -1, np.int8)
    weights[0, [0, 64, 63, 127]] = +1
    weights[0, [32, 96, 1]] = 0
    # byte 0: 10 01 10 01; byte 1: 01 00 00 00; byte 31: 00 10 00 10; 0.5 is 0x3f000000
    expected = bytes.fromhex("9940" + "00" * 29 + "22" + "0000003f" + "00" * 28)
    assert get_format("I2_S").pack(weights, 0.5).tobytes() == expected
    unpacked, scale = get_format("I2_S").unpack(np.frombuffer(expected, np.uint8), 1, 128)
    assert np.array_equal(unpacked, weights)
    assert scale == 0.5


def test_arm_bytes_are_the_published_ones():
    """Weights 0, 16, 32 and 48 share byte 0, from its high bits down; weight 63 ends byte 15; then the scale."""
    weights = np.full((1, 64), -1, np.int8)
    weights[0, [0, 32, 31, 63]] = +1
    weights[0, [16, 48, 1]] = 0
    expected = bytes.fromhex("9940" + "00" * 13 + "22" + "000000c0" + "00" * 28)
    assert get_format("I2_S_ARM").pack(weights, -2.0).tobytes() == expected
    unpacked, scale = get_format("I2_S_ARM").unpack(np.frombuffer(expected, np.uint8), 1, 64)
    assert np.array_equal(unpacked, weights)
    assert scale == -2.0


@pytest.mark.parametrize(("name", "first_of_block_1", "last_of_row_0"), [("I2_S", 96, 63), ("I2_S_ARM", 80, 63)])
def test_rows_and_blocks_follow_each_other(name, first_of_block_1, last_of_row_0):
    """All zero weights but two: the first of row 1's second block, and the last of row 0."""
    weights = np.zeros((2, 256), np.int8)
    weights[1, BLOCKS[name]] = +1
    weights[0, 255] = -1
    expected = np.full(128, 0b01010101, np.uint8)
    expected[first_of_block_1] = 0b10010101
    expected[last_of_row_0] = 0b01010100
    assert np.array_equal(get_format(name).pack(weights)[:128], expected)


def test_a_file_for_one_architecture_is_not_a_file_for_the_other():
    weights = np.repeat(np.array([[-1, 0, 1, 1, 0, 1, -1, 0]], np.int8), 16, axis=1)
    x86 = get_format("I2_S").pack(weights)
    assert len(x86) == get_format("I2_S_ARM").size_bytes(1, 128)
    assert not np.array_equal(get_format("I2_S_ARM").unpack(x86, 1, 128)[0], weights)


@pytest.mark.parametrize("name", TERNARY)
@settings(deadline=None, max_examples=40)
@given(data=st.data(), scale=st.floats(width=32, allow_nan=False))
def test_ternary_weights_and_scale_come_back_from_the_published_bytes(name, data, scale):
    weights = data.draw(ternary_matrices(BLOCKS[name]))
    packed = get_format(name).pack(weights, scale)
    assert packed.dtype == np.uint8
    assert packed.shape == (get_format(name).size_bytes(*weights.shape),)
    assert packed[: weights.size // 4].tobytes() == published_order(weights, BLOCKS[name])
    unpacked, found = get_format(name).unpack(packed, *weights.shape)
    assert unpacked.dtype == np.int8
    assert np.array_equal(unpacked, weights)
    assert found == scale


@pytest.mark.parametrize("name", TERNARY)
def test_each_of_the_81_bytes_is_read_and_written(name):
    codes = np.array(list(itertools.product(range(3), repeat=4)))
    packed = (codes @ [64, 16, 4, 1]).astype(np.uint8)
    packed = np.concatenate([packed, packed[:15], np.zeros(32, np.uint8)])  # 96 bytes: whole blocks in both layouts
    quarter = BLOCKS[name] // 4
    weights = np.concatenate([codes, codes[:15]]).reshape(-1, quarter, 4).swapaxes(1, 2).reshape(1, 384) - 1
    unpacked, scale = get_format(name).unpack(packed, 1, 384)
    assert np.array_equal(unpacked, weights)
    assert np.array_equal(get_format(name).pack(unpacked, scale), packed)


@pytest.mark.parametrize("name", TERNARY)
def test_each_byte_that_holds_a_code_3_is_refused(name):
    held = get_format(name)
    meaningless = [byte for byte in range(256) if 3 in (byte >> 6, byte >> 4 & 3, byte >> 2 & 3, byte & 3)]
    assert len(meaningless) == 256 - 81
    for byte in meaningless:
        packed = held.pack(np.zeros((2, 128), np.int8))
        packed[63] = byte
        with pytest.raises(ValueError, match=rf"{name}: expected codes of -1, 0 and \+1, got one that means nothing"):
            held.unpack(packed, 2, 128)


@pytest.mark.parametrize("name", TERNARY)
def test_the_tail_behind_the_scale_means_nothing(name):
    """Published files leave it uninitialised."""
    weights = np.tile(np.array([-1, 0, 1, 1], np.int8), (3, 32))
    packed = get_format(name).pack(weights, 0.25)
    packed[-28:] = 0xFF
    unpacked, scale = get_format(name).unpack(packed, 3, 128)
    assert np.array_equal(unpacked, weights)
    assert scale == 0.25


@pytest.mark.parametrize("name", TERNARY)
def test_ternary_bytes_may_lie_at_any_address(name):
    weights = np.tile(np.array([-1, 0, 1, 1], np.int8), (3, 32))
    packed = get_format(name).pack(weights, 0.25)
    shifted = np.empty(len(packed) + 1, np.uint8)[1:]
    shifted[:] = packed
    unpacked, scale = get_format(name).unpack(shifted, 3, 128)
    assert np.array_equal(unpacked, weights)
    assert scale == 0.25


@pytest.mark.parametrize("name", FLOATS)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_floating_point_weights_come_back_bit_for_bit(name, data):
    dtype = FLOATS[name]
    elements = hnp.from_dtype(np.dtype(dtype), allow_nan=False, allow_infinity=False)
    weights = data.draw(hnp.arrays(dtype, hnp.array_shapes(min_dims=2, max_dims=2), elements=elements))
    packed = get_format(name).pack(weights)
    assert packed.tobytes() == weights.tobytes()
    unpacked, scale = get_format(name).unpack(packed, *weights.shape)
    assert unpacked.dtype == dtype
    assert unpacked.tobytes() == weights.tobytes()
    assert scale == 1.0


@pytest.mark.parametrize("name", FLOATS)
def test_weights_of_another_precision_or_order_are_rounded_to_nearest_row_after_row(name):
    weights = np.array([[0.1, 1 / 3, -2.7], [1e-5, 12345.67, 1.0]]).T
    packed = get_format(name).pack(weights)
    assert packed.tobytes() == np.array([float(value) for value in weights.flat]).astype(FLOATS[name]).tobytes()


def test_f16_holds_magnitudes_up_to_its_largest():
    """65,519 still rounds to 65,504; 65,520 would become an infinity, which no kernel can multiply."""
    packed = get_format("F16").pack(np.array([[65519.0, -65519.0]]))
    assert get_format("F16").unpack(packed, 1, 2)[0].tolist() == [[65504.0, -65504.0]]
    with pytest.raises(ValueError, match="F16 packs finite weights of magnitude up to 65504"):
        get_format("F16").pack(np.array([[1.0, 65520.0]]))


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} packs finite weights"):
        get_format(name).pack(np.array([[1.0, value]]))


def test_what_is_unpacked_is_the_callers_own():
    packed = get_format("F32").pack(np.ones((2, 2), np.float32))
    unpacked, _ = get_format("F32").unpack(packed, 2, 2)
    unpacked[:] = 7
    assert np.array_equal(get_format("F32").unpack(packed, 2, 2)[0], np.ones((2, 2)))


@pytest.mark.parametrize(
    ("name", "n_out", "k_in", "message"),
    [
        ("I2_S", 4, 64, "I2_S needs k_in to be a multiple of 128, got 64"),
        ("I2_S", 4, 129, "multiple of 128, got 129"),
        ("I2_S_ARM", 4, 96, "I2_S_ARM needs k_in to be a multiple of 64, got 96"),
        ("I2_S", 0, 128, "at least 1 row and 1 column, got 0 x 128"),
        ("I2_S", 4, 0, "got 4 x 0"),
        ("TQ1_0", 4, 128, "TQ1_0 needs k_in to be a multiple of 256, got 128"),
        ("TQ2_0", 4, 3200, "TQ2_0 needs k_in to be a multiple of 256, got 3200"),
        ("IQ2_S", 4, 3200, "IQ2_S needs k_in to be a multiple of 256, got 3200"),
        ("Q6_K", 4, 3200, "Q6_K needs k_in to be a multiple of 256, got 3200"),
        ("Q8_0", 4, 48, "Q8_0 needs k_in to be a multiple of 32, got 48"),
        ("F16", -1, 8, "got -1 x 8"),
        ("F32", 8, -8, "got 8 x -8"),
    ],
)
def test_shapes_a_format_cannot_hold_are_refused(name, n_out, k_in, message):
    with pytest.raises(ValueError, match=message):
        get_format(name).size_bytes(n_out, k_in)


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("I2_S", np.zeros(128, np.int8), r"expected 2 dimensions, got shape \(128,\)"),
        ("I2_S", np.zeros((1, 1, 128), np.int8), r"got shape \(1, 1, 128\)"),
        ("I2_S", np.zeros((2, 64), np.int8), "multiple of 128, got 64"),
        ("I2_S", np.zeros((2, 128)), "packs int8 weights, got float64"),
        ("I2_S_ARM", np.zeros((2, 128), np.uint8), "packs int8 weights, got uint8"),
        ("I2_S", np.full((2, 128), 2, np.int8), r"\{-1, 0, \+1\}, got values 2 to 2"),
        ("I2_S_ARM", np.full((2, 128), -2, np.int8), r"\{-1, 0, \+1\}, got values -2 to -2"),
        ("TL1", np.zeros((32, 64)), "TL1 packs int8 weights, got float64"),
        ("TQ2_0", np.full((2, 256), 2, np.int8), r"\{-1, 0, \+1\}, got values 2 to 2"),
        ("Q6_K", np.zeros((2, 256), np.int8), "Q6_K packs floating-point weights, got int8"),
        ("F16", np.zeros((2, 2), np.int8), "packs floating-point weights, got int8"),
        ("F32", np.zeros(4, np.float32), "expected 2 dimensions"),
    ],
)
def test_weights_a_format_cannot_pack_are_refused(name, weights, message):
    with pytest.raises(ValueError, match=message):
        get_format(name).pack(weights)


@pytest.mark.parametrize("name", UNSCALED)
def test_floating_point_formats_refuse_a_scale(name):
    with pytest.raises(ValueError, match=f"{name} stores no scale: expected 1.0, got 0.5"):
        get_format(name).pack(np.ones((2, 256), np.float32), 0.5)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("spoil", "got"),
    [
        (lambda packed: packed[:-1], "uint8 of shape"),
        (lambda packed: np.append(packed, np.uint8(0)), "uint8 of shape"),
        (lambda packed: packed.view(np.int8), "int8 of shape"),
        (lambda packed: packed[None], r"uint8 of shape \(1, "),
        (lambda packed: np.repeat(packed, 2)[::2], "uint8 of shape"),
    ],
    ids=["short", "long", "int8", "matrix", "strided"],
)
def test_bytes_of_another_size_type_or_order_are_refused(name, spoil, got):
    packed = get_format(name).pack(np.zeros((32, 256), np.int8 if get_format(name).ternary else np.float32))
    with pytest.raises(ValueError, match=f"{name} 32 x 256: expected {len(packed)} contiguous uint8 bytes, got {got}"):
        get_format(name).unpack(spoil(packed), 32, 256)


@pytest.mark.parametrize(("name", "itemsize"), [("F16", 2), ("F32", 4)])
def test_floating_point_bytes_at_an_odd_address_are_refused(name, itemsize):
    misaligned = np.zeros(6 * itemsize + 1, np.uint8)[1:]
    with pytest.raises(ValueError, match=f"{name}: expected bytes aligned to {itemsize}, got an address 1 past"):
        get_format(name).unpack(misaligned, 2, 3)


@pytest.mark.parametrize("name", FORMATS)
def test_rows_unpack_piece_by_piece_as_all_at_once(name):
    held = get_format(name)
    weights = np.random.default_rng(0).integers(-1, 2, (96, 512), np.int8)
    packed = held.pack(weights if held.ternary else weights.astype(np.float32))
    expected, scale = held.unpack(packed, 96, 512)
    stored, stored_scale = held.split(packed, 96, 512)
    assert np.shares_memory(stored, packed)
    step = held.row_multiple(96, 512)
    for first in range(0, 96, step):
        rows, found = held.unpack_rows(stored, stored_scale, (96, 512), first, first + step)
        assert np.array_equal(rows, expected[first : first + step])
        assert found == scale
