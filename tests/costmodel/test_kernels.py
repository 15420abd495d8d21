"""Which kernel was the fastest, from synthetic times."""

from __future__ import annotations

from msgspec.structs import replace

from autotune.costmodel.kernels import fastest_kernels
from autotune.records import Configuration, Measurement, Point, SiteKernels
from tests.builders import build_campaign, build_model

CONFIGURATION = Configuration({"cpu": 2}, "cpu", decode_threads=2, prefill_threads=3, batch_size=4, prefill_chunk=64)


def timed(kernel, m, time_s, threads=2, site=("I2_S", 256, 256)):
    point = Point("matmul", "cpu", kernel, threads, m, *site)
    return Measurement(point, (time_s,), calls_per_sample=1, stopped="budget")


def fastest(*outcomes):
    return fastest_kernels(replace(build_campaign(), outcomes=outcomes), build_model(), CONFIGURATION)


def test_at_each_m_up_to_batch_and_chunk_the_fastest_counts():
    found = fastest(
        *(timed("native", m, 1.0 * m) for m in (1, 4, 16, 64, 128)),
        *(timed("amx", m, 10 + 0.5 * m) for m in (16, 64, 128)),
        timed("numpy", 1, 9.0),
    )
    assert found == (
        SiteKernels(
            *("I2_S", 256, 256),
            decode={"1": "native", "4": "native"},
            prefill={"1": "native", "4": "native", "16": "native", "64": "amx"},
        ),
    )


def test_the_heads_kernels_are_those_of_decode_alone():
    (head,) = fastest(timed("native", 1, 1.0, site=("F16", 1000, 256)))
    assert (head.decode, head.prefill) == ({"1": "native"}, {})


def test_threads_that_were_not_timed_are_as_the_nearest_that_were():
    (found,) = fastest(timed("native", 1, 1.0, threads=1), timed("numpy", 1, 1.0, threads=8))
    assert found.decode == found.prefill == {"1": "native"}


def test_sites_that_were_not_timed_are_left_out():
    assert fastest() == ()
