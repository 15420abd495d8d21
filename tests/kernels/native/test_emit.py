"""What an emitter writes, run: the operations that kernels are made of."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llvmlite import ir

from ternary_kernels.native.elementary import sums_of
from ternary_kernels.native.emit import F16, F32, I8, I16, I32, I64, POINTER, Variable, mangled, vector
from ternary_kernels.native.isa import PATHS
from ternary_kernels.team import share

GENERIC = PATHS[-1]
INT64 = st.integers(-(2**40), 2**40)


@settings(deadline=None)
@given(
    total=st.integers(0, 500),
    members=st.integers(1, 40),
    member=st.integers(0, 39),
    multiple=st.sampled_from([1, 4, 16]),
)
def test_shares_are_those_of_the_team(execute, total, members, member, multiple):
    def build(emitter):
        ends = emitter.share(emitter.argument(0), multiple)
        for index, end in enumerate(ends):
            emitter.store(end, emitter.argument(1, POINTER), 8 * index)

    found = np.zeros(2, np.int64)
    member %= members
    execute(f"share_{multiple}", build, GENERIC, total, found, member=member, members=members)
    assert tuple(found) == share(total, members, member, multiple)


@settings(deadline=None)
@given(left=INT64, right=INT64)
def test_index_arithmetic(execute, left, right):
    def build(emitter):
        left, right = (emitter.argument(index) for index in range(2))
        results = [
            emitter.add(left, right, 5),
            emitter.mul(left, 3),
            emitter.minimum(left, right),
            emitter.minimum(left, 7),
        ]
        for index, result in enumerate(results):
            emitter.store(result, emitter.argument(2, POINTER), 8 * index)

    found = np.zeros(4, np.int64)
    execute("arithmetic", build, GENERIC, left, right, found)
    assert found.tolist() == [left + right + 5, 3 * left, min(left, right), min(left, 7)]


@pytest.mark.parametrize(("start", "stop", "step"), [(0, 0, 1), (5, 3, 1), (-3, 4, 1), (0, 10, 3), (0, 9, 3)])
def test_loops_are_those_of_python(execute, start, stop, step):
    """Over the same indices, none at all included; and ``when`` picks some of them."""

    def build(emitter):
        found = emitter.argument(0, POINTER)
        count = Variable(emitter, emitter.index(0))
        odd = Variable(emitter, emitter.index(0))
        with emitter.loop(emitter.argument(1), emitter.argument(2), emitter.argument(3)) as index:
            emitter.store(index, found, emitter.add(emitter.mul(count.get(), 8), 16))
            count.set(emitter.add(count.get(), 1))
            with emitter.when(emitter.builder.and_(index, emitter.index(1)), "==", 1):
                odd.set(emitter.add(odd.get(), 1))
        emitter.store(count.get(), found)
        emitter.store(odd.get(), found, 8)

    found = np.zeros(18, np.int64)
    execute("loop", build, GENERIC, found, start, stop, step)
    indices = list(range(start, stop, step))
    assert found[: len(indices) + 2].tolist() == [len(indices), sum(index % 2 for index in indices), *indices]


def test_a_loop_repeats_while_its_condition_holds(execute):
    """Collatz' sequence from 27 takes 111 steps; from 1 none."""

    def build(emitter):
        builder, found = emitter.builder, emitter.argument(0, POINTER)
        value, steps = Variable(emitter, emitter.argument(1)), Variable(emitter, emitter.index(0))
        with emitter.loop_while(lambda: builder.icmp_signed("!=", value.get(), emitter.index(1))):
            odd = builder.trunc(value.get(), ir.IntType(1))
            up, down = emitter.add(emitter.mul(value.get(), 3), 1), builder.ashr(value.get(), emitter.index(1))
            value.set(builder.select(odd, up, down))
            steps.set(emitter.add(steps.get(), 1))
        emitter.store(steps.get(), found)

    found = np.zeros(1, np.int64)
    for start, expected in ((27, 111), (1, 0)):
        execute("collatz", build, GENERIC, found, start)
        assert found[0] == expected


def test_floats_and_addresses_come_as_words(execute):
    def build(emitter):
        emitter.store(emitter.argument(1, F32), emitter.argument(0, POINTER))

    found = np.zeros(1, np.float32)
    execute("float_argument", build, GENERIC, found, int(np.float32(-0.1).view(np.int32)))
    assert found[0] == np.float32(-0.1)


@pytest.mark.parametrize("size_bytes", [1, 16, 48, 64])
def test_the_start_of_a_vector_is_loaded_and_no_byte_beyond(execute, size_bytes):
    """The rest is 0, whatever lies there."""

    def build(emitter):
        kind = vector(I8, 64)
        emitter.store(emitter.load_start(kind, emitter.argument(0, POINTER), size_bytes), emitter.argument(1, POINTER))

    source, found = np.arange(1, 65, dtype=np.uint8), np.full(64, 99, np.uint8)
    execute(f"load_start_{size_bytes}", build, GENERIC, source, found)
    assert np.array_equal(found, np.where(np.arange(64) < size_bytes, source, 0))


def test_the_start_of_a_vector_is_stored_and_no_lane_beyond(execute, path):
    def build(emitter):
        values = emitter.load(vector(F32, 16), emitter.argument(0, POINTER))
        emitter.store_start(values, emitter.argument(1, POINTER), emitter.argument(2))

    source = np.arange(1, 17, dtype=np.float32)
    for count in (0, 1, 7, 15, 16, 17, 1000):
        found = np.full(17, -1, np.float32)
        execute("store_start", build, path, source, found, count)
        assert found.tolist() == [*source[:count], *[-1] * (17 - min(count, 16))]


