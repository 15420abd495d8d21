"""What is timed on a GPU: every call on cold memory, in graphs that read more than the cache holds.

torch's CPU device stands in; where graphs and events are looked at, these are stand-ins too.
"""

from __future__ import annotations

import math
import time
from types import SimpleNamespace

import pytest
from msgspec.structs import replace

from autotune.bench.cold_memory import window_bytes
from autotune.bench.plan import Task
from autotune.records import Point
from tests.builders import build_model

torch = pytest.importorskip("torch")

from autotune.bench.gpu_subjects import GpuSubjects, event_stopwatch  # noqa: E402
from ternary_kernels.cuda.arena import DeviceArena  # noqa: E402

MIB = 1 << 20
COLD_BYTES = 1 * MIB
ON = {"device": "cuda:0", "threads": 1}
WORK = [
    Point("matmul", kernel="torch", m=1, format="I2_S", n_out=256, k_in=256, launch="graph", **ON),
    Point("matmul", kernel="torch", m=3, format="F16", n_out=128, k_in=256, launch="graph", **ON),
    Point("attention", kernel="torch", m=1, n_out=256, k_in=128, context=7, sequences=4, launch="graph", **ON),
    Point("attention", kernel="torch", m=8, n_out=256, k_in=128, context=7, launch="graph", **ON),
    Point("layer_ops", kernel="torch", m=2, n_out=768, k_in=256, launch="graph", **ON),
    Point("read", kernel="torch", k_in=MIB // 2, launch="graph", **ON),
    Point("peak", kernel="torch", m=32, format="I8", n_out=64, k_in=64, launch="graph", **ON),
    Point("peak", kernel="torch", m=32, format="F16", n_out=64, k_in=64, launch="graph", **ON),
]
TRANSFERS = [
    Point(op, kernel=memory, k_in=64, **ON)
    for op in ("upload", "download", "handover")
    for memory in ("pinned", "pageable")
]


def name_of(point):
    return "-".join(filter(None, (point.op, point.kernel, point.format, f"m{point.m}")))


class CountingArena(DeviceArena):
    """Remembers which windows were taken."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.windows = []

    def take(self, size_bytes):
        window = super().take(size_bytes)
        self.windows.append((window.data_ptr(), size_bytes))
        return window


@pytest.fixture
def arena():
    return CountingArena(4 * MIB, "cpu")


@pytest.fixture
def subjects(arena):
    return GpuSubjects(build_model(), arena, torch.device("cpu"), COLD_BYTES)


@pytest.fixture
def graphs(subjects, monkeypatch):
    """Has the subjects launch as on a GPU; returns the lengths that single calls seem to take, in seconds."""
    seems = SimpleNamespace(call_s=2.5e-5, did=[])

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            seems.did.append("an event")
            self.at = time.perf_counter()

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            assert end.at >= self.at
            return 1e3 * seems.call_s

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: seems.did.append("is kept busy"))
    subjects._has_graphs = True
    return seems


@pytest.mark.parametrize("point", WORK, ids=name_of)
def test_every_call_reads_its_own_window_of_cold_memory(subjects, arena, point):
    subject = subjects.build(Task(point))
    assert (subject.repeats, subject.stopwatch) == (1, None), "without graphs and events the clock times single calls"
    for _ in range(2):
        arena.windows.clear()
        subject.call()
        taken = sum(size for _, size in arena.windows)
        tail = 32 if point.format == "I2_S" else 0
        assert taken == window_bytes(Task(point)) - tail


@pytest.mark.parametrize("point", WORK[:4], ids=name_of)
def test_results_are_numbers(subjects, point):
    """The arena's bytes are weights in every format: NaN or infinity would be slow, or fast, for no good reason."""
    subjects.build(Task(point)).call()
    assert bool(torch.isfinite(subjects._outputs).all())


@pytest.mark.parametrize("point", WORK, ids=name_of)
def test_a_graph_reads_more_than_the_cache_holds_before_it_reads_anything_again(subjects, arena, graphs, point):
    subject = subjects.build(Task(point))
    assert subject.stopwatch is event_stopwatch
    assert subject.repeats >= 8
    arena.windows.clear()
    subject.call()
    window = window_bytes(Task(point))
    if window:
        assert len({start for start, _ in arena.windows}) == len(arena.windows)
        assert sum(size for _, size in arena.windows) > 0.99 * min(COLD_BYTES, 512 * window)


@pytest.mark.parametrize(
    ("call_s", "repeats"), [(1e-7, 200), (1e-6, 200), (2e-6, 100), (1e-4, 64), (1e-3, 10), (0.004, 2), (1.0, 1)]
)
def test_a_graph_of_long_calls_holds_fewer_and_one_of_short_calls_more(subjects, graphs, call_s, repeats):
    graphs.call_s = call_s
    point = replace(WORK[0], n_out=256, k_in=256)
    assert math.ceil(COLD_BYTES / (256 * 64)) == 64
    assert subjects.build(Task(point)).repeats == repeats


def test_how_long_a_call_takes_is_seen_without_the_time_of_launching_it(subjects, graphs):
    """Else that of a short call would be far too long, and its graph so short that its windows stay in the cache."""
    subjects.build(Task(WORK[0]))
    assert graphs.did == ["is kept busy", "an event", "an event"]


def test_eager_calls_are_launched_one_by_one(subjects, graphs):
    subject = subjects.build(Task(replace(WORK[0], launch="eager")))
    assert (subject.repeats, subject.stopwatch) == (1, event_stopwatch)


def test_of_a_sliced_site_only_the_slice_is_read(subjects, arena):
    subject = subjects.build(Task(replace(WORK[0], n_out=100_000), rows=1024))
    arena.windows.clear()
    subject.call()
    assert [size for _, size in arena.windows] == [1024 * 64]


@pytest.mark.parametrize("point", TRANSFERS, ids=name_of)
def test_transfers_are_timed_by_the_clock_as_the_host_waits_for_them(subjects, point):
    subject = subjects.build(Task(point))
    subject.call()
    assert (subject.repeats, subject.stopwatch) == (1, None)


@pytest.mark.parametrize(
    ("point", "sentence"),
    [
        (replace(WORK[0], kernel="abacus"), "no kernel 'abacus' for format 'I2_S'"),
        (replace(WORK[0], k_in=100), "k_in to be a multiple of 128, got 100"),
        (replace(WORK[2], kernel="abacus"), "no backend 'abacus'"),
        (replace(TRANSFERS[0], kernel="papyrus"), "upload: expected pinned or pageable memory, got 'papyrus'"),
    ],
)
def test_what_cannot_be_built_is_refused_in_a_sentence(subjects, point, sentence):
    with pytest.raises(ValueError, match=sentence):
        subjects.build(Task(point))


def test_buffers_grow_and_those_of_earlier_subjects_stay(subjects):
    small = subjects.build(Task(WORK[0]))
    subjects.build(Task(replace(WORK[0], n_out=4096)))
    small.call()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("point", [*WORK, *TRANSFERS], ids=name_of)
def test_all_of_it_runs_on_a_gpu(point):
    device = torch.device("cuda:0")
    subjects = GpuSubjects(build_model(), DeviceArena(4 * MIB, device), device, COLD_BYTES)
    for launch in ("graph", "eager"):
        subject = subjects.build(Task(replace(point, launch=launch)))
        stopwatch = subject.stopwatch or (lambda call, calls: [call() for _ in range(calls)] and 1.0)
        assert stopwatch(subject.call, 3) > 0
    torch.cuda.synchronize()
