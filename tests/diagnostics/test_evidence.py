"""Log evidence against conjugate models whose own is known, its error against its scatter."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special, stats

from ppl_gen.diagnostics import Evidence, bridge_evidence, ess_bulk, importance_evidence, psis

Array = NDArray[np.float64]
REPETITIONS = 300


class LinearGaussian:
    """beta ~ N(0, I), y ~ N(X beta, 0.5)."""

    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 3))
    y = x @ np.array([0.5, -1.0, 0.3]) + 0.5 * rng.normal(size=20)
    covariance = np.linalg.inv(np.eye(3) + x.T @ x / 0.25)
    mean = covariance @ x.T @ y / 0.25
    log_evidence = float(
        stats.multivariate_normal(np.zeros(20), x @ x.T + 0.25 * np.eye(20)).logpdf(y)
    )

    @classmethod
    def log_joint(cls, beta: Array) -> Array:
        log_prior = stats.norm.logpdf(beta).sum(axis=-1)
        fitted = (beta @ cls.x.T)[..., :]
        return np.asarray(log_prior + stats.norm.logpdf(cls.y, fitted, 0.5).sum(axis=-1))


class GammaPoisson:
    """rate ~ Gamma(2, 1), counts ~ Poisson(rate); by the logarithm of the rate, which is skewed."""

    counts = np.array([0, 1, 0])
    shape, rate = 2.0 + counts.sum(), 1.0 + len(counts)
    log_evidence = float(
        special.gammaln(shape)
        - special.gammaln(2.0)
        - shape * np.log(rate)
        - special.gammaln(counts + 1).sum()
    )

    @classmethod
    def log_joint(cls, log_rate: Array) -> Array:
        rate = np.exp(log_rate)
        log_prior = stats.gamma.logpdf(rate, 2.0) + log_rate
        return np.asarray(
            log_prior + stats.poisson.logpmf(cls.counts[:, None, None], rate).sum(axis=0)
        )


def check_calibration(found: list[Evidence], truth: float, slack: float = 0.0) -> None:
    """Check that the errors are as large as they say.

    Of 300 repetitions the mean of z-scores has a standard error of 0.058, and their sd of 0.041.

    Args:
        found: The repetitions.
        truth: The log evidence.
        slack: What the logarithm of an unbiased estimate is too low by, in standard errors.
    """
    z = np.array([(one.log_evidence - truth) / one.error for one in found])
    assert abs(z.mean()) < 4 * 0.058 + slack
    assert abs(z.std() - 1) < 4 * 0.041 + slack
    assert all(one.reliable for one in found)


def autoregressive(coefficient: float, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Draw stationary AR(1) chains with variance one along axis 1."""
    draws = rng.normal(size=shape)
    for t in range(1, shape[1]):
        noise = np.sqrt(1 - coefficient**2) * draws[:, t]
        draws[:, t] = coefficient * draws[:, t - 1] + noise
    return draws


def bridge(
    log_joint: Callable[[Array], Array],
    log_proposal: Callable[[Array], Array],
    draws: Array,
    proposed: Array,
) -> Evidence:
    return bridge_evidence(
        log_joint(draws), log_proposal(draws), log_joint(proposed), log_proposal(proposed)
    )


def test_importance_sampling_of_a_linear_gaussian_model() -> None:
    case, rng, found = LinearGaussian, np.random.default_rng(1), []
    guide = stats.multivariate_normal(case.mean, 1.3**2 * case.covariance)
    for _ in range(REPETITIONS):
        beta = guide.rvs(size=2000, random_state=rng)
        found.append(importance_evidence(case.log_joint(beta) - guide.logpdf(beta)))
    check_calibration(found, case.log_evidence)


def test_importance_sampling_of_a_skewed_posterior() -> None:
    case, rng, found = GammaPoisson, np.random.default_rng(2), []
    for _ in range(REPETITIONS):
        log_rate = -0.5 + 0.9 * rng.normal(size=(1, 2000))
        ratios = case.log_joint(log_rate) - stats.norm.logpdf(log_rate, -0.5, 0.9)
        found.append(importance_evidence(ratios[0]))
    check_calibration(found, case.log_evidence)


def test_a_guide_that_is_too_narrow_gives_no_reliable_evidence() -> None:
    # k is 1 - 0.4² = 0.84.
    draws = 0.4 * np.random.default_rng(3).normal(size=20_000)
    found = importance_evidence(stats.norm.logpdf(draws) - stats.norm.logpdf(draws, 0, 0.4))
    assert not found.reliable
    assert found.log_evidence < 0


def test_an_exact_guide_has_the_evidence_without_error() -> None:
    weights = psis(np.full(1000, -12.5))
    found = importance_evidence(weights)
    assert found.log_evidence == pytest.approx(-12.5, abs=1e-12)
    assert found.error == pytest.approx(0.0, abs=1e-7)
    assert found.reliable
    same = bridge_evidence(np.zeros((2, 50)), np.ones((2, 50)), np.zeros(80), np.ones(80))
    assert same.log_evidence == pytest.approx(-1.0, abs=1e-8)
    assert same.error == pytest.approx(0.0, abs=1e-8)


