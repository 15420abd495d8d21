"""Products at any m and thread count."""

import numpy as np
import pytest
from msgspec.structs import replace

from autotune.costmodel.products import Products, measured_products
from autotune.costmodel.roofline import Ceilings, Product, product_of
from autotune.errors import BenchmarkError
from autotune.records import Failure
from tests.costmodel.synthetic import (
    HEAD,
    LARGE,
    LONG,
    SITES,
    SMALL,
    WIDE,
    SyntheticHost,
    campaign_of,
    matmul,
    measured,
    site_bytes,
)

HOST = SyntheticHost(utilisation=0.5)


def products_of(outcomes, form="sum"):
    campaign = campaign_of(outcomes)
    return Products(measured_products(campaign), Ceilings(campaign), form)


def predict(products, site, tokens, threads):
    return products.time_s(product_of(site), np.array(tokens, np.float64), np.array(threads))


def expected(host, site, tokens, threads):
    return np.array([[host.product_s(site, m, count) for m in tokens] for count in threads])


def test_measured_points_come_back_exactly():
    """Even if they follow no law at all."""
    rng = np.random.default_rng(0)
    points = {(count, m): rng.uniform(1e-4, 1e-2) for count in (1, 2, 3, 8) for m in (1, 2, 16, 512)}
    timed = [measured(matmul(SMALL, count, m), time_s) for (count, m), time_s in points.items()]
    for form in ("sum", "max"):
        found = predict(products_of([*HOST.ceilings(), *timed], form), SMALL, (1, 2, 16, 512), (1, 2, 3, 8))
        assert found.ravel() == pytest.approx(list(points.values()), rel=1e-9)


@pytest.mark.parametrize("form", ["sum", "max"])
def test_a_kernel_that_follows_the_roofline_is_interpolated_over_m_and_threads(form):
    host = SyntheticHost(form=form, utilisation=0.5)
    products = products_of([*host.ceilings(), *host.products()], form)
    tokens, threads = (1, 3, 10, 50), (1, 3, 5, 7)
    for site in SITES:
        assert predict(products, site, tokens, threads) == pytest.approx(
            expected(host, site, tokens, threads), rel=1e-5
        )


def test_beyond_the_timed_m_utilisation_stays_what_it_was_last():
    products = products_of([*HOST.ceilings(), *HOST.products(tokens=(4, 16))])
    assert predict(products, WIDE, (1, 512), (2,)) == pytest.approx(expected(HOST, WIDE, (1, 512), (2,)), rel=1e-6)


def test_utilisation_that_changes_with_m_is_interpolated_in_the_logarithms():
    """Half-way in log m lies the geometric mean of the utilisations."""
    timed = [
        measured(matmul(SMALL, 1, m), HOST.roofline_s(SMALL, m, 1) / utilisation)
        for m, utilisation in ((4, 0.1), (64, 0.9))
    ]
    (found,) = predict(products_of([*HOST.ceilings(), *timed]), SMALL, (16,), (1,))
    assert found[0] == pytest.approx(HOST.roofline_s(SMALL, 16, 1) / 0.3, rel=1e-6)


def test_with_one_timed_thread_count_utilisation_is_kept_at_the_others():
    products = products_of([*HOST.ceilings(), *HOST.products(threads=(2,))])
    found = predict(products, LONG, (1, 16), (1, 2, 8))
    assert found == pytest.approx(expected(HOST, LONG, (1, 16), (1, 2, 8)), rel=1e-6)


def test_thread_counts_may_differ_in_which_m_were_timed():
    """A budget that ended early leaves the last m to some thread counts only."""
    outcomes = [*HOST.products(threads=(1,), tokens=(1, 4)), *HOST.products(threads=(2, 4), tokens=(1, 4, 64))]
    found = predict(products_of([*HOST.ceilings(), *outcomes]), SMALL, (64,), (1, 2, 3))
    assert found == pytest.approx(expected(HOST, SMALL, (64,), (1, 2, 3)), rel=1e-5)


def test_a_thread_count_that_was_not_timed_around_an_m_leaves_it_to_those_that_were():
    """Its utilisation at one token tells nothing of 64, where the kernel does much better."""
    timed = [
        measured(matmul(SMALL, count, m), HOST.roofline_s(SMALL, m, count) / utilisation)
        for count, m, utilisation in ((1, 1, 0.1), (8, 1, 0.1), (4, 1, 0.1), (1, 64, 0.8), (8, 64, 0.8))
    ]
    products = products_of([*HOST.ceilings(), *timed])
    found = predict(products, SMALL, (64,), (1, 4, 8))
    assert found[[0, 2]] == pytest.approx(expected(HOST, SMALL, (64,), (1, 8)) * 0.5 / 0.8, rel=1e-9)
    assert found[1] == pytest.approx(expected(HOST, SMALL, (64,), (4,))[0] * 0.5 / 0.8, rel=0.1)
    assert predict(products, SMALL, (1,), (4,))[0, 0] == pytest.approx(HOST.roofline_s(SMALL, 1, 4) / 0.1)


