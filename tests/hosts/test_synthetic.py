"""The synthetic hosts themselves: their files are what the laws give, and the laws are near what was published."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from autotune.model.analyse import analyse
from autotune.records import Configuration, Measurement, Point
from autotune.search.workload import make_workload
from autotune.store import recording
from tests.hosts.synthetic.generate import FOLDER, main, record
from tests.hosts.synthetic.law import CpuLaw
from tests.hosts.synthetic.machines import LARGE, MACHINES, SMALL
from tests.hosts.synthetic.truth import Truth

BY_LABEL = {machine.host.label: machine for machine in MACHINES}

MAX_FILE_BYTES = 175_000


def test_the_files_are_what_the_laws_give(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Byte for byte; else run `python -m tests.hosts.synthetic.generate`. There are no others."""
    main(tmp_path)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_bytes() for path in FOLDER.glob("*.json")}
    assert max(map(len, made.values())) <= MAX_FILE_BYTES


@pytest.mark.parametrize("label", BY_LABEL)
def test_a_file_says_that_it_is_synthetic(label: str) -> None:
    """As a field for programs and in words for people, with what the times follow."""
    found = recording.read(FOLDER / f"{label}.json")
    assert found.synthetic
    assert found.note.startswith("SYNTHETIC, no such host was measured. ")
    assert found.note.endswith("Laws: tests/hosts/synthetic/law.py.")
    assert found.host.label == label


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.host.label)
def test_the_median_of_a_point_is_its_law(machine) -> None:
    """Within the noise, which is small and seeded, so that intervals exist and runs are alike."""
    (campaign,) = record(machine).campaigns[:1]
    for found in campaign.measurements():
        law = machine.cpu if found.point.device == "cpu" else machine.gpus[found.point.device]
        assert found.median_s == pytest.approx(law.time_s(found.point), rel=0.01)
        assert found.stopped == "beaten" or 0 < found.relative_interval <= 0.02
    assert campaign.noise.label == "quiet"


# Published figures: shared facts of the project, published_performance.csv.


@functools.cache
def truth(label: str, model: str) -> Truth:
    shapes = analyse(model)
    return Truth(BY_LABEL[label], shapes, make_workload("chat", shapes))


def decode_tokens_per_s(label: str, model: str, threads: int) -> float:
    layers = len(analyse(model).layers)
    return 1 / truth(label, model).times(Configuration({"cpu": layers}, "cpu", threads, threads, 1, 32)).tpot_s


@pytest.mark.parametrize(("threads", "published"), [(1, 15.49), (2, 28.58), (4, 49.32), (8, 66.25)])
def test_an_epyc_decodes_about_as_published(threads: int, published: float) -> None:
    """bitnet.cpp, 2B-4T in I2_S on an EPYC 7V13."""
    assert decode_tokens_per_s("server-slow-gpu", SMALL, threads) == pytest.approx(published, rel=0.25)


def test_a_laptop_decodes_a_70b_model_about_as_published() -> None:
    """bitnet.cpp on an i7-13700H: 2.44 tokens/s with the best number of threads."""
    best = max(decode_tokens_per_s("laptop-8gb-gpu", LARGE, threads) for threads in range(1, 21))
    assert best == pytest.approx(2.44, rel=0.15)


@pytest.mark.parametrize(("threads", "published"), [(1, 12.83), (2, 22.46), (4, 27.62), (8, 28.03)])
def test_a_ryzen_decodes_about_as_published(threads: int, published: float) -> None:
    """ik_llama.cpp, Falcon3-7B in a file of 2.07 GiB on a Ryzen 7950X, at 14.9 billion operations a token."""
    law = BY_LABEL["workstation-24gb-gpu"].cpu
    read_s = law.time_s(Point("read", "cpu", "native", threads, k_in=int(2.07 * 2**30)))
    # A peak of so many operations on every thread, spread over them.
    operations_s = law.time_s(Point("peak", "cpu", "native", threads, 1, "I8", 7_450_000, 1000)) / threads
    assert 1 / (read_s + operations_s) == pytest.approx(published, rel=0.15)


@pytest.mark.parametrize(
    ("n_out", "k_in", "published_us"),
    [(2560, 2560, 13.32), (3840, 2560, 14.9), (13824, 2560, 18.75), (2560, 6912, 14.49), (20480, 3200, 30.99)],
)
def test_an_a100_multiplies_about_as_published(n_out: int, k_in: int, published_us: float) -> None:
    """W2A8 products of one token, launched one by one."""
    law = BY_LABEL["server-two-sockets-two-gpus"].gpus["cuda:0"]
    point = Point("matmul", "cuda:0", "triton", 1, 1, "I2_S", n_out, k_in, launch="eager")
    assert law.time_s(point) * 1e6 == pytest.approx(published_us, rel=0.2)


# What the laws say of threads


def operations_per_s(law: CpuLaw, threads: int) -> float:
    point = Point("peak", "cpu", "native", threads, 64, "I8", 64, 64)
    return threads * 2 * 64**3 / law.time_s(point)


def test_equal_shares_wait_for_the_slowest_core() -> None:
    """A ninth thread, on an efficiency core, slows eight performance cores down; all 24 threads are faster again."""
    law = BY_LABEL["desktop-p-and-e-cores"].cpu
    assert operations_per_s(law, 9) < 0.5 * operations_per_s(law, 8)
    assert operations_per_s(law, 24) > operations_per_s(law, 8)


def test_memory_saturates_and_a_second_socket_adds_less_than_its_own() -> None:
    """Half of what it reads lies in the other one's memory."""
    law = BY_LABEL["server-two-sockets-two-gpus"].cpu

    def bytes_per_s(threads: int) -> float:
        return 1e9 / law.time_s(Point("read", "cpu", "native", threads, k_in=10**9))

    assert bytes_per_s(32) == pytest.approx(150e9, rel=0.01)
    assert bytes_per_s(64) == pytest.approx(0.8 * 300e9, rel=0.01)
    assert bytes_per_s(128) == bytes_per_s(64)


@pytest.mark.parametrize("op", ["upload", "handover"])
def test_a_law_is_asked_only_for_what_its_device_does(op: str) -> None:
    """A CPU hands nothing over to itself, a GPU's points name what a GPU runs."""
    with pytest.raises(ValueError, match="expected an operation of a CPU"):
        MACHINES[0].cpu.time_s(Point(op, "cpu", "pinned", 1, k_in=8))


def test_samples_are_measurements_of_the_records() -> None:
    """Each is positive and has four digits, so that files stay small."""
    found = record(MACHINES[0]).campaigns[0].outcomes
    assert all(isinstance(outcome, Measurement) for outcome in found)
    samples = [sample for outcome in found for sample in outcome.samples_s]
    assert all(sample > 0 and float(f"{sample:.4g}") == sample for sample in samples)
