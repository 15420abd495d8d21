"""The host's ceilings and the roofline time under them."""

import numpy as np
import pytest
from msgspec.structs import replace

from autotune.costmodel.roofline import Ceilings, product_of
from autotune.errors import BenchmarkError
from autotune.records import Failure, Point
from tests.costmodel.synthetic import HEAD, SMALL, SyntheticHost, campaign_of, measured, scaled

HOST = SyntheticHost()


def test_ceilings_are_bytes_and_operations_over_the_median_time():
    read = Point("read", "cpu", "numpy", 2, k_in=1_000_000)
    peak = Point("peak", "cpu", "numpy", 2, 100, "F32", 10, 50)
    slow, fast = measured(read, 3e-3), measured(peak, 1e-4)
    ceilings = Ceilings(campaign_of([replace(slow, samples_s=(1e-3, 2e-3, 9e-3)), fast]))
    assert ceilings.read_bytes_per_s == {2: pytest.approx(5e8)}
    # Two threads, each with 2 x 100 x 10 x 50 multiplications and additions.
    assert ceilings.operations_per_s == {2: pytest.approx(2e9)}


def test_ceilings_between_measured_thread_counts_follow_the_law():
    ceilings = Ceilings(campaign_of(HOST.ceilings()))
    slower = scaled(6, HOST.sigma, HOST.kappa)
    assert 1 / ceilings.byte_s(np.array([6]))[0] == pytest.approx(HOST.bytes_per_s / slower, rel=1e-6)
    assert 1 / ceilings.operation_s(np.array([6]))[0] == pytest.approx(HOST.operations_per_s / slower, rel=1e-6)


def test_of_several_kernels_the_fastest_gives_the_ceiling():
    """Whichever comes last in the campaign."""
    read = Point("read", "cpu", "numpy", 1, k_in=1_000_000)
    peak = measured(Point("peak", "cpu", "numpy", 1, 64, "F32", 32, 128), 1e-4)
    faster, slower = measured(replace(read, kernel="native"), 1e-3), measured(read, 2e-3)
    for outcomes in ([faster, slower, peak], [slower, faster, peak]):
        assert Ceilings(campaign_of(outcomes)).read_bytes_per_s == {1: pytest.approx(1e9)}


@pytest.mark.parametrize("form", ["sum", "max"])
@pytest.mark.parametrize("site", [SMALL, HEAD], ids=["ternary", "F16"])
def test_roofline_time_combines_bytes_and_operations(form, site):
    """Ternary activations are read as int8, others as float32; results are float32; weights count once."""
    ceilings = Ceilings(campaign_of(HOST.ceilings()))
    found = ceilings.time_s(product_of(site), np.array([1.0, 40.0]), np.array([1, 2, 4]), form)
    host = SyntheticHost(form=form)
    expected = [[host.roofline_s(site, m, threads) for m in (1, 40)] for threads in (1, 2, 4)]
    assert found == pytest.approx(np.array(expected), rel=1e-6)


@pytest.mark.parametrize(("op", "name"), [("read", "read bandwidth"), ("peak", "arithmetic")])
def test_a_missing_ceiling_is_one_sentence_that_names_it(op, name):
    """Failed points and those of another device don't count."""
    outcomes = HOST.ceilings(threads=(1,))
    others = [found for found in outcomes if found.point.op != op]
    (missing,) = [found.point for found in outcomes if found.point.op == op]
    elsewhere = measured(replace(missing, device="cuda:0"), 1e-3)
    with pytest.raises(BenchmarkError, match=f"^the {name} of cpu was not measured: expected .*[^.]$"):
        Ceilings(campaign_of([*others, elsewhere, Failure(missing, "crashed", "the worker died")]))
