"""Kernel densities: right where they are smooth, upright at bounds, empty beyond them."""

import numpy as np
import pytest
from scipy import stats

from ppl_gen.report.density import estimate_density

DRAWS = 100_000


def integral(density: np.ndarray, low: float, high: float) -> float:
    return float(np.trapezoid(density, np.linspace(low, high, len(density))))


# With n = 100,000 the bandwidth h is at most 0.09 sd. In the open, the bias h^2 f'' / 2 is below
# 0.004 / sd and the sd sqrt(f / (2 sqrt(pi) n h)) below 0.006 for f <= 2; at a bound the reflected
# kernel has a bias of 0.8 h f', which is 0.04 for the exponential (h = 0.04, f' = -1) and 0.04 for
# the beta (h = 0.02, f' = -2), and an sd of 0.01. So: bias and four sds.
@pytest.mark.parametrize(
    ("distribution", "low", "high", "tolerance"),
    [
        (stats.norm(), -5.0, 5.0, 0.02),
        (stats.expon(), -1.0, 8.0, 0.08),
        (stats.uniform(2.0, 3.0), 1.0, 6.0, 0.02),
        (stats.beta(1.0, 2.0), -0.2, 1.2, 0.08),
    ],
)
def test_known_densities(
    distribution: stats.distributions.rv_frozen, low: float, high: float, tolerance: float
) -> None:
    draws = distribution.rvs(DRAWS, random_state=0)
    points = 1001
    density = estimate_density(draws, low, high, points)
    # Half a grid step from a jump, either side is right.
    grid = np.linspace(low, high, points)
    step = grid[1] - grid[0]
    away = np.ones(points, dtype=bool)
    for end in distribution.support():
        away &= np.abs(grid - end) > step
    np.testing.assert_allclose(density[away], distribution.pdf(grid[away]), atol=tolerance)
    assert integral(density, low, high) == pytest.approx(1.0, abs=0.01)


def test_nothing_leaks_below_zero_where_the_mass_is_at_zero() -> None:
    draws = np.abs(np.random.default_rng(1).standard_cauchy(4000))
    density = estimate_density(draws, -2.0, 10.0, 1201)
    grid = np.linspace(-2.0, 10.0, 1201)
    assert (density[grid < 0.0] == 0.0).all()
    # Not halved at the bound: the half-Cauchy's density at zero is 2 / pi = 0.64. The reflected
    # kernel with h = 0.11 averages it over that width (0.61), and the sd is 0.025.
    assert density[np.searchsorted(grid, 0.02)] == pytest.approx(2 / np.pi, abs=0.13)


def test_a_tail_is_no_bound() -> None:
    # No step at the end of the draws: the estimate goes to zero smoothly.
    draws = np.random.default_rng(2).normal(7.0, 1.0, size=1000)
    density = estimate_density(draws, 0.0, 14.0, 1401)
    assert np.abs(np.diff(density)).max() < 0.01


def test_draws_outside_the_grid_count_as_mass() -> None:
    rng = np.random.default_rng(3)
    draws = np.concatenate([rng.normal(size=2000), rng.normal(loc=1e6, size=2000)])
    density = estimate_density(draws, -10.0, 10.0)
    assert integral(density, -10.0, 10.0) == pytest.approx(0.5, abs=0.01)
    assert (estimate_density(draws, 1e3, 2e3) == 0.0).all()


def test_two_narrow_modes_are_not_smeared() -> None:
    # A standard deviation of 5 would give a bandwidth of 0.86, and a peak of 0.23 in place of 2.
    rng = np.random.default_rng(4)
    draws = rng.normal(scale=0.1, size=4000) + 5.0 * rng.choice([-1.0, 1.0], size=4000)
    density = estimate_density(draws, -6.0, 6.0, 1201)
    assert density.max() == pytest.approx(0.5 / (0.1 * np.sqrt(2 * np.pi)), rel=0.15)


def test_huge_and_tiny_units() -> None:
    draws = np.random.default_rng(4).normal(size=2000)
    plain = estimate_density(draws, -3.0, 3.0)
    for unit in (1e-12, 1e12):
        scaled = estimate_density(draws * unit, -3.0 * unit, 3.0 * unit)
        np.testing.assert_allclose(scaled * unit, plain, rtol=1e-6, atol=1e-9)


def test_two_values_are_enough() -> None:
    density = estimate_density(np.array([0.0, 1.0]), -1.0, 2.0)
    assert np.isfinite(density).all()
    assert density.max() > 0.0
