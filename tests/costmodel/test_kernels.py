"""Which kernel was the fastest, from synthetic times."""

from __future__ import annotations

from msgspec.structs import replace

from autotune.costmodel.kernels import fastest_kernels
from autotune.records import Configuration, Measurement, Point, SiteKernels
from tests.builders import build_campaign, build_model
from tests.costmodel.synthetic_gpu import SyntheticGpu, with_gpu

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


def test_at_an_m_that_was_not_timed_on_the_nearest_threads_those_count_that_were():
    """As where a benchmark had no need of it there."""
    (found,) = fastest(
        timed("native", 1, 1.0, threads=2), timed("numpy", 1, 1.0, threads=8), timed("amx", 64, 1.0, threads=8)
    )
    assert (found.decode, found.prefill) == ({"1": "native"}, {"1": "native", "64": "amx"})


def test_sites_that_were_not_timed_are_left_out():
    assert fastest() == ()


def test_each_device_of_the_configuration_has_its_own():
    """A GPU's sites are fused; of identical GPUs the first one's points count; devices that aren't used have none."""
    gpu = SyntheticGpu()
    outcomes = (timed("native", 1, 1.0), *gpu.outcomes(build_model()))
    campaign = with_gpu(replace(build_campaign(), outcomes=outcomes), gpu, (), "cuda:1")
    configuration = replace(CONFIGURATION, device_layers={"cpu": 1, "cuda:1": 1}, head_device="cuda:1")
    found = fastest_kernels(campaign, build_model(), configuration)
    assert [(site.device, site.format, site.n_out, site.k_in) for site in found] == [
        ("cpu", "I2_S", 256, 256),
        ("cuda:1", "I2_S", 512, 256),
        ("cuda:1", "I2_S", 256, 256),
        ("cuda:1", "I2_S", 1536, 256),
        ("cuda:1", "I2_S", 256, 768),
        ("cuda:1", "F16", 1000, 256),
    ]
    assert found[0].decode == {"1": "native"}
    assert found[1].decode == {"1": "triton", "2": "triton", "4": "triton"}
    assert list(found[1].prefill) == ["1", "2", "4", "8", "16", "32", "64"]
    assert found[-1].prefill == {}


def test_the_kernel_counts_however_it_was_launched():
    points = [timed(kernel, 1, time_s) for kernel, time_s in (("torch", 1.0), ("triton", 2.0), ("triton", 0.5))]
    on_gpu = [
        replace(found, point=replace(found.point, device="cuda:0", threads=1, launch=launch))
        for found, launch in zip(points, ("graph", "eager", "graph"), strict=True)
    ]
    campaign = with_gpu(build_campaign(outcomes=()), SyntheticGpu(), on_gpu)
    configuration = replace(CONFIGURATION, device_layers={"cuda:0": 2}, head_device="cuda:0")
    (found,) = fastest_kernels(campaign, build_model(), configuration)
    assert found.decode == {"1": "triton"}
