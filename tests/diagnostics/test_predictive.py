"""Predictive checks: right models pass, wrong ones are found, and the exact values are met."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from ppl_gen.diagnostics import loo_pit, predictive_checks, psis, uniformity

Array = NDArray[np.float64]


def test_shares_count_the_data_and_halve_ties() -> None:
    replicated = np.array([[0.0], [1.0], [1.0], [2.0], [2.0], [2.0], [3.0]])
    checks = predictive_checks(replicated, [1.0])
    # Below it one; two and the data themselves half: (1 + 1.5) / 8.
    assert checks["mean"].below == pytest.approx(2.5 / 8)
    assert checks["maximum"].p_value == pytest.approx(5 / 8)
    assert checks["minimum"].observed == 1.0
    assert checks["minimum"].expected == pytest.approx(11 / 7)
    # All sds are 0.
    assert checks["sd"].p_value == pytest.approx(1.0)


def test_p_values_are_uniform_where_replicates_are_like_the_data() -> None:
    """Of 500 repetitions, each quantity's p-values, of continuous and of discrete data."""
    rng = np.random.default_rng(0)
    for draw in (rng.normal, lambda size: rng.poisson(3.0, size=size)):
        below: dict[str, list[float]] = {}
        for _ in range(500):
            checks = predictive_checks(draw(size=(199, 20)), draw(size=20))
            for name, check in checks.items():
                below.setdefault(name, []).append(check.below)
        for values in below.values():
            # Mid-p-values of discrete data are less spread than uniform ones, never more.
            assert np.mean(values) == pytest.approx(0.5, abs=4 * 0.29 / np.sqrt(500))
            assert np.std(values) < 0.2887 + 4 * 0.2887 / np.sqrt(2 * 500)
        assert uniformity(below["mean"]) > 0.001


def test_wrong_models_are_found_and_by_what() -> None:
    rng = np.random.default_rng(1)
    replicated = rng.normal(size=(1000, 100))
    shifted = predictive_checks(replicated, rng.normal(size=100) + 0.6)
    assert shifted["mean"].below > 0.999
    assert shifted["sd"].p_value > 0.01
    narrow = predictive_checks(replicated, 0.5 * rng.normal(size=100))
    assert narrow["sd"].p_value == pytest.approx(1 / 1001)
    assert narrow["sd"].below < 0.01
    data = rng.normal(size=100)
    data[7] = 9.0
    assert predictive_checks(replicated, data)["maximum"].p_value < 0.01


def test_quantities_of_ones_own() -> None:
    rng = np.random.default_rng(2)
    zeros = {"zeros": lambda data: (data == 0).mean(axis=-1)}
    inflated = rng.poisson(2.0, size=200) * (rng.random(200) < 0.6)
    checks = predictive_checks(rng.poisson(inflated.mean(), size=(1000, 200)), inflated, zeros)
    assert list(checks) == ["zeros"]
    assert checks["zeros"].p_value < 0.01


class Mean:
    """mean ~ N(0, 1), y ~ N(mean, 1): 40 observations, and draws of a posterior scaled by width."""

    @staticmethod
    def fitted(rng: np.random.Generator, width: float = 1.0) -> tuple[Array, Array, Array]:
        """Return replicated data, the data, and log-likelihoods."""
        y = rng.normal() + rng.normal(size=40)
        centre, sd = y.sum() / 41, 1 / np.sqrt(41)
        mean = centre + sd * rng.normal(size=(4, 250, 1))
        replicated = mean + width * rng.normal(size=(4, 250, 40))
        return replicated, y, stats.norm.logpdf(y, mean, width)


def test_pit_values_are_the_exact_ones() -> None:
    rng = np.random.default_rng(3)
    replicated, y, log_likelihood = Mean.fitted(rng)
    found = loo_pit(replicated, y, log_likelihood)
    others = y.sum() - y
    expected = stats.norm.cdf(y, others / 40, np.sqrt(1 + 1 / 40))
    # Of 1,000 draws, almost equally weighted: four standard errors of a share, largest of 40.
    np.testing.assert_allclose(found, expected, atol=4.5 * 0.5 / np.sqrt(1000) * 1.1)


def test_pit_values_are_uniform_where_predictions_are_right_and_else_not() -> None:
    rng = np.random.default_rng(4)
    right = np.concatenate([loo_pit(*Mean.fitted(rng)) for _ in range(25)])
    narrow = np.concatenate([loo_pit(*Mean.fitted(rng, width=0.75)) for _ in range(25)])
    wide = np.concatenate([loo_pit(*Mean.fitted(rng, width=1.33)) for _ in range(25)])
    assert uniformity(right) > 0.01
    assert uniformity(narrow) < 1e-4
    assert uniformity(wide) < 1e-4
    assert narrow.var() > 1 / 12 > wide.var()


def test_pit_values_of_counts_are_spread_at_random() -> None:
    """rate ~ Gamma(2, 1), 40 counts: draws of its exact posterior, by 25 repetitions."""
    rng, found = np.random.default_rng(5), []
    for seed in range(25):
        y = rng.poisson(rng.gamma(2.0), size=40)
        rate = rng.gamma(2.0 + y.sum(), 1 / 41, size=(4, 250, 1))
        replicated = rng.poisson(rate, size=(4, 250, 40))
        found.append(loo_pit(replicated, y, stats.poisson.logpmf(y, rate), seed=seed))
    assert uniformity(np.concatenate(found)) > 0.01


def test_pit_values_of_a_guide_are_mended_by_its_ratios() -> None:
    """mean ~ N(0, 1), 12 of y ~ N(mean, 1), by a guide that is an sd too high and a bit wide."""
    rng = np.random.default_rng(6)
    y = rng.normal(size=12)
    noise = rng.normal(size=(1, 20_000, 1))
    score = 1.0 + 1.2 * noise
    mean = (y.sum() + np.sqrt(13) * score) / 13
    ratios = 0.5 * (noise**2 - score**2)[..., 0]
    replicated = mean + rng.normal(size=(1, 20_000, 12))
    log_likelihood = stats.norm.logpdf(y, mean)
    expected = stats.norm.cdf(y, (y.sum() - y) / 12, np.sqrt(1 + 1 / 12))
    # Four standard errors of a share, of as many draws as the weights are worth.
    worth = min(psis(ratios[0] - column).ess for column in log_likelihood[0].T)
    error = 4 * 0.5 / np.sqrt(worth)
    plain, mended = (loo_pit(replicated, y, log_likelihood, r) for r in (None, ratios))
    np.testing.assert_allclose(mended, expected, atol=error)
    assert np.abs(plain - expected).mean() > 2 * error


def test_refuses_what_does_not_match() -> None:
    with pytest.raises(ValueError, match=r"got shapes \(5, 3\) and \(2,\)"):
        predictive_checks(np.zeros((5, 3)), np.zeros(2))
    with pytest.raises(ValueError, match="observed: expected finite numbers, got 1 of 3"):
        predictive_checks(np.zeros((5, 3)), [0.0, np.nan, 1.0])
    with pytest.raises(ValueError, match=r"\(2, 5, 3\), got shape \(10, 3\)"):
        loo_pit(np.zeros((10, 3)), np.zeros(3), np.zeros((2, 5, 3)))
