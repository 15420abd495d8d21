"""The peer: its products are right, its threads keep to themselves, and what isn't ggml is refused in a sentence."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from ternary_kernels.arena import Arena
from ternary_kernels.bench import ggml as module
from ternary_kernels.bench import numerics
from ternary_kernels.bench.ggml import PACKAGE, TYPES, Ggml, PeerError, Product
from ternary_kernels.bench.hardware import usable_cpus
from ternary_kernels.formats import get_format

installed = pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason="libggml-python is not installed")
CPUS = usable_cpus()
ROWS, COLUMNS = 37, 512


@pytest.fixture(scope="module")
def ggml():
    return Ggml(CPUS)


@pytest.fixture(params=sorted({1, min(2, len(CPUS)), len(CPUS)}), ids=lambda threads: f"{threads}threads")
def pool(ggml, request):
    with ggml.pool(request.param) as pool:
        yield pool


def operands(m, columns=COLUMNS, rows=ROWS):
    x = np.random.default_rng(m).standard_normal((m, columns), np.float32)
    return x, np.full((m, rows), np.nan, np.float32)


@installed
@pytest.mark.parametrize("name", TYPES)
def test_a_types_bytes_are_ours(name):
    held, layout = get_format(name), TYPES[name]
    assert (held.gguf_type, held.block) == layout[:2]
    assert held.size_bytes(3, 2 * layout.block) == 6 * layout.block_bytes


@installed
@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("m", [1, 5])
def test_a_product_is_that_of_the_weights_as_our_format_reads_them(ggml, pool, name, m):
    assert numerics.check_peer(ggml, pool, name, COLUMNS, m) is None


@installed
def test_every_call_reads_the_weights_it_is_given(ggml, pool):
    """Else cold weights would be warm ones."""
    held, rng = get_format("TQ2_0"), np.random.default_rng(0)
    x, out = operands(2)
    product = Product(ggml, pool, "TQ2_0", ROWS, x, out)
    for _ in range(3):
        weights = rng.integers(-1, 2, (ROWS, COLUMNS), np.int8)
        packed = held.pack(weights, 2.0)
        assert packed.nbytes == product.size_bytes
        product(packed)
        np.testing.assert_allclose(out, 2.0 * x @ weights.T, atol=0.03 * np.abs(out).max())
    product.close()


@installed
def test_activations_are_read_at_every_call(ggml, pool):
    """Else their quantisation would not be timed, as ours is."""
    x, out = operands(1)
    product = Product(ggml, pool, "TQ2_0", ROWS, x, out)
    data = get_format("TQ2_0").pack(np.ones((ROWS, COLUMNS), np.int8))
    product(data)
    x *= 2
    before = out.copy()
    product(data)
    np.testing.assert_allclose(out, 2 * before, rtol=1e-3)
    product.close()


@installed
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
def test_the_caller_is_put_back_where_it_was_and_the_threads_sleep(ggml):
    before = os.sched_getaffinity(0)
    x, out = operands(1)
    try:
        os.sched_setaffinity(0, {CPUS[0]})
        with ggml.pool(len(CPUS)) as pool:
            product = Product(ggml, pool, "F16", ROWS, x, out)
            for _ in range(2):
                product(Arena(product.size_bytes).take(product.size_bytes))
                pool.rest()
                assert os.sched_getaffinity(0) == {CPUS[0]}
            product.close()
        assert os.sched_getaffinity(0) == {CPUS[0]}
    finally:
        os.sched_setaffinity(0, before)


@installed
def test_on_a_system_without_affinity_threads_just_sleep(ggml, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", None, raising=False)
    with ggml.pool(1) as pool:
        pool.rest()


@installed
@pytest.mark.skipif(len(CPUS) < 2 or not Path("/proc/self/task").is_dir(), reason="needs 2 CPUs and Linux")
def test_each_thread_of_a_pool_has_one_cpu_and_no_two_the_same():
    before = set(Path("/proc/self/task").iterdir())
    mask = os.sched_getaffinity(0)
    library = Ggml(CPUS)
    x, out = operands(4)
    with library.pool(2) as pool:
        product = Product(library, pool, "F16", ROWS, x, out)
        product(Arena(product.size_bytes).take(product.size_bytes))
        (added,) = set(Path("/proc/self/task").iterdir()) - before
        masks = [os.sched_getaffinity(0), os.sched_getaffinity(int(added.name))]
        product.close()
    assert sorted(masks, key=sorted) == [{cpu} for cpu in sorted(CPUS[:2])]
    assert os.sched_getaffinity(0) == mask


@installed
def test_it_says_what_it_is_and_what_it_was_built_for(ggml):
    assert ggml.version.count(".") == 2
    assert set(ggml.features) <= set(module._FEATURES)


@installed
def test_it_says_what_the_cpu_has_and_the_build_does_without(ggml):
    assert ggml.unused(()) == ()
    every = ggml.unused(module._FEATURES.values())
    assert set(every) == set(module._FEATURES) - set(ggml.features)


@installed
def test_rows_that_no_block_fits_are_refused(ggml, pool):
    x, out = operands(1, columns=300)
    with pytest.raises(ValueError, match="ggml's TQ2_0 needs k_in to be a multiple of 256, got 300"):
        Product(ggml, pool, "TQ2_0", ROWS, x, out)


def test_without_the_package_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PeerError, match="not installed: pip install libggml-python"):
        Ggml(CPUS)


def test_a_folder_without_libraries_is_refused(tmp_path):
    with pytest.raises(PeerError, match=r"expected libggml-cpu\*\.so in .*, got none"):
        Ggml(CPUS, tmp_path)


def test_a_file_that_is_no_library_is_refused_with_the_reason(tmp_path):
    (tmp_path / "libggml-cpu.so").write_bytes(b"not a library")
    with pytest.raises(PeerError, match="none of 1 builds of its CPU backend runs here: "):
        Ggml(CPUS, tmp_path)


def test_a_library_without_ggmls_functions_is_refused(tmp_path):
    library = Path(importlib.util.find_spec("numpy._core._multiarray_umath").origin)
    shutil.copy(library, tmp_path / "libggml-cpu.so")
    with pytest.raises(PeerError, match="expected a library with ggml_version, got one without"):
        Ggml(CPUS, tmp_path)


def test_cpus_that_its_masks_cannot_name_are_refused():
    with pytest.raises(PeerError, match="expected CPUs below 512, which its masks end at, got 700"):
        Ggml((0, 700))


class Build:
    """A library that differs from the real one in some functions."""

    def __init__(self, real, **functions):
        self._real = real
        self._functions = functions

    def __getattr__(self, name):
        return self._functions[name] if name in self._functions else getattr(self._real, name)


@pytest.fixture
def differing(monkeypatch):
    """Loads the real library with some functions replaced (synthetic: another ggml)."""

    def load(**functions):
        real = module._load(module._find(None))
        monkeypatch.setattr(module, "_load", lambda paths: Build(real, **functions))
        return Ggml(CPUS)

    return load


@installed
@pytest.mark.parametrize(
    ("name", "function", "sentence"),
    [
        ("ggml_type_size", lambda number: 7, "expected .* values and bytes in a block of TQ2_0, got "),
        ("ggml_get_data", lambda tensor: 0, "its tensors are not laid out as in 0.20"),
        ("ggml_threadpool_params_init", lambda params, threads: None, "its threads are not set up as in 0.20"),
    ],
)
def test_another_ggml_is_refused_before_anything_relies_on_it(differing, name, function, sentence):
    with pytest.raises(PeerError, match=sentence):
        differing(**{name: function})


@installed
def test_what_ggml_reports_as_failed_is_an_error(differing):
    library = differing(ggml_graph_compute=lambda graph, plan: -1)
    x, out = operands(1)
    with library.pool(1) as pool:
        product = Product(library, pool, "F16", ROWS, x, out)
        with pytest.raises(RuntimeError, match="expected status 0, got -1"):
            product(np.zeros(product.size_bytes, np.uint8))
        product.close()


@installed
def test_no_memory_for_a_graph_is_said(differing):
    with pytest.raises(MemoryError, match="no memory for a graph"):
        differing(ggml_init=lambda params: None)


def test_of_several_builds_the_one_is_taken_that_rates_itself_best(monkeypatch):
    ratings = {"libggml-cpu-a.so": 3, "libggml-cpu-b.so": 9, "libggml-cpu-c.so": 0}

    def load(path):
        if path not in ratings:
            raise OSError("cannot open")
        return Build(path, ggml_backend_score=lambda: ratings[path])

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert module._load([Path(name) for name in ("broken.so", *ratings)])._real == "libggml-cpu-b.so"
    with pytest.raises(PeerError, match=r"none of 1 builds of its CPU backend runs here$"):
        module._load([Path("libggml-cpu-c.so")])