def test_every_finite_half_is_widened_exactly_as_a_scalar_and_in_vectors(execute, path):
    """Subnormals, both zeros and 65,504 included."""
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = every[np.isfinite(every)]
    count = 8

    def build(emitter):
        source, scalars, vectors = (emitter.argument(index, POINTER) for index in range(3))
        with emitter.loop(0, len(halves), count) as index:
            stored = emitter.load(vector(F16, count), source, emitter.mul(index, 2))
            emitter.store(emitter.half_to_float(stored), vectors, emitter.mul(index, 4))
        with emitter.loop(0, len(halves)) as index:
            stored = emitter.load(F16, source, emitter.mul(index, 2))
            emitter.store(emitter.half_to_float(stored), scalars, emitter.mul(index, 4))

    scalars, vectors = (np.empty(len(halves), np.float32) for _ in range(2))
    execute("halves", build, path, halves, scalars, vectors)
    for widened in (scalars, vectors):
        assert np.array_equal(widened.view(np.uint32), halves.astype(np.float32).view(np.uint32))


def test_floats_are_rounded_to_the_nearest_half_as_numpy_does(execute, path):
    """Every finite half, the floats next to it and halfway to its neighbours; subnormals and overflow included."""
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = np.sort(every[np.isfinite(every)].astype(np.float32))
    between = np.concatenate([(halves[1:] + halves[:-1]) / 2, np.array([65519.996, 65520, 7e4, 3e38], np.float32)])
    exact = np.concatenate([halves, between, -between])
    floats = np.concatenate([exact, np.nextafter(exact, np.inf), np.nextafter(exact, -np.inf)]).astype(np.float32)
    count = 8
    floats = np.concatenate([floats, np.resize(np.float32([-0.0, 1e-45, 1e-8, -(2.0**-25)]), -len(floats) % count + 8)])

    def build(emitter):
        source, vectors, singles = (emitter.argument(index, POINTER) for index in range(3))
        for width, target in ((count, vectors), (1, singles)):
            with emitter.loop(0, len(floats), width) as index:
                wide = emitter.load(vector(F32, width), source, emitter.mul(index, 4))
                emitter.store(emitter.float_to_half(wide), target, emitter.mul(index, 2))

    vectors, singles = (np.empty(len(floats), np.float16) for _ in range(2))
    execute("to_halves", build, path, floats, vectors, singles)
    with np.errstate(over="ignore"):
        expected = floats.astype(np.float16)
    for found in (vectors, singles):
        assert np.array_equal(found.view(np.uint16), expected.view(np.uint16))


@pytest.mark.parametrize("high", [2, 255])
def test_products_of_bytes_are_added_four_by_four(execute, path, high):
    """At their extremes, and wherever they lie; unsigned bytes beyond 2 only where the path takes them."""
    if high > 2 and not path.dot.startswith(("vpdpbusd", "multiply")):
        pytest.skip(f"{path.name} saturates")
    whole = path.vector_bytes

    def build(emitter):
        totals, unsigned, signed = (emitter.argument(index, POINTER) for index in range(3))
        operands = [emitter.load(vector(I8, whole), pointer) for pointer in (unsigned, signed)]
        total = emitter.dot(emitter.load(vector(I32, whole // 4), totals), *operands)
        emitter.store(total, totals)

    rng = np.random.default_rng(0)
    for low in (0, high):
        unsigned = rng.integers(low, high + 1, whole).astype(np.uint8)
        for signed in (np.full(whole, -128, np.int8), np.full(whole, 127, np.int8), rng.integers(-128, 128, whole)):
            signed = signed.astype(np.int8)
            before = rng.integers(-(2**30), 2**30, whole // 4).astype(np.int32)
            totals = before.copy()
            execute("dot", build, path, totals, unsigned, signed)
            # Which four lanes go together is the path's own: only their sum is what a kernel uses.
            expected = before.astype(np.int64).sum() + unsigned.astype(np.int64) @ signed.astype(np.int64)
            assert totals.astype(np.int64).sum() == expected


@pytest.mark.parametrize("count", [4, 8, 16])
@pytest.mark.parametrize(("kind", "dtype"), [(I32, np.int32), (F32, np.float32)], ids=["int32", "float32"])
def test_lanes_are_summed_one_vector_at_a_time_or_four(execute, kind, dtype, count):
    """Small integers, which float32 adds without rounding."""
    name = f"sums_{mangled(kind)}_{count}"

    def build(emitter):
        source, found = emitter.argument(0, POINTER), emitter.argument(1, POINTER)
        vectors = [emitter.load(vector(kind, count), source, 4 * count * index) for index in range(4)]
        emitter.store(sums_of(emitter, vectors), found)
        emitter.store(emitter.sum_lanes(vectors[2]), found, 16)

    source = np.random.default_rng(count).integers(-1000, 1000, (4, count)).astype(dtype)
    found = np.zeros(5, dtype)
    execute(name, build, GENERIC, source, found)
    assert found.tolist() == [*source.sum(axis=1), source[2].sum()]


def test_asking_for_cache_lines_beyond_memory_does_no_harm(execute):
    def build(emitter):
        for level in (1, 2):
            emitter.prefetch(emitter.argument(0, POINTER), 1 << 40, level)
        emitter.read_ahead(emitter.argument(0, POINTER), emitter.argument(1))

    execute("prefetch", build, GENERIC, np.zeros(1), 1 << 45)


def test_types_are_spelled_as_llvm_spells_them():
    kinds = (F16, F32, I16, I64, vector(F32, 16), vector(I8, 64))
    assert [mangled(kind) for kind in kinds] == ["f16", "f32", "i16", "i64", "v16f32", "v64i8"]
