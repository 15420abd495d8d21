"""One interleaved run: kernels are checked first, then timed on their own weights, cold and warm."""

from __future__ import annotations

import importlib.util
import itertools
import re
from functools import partial

import numpy as np
import pytest

from ternary_kernels.arena import Arena
from ternary_kernels.backends import get_backend
from ternary_kernels.bench import ceilings
from ternary_kernels.bench.cases import Case
from ternary_kernels.bench.ggml import PACKAGE, Ggml
from ternary_kernels.bench.hardware import usable_cpus
from ternary_kernels.bench.measure import Bench, window_bytes
from ternary_kernels.bench.sampling import sample
from ternary_kernels.matmul import KERNELS, Matmul
from ternary_kernels.reference.products import NumpyI2S
from ternary_kernels.reference.step_ops import StepOps

CPUS = usable_cpus()
ARENA_BYTES = 4 << 20


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Notes don't depend on what else runs on this machine."""
    monkeypatch.setattr("ternary_kernels.bench.measure.sample", partial(sample, preempted=lambda: 0))


def case(kernel="numpy", weight_format="I2_S", m=1, threads=1, cold=True):
    return Case(
        kernel=kernel, path=None, format=weight_format, sites=(), n_out=128, k_in=512, m=m, threads=threads, cold=cold
    )


class WatchedArena(Arena):
    """Remembers the windows it gave away."""

    def __init__(self, size_bytes):
        super().__init__(size_bytes)
        self.windows = []

    def take(self, size_bytes):
        window = super().take(size_bytes)
        self.windows.append((window.ctypes.data, size_bytes))
        return window


@pytest.fixture
def kernel():
    """Registers a kernel for the length of a test."""
    names = []

    def register(multiply):
        class Temporary(Matmul):
            kernel = "temporary"
            formats = ("I2_S",)

            def _multiply(self, x, weights, out):
                multiply(self, x, weights, out)

        names.append(("temporary", "I2_S"))
        return Temporary

    yield register
    for name in names:
        del KERNELS[name]


def run(cases, seconds=0.4, ggml=None, arena=None):
    counts = sorted({each.threads for each in cases})
    with Bench(arena or Arena(ARENA_BYTES), CPUS, counts, ceilings.load(), ggml) as bench:
        return bench.run(cases, seconds)


def test_every_case_gets_samples_and_every_thread_count_its_ceilings():
    cases = [case(threads=threads, cold=cold) for threads in sorted({1, min(2, len(CPUS))}) for cold in (True, False)]
    cases.append(case(weight_format="F16", m=3))
    timings, limits, notes = run(cases)
    assert [timing.case for timing in timings] == cases
    assert all(min(timing.samples_s) > 0 and timing.calls_per_sample >= 1 for timing in timings)
    assert all(timing.weight_bytes == window_bytes(timing.case) for timing in timings)
    assert {(ceiling.what, ceiling.threads) for ceiling in limits} == {
        (what, each.threads) for what in ("read", "peak") for each in cases
    }
    assert all(ceiling.per_s > 1e6 for ceiling in limits)
    assert notes == []


def test_cold_weights_move_on_with_every_call_and_warm_ones_stay(kernel):
    seen = {}

    def multiply(self, x, weights, out):
        seen.setdefault(self.m, []).append(weights.ctypes.data)
        NumpyI2S("I2_S", self.n_out, self.k_in, self.m, self.team)._multiply(x, weights, out)

    kernel(multiply)
    arena = WatchedArena(ARENA_BYTES)
    run([case("temporary", m=1, cold=True), case("temporary", m=2, cold=False)], arena=arena)
    cold, warm = seen[1][1:], seen[2][1:]  # the first is the check, on a matrix of its own
    assert len(warm) > 2
    assert len(set(warm)) == 1
    assert all(first != second for first, second in itertools.pairwise(cold))
    assert set(cold) <= {address for address, _ in arena.windows}


def test_a_kernel_that_is_wrong_is_not_timed_and_noted_once(kernel):
    def multiply(self, x, weights, out):
        out[:] = 0

    kernel(multiply)
    cases = [case("temporary", m=m) for m in (1, 4)]
    timings, _, notes = run([*cases, case()])
    assert [timing.case.kernel for timing in timings] == ["numpy"]
    assert notes == ["temporary I2_S 128x512: not timed, it differs from the oracle"]


