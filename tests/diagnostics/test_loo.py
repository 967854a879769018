"""Leave-one-out cross-validation against a regression whose own is known, and against ArviZ."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from ppl_gen.diagnostics import import_arviz, loo, loo_weights, psis, waic

Array = NDArray[np.float64]


class Regression:
    """beta ~ N(0, I), y ~ N(X beta, 1), with draws of its posterior and its exact LOO."""

    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 3))
    y = x @ np.array([0.5, -1.0, 0.3]) + rng.normal(size=30)
    covariance = np.linalg.inv(np.eye(3) + x.T @ x)
    mean = covariance @ x.T @ y
    root = np.linalg.cholesky(covariance)

    @classmethod
    def exact(cls) -> tuple[Array, Array]:
        """Return mean and sd of each observation as the others predict it."""
        means, sds = [], []
        for i in range(30):
            x, y = np.delete(cls.x, i, axis=0), np.delete(cls.y, i)
            covariance = np.linalg.inv(np.eye(3) + x.T @ x)
            means.append(cls.x[i] @ covariance @ x.T @ y)
            sds.append(np.sqrt(1 + cls.x[i] @ covariance @ cls.x[i]))
        return np.array(means), np.array(sds)

    @classmethod
    def elpd(cls) -> Array:
        return np.asarray(stats.norm.logpdf(cls.y, *cls.exact()))

    @classmethod
    def fitted(cls) -> Array:
        """Return the log predictive density of each observation, itself not left out."""
        sds = np.sqrt(1 + ((cls.x @ cls.root) ** 2).sum(axis=1))
        return np.asarray(stats.norm.logpdf(cls.y, cls.x @ cls.mean, sds))

    @classmethod
    def draws(
        cls, shape: tuple[int, int], seed: int, scale: float = 1.0, coefficient: float = 0.0
    ) -> tuple[Array, Array]:
        """Return draws of N(mean, scale² covariance), AR(1) in time, and log joint minus log q."""
        noise = np.random.default_rng(seed).normal(size=(*shape, 3))
        for t in range(1, shape[1]):
            noise[:, t] *= np.sqrt(1 - coefficient**2)
            noise[:, t] += coefficient * noise[:, t - 1]
        ratios = -0.5 * (scale**2 - 1) * (noise**2).sum(axis=-1)
        return cls.mean + scale * noise @ cls.root.T, ratios

    @classmethod
    def log_likelihood(cls, beta: Array) -> Array:
        return np.asarray(stats.norm.logpdf(cls.y, beta @ cls.x.T))


def test_exact_cross_validation_of_a_regression() -> None:
    found = loo(Regression.log_likelihood(Regression.draws((4, 1000), seed=1)[0]))
    exact = Regression.elpd()
    assert found.bad == 0
    # Four Monte Carlo standard errors, which the next test looks at; about 0.05.
    assert abs(found.elpd - exact.sum()) < 4 * found.monte_carlo_error < 0.5
    assert found.error == pytest.approx(np.sqrt(30 * exact.var(ddof=1)), rel=0.02)
    expected = Regression.fitted().sum() - exact.sum()
    assert found.effective_parameters == pytest.approx(expected, abs=4 * found.monte_carlo_error)


@pytest.mark.parametrize(("coefficient", "scale"), [(0.0, 1.0), (0.8, 1.0), (0.0, 1.2)])
def test_the_monte_carlo_error_is_as_large_as_it_says(coefficient: float, scale: float) -> None:
    """Also of autocorrelated draws, and of a guide's that are reweighted.

    Of 150 repetitions the mean of z-scores has a standard error of 0.082 and their sd of 0.058;
    both have four, and the smoothing's bias, and the error of the ESS under autocorrelation.
    """
    exact, z = Regression.elpd().sum(), []
    for seed in range(150):
        beta, ratios = Regression.draws((4, 250), seed, scale, coefficient)
        found = loo(Regression.log_likelihood(beta), None if scale == 1 else ratios)
        z.append((found.elpd - exact) / found.monte_carlo_error)
    assert abs(np.mean(z)) < 4 * 0.082 + 0.2
    assert abs(np.std(z) - 1) < 4 * 0.058 + 0.1


def test_the_correction_mends_a_guide_that_is_too_narrow() -> None:
    """Its k is 1 - 0.7² = 0.51. The plain estimate is too high by more than 20 of its errors."""
    beta, ratios = Regression.draws((1, 20_000), seed=2, scale=0.7)
    log_likelihood = Regression.log_likelihood(beta)
    exact = Regression.elpd().sum()
    plain, corrected = loo(log_likelihood), loo(log_likelihood, ratios)
    assert plain.elpd - exact > 20 * plain.monte_carlo_error
    assert abs(corrected.elpd - exact) < 4 * corrected.monte_carlo_error < 0.4
    assert corrected.pareto_k.mean() > plain.pareto_k.mean()
    assert plain.effective_parameters < 0.7 * corrected.effective_parameters


def test_the_correction_mends_a_guide_that_is_too_wide() -> None:
    """Its weights are bounded, so that the answer is exact but for little Monte Carlo error."""
    beta, ratios = Regression.draws((1, 20_000), seed=13, scale=1.5)
    log_likelihood = Regression.log_likelihood(beta)
    plain, corrected = loo(log_likelihood), loo(log_likelihood, ratios)
    exact, fitted = Regression.elpd().sum(), Regression.fitted().sum()
    error = 4 * corrected.monte_carlo_error
    assert error < 0.25
    assert corrected.bad == 0
    assert corrected.elpd == pytest.approx(exact, abs=error)
    assert corrected.effective_parameters == pytest.approx(fitted - exact, abs=error)
    assert plain.elpd < exact - 2 * error
    assert plain.effective_parameters > fitted - exact + 2 * error


def test_a_guide_that_is_much_too_narrow_is_not_mended_and_says_so() -> None:
    beta, ratios = Regression.draws((1, 4000), seed=3, scale=0.3)
    assert loo(Regression.log_likelihood(beta), ratios).bad == 30


def arviz_data(log_likelihood: Array, beta: Array) -> Any:
    arviz = import_arviz()
    groups = {"posterior": {"beta": beta}, "log_likelihood": {"y": log_likelihood}}
    return arviz.from_dict(**groups) if arviz.__version__ < "1" else arviz.from_dict(groups)


@pytest.mark.arviz
@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto distribution is greater")
def test_equals_arviz() -> None:
    beta = Regression.draws((4, 500), seed=4)[0]
    log_likelihood = Regression.log_likelihood(beta)
    log_likelihood[:, :, 3] *= 8  # poorly predicted
    arviz = import_arviz()
    old = arviz.__version__ < "1"
    expected = arviz.loo(arviz_data(log_likelihood, beta), pointwise=True, reff=0.7)
    names = ("elpd_loo", "p_loo", "loo_i") if old else ("elpd", "p", "elpd_i")
    elpd, p, pointwise = (np.asarray(expected[name]) for name in names)
    found = loo(log_likelihood, relative_efficiency=0.7)
    # ArviZ 1.x takes another draw for the tail's beginning: k-hat is off by a fifth of its error.
    rounding = 1e-7 if old else 1e-3
    assert found.elpd == pytest.approx(float(elpd), rel=rounding)
    # ArviZ 0.x divides the variance by the number of observations, 1.x by one less.
    error = float(expected["se"]) * (np.sqrt(30 / 29) if old else 1.0)
    assert found.error == pytest.approx(error, rel=rounding)
    assert found.effective_parameters == pytest.approx(float(p), rel=10 * rounding)
    np.testing.assert_allclose(found.pointwise, pointwise, atol=10 * rounding)
    np.testing.assert_allclose(found.pareto_k, np.asarray(expected["pareto_k"]), atol=50 * rounding)
    assert found.threshold == pytest.approx(float(expected["good_k"]))


@pytest.mark.arviz
def test_the_correction_equals_arviz() -> None:
    arviz = import_arviz()
    if not hasattr(arviz, "loo_approximate_posterior"):
        pytest.skip("ArviZ 0.x has no correction for approximate posteriors")
    beta, ratios = Regression.draws((1, 4000), seed=12, scale=1.1)
    log_likelihood = Regression.log_likelihood(beta)
    expected = arviz.loo_approximate_posterior(
        arviz_data(log_likelihood, beta), ratios.ravel(), np.zeros(4000), pointwise=True
    )
    found = loo(log_likelihood, ratios)
    np.testing.assert_allclose(found.pointwise, np.asarray(expected.elpd_i), atol=1e-3)
    np.testing.assert_allclose(found.pareto_k, np.asarray(expected.pareto_k), atol=0.05)


@pytest.mark.arviz
@pytest.mark.filterwarnings("ignore:For one or more samples the posterior variance")
def test_waic_equals_arviz() -> None:
    arviz = import_arviz()
    if not hasattr(arviz, "waic"):
        pytest.skip("ArviZ 1.x has no WAIC")
    beta = Regression.draws((4, 500), seed=5)[0]
    log_likelihood = Regression.log_likelihood(beta)
    expected = arviz.waic(arviz_data(log_likelihood, beta), pointwise=True)
    found = waic(log_likelihood)
    # ArviZ divides variances by the number of draws.
    assert found.elpd == pytest.approx(float(expected["elpd_waic"]), rel=1e-4)
    assert found.effective_parameters == pytest.approx(
        float(expected["p_waic"]) * 2000 / 1999, rel=1e-8
    )
    np.testing.assert_allclose(found.pointwise, np.asarray(expected["waic_i"]), rtol=1e-3)


def test_waic_is_near_to_cross_validation_and_counts_where_it_may_fail() -> None:
    log_likelihood = Regression.log_likelihood(Regression.draws((4, 1000), seed=6)[0])
    found = waic(log_likelihood)
    # They differ by terms of the order of the variances squared.
    assert found.elpd == pytest.approx(Regression.elpd().sum(), abs=0.6)
    assert found.bad == int((log_likelihood.var(axis=(0, 1), ddof=1) > 0.4).sum())
    log_likelihood[:, :, [2, 5]] *= 10
    assert waic(log_likelihood).bad >= found.bad + 1


def test_many_observations_come_in_chunks() -> None:
    """1,000 draws of 2,000 observations are worked on in two chunks."""
    rng = np.random.default_rng(7)
    log_likelihood = rng.normal(size=(2, 500, 2000)) * rng.uniform(0.1, 1.0, size=2000)
    whole = loo(log_likelihood)
    parts = list(loo_weights(log_likelihood))
    assert [chosen.start for chosen, _ in parts] == [0, 1048]
    assert np.concatenate([weights for _, weights in parts]).shape == (2000, 1000)
    for i in (0, 1047, 1048, 1999):
        alone = loo(log_likelihood[:, :, [i]])
        assert alone.elpd == pytest.approx(whole.pointwise[i], rel=1e-12)
        assert alone.pareto_k[0] == pytest.approx(whole.pareto_k[i], rel=1e-12)


def test_weights_are_those_of_one_vector_smoothed_alone() -> None:
    log_likelihood = Regression.log_likelihood(Regression.draws((4, 500), seed=8)[0])
    ((chosen, log_weights),) = loo_weights(log_likelihood, relative_efficiency=1.0)
    assert chosen == slice(0, 30)
    for i in (0, 7):
        alone = psis(-log_likelihood[:, :, i].ravel())
        np.testing.assert_allclose(log_weights[i], alone.log_weights, atol=1e-12)


def test_autocorrelated_chains_have_a_longer_tail() -> None:
    """As relative efficiency says: estimated from the chains where it is not given."""
    log_likelihood = Regression.log_likelihood(
        Regression.draws((4, 1000), seed=9, coefficient=0.8)[0]
    )
    estimated, independent = loo(log_likelihood), loo(log_likelihood, relative_efficiency=1.0)
    about = loo(log_likelihood, relative_efficiency=0.2 / 1.8)
    gaps = [np.abs(about.pareto_k - one.pareto_k).mean() for one in (estimated, independent)]
    assert gaps[0] < gaps[1]


def test_torch_and_single_precision() -> None:
    log_likelihood = Regression.log_likelihood(Regression.draws((4, 500), seed=10)[0])
    double = loo(log_likelihood)
    assert loo(torch.from_numpy(log_likelihood)).elpd == double.elpd
    single = loo(torch.from_numpy(log_likelihood).float())
    # Log-likelihoods of a few nats are rounded by 1e-7 each.
    assert single.elpd == pytest.approx(double.elpd, abs=30 * 1e-6)
    np.testing.assert_allclose(single.pareto_k, double.pareto_k, atol=1e-4)


def test_draws_without_weight_do_not_count() -> None:
    beta, ratios = Regression.draws((1, 2000), seed=11, scale=1.2)
    log_likelihood = Regression.log_likelihood(beta)
    ratios[0, :5] = -np.inf
    expected = loo(log_likelihood, ratios)
    log_likelihood[0, :3] = -np.inf
    log_likelihood[0, 3] = np.nan
    ratios[0, :5] = np.nan
    found = loo(log_likelihood, ratios)
    np.testing.assert_array_equal(found.pointwise, expected.pointwise)
    assert found.monte_carlo_error == expected.monte_carlo_error
    log_likelihood[0, 5:7] = -np.inf
    with pytest.raises(ValueError, match="got 60 that are not, at 30 of 30 observations"):
        loo(log_likelihood, ratios)


def test_an_observation_that_no_draw_says_anything_of() -> None:
    found = loo(np.full((2, 100, 1), -1.5))
    assert found.elpd == pytest.approx(-1.5)
    assert found.pareto_k.tolist() == [-np.inf]
    assert (found.bad, found.monte_carlo_error) == (0, 0.0)
    assert np.isnan(found.error)
    assert loo(np.zeros((1, 10, 2))).bad == 2  # too few draws to tell


def test_refuses_what_are_no_log_likelihoods() -> None:
    with pytest.raises(ValueError, match=r"expected axes \(chain, draw, observation\)"):
        loo(np.zeros((10, 3)))
    with pytest.raises(ValueError, match=r"of the draws \(2, 10\), got shape \(20,\)"):
        loo(np.zeros((2, 10, 3)), np.zeros(20))
    with pytest.raises(ValueError, match="relative_efficiency: expected numbers above 0"):
        loo(np.zeros((2, 10, 3)), relative_efficiency=0.0)
    with pytest.raises(ValueError, match="at 1 of 3 observations, the first of them 2"):
        loo(np.where(np.arange(3) == 2, np.inf, np.zeros((2, 10, 3))))
    with pytest.raises(ValueError, match="at least two draws"):
        waic(np.zeros((1, 1, 3)))
