"""What timings mean beside ceilings and peer, on synthetic samples; and the table that shows it."""

from __future__ import annotations

import msgspec
import pytest

from ternary_kernels.bench.cases import HEAD_SITE, Case
from ternary_kernels.bench.report import Ceiling, Machine, Peer, Report, Timing, to_rows
from ternary_kernels.bench.table import show


def timing(samples_s, **changes):
    base = {"kernel": "native", "path": "avx2", "format": "I2_S", "sites": ("q", "o"), "n_out": 100, "k_in": 200}
    case = Case(**base | {"m": 1, "threads": 1, "cold": True} | changes)
    return Timing(case, 5000, 3, tuple(samples_s))


PEER = {"kernel": "ggml", "path": None}
CEILINGS = (
    Ceiling("read", 1, 10**9, 1, (0.5, 0.1, 0.2)),  # 5 GB/s
    Ceiling("read", 2, 10**9, 1, (0.1,)),
    Ceiling("peak", 1, 10**9, 1, (0.1,)),  # 10 Gop/s
)


def test_figures_are_those_of_the_median_at_the_same_thread_count():
    (row,) = to_rows([timing([5e-6, 1e-6, 2e-6])], CEILINGS)
    assert row.figures.median_s == 2e-6
    assert row.figures.quartiles_s == pytest.approx((1.5e-6, 3.5e-6))
    assert row.figures.weight_bytes_per_s == pytest.approx(2.5e9)
    assert row.figures.of_read_bandwidth == pytest.approx(0.5)
    assert row.figures.of_peak == pytest.approx(2 * 100 * 200 / 2e-6 / 1e10)


def test_operations_grow_with_tokens():
    one, four = to_rows([timing([1e-6]), timing([1e-6], m=4)], CEILINGS)
    assert four.figures.of_peak == pytest.approx(4 * one.figures.of_peak)


def test_what_was_not_timed_is_unknown():
    (row,) = to_rows([timing([1e-6], threads=2)], CEILINGS)
    assert row.figures.of_read_bandwidth is not None
    assert row.figures.of_peak is None
    assert row.figures.times_peer is None


@pytest.mark.parametrize(
    ("ours", "peers", "times"),
    [
        ({}, {"format": "TQ2_0"}, 3.0),
        ({"format": "TL2"}, {"format": "TQ2_0"}, 3.0),
        ({"format": "IQ2_S"}, {"format": "TQ2_0"}, 3.0),
        ({"format": "F16"}, {"format": "F16"}, 3.0),
        ({}, {"format": "TQ1_0"}, None),
        ({"format": "F16"}, {"format": "TQ2_0"}, None),
        ({}, {"format": "TQ2_0", "m": 4}, None),
        ({}, {"format": "TQ2_0", "threads": 2}, None),
        ({}, {"format": "TQ2_0", "cold": False}, None),
        ({}, {"format": "TQ2_0", "n_out": 101}, None),
    ],
)
def test_ours_is_compared_with_the_peers_ternary_format_or_the_same_one_and_nothing_else_differs(ours, peers, times):
    row, peer = to_rows([timing([1e-6], **ours), timing([3e-6], **PEER, **peers)], CEILINGS)
    assert row.figures.times_peer == (None if times is None else pytest.approx(times))
    if peers["format"] != "TQ1_0":
        assert peer.figures.times_peer == pytest.approx(1.0)


@pytest.fixture
def report():
    timings = [
        timing([2e-6]),
        timing([1e-6], cold=False),
        timing([4e-6], **PEER, format="TQ2_0"),
        timing([8e-6], format="IQ2_S"),
        timing([2e-3], format="F16", sites=HEAD_SITE, n_out=400),
        timing([2e-3], format="Q8_0", sites=HEAD_SITE, n_out=700, threads=2),
    ]
    return Report(
        machine=Machine("Some CPU", "x86_64", ("avx2",), (0, 2)),
        versions={"python": "3.11"},
        peer=Peer("ggml", "0.20.2", ("avx2", "fma")),
        arena_bytes=64 << 20,
        seconds=1.0,
        seed=0,
        arithmetic="int8",
        ceilings=CEILINGS,
        rows=to_rows(timings, CEILINGS),
        notes=("something [bold]was[/bold] left out",),
    )


def test_the_table_shows_shapes_formats_and_figures_side_by_side(report, capsys):
    show(report)
    out = capsys.readouterr().out
    assert out.isascii()
    assert "Some CPU (x86_64), kernels for avx2; CPUs 0, 2" in out
    assert "peer: ggml 0.20.2, built for avx2, fma" in out
    assert "read bandwidth, threads 1: 5.0 GB/s" in out
    assert "int8 peak, threads 1: 10.0 Gop/s" in out
    assert "note: something [bold]was[/bold] left out" in out
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("| 1 ")]
    assert lines[0][:10] == ["1", "1", "I2_S", "native avx2", "0.002", "0.002-0.002", "2.5", "50", "200", "2.00"]
    assert lines[0][10:] == ["0.001", "0.001-0.001", "5", "100", "400", ""]
    assert lines[1][2] == "IQ2_S (lossy)"
    assert lines[2][2:4] == ["TQ2_0", "ggml"]
    assert lines[3][2] == "F16, 400 rows"
    assert "q/o 100 x 200" in out
    assert "head (a slice) x 200" in out
    assert out.count("cold ms") == 2
    assert out.count("warm ms") == 1


def test_without_peer_paths_and_features_the_table_says_nothing_of_them(report, capsys):
    show(msgspec.structs.replace(report, peer=None, machine=Machine("Some CPU", "x86_64", (), (0,))))
    out = capsys.readouterr().out
    assert "Some CPU (x86_64); CPUs 0\n" in out
    assert "peer" not in out


def test_a_report_survives_json(report):
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report
