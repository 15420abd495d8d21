"""Least squares with few unknowns, none negative."""

from __future__ import annotations

from itertools import chain, combinations

import numpy as np
import pytest

from autotune.costmodel.fitting import fit_line, fit_nonnegative

ALL_SETS = list(chain.from_iterable(combinations(range(3), size) for size in (1, 2, 3)))


class TestLine:
    def test_an_exact_line_is_found_in_every_column(self):
        x = np.array([[1.0, 2.0], [2.0, 5.0], [4.0, 9.0]])
        slope, overhead = fit_line(x, x * [3.0, 0.5] + [2.0, 7.0])
        assert slope == pytest.approx([3.0, 0.5])
        assert overhead == pytest.approx([2.0, 7.0])

    def test_a_negative_overhead_is_a_line_through_the_origin(self):
        slope, overhead = fit_line(np.array([1.0, 2.0]), np.array([1.0, 4.0]))
        assert overhead == 0
        assert 1.0 < slope < 2.0

    def test_a_falling_line_is_a_constant(self):
        slope, overhead = fit_line(np.array([1.0, 100.0]), np.array([2.0, 1.9]))
        assert slope == 0
        assert 1.9 < overhead < 2.0

    def test_equal_places_give_a_line_through_the_origin(self):
        slope, overhead = fit_line(np.array([5.0, 5.0]), np.array([10.0, 10.0]))
        assert (slope, overhead) == (pytest.approx(2.0), 0)


class TestNonnegative:
    def test_exact_unknowns_are_found_for_many_problems_at_once(self):
        rng = np.random.default_rng(0)
        design, wanted = rng.uniform(0.1, 1, (50, 6, 3)), rng.uniform(0, 2, (50, 3))
        found, left = fit_nonnegative(design, (design @ wanted[:, :, None])[:, :, 0], ALL_SETS)
        assert found == pytest.approx(wanted, abs=1e-6)
        assert left == pytest.approx(0, abs=1e-9)

    def test_none_is_negative_and_no_other_nonnegative_ones_leave_less(self):
        """Against all points of a fine grid."""
        rng = np.random.default_rng(1)
        design, target = rng.uniform(-1, 1, (20, 5, 2)), rng.uniform(0, 1, (20, 5))
        found, left = fit_nonnegative(design, target, [(0,), (1,), (0, 1)])
        assert (found >= 0).all()
        grid = np.stack(np.meshgrid(*[np.linspace(0, 3, 61)] * 2), axis=-1).reshape(-1, 2)
        for problem in range(len(design)):
            others = np.square(grid @ design[problem].T - target[problem]).sum(axis=1).min()
            assert min(left[problem], np.square(target[problem]).sum()) <= others + 1e-9

    def test_where_no_set_has_a_solution_nothing_is_left_unsaid(self):
        found, left = fit_nonnegative(-np.ones((1, 2, 1)), np.ones((1, 2)), [(0,)])
        assert found.tolist() == [[0.0]]
        assert left.tolist() == [np.inf]