def test_bridge_sampling_with_autocorrelated_draws() -> None:
    """With its negative control: shuffled draws look independent, and the error too small.

    Both kinds of draws make about half of the variance.
    """
    case, rng = LinearGaussian, np.random.default_rng(4)
    root = np.linalg.cholesky(case.covariance)
    proposal = stats.multivariate_normal(case.mean + 0.5 * root[:, 0], 0.7 * case.covariance)
    found, shuffled = [], []
    for _ in range(REPETITIONS):
        draws = case.mean + autoregressive(0.9, (4, 400, 3), rng) @ root.T
        proposed = proposal.rvs(size=200, random_state=rng)
        found.append(bridge(case.log_joint, proposal.logpdf, draws, proposed))
        mixed = rng.permutation(draws.reshape(-1, 3)).reshape(draws.shape)
        shuffled.append(bridge(case.log_joint, proposal.logpdf, mixed, proposed))
    check_calibration(found, case.log_evidence)
    naive = np.std([(one.log_evidence - case.log_evidence) / one.error for one in shuffled])
    assert naive > 1.3


def test_bridge_sampling_of_a_skewed_posterior() -> None:
    case, rng, found = GammaPoisson, np.random.default_rng(5), []

    def log_proposal(log_rate: Array) -> Array:
        return np.asarray(stats.norm.logpdf(log_rate, -0.4, 0.7))

    for _ in range(REPETITIONS):
        draws = np.log(rng.gamma(case.shape, 1 / case.rate, size=(2, 500)))
        proposed = -0.4 + 0.7 * rng.normal(size=(1, 1000))
        log_joint = case.log_joint(proposed)[0]
        found.append(
            bridge_evidence(
                case.log_joint(draws), log_proposal(draws), log_joint, log_proposal(proposed)[0]
            )
        )
    check_calibration(found, case.log_evidence)


def test_bridge_sampling_has_the_smaller_error() -> None:
    """From a proposal that is too narrow for importance sampling: k is 1 - 0.4² = 0.84."""
    rng = np.random.default_rng(6)
    draws, proposed = rng.normal(size=(4, 2000)), 0.4 * rng.normal(size=20_000)

    def log_proposal(x: Array) -> Array:
        return np.asarray(stats.norm.logpdf(x, 0, 0.4))

    ratios = stats.norm.logpdf(proposed) - log_proposal(proposed)
    found = bridge(stats.norm.logpdf, log_proposal, draws, proposed)
    assert not importance_evidence(ratios).reliable
    assert found.reliable
    assert abs(found.log_evidence) < 4 * found.error < 0.2


def test_the_estimate_is_the_fixed_point_of_the_iteration() -> None:
    """Of Meng and Wong's, as Gronau et al. (2017) write it, for draws that are independent."""
    rng = np.random.default_rng(7)
    draws, proposed = rng.normal(size=(1, 4000)), 1.0 + rng.normal(size=1000)
    at_draws = stats.norm.logpdf(draws) + 3 - stats.norm.logpdf(draws, 1.0)
    at_proposed = stats.norm.logpdf(proposed) + 3 - stats.norm.logpdf(proposed, 1.0)
    worth = min(float(ess_bulk(at_draws)), 4000.0)
    share, other = worth / (worth + 1000), 1000 / (worth + 1000)
    evidence = 1.0
    for _ in range(1000):
        first = np.mean(np.exp(at_proposed) / (share * np.exp(at_proposed) + other * evidence))
        second = np.mean(1 / (share * np.exp(at_draws) + other * evidence))
        evidence = float(first / second)
    found = bridge_evidence(
        at_draws, np.zeros_like(at_draws), at_proposed, np.zeros_like(at_proposed)
    )
    assert found.log_evidence == pytest.approx(np.log(evidence), abs=1e-8)


def test_proposals_outside_of_the_posterior_and_the_other_way_round() -> None:
    """Uniform on (0, 1) with density e², and a proposal that is uniform on (0.5, 2)."""
    rng = np.random.default_rng(8)
    draws, proposed = rng.uniform(size=(2, 2000)), rng.uniform(0.5, 2.0, size=4000)
    with np.errstate(divide="ignore"):
        found = bridge_evidence(
            np.full((2, 2000), 2.0),
            np.log((draws > 0.5) / 1.5),
            np.log(np.exp(2.0) * (proposed < 1)),
            np.full(4000, -np.log(1.5)),
        )
    assert abs(found.log_evidence - 2.0) < 4 * found.error < 0.2


def test_refuses_what_are_no_densities() -> None:
    good = np.zeros((2, 10)), np.zeros((2, 10)), np.zeros(10), np.zeros(10)
    with pytest.raises(ValueError, match=r"posterior_log_joint.*\(2, 10\) and \(3, 10\)"):
        bridge_evidence(good[0], np.zeros((3, 10)), *good[2:])
    with pytest.raises(ValueError, match=r"proposal_log_joint.*expected both \(draw,\)"):
        bridge_evidence(*good[:2], np.zeros((2, 10)), np.zeros((2, 10)))
    bad = np.zeros((2, 10))
    bad[0, :3] = -np.inf
    with pytest.raises(ValueError, match="at 3 of 20 draws"):
        bridge_evidence(bad, *good[1:])
    bad[0, :3] = np.nan
    with pytest.raises(ValueError, match="at 3 of 20 draws"):
        bridge_evidence(good[0], bad, *good[2:])
    with pytest.raises(ValueError, match="nothing in common"):
        bridge_evidence(*good[:2], np.full(10, -np.inf), good[3])