def test_one_thread_count_that_was_timed_around_an_m_tells_all_others_its_utilisation():
    timed = [
        measured(matmul(SMALL, count, m), HOST.roofline_s(SMALL, m, count) / utilisation)
        for count, m, utilisation in ((1, 1, 0.1), (8, 1, 0.1), (8, 64, 0.8))
    ]
    found = predict(products_of([*HOST.ceilings(), *timed]), SMALL, (64,), (1, 3, 8))
    assert found == pytest.approx(expected(HOST, SMALL, (64,), (1, 3, 8)) * 0.5 / 0.8, rel=1e-5)


class TestBandwidthCap:
    """A product can't be faster than its weights can be read, wherever it wasn't timed."""

    SATURATED = SyntheticHost(sigma=1.0, kappa=0.0)
    """More threads read no faster."""

    def test_an_unmeasured_thread_count_is_not_faster_than_the_bandwidth(self):
        """A kernel that gained from its second thread must not gain on without end."""
        reading = site_bytes(WIDE) / self.SATURATED.bytes_per_s
        timed = [measured(matmul(WIDE, count, 1), 4 * reading / count) for count in (1, 2)]
        products = products_of([*self.SATURATED.ceilings(), *timed])
        found = predict(products, WIDE, (1,), (1, 2, 3, 4, 8))[:, 0] / reading
        assert found == pytest.approx([4, 2, 4 / 3, 1, 1])

    def test_what_was_measured_stands_even_beyond_the_ceiling(self):
        reading = site_bytes(WIDE) / self.SATURATED.bytes_per_s
        timed = [measured(matmul(WIDE, count, 1), reading / count) for count in (1, 2)]
        found = predict(products_of([*self.SATURATED.ceilings(), *timed]), WIDE, (1,), (1, 2))[:, 0]
        assert found == pytest.approx([reading, reading / 2])

    def test_a_kernel_that_reads_faster_than_the_ceiling_raises_it(self):
        """Between two counts where it ran at twice the ceiling it is not thrown back to the ceiling."""
        reading = site_bytes(WIDE) / self.SATURATED.bytes_per_s
        timed = [measured(matmul(WIDE, count, 1), reading / 2) for count in (2, 8)]
        found = predict(products_of([*self.SATURATED.ceilings(), *timed]), WIDE, (1,), (4,))[0, 0]
        assert found == pytest.approx(reading / 2, rel=1e-6)


class TestUntimedProduct:
    """A product that wasn't timed is predicted from the others of its format."""

    def test_it_follows_the_roofline_and_overhead_of_the_others(self):
        host = SyntheticHost(utilisation=0.5, overhead_s=2e-5)
        timed = host.products(sites=(SMALL, WIDE, LONG))
        found = predict(products_of([*host.ceilings(), *timed]), LARGE, (1, 16), (1, 4))
        assert found == pytest.approx(expected(host, LARGE, (1, 16), (1, 4)), rel=1e-5)

    def test_one_other_gives_its_utilisation(self):
        tokens, threads = range(1, 65), range(1, 9)
        found = predict(products_of([*HOST.ceilings(), *HOST.products(sites=(SMALL,))]), LARGE, tokens, threads)
        assert found == pytest.approx(expected(HOST, LARGE, tokens, threads), rel=1e-5)

    def test_others_whose_overhead_would_be_negative_are_scaled_through_the_origin(self):
        """Larger products less efficient than smaller ones: a line below zero must not make a small one free."""
        timed = [
            measured(matmul(site, 1, 1), HOST.roofline_s(site, 1, 1) / utilisation)
            for site, utilisation in ((WIDE, 0.8), (LARGE, 0.4))
        ]
        found = predict(products_of([*HOST.ceilings(), *timed]), SMALL, (1,), (1,))[0, 0]
        roofline = HOST.roofline_s(SMALL, 1, 1)
        assert roofline / 0.8 < found < roofline / 0.4

    def test_another_format_is_no_help(self):
        """One sentence names the product and what was missing."""
        products = products_of([*HOST.ceilings(), *HOST.products(sites=(SMALL, WIDE))])
        with pytest.raises(
            BenchmarkError,
            match=r"^the time of F16 1000 x 256 can't be predicted: neither it nor another F16 product was timed$",
        ):
            predict(products, HEAD, (1,), (1,))


def test_of_several_kernels_the_fastest_counts():
    slower, faster = measured(matmul(SMALL, 1, 1, "slow"), 2e-3), measured(matmul(SMALL, 1, 1, "fast"), 1e-3)
    for outcomes in ([slower, faster], [faster, slower]):
        assert measured_products(campaign_of(outcomes)) == {Product("I2_S", 256, 256): {1: {1: 1e-3}}}


def test_failures_other_devices_and_other_operations_are_not_products():
    timed = measured(matmul(SMALL, 1, 1), 1e-3)
    outcomes = [
        *HOST.ceilings(),
        *HOST.layer_rest(),
        timed,
        Failure(matmul(WIDE, 1, 1), "hung", "no answer"),
        replace(timed, point=replace(timed.point, device="cuda:0", n_out=512)),
    ]
    assert measured_products(campaign_of(outcomes)) == {Product("I2_S", 256, 256): {1: {1: 1e-3}}}
