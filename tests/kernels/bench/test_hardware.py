"""CPUs in the order threads are pinned to them, and how much memory weights rotate through."""

from __future__ import annotations

import os

import psutil
import pytest

from ternary_kernels.bench import hardware


@pytest.fixture
def system(tmp_path):
    """Builds a /sys/devices/system/cpu of cores given by their siblings (synthetic)."""

    def build(*cores):
        for core in cores:
            for cpu in core:
                folder = tmp_path / f"cpu{cpu}/topology"
                folder.mkdir(parents=True)
                (folder / "thread_siblings_list").write_text(f"{','.join(map(str, core))}\n")
        return tmp_path

    return build


@pytest.mark.parametrize(
    ("cores", "usable", "order"),
    [
        ([(0, 1), (2, 3)], {0, 1, 2, 3}, (0, 2, 1, 3)),
        ([(0, 2), (1, 3)], {0, 1, 2, 3}, (0, 1, 2, 3)),
        ([(0, 1), (2, 3)], {1, 2, 3}, (1, 2, 3)),
        ([(0, 1)], {0, 1, 7}, (0, 7, 1)),
    ],
    ids=["siblings adjacent", "siblings apart", "a CPU taken away", "a CPU that is not described"],
)
def test_every_core_gets_a_thread_before_any_gets_two(system, monkeypatch, cores, usable, order):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: usable)
    assert hardware.usable_cpus(system(*cores)) == order


def test_where_there_is_no_affinity_all_cpus_are_usable(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert hardware.usable_cpus(tmp_path) == (0, 1, 2)


@pytest.mark.parametrize(
    ("usable", "counts"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8)), (13, (1, 2, 4, 8, 13))]
)
def test_thread_counts_are_powers_of_two_and_all(usable, counts):
    assert hardware.thread_counts(usable) == counts


@pytest.mark.parametrize(("available", "size"), [(64 << 30, 1 << 30), (1 << 30, 256 << 20)])
def test_weights_rotate_through_a_gibibyte_or_a_quarter_of_the_memory(monkeypatch, available, size):
    memory = psutil.virtual_memory()._replace(available=available)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert hardware.arena_bytes() == size


def test_the_cpu_is_named_as_linux_names_it_or_by_its_architecture(tmp_path):
    listing = tmp_path / "cpuinfo"
    listing.write_text("processor : 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name\t: Some CPU @ 2 GHz\n")
    assert hardware.cpu_name(listing) == "Some CPU @ 2 GHz"
    assert hardware.cpu_name(tmp_path / "missing")
