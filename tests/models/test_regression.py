"""Linear regression against closed forms and quadrature, logistic against its density."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pyro.poutine as poutine
import pytest
import torch
from scipy import integrate, stats

from ppl_gen.core import LogDensity, SiteError
from ppl_gen.models import BayesianLinearRegression, BayesianLogisticRegression

OPTIONS = {
    "known": {"noise_scale": 0.7},
    "known, no intercept": {"noise_scale": 0.7, "intercept": False},
    "unknown": {},
    "unknown, no intercept": {"intercept": False, "noise_concentration": 1.5, "noise_rate": 0.8},
    "informative": {"prior_scale": 0.3, "intercept_scale": 0.2, "noise_rate": 2.0},
}


@pytest.fixture
def data() -> Any:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(12, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(12, generator=generator, dtype=torch.float64)
    return {"x": x, "y": 1.5 + x @ torch.tensor([1.0, -0.5], dtype=torch.float64) + 0.6 * noise}


def design(pair: Any, x: Any) -> Any:
    """Return the design matrix and the prior scales of its columns, as NumPy arrays."""
    columns, scales = [x.numpy()], [pair.prior_scale] * pair.num_features
    if pair.intercept:
        columns.append(np.ones((len(x), 1)))
        scales.append(pair.intercept_scale)
    return np.hstack(columns), np.array(scales)


def log_joint(pair: Any, values: Any, data: Any) -> Any:
    trace = poutine.trace(poutine.condition(pair.model, values)).get_trace(**data)
    return float(trace.log_prob_sum())


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_joint_density_is_exact_posterior_times_evidence(options: Any, data: Any) -> None:
    pair = BayesianLinearRegression(2, **options)
    exact = pair.exact_posterior(**data)
    for seed in range(3):
        # Far from the posterior too: the identity holds at every point.
        generator = torch.Generator().manual_seed(seed)
        values = {
            "weights": 2 * torch.randn(2, generator=generator, dtype=torch.float64),
            "intercept": torch.randn((), generator=generator, dtype=torch.float64),
            "noise_scale": torch.rand((), generator=generator, dtype=torch.float64) + 0.1,
        }
        if not pair.intercept:
            del values["intercept"]
        if pair.noise_scale is not None:
            del values["noise_scale"]
        expected = log_joint(pair, values, data)
        assert float(exact.log_prob(values)) + exact.log_evidence == pytest.approx(expected, 1e-10)


def test_the_identity_fails_for_another_prior(data: Any) -> None:
    exact = BayesianLinearRegression(2, noise_scale=0.7, prior_scale=9.0).exact_posterior(**data)
    values = exact.sample(1)
    values = {name: value[0] for name, value in values.items()}
    other = log_joint(BayesianLinearRegression(2, noise_scale=0.7), values, data)
    assert abs(float(exact.log_prob(values)) + exact.log_evidence - other) > 0.05


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_evidence_is_the_marginal_density_of_the_responses(options: Any, data: Any) -> None:
    pair = BayesianLinearRegression(2, **options)
    matrix, scales = design(pair, data["x"])
    spread = matrix @ np.diag(scales**2) @ matrix.T
    y = data["y"].numpy()
    if pair.noise_scale is None:
        a, b = pair.noise_concentration, pair.noise_rate
        shape = b / a * (np.eye(len(y)) + spread)
        expected = stats.multivariate_t(np.zeros(len(y)), shape, df=2 * a).logpdf(y)
    else:
        covariance = pair.noise_scale**2 * np.eye(len(y)) + spread
        expected = stats.multivariate_normal(np.zeros(len(y)), covariance).logpdf(y)
    assert pair.exact_posterior(**data).log_evidence == pytest.approx(expected, 1e-8)


def test_moments_with_known_noise_agree_with_quadrature() -> None:
    # One weight: the model's own density on a grid, so that no formula is used twice.
    data = {"x": torch.tensor([[0.5], [1.0], [-2.0]]), "y": torch.tensor([1.0, 1.2, -3.0])}
    pair = BayesianLinearRegression(1, intercept=False, noise_scale=0.7)
    exact = pair.exact_posterior(**data)
    weights = torch.linspace(-2.0, 5.0, 701, dtype=torch.float64)
    density = torch.func.vmap(LogDensity(pair, data).log_prob)(weights[:, None]).exp().numpy()
    evidence = integrate.simpson(density, weights)
    mean = integrate.simpson(density * weights.numpy(), weights) / evidence
    square = integrate.simpson(density * weights.numpy() ** 2, weights) / evidence
    assert math.log(evidence) == pytest.approx(exact.log_evidence, abs=1e-6)
    assert mean == pytest.approx(float(exact.mean), abs=1e-6)
    assert square - mean**2 == pytest.approx(float(exact.covariance), abs=1e-6)


def test_moments_with_unknown_noise_agree_with_quadrature() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(10, 1, generator=generator)
    data = {"x": x, "y": 1.5 * x[:, 0] + 0.5 * torch.randn(10, generator=generator)}
    pair = BayesianLinearRegression(1, intercept=False)
    exact = pair.exact_posterior(**data)
    log_density = LogDensity(pair, data)
    assert list(log_density.sites) == ["noise_scale", "weights"]
    log_noise = torch.linspace(-2.5, 2.5, 401, dtype=torch.float64)
    weights = torch.linspace(-4.0, 7.0, 1101, dtype=torch.float64)
    grid = torch.cartesian_prod(log_noise, weights)
    # The density of log(noise): the Jacobian belongs to it.
    table = torch.func.vmap(log_density.log_prob)(grid).exp().reshape(401, 1101).numpy()
    over_weights = integrate.simpson(table, weights, axis=1)
    over_noise = integrate.simpson(table, log_noise, axis=0)
    evidence = integrate.simpson(over_weights, log_noise)
    assert math.log(evidence) == pytest.approx(exact.log_evidence, abs=1e-4)
    precision = integrate.simpson(over_weights * (-2 * log_noise).exp().numpy(), log_noise)
    assert precision / evidence == pytest.approx(exact.concentration / exact.rate, rel=1e-4)
    mean = integrate.simpson(over_noise * weights.numpy(), weights) / evidence
    square = integrate.simpson(over_noise * weights.numpy() ** 2, weights) / evidence
    assert mean == pytest.approx(float(exact.mean), rel=1e-4)
    # What the grid leaves out of the Student t tails is below 1e-3 of the variance.
    assert square - mean**2 == pytest.approx(float(exact.covariance), rel=2e-3)


def test_marginals_of_exact_draws(data: Any) -> None:
    pair = BayesianLinearRegression(2)
    exact = pair.exact_posterior(**data)
    draws = exact.sample(4000, seed=3)
    degrees = 2 * exact.concentration
    scales = (exact.relative_covariance.diagonal() * exact.rate / exact.concentration).sqrt()
    columns = [draws["weights"][:, 0], draws["weights"][:, 1], draws["intercept"]]
    tests = [
        stats.kstest(column, stats.t(degrees, float(loc), float(scale)).cdf)
        for column, loc, scale in zip(columns, exact.mean, scales, strict=True)
    ]
    noise = stats.invgamma(exact.concentration, scale=exact.rate)
    tests.append(stats.kstest(draws["noise_scale"].numpy() ** 2, noise.cdf))
    # Four tests: together they reject a correct sampler once in 250 seeds.
    assert min(test.pvalue for test in tests) > 1e-3
    # Negative control: the scale of the weights if the noise were known at its median.
    wrong = stats.norm(float(exact.mean[0]), 1.2 * float(scales[0]))
    assert stats.kstest(columns[0], wrong.cdf).pvalue < 1e-3


def test_known_noise_draws_have_the_exact_covariance(data: Any) -> None:
    exact = BayesianLinearRegression(2, noise_scale=0.7).exact_posterior(**data)
    draws = exact.sample(4000)
    joined = torch.cat([draws["weights"], draws["intercept"][:, None]], dim=1)
    white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(exact.covariance), (joined - exact.mean).T, upper=False
    )
    # Elements of the covariance of 4,000 standard normal draws have a standard error of at most
    # sqrt(2 / 4000) = 0.022; 4.5 of them.
    assert torch.allclose(white.T.mean(0), torch.zeros(3).double(), atol=4.5 / 4000**0.5)
    assert torch.allclose(torch.cov(white), torch.eye(3).double(), atol=0.1)


def test_draws_are_seeded_and_leave_the_generator_alone(data: Any) -> None:
    exact = BayesianLinearRegression(2).exact_posterior(**data)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again, other = exact.sample(3), exact.sample(3), exact.sample(3, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first["noise_scale"], again["noise_scale"])
    assert not torch.equal(first["noise_scale"], other["noise_scale"])


def test_exact_posterior_of_badly_conditioned_raw_data() -> None:
    # Years as a raw feature: slope and intercept correlate at about -0.99999. Rational arithmetic
    # gives the true answer; the normal equations in float64 would lose half of the digits.
    years = [1952 + i for i in range(40)]
    temperature = [Fraction(80 + (7 * i) % 13, 10) for i in range(40)]
    scale, wide = Fraction(10), Fraction(1000)
    xx = sum(Fraction(t) ** 2 for t in years) + 1 / scale**2
    x1 = Fraction(sum(years))
    n = len(years) + 1 / wide**2
    xy = sum(t * y for t, y in zip(years, temperature, strict=True))
    sy = sum(temperature)
    determinant = xx * n - x1**2
    slope, intercept = (n * xy - x1 * sy) / determinant, (xx * sy - x1 * xy) / determinant
    pair = BayesianLinearRegression(
        1, noise_scale=1.0, prior_scale=float(scale), intercept_scale=float(wide)
    )
    exact = pair.exact_posterior(
        torch.tensor(years, dtype=torch.float64)[:, None],
        torch.tensor([float(t) for t in temperature], dtype=torch.float64),
    )
    assert exact.mean.tolist() == pytest.approx([float(slope), float(intercept)], rel=1e-8)
    assert float(exact.covariance[0, 0]) == pytest.approx(float(n / determinant), rel=1e-8)


def test_covariance_is_infinite_where_it_is_undefined() -> None:
    pair = BayesianLinearRegression(1, noise_concentration=0.2)
    exact = pair.exact_posterior(torch.ones(1, 1), torch.ones(1))
    assert exact.concentration == pytest.approx(0.7)
    assert bool(exact.covariance.isinf().all())


def test_logistic_density() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    y = torch.tensor([0, 1, 1, 0, 1, 0])
    pair = BayesianLogisticRegression(2, prior_scale=2.0, intercept_scale=3.0)
    density = LogDensity(pair, {"x": x, "y": y})
    values = {
        "weights": torch.tensor([0.3, -1.0], dtype=torch.float64),
        "intercept": torch.tensor(0.5, dtype=torch.float64),
    }
    probability = 1 / (1 + np.exp(-(x.numpy() @ np.array([0.3, -1.0]) + 0.5)))
    expected = (
        stats.norm(0, 2).logpdf([0.3, -1.0]).sum()
        + stats.norm(0, 3).logpdf(0.5)
        + stats.bernoulli(probability).logpmf(y.numpy()).sum()
    )
    assert float(density.log_prob(density.unconstrain(values))) == pytest.approx(expected, 1e-10)


def test_logistic_takes_booleans_and_integers() -> None:
    pair = BayesianLogisticRegression(1)
    x = torch.tensor([[0.1], [0.2], [0.3]])
    densities = []
    for dtype in (torch.bool, torch.int64, torch.float32):
        density = LogDensity(pair, {"x": x, "y": torch.tensor([0, 1, 1]).to(dtype)})
        densities.append(float(density.log_prob(torch.tensor([0.3, -0.2], dtype=torch.float64))))
    assert densities[0] == densities[1] == densities[2]


LINEAR, LOGISTIC = BayesianLinearRegression, BayesianLogisticRegression


@pytest.mark.parametrize(
    ("pair", "x", "y", "words"),
    [
        (LINEAR(2), torch.zeros(4, 3), None, "num_features=3"),
        (LINEAR(1), torch.zeros(4), None, r"x\[:, None\]"),
        (LINEAR(2), torch.zeros(4, 2, dtype=torch.int64), None, r"x\.float\(\)"),
        (LINEAR(2), torch.zeros(0, 2), None, "at least one row"),
        (LINEAR(2), [1, 2], None, "got list"),
        (LINEAR(2), torch.zeros(4, 2), torch.zeros(5), "'y'.*equally many"),
        (LINEAR(2), torch.zeros(4, 2), torch.zeros(4, 1), r"y\.squeeze\(-1\)"),
        (LOGISTIC(2), torch.zeros(4, 2), torch.zeros(3), "'y'.*equally many"),
        (LOGISTIC(2), torch.zeros(2, 2), torch.tensor([1.0, 2.0]), "0 or 1, got 1 others"),
        (LOGISTIC(2), torch.zeros(2, 2), torch.tensor([-1, 1]), "the first -1"),
    ],
)
def test_bad_data(pair: Any, x: Any, y: Any, words: Any) -> None:
    with pytest.raises(SiteError, match=words):
        pair.validate(x, y)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"num_features": 0}, ValueError, "num_features: expected .* got 0"),
        ({"num_features": -3}, ValueError, "num_features"),
        ({"num_features": 2.0}, TypeError, "num_features"),
        ({"num_features": True}, TypeError, "num_features"),
        ({"num_features": 2, "prior_scale": 0.0}, ValueError, "prior_scale"),
        ({"num_features": 2, "intercept_scale": math.nan}, ValueError, "intercept_scale"),
        ({"num_features": 2, "prior_scale": "wide"}, TypeError, "prior_scale"),
    ],
)
@pytest.mark.parametrize("kind", [LINEAR, LOGISTIC])
def test_bad_options(kind: Any, options: Any, error: Any, words: Any) -> None:
    with pytest.raises(error, match=words):
        kind(**options)


@pytest.mark.parametrize("name", ["noise_scale", "noise_rate", "noise_concentration"])
def test_bad_noise(name: Any) -> None:
    with pytest.raises(ValueError, match=name):
        LINEAR(2, **{name: -1.0})
