"""The Universal Scalability Law over thread counts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.costmodel.scaling import ScalabilityLaw
from tests.costmodel.synthetic import scaled

COUNTS = (1, 2, 4, 8, 16)
times = st.floats(min_value=1e-6, max_value=1e-2)


def curve(sigma, kappa, counts=COUNTS, t1=3e-3):
    """Synthetic times that follow the law exactly."""
    return {count: t1 * scaled(count, sigma, kappa) for count in counts}


@pytest.mark.parametrize(("sigma", "kappa"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.003), (0.08, 0.001), (0.9, 0.05)])
def test_exact_times_give_back_sigma_and_kappa_and_an_unseen_count(sigma, kappa):
    law = ScalabilityLaw(curve(sigma, kappa))
    t1, t1_sigma, t1_kappa = law.coefficients
    assert t1 == pytest.approx(3e-3, rel=1e-5)
    assert t1_sigma / t1 == pytest.approx(sigma, abs=1e-5)
    assert t1_kappa / t1 == pytest.approx(kappa, abs=1e-6)
    unseen = np.array([3, 6, 12, 24, 64])
    assert law.at(unseen) == pytest.approx([3e-3 * scaled(p, sigma, kappa) for p in unseen], rel=1e-5)


def test_noise_at_the_measured_counts_hardly_moves_an_unseen_count():
    rng = np.random.default_rng(0)
    noisy = {count: time_s * rng.uniform(0.97, 1.03) for count, time_s in curve(0.05, 0.001).items()}
    assert ScalabilityLaw(noisy).at(np.array([6]))[0] == pytest.approx(3e-3 * scaled(6, 0.05, 0.001), rel=0.04)


@given(st.dictionaries(st.integers(1, 256), times, min_size=1, max_size=9))
def test_measured_counts_come_back_exactly_and_all_others_are_positive(times_s):
    law = ScalabilityLaw(times_s)
    assert law.at(np.array(list(times_s))) == pytest.approx(list(times_s.values()), rel=1e-9)
    everywhere = law.at(np.arange(1, 300))
    assert np.isfinite(everywhere).all()
    assert (everywhere > 0).all()
    assert (law.coefficients >= 0).all()


def test_one_count_says_nothing_about_scaling_so_the_time_stays():
    assert ScalabilityLaw({4: 2e-3}).at(np.array([1, 4, 64])) == pytest.approx([2e-3] * 3)


def test_two_counts_are_fitted_by_contention_alone():
    """Two points can't tell contention from coherence: Amdahl's law, the milder one, is assumed."""
    law = ScalabilityLaw(curve(0.2, 0.0, counts=(1, 2)))
    assert law.at(np.array([1, 2, 8])) == pytest.approx([3e-3 * scaled(p, 0.2, 0.0) for p in (1, 2, 8)], rel=1e-6)
    any_times = np.random.default_rng(2).uniform(1e-3, 2e-3, (2, 200))
    assert not ScalabilityLaw({1: any_times[0], 2: any_times[1]}).coefficients[:, 2].any()


def test_what_the_law_leaves_over_is_interpolated_in_log_p():
    """A speed-up beyond linear: no contention, so two threads lie half-way between one and four."""
    assert ScalabilityLaw({1: 1.0, 4: 0.1}).at(np.array([2]))[0] == pytest.approx(0.1**0.5)


def test_a_kernel_that_collapses_under_contention_is_predicted_to_collapse():
    rising = curve(0.3, 0.2)
    assert rising[16] > rising[4] > rising[2]
    assert ScalabilityLaw(rising).at(np.array([32]))[0] == pytest.approx(3e-3 * scaled(32, 0.3, 0.2), rel=1e-5)


def test_scaling_beyond_linear_is_returned_where_measured_but_not_continued():
    """Sigma and kappa stay at or above zero: nothing measured says that a speed-up beyond linear goes on."""
    law = ScalabilityLaw({1: 1.0, 2: 0.4, 4: 0.15})
    assert law.coefficients[1:] == pytest.approx([0.0, 0.0])
    assert law.at(np.array([4, 8])) == pytest.approx([0.15, 0.075])


def test_fewer_threads_than_timed_are_not_faster_than_the_fewest_timed():
    """Times that explode between 4 and 8 threads would make a single thread almost free."""
    for slowest in (2.2e-3, 5e-3):
        law = ScalabilityLaw({4: 1e-3, 8: slowest})
        assert law.at(np.array([1, 2, 3])) == pytest.approx([1e-3] * 3)


def test_a_collapse_is_seen_without_a_time_on_one_thread():
    """The law's best fit has no time at all on one thread; beyond the collapse it must not turn round."""
    assert ScalabilityLaw({4: 1e-3, 8: 5e-3}).at(np.array([16]))[0] > 5e-3


def test_fewer_threads_than_timed_follow_the_law():
    law = ScalabilityLaw(curve(0.1, 0.001, counts=(2, 4, 8)))
    assert law.at(np.array([1]))[0] == pytest.approx(3e-3, rel=1e-5)


def test_the_fit_is_the_non_negative_least_squares_optimum():
    """The optimality conditions: no gradient where a coefficient is free, none downhill where it is at zero."""
    rng = np.random.default_rng(1)
    counts = np.array(COUNTS, np.float64)
    rows = np.array(list(curve(0.02, 0.0005).values())) * rng.uniform(0.7, 1.4, (200, len(COUNTS)))
    found = ScalabilityLaw({int(p): rows[:, column] for column, p in enumerate(counts)}).coefficients
    design = np.stack([1 / counts, (counts - 1) / counts, counts - 1], axis=-1) / rows[:, :, None]
    gradient = np.einsum("npk,np->nk", design, np.einsum("npk,nk->np", design, found) - 1)
    scale = np.abs(design).sum(axis=1)
    free = found > 0
    assert np.abs(gradient / scale)[free].max() < 1e-6
    assert (gradient / scale)[~free].min() > -1e-6
    assert 0 < (~free).sum() < free.sum()  # the noise takes some rows, not all, to the boundary


def test_rows_are_fitted_independently():
    together = ScalabilityLaw({p: [curve(0.1, 0.0)[p], 7 * curve(0.0, 0.01)[p]] for p in COUNTS})
    wanted = np.array([1, 3, 32])
    assert together.at(wanted) == pytest.approx(
        np.stack([ScalabilityLaw(curve(0.1, 0.0)).at(wanted), 7 * ScalabilityLaw(curve(0.0, 0.01)).at(wanted)])
    )
