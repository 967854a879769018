"""Bands of the empirical distribution function: exact by enumeration, and by simulation."""

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from ppl_gen.diagnostics import ecdf_band, ecdf_p_values, uniformity

GRID = np.arange(1, 20) / 20


def counts_below(values: NDArray[np.float64], grid: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.stack([(values < point).sum(axis=0) for point in grid])


def test_p_value_of_one_point_is_the_binomial_one() -> None:
    p = ecdf_p_values([8], 30, [0.5])
    assert float(p) == pytest.approx(stats.binomtest(8, 30, 0.5).pvalue, rel=1e-9)


def test_p_values_are_those_of_enumeration() -> None:
    """All ways to put five numbers into three parts, on a grid of unequal steps."""
    size, grid = 5, np.array([0.2, 0.7])
    shares = np.diff([0.0, *grid, 1.0])
    ways, chances, tails = [], [], []
    for parts in itertools.product(range(size + 1), repeat=3):
        if sum(parts) == size:
            counts = np.cumsum(parts)[:2]
            ways.append(counts)
            chances.append(stats.multinomial.pmf(parts, size, shares))
            below, above = (
                stats.binom.cdf(counts, size, grid),
                stats.binom.sf(counts - 1, size, grid),
            )
            tails.append(np.minimum(1.0, 2 * np.minimum(below, above)).min())
    worst = np.array(tails)
    expected = [np.array(chances)[worst <= own * (1 + 1e-9)].sum() for own in worst]
    np.testing.assert_allclose(ecdf_p_values(np.array(ways).T, size, grid), expected, rtol=1e-9)


def test_p_values_are_those_of_simulation() -> None:
    """A p-value of p or less has the probability p, up to its few steps."""
    values = np.random.default_rng(0).uniform(size=(50, 4000))
    p = uniformity(values, points=20)
    for level in (0.01, 0.05, 0.2, 0.5):
        attained = p[p <= level].max()
        # Four standard errors of the share of 4,000.
        assert abs((p <= level).mean() - attained) < 4 * math.sqrt(attained / 4000)


def test_the_band_holds_what_it_says() -> None:
    low, high = ecdf_band(100, GRID, alpha=0.05)
    shares = counts_below(np.random.default_rng(1).uniform(size=(100, 20_000)), GRID) / 100
    left = ((shares < low[:, None] - 1e-9) | (shares > high[:, None] + 1e-9)).any(axis=0).mean()
    # The next narrower band, of which counts are integers, would be left by more than 5 %; this
    # one by more than 4 %. Four standard errors of a share of 20,000 are 0.006.
    assert 0.04 - 0.006 < left < 0.05 + 0.006


def test_band_and_p_value_agree() -> None:
    low, high = ecdf_band(2000, GRID, alpha=0.05)
    middle = np.round(2000 * GRID)
    for edge, outwards in ((low, -1), (high, 1)):
        counts = middle.copy()
        counts[5] = np.round(2000 * edge[5])
        assert ecdf_p_values(counts, 2000, GRID) > 0.05
        counts[5] += outwards
        assert ecdf_p_values(counts, 2000, GRID) <= 0.05


def test_uneven_numbers_are_found() -> None:
    values = np.random.default_rng(2).uniform(size=(400, 3))
    values[:, 1] **= 1.3
    values[:, 2] = 0.5 + 0.8 * (values[:, 2] - 0.5)
    p = uniformity(values)
    assert p[0] > 0.05
    assert (p[1:] < 0.001).all()


def test_very_uneven_numbers_have_a_small_p_value_that_is_no_less_than_zero() -> None:
    p = uniformity(np.stack([np.full(3000, 0.3), np.linspace(0, 1, 3000)], axis=1))
    assert 0 <= p[0] < 1e-10
    assert p[1] == pytest.approx(1.0)


def test_few_numbers() -> None:
    assert uniformity([0.5]) == pytest.approx(1.0)
    assert np.isnan(uniformity([[0.1, np.nan], [0.6, 0.2]])).tolist() == [False, True]


def test_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match=r"numbers between 0 and 1, got 0\.5 to 3"):
        uniformity([0.5, 3.0])
    with pytest.raises(ValueError, match="at least one number"):
        uniformity([])
    with pytest.raises(ValueError, match="ascending points between 0 and 1"):
        ecdf_band(10, [0.5, 0.5])
    with pytest.raises(ValueError, match="alpha: expected a probability"):
        ecdf_band(10, [0.5], alpha=5)
    with pytest.raises(ValueError, match="size: expected at least one"):
        ecdf_band(0, [0.5])
    with pytest.raises(ValueError, match="counts: expected 0 to 3 for each of 1 points"):
        ecdf_p_values([4], 3, [0.5])