def test_a_kernel_that_fails_is_not_timed_and_its_error_is_noted(kernel):
    def multiply(self, x, weights, out):
        raise OSError("no such instruction")

    kernel(multiply)
    timings, _, notes = run([case("temporary"), case()])
    assert [timing.case.kernel for timing in timings] == ["numpy"]
    assert notes == ["temporary I2_S 128x512: not timed, OSError: no such instruction"]


def test_a_kernel_that_fails_on_the_way_is_out_and_its_error_is_noted(kernel):
    calls = []

    def multiply(self, x, weights, out):
        calls.append(weights)
        if len(calls) == 3:
            raise ValueError("expected luck, got none")
        NumpyI2S("I2_S", self.n_out, self.k_in, self.m, self.team)._multiply(x, weights, out)

    kernel(multiply)
    timings, _, notes = run([case("temporary"), case()])
    assert [timing.case.kernel for timing in timings] == ["numpy"]
    assert notes == ["temporary I2_S 128x512: ValueError: expected luck, got none"]


def test_what_had_no_turn_is_counted():
    cases = [case(m=m) for m in (1, 16)]
    timings, _, notes = run(cases, seconds=1e-9)
    assert timings == []
    assert notes == ["more --seconds needed: 2 of 2 cases had no turn within 1e-09 s"]


def test_that_the_machine_was_busy_is_noted(monkeypatch):
    monkeypatch.setattr("ternary_kernels.bench.measure.sample", partial(sample, preempted=itertools.count().__next__))
    _, _, (note,) = run([case()])
    assert re.fullmatch(r"noise: other processes took a CPU away during (\d+) of \1 samples", note)


def test_activations_are_quantised_within_the_time(monkeypatch):
    """The peer starts from floating-point activations as well."""
    calls = []
    real = get_backend("numpy")

    class Counting(StepOps):
        def quantize(self, x, out):
            run = super().quantize(x, out)
            return lambda: calls.append(len(x)) or run()

    monkeypatch.setattr(ceilings, "load", lambda: real._replace(step_ops=Counting))
    (timing,), _, _ = run([case(m=3)])
    assert len(calls) >= timing.calls_per_sample * len(timing.samples_s)


@pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason="libggml-python is not installed")
class TestPeer:
    def test_it_is_timed_in_the_same_run_on_the_same_arena(self):
        arena = WatchedArena(ARENA_BYTES)
        cases = [case("ggml", "TQ2_0"), case("ggml", "TQ2_0", cold=False), case("ggml", "F16", m=2), case()]
        timings, _, notes = run(cases, ggml=Ggml(CPUS), arena=arena)
        assert [timing.case for timing in timings] == cases
        assert notes == []
        size = window_bytes(cases[0])
        cold = timings[0]
        taken = [address for address, taken in arena.windows if taken == size]
        # The calls per sample are the last one's: earlier samples may have had fewer.
        assert len(taken) > cold.calls_per_sample * len(cold.samples_s) / 2
        assert len(set(taken)) > 10

    def test_where_it_is_wrong_it_is_not_timed(self, monkeypatch):
        monkeypatch.setattr("ternary_kernels.bench.numerics._TOLERANCE", 1e-9)
        timings, _, (note,) = run([case("ggml", "TQ2_0"), case()], ggml=Ggml(CPUS))
        assert [timing.case.kernel for timing in timings] == ["numpy"]
        assert note.startswith("ggml TQ2_0 128x512: not timed, it is 0.")
        assert note.endswith("% away from the exact product")


def test_formats_that_hold_no_small_matrix_are_checked_on_larger_ones():
    """TL1 and TL2 interleave rows."""
    cases = [case(weight_format=name) for name in ("TL1", "TL2", "IQ2_S", "TQ1_0", "Q6_K")]
    timings, _, notes = run([each for each in cases if ("numpy", each.format) in KERNELS])
    assert notes == []
    assert {timing.case.format for timing in timings} == {each.format for each in cases}
    assert np.isfinite([sample for timing in timings for sample in timing.samples_s]).all()
