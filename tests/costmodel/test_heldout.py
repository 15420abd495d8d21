"""Errors on what was left out, and the form that they choose."""

import numpy as np
import pytest
from msgspec.structs import replace

from autotune.costmodel.heldout import fit, held_out
from autotune.costmodel.products import measured_products
from autotune.costmodel.roofline import Ceilings
from autotune.errors import BenchmarkError
from autotune.records import Failure
from tests.costmodel.synthetic import HEAD, LARGE, LONG, SITES, SMALL, WIDE, SyntheticHost, campaign_of


def by_name(report):
    return {error.left_out: error for error in report.held_out}


@pytest.mark.parametrize("form", ["sum", "max"])
def test_a_host_of_one_form_gets_that_form_and_no_error(form):
    host = SyntheticHost(form=form, utilisation=0.4)
    cost_model, (report,) = fit(campaign_of(host.outcomes()))
    assert report.roofline == cost_model.models["cpu"].form == form
    assert [error.left_out for error in report.held_out] == ["interior m", "site", "thread count"]
    for error in report.held_out:
        assert error.worst == pytest.approx(0, abs=1e-4)
    other = "max" if form == "sum" else "sum"
    wrong = held_out(measured_products(campaign_of(host.outcomes())), Ceilings(campaign_of(host.outcomes())), other)
    assert wrong[0].median > 0.01
    assert wrong[1].median > 0.005


def test_every_point_that_can_be_left_out_is():
    """Of 4 sites at 4 thread counts and 5 m: 3 interior m each; all points of sites with another of their format."""
    host = SyntheticHost()
    sites, threads, tokens = (SMALL, WIDE, LONG, HEAD), (1, 2, 4, 8), (1, 4, 16, 64, 128)
    campaign = campaign_of([*host.ceilings(), *host.products(sites, threads, tokens), *host.layer_rest()])
    errors = by_name(fit(campaign)[1][0])
    assert errors["interior m"].predictions == 4 * 4 * 3
    assert errors["site"].predictions == 3 * 4 * 5
    assert errors["thread count"].predictions == 4 * 4 * 5


def test_where_nothing_can_be_left_out_the_error_is_unknown():
    host = SyntheticHost()
    _, (report,) = fit(campaign_of([*host.ceilings(threads=(2,)), *host.products((SMALL, HEAD), (2,), (1, 16))]))
    for error in report.held_out:
        assert (error.predictions, error.median, error.p90, error.worst) == (0, None, None, None)
    assert report.roofline == "sum"


def test_errors_are_relative_and_absolute():
    """One point of three is off: leaving it out predicts the law's value, half or twice of what was measured."""
    host = SyntheticHost()
    for factor, error in ((2.0, 0.5), (0.5, 1.0)):
        curve = [
            replace(found, samples_s=(found.median_s * factor,)) if found.point.m == 16 else found
            for found in host.products((SMALL,), (1,), (1, 16, 64))
        ]
        campaign = campaign_of([*host.ceilings(), *curve])
        (interior, *_) = held_out(measured_products(campaign), Ceilings(campaign), "sum")
        assert interior.predictions == 1
        assert [interior.median, interior.p90, interior.worst] == pytest.approx([error] * 3, rel=1e-6)


def test_noise_shows_as_error_of_its_own_size():
    rng = np.random.default_rng(3)
    host = SyntheticHost()
    noisy = [
        replace(found, samples_s=(found.median_s * float(rng.normal(1, 0.03)),))
        for found in host.products(SITES, (1, 2, 4, 8), (1, 2, 4, 8, 16, 32, 64))
    ]
    for error in fit(campaign_of([*host.ceilings(), *noisy]))[1][0].held_out:
        assert 0.01 < error.median < 0.06
        assert error.median < error.p90 < error.worst


def test_the_report_gives_the_ceilings_by_thread_count():
    host = SyntheticHost(sigma=0.0, kappa=0.0)
    _, (report,) = fit(campaign_of([*host.ceilings(threads=(8, 1)), *host.products()]))
    assert list(report.read_bytes_per_s.items()) == [("1", pytest.approx(1e9)), ("8", pytest.approx(8e9))]
    assert list(report.operations_per_s.items()) == [("1", pytest.approx(2e10)), ("8", pytest.approx(1.6e11))]


def test_failures_in_the_campaign_leave_the_rest_usable():
    """A site that failed at one thread count, another at its last m, a third at all; two counts fix sigma alone."""
    host = SyntheticHost(kappa=0.0)
    lost = {
        SMALL.n_out * SMALL.k_in: lambda point: point.threads == 4,
        HEAD.n_out * HEAD.k_in: lambda point: point.m == 64,
        LARGE.n_out * LARGE.k_in: lambda point: True,
    }
    outcomes = [
        Failure(found.point, "wrong_result", "differs from the oracle")
        if found.point.op == "matmul"
        and lost.get(found.point.n_out * found.point.k_in, lambda point: False)(found.point)
        else found
        for found in host.outcomes()
    ]
    assert any(isinstance(outcome, Failure) for outcome in outcomes)
    errors = by_name(fit(campaign_of(outcomes))[1][0])
    assert errors["interior m"].predictions == 3 * 2 + 4 * 2 + 4 * 2 + 4
    for error in errors.values():
        assert error.worst == pytest.approx(0, abs=1e-4)


def test_a_thread_count_is_left_out_where_others_were_timed_as_well():
    """One token on one thread tells nothing of 64 on eight: a benchmark that had no need of that is no worse for it."""
    host = SyntheticHost()
    timed = [*host.products((SMALL,), (1,), (1,)), *host.products((SMALL,), (8,), (1, 16, 64))]
    errors = by_name(fit(campaign_of([*host.ceilings(), *timed]))[1][0])
    assert errors["thread count"].predictions == 2


def test_without_ceilings_there_is_no_cost_model():
    with pytest.raises(BenchmarkError, match="read bandwidth of cpu"):
        fit(campaign_of(SyntheticHost().products()))
