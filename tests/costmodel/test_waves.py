"""A GPU's products, from synthetic laws with a launch's floor, waves of tiles and noise."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from autotune.costmodel.heldout import fit, held_out
from autotune.costmodel.products import Products, measured_products
from autotune.costmodel.roofline import Ceilings, product_of
from autotune.errors import BenchmarkError
from autotune.records import Site
from tests.builders import build_campaign
from tests.costmodel.synthetic import SyntheticHost, campaign_of
from tests.costmodel.synthetic_gpu import SyntheticGpu, with_gpu

SHAPES = {
    "2B-4T": ((3840, 2560), (2560, 2560), (13824, 2560), (2560, 6912)),
    "Llama3-8B": ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)),
}
"""Fused sites."""
GPUS = {
    "large": SyntheticGpu(),
    "laptop": SyntheticGpu(bytes_per_s=2.5e11, operations_per_s=1e14, multiprocessors=24, launch_s=4e-6),
}


def sites(name):
    return [Site(str(index), n_out, k_in, "I2_S") for index, (n_out, k_in) in enumerate(SHAPES[name])]


def campaign(gpu, timed):
    return with_gpu(build_campaign(outcomes=()), gpu, [*gpu.ceilings(), *gpu.products(timed)])


def products_of(gpu, timed, form="waves"):
    recorded = campaign(gpu, timed)
    return Products(measured_products(recorded, "cuda:0"), Ceilings(recorded, "cuda:0"), form)


def errors(gpu, timed, form):
    recorded = campaign(gpu, timed)
    grid = measured_products(recorded, "cuda:0")
    interior, site, _ = held_out(grid, Ceilings(recorded, "cuda:0"), form)
    return interior.median, site.median


def predict(products, site, tokens):
    return products.time_s(product_of(site), np.array(tokens, np.float64), np.ones(1, np.int64))[0]


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("gpu", GPUS)
def test_left_out_tokens_and_sites_are_predicted_within_the_goals(gpu, shapes):
    """4 % for an m between others, 6 % for a site, with 1 % noise and tiles of another shape for many tokens."""
    noisy = SyntheticGpu(**{**vars(GPUS[gpu]), "noise": 0.01})
    interior, site = errors(noisy, sites(shapes), "waves")
    assert interior < 0.04
    assert site < 0.06


def test_waves_are_chosen_where_tiles_come_in_waves_and_beat_both_plain_rooflines():
    gpu, timed = GPUS["large"], sites("2B-4T")
    host = SyntheticHost()
    recorded = with_gpu(campaign_of(host.outcomes()), gpu, [*gpu.ceilings(), *gpu.products(timed)])
    cost_model, (cpu, report) = fit(recorded)
    assert (cpu.device, report.device, report.roofline) == ("cpu", "cuda:0", "waves")
    assert cost_model.models["cuda:0"].form == "waves"
    waves, plain = errors(gpu, timed, "waves"), [errors(gpu, timed, form) for form in ("sum", "max")]
    for index in range(2):
        assert waves[index] < 0.5 * min(found[index] for found in plain)


def test_without_noise_the_law_is_found_but_where_the_tile_changes():
    """Few tokens are bound by memory and their tiles don't show; many are cut into tiles of 128 x 64."""
    gpu, (left_out, *others) = GPUS["large"], sites("2B-4T")
    tokens = (1, 2, 4, 8, 128, 256, 512)
    found = predict(products_of(gpu, others), left_out, tokens)
    assert found == pytest.approx([gpu.product_s(left_out, m) for m in tokens], rel=0.01)


def test_between_timed_tokens_times_follow_the_tiles():
    """65 tokens take two tiles of 64, as 128 do; interpolation by a plain roofline is far off."""
    gpu, timed = GPUS["large"], sites("2B-4T")
    for site in timed:
        expected = gpu.product_s(site, 65)
        waves, plain = (predict(products_of(gpu, timed, form), site, (65,))[0] for form in ("waves", "sum"))
        assert abs(waves / expected - 1) <= abs(plain / expected - 1) + 0.01
    largest = timed[2]
    assert predict(products_of(gpu, timed), largest, (65,))[0] == pytest.approx(gpu.product_s(largest, 65), rel=0.02)


def test_timed_points_come_back_exactly():
    gpu = SyntheticGpu(noise=0.1)
    timed = sites("Llama3-8B")
    products = products_of(gpu, timed)
    for outcome in gpu.products(timed):
        point = outcome.point
        site = Site("", point.n_out, point.k_in, point.format)
        assert predict(products, site, (point.m,))[0] == pytest.approx(outcome.median_s, rel=1e-9)


def test_a_single_site_is_predicted_from_itself():
    """As the head is, the only one of its format."""
    gpu, head = GPUS["large"], Site("head", 128256, 2560, "F16")
    found = predict(products_of(gpu, [head]), head, (1, 3, 48, 1024))
    assert (np.diff(found) >= 0).all()
    assert found[0] == pytest.approx(gpu.product_s(head, 1), rel=1e-9)
    assert found[3] == pytest.approx(gpu.product_s(head, 1024), rel=0.05)


def test_without_the_number_of_multiprocessors_there_is_still_a_prediction():
    gpu, (left_out, *others) = GPUS["large"], sites("2B-4T")
    recorded = campaign(gpu, others)
    unknown = replace(recorded, gpus=(replace(recorded.gpus[0], multiprocessors=None),))
    ceilings = Ceilings(unknown, "cuda:0")
    assert ceilings.multiprocessors == 1
    products = Products(measured_products(unknown, "cuda:0"), ceilings, "waves")
    assert predict(products, left_out, (1,))[0] == pytest.approx(gpu.product_s(left_out, 1), rel=0.05)


def test_a_format_that_was_not_timed_is_an_error_that_names_the_gpu():
    with pytest.raises(BenchmarkError, match=r"^the time of F16 8 x 32 on cuda:0 can't be predicted: "):
        predict(products_of(GPUS["large"], sites("2B-4T")), Site("head", 8, 32, "F16"), (1,))


def test_a_gpu_has_no_thread_count_to_leave_out_and_a_cpu_no_waves():
    gpu, host = GPUS["large"], SyntheticHost()
    recorded = with_gpu(campaign_of(host.outcomes()), gpu, [*gpu.ceilings(), *gpu.products(sites("2B-4T"))])
    _, (cpu, report) = fit(recorded)
    assert [error.left_out for error in report.held_out] == ["interior m", "site"]
    assert len(cpu.held_out) == 3
    assert cpu.roofline == "sum"
    assert report.read_bytes_per_s == {"1": pytest.approx(gpu.bytes_per_s)}


def test_an_m_is_left_out_of_all_sites_at_once():
    """Else the others at the same m would tell which kernel is used there: nothing does where no site was timed."""
    gpu, timed = GPUS["large"], sites("2B-4T")[:2]
    slow = [
        replace(found, samples_s=(found.median_s * 3,)) if found.point.op == "matmul" and found.point.m == 4 else found
        for found in [*gpu.ceilings(), *gpu.products(timed, (1, 2, 4, 8, 16))]
    ]
    recorded = with_gpu(build_campaign(outcomes=()), gpu, slow)
    interior, *_ = held_out(measured_products(recorded, "cuda:0"), Ceilings(recorded, "cuda:0"), "waves")
    assert interior.predictions == 6
    assert interior.worst > 0.6
