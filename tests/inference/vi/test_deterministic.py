"""Normal guides on fixed noise: exact where that is known, and honest where they are not good."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from numpy.typing import NDArray

import ppl_gen as pg
from ppl_gen.core.evaluation import Evaluate
from ppl_gen.inference import SVI
from ppl_gen.inference.vi.deterministic import fit_normal, linear_response, standard_noise
from ppl_gen.inference.vi.families import Family, FullRank, LowRank, MeanField, Normal
from ppl_gen.inference.vi.mode import find_mode, flat_directions, hessian

Array = NDArray[np.float64]


def normal_density(covariance: Array, mean: Array) -> Evaluate:
    """Return the normalised density of a normal distribution."""
    target = torch.distributions.MultivariateNormal(
        torch.from_numpy(mean), torch.from_numpy(covariance)
    )

    def evaluate(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        slopes = -(vectors - target.loc) @ target.precision_matrix
        return target.log_prob(vectors), slopes

    return evaluate


def mixture_density(weights: Array, means: Array, variances: Array) -> Evaluate:
    """Return the density of a mixture of normal distributions, of one coordinate."""

    def evaluate(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = vectors.clone().requires_grad_()
        components = torch.distributions.Normal(
            torch.from_numpy(means), torch.from_numpy(np.sqrt(variances))
        )
        values = torch.logsumexp(components.log_prob(leaf) + torch.from_numpy(np.log(weights)), -1)
        (slopes,) = torch.autograd.grad(values.sum(), leaf)
        return values.detach(), slopes

    return evaluate


def correlated(r: float) -> Array:
    return np.array([[1.0, r], [r, 1.0]])


def test_noise_has_the_moments_of_the_standard_normal() -> None:
    noise = standard_noise(np.random.default_rng(0), 256, 5)
    np.testing.assert_allclose(noise.mean(axis=0), 0, atol=1e-14)
    np.testing.assert_allclose(noise.T @ noise / 256, np.eye(5), atol=1e-12)
    np.testing.assert_allclose((noise**3).mean(axis=0), 0, atol=1e-13)
    # No bias in the moments beyond: the mean over 40 scrambles is within five standard errors.
    fourth = [
        (standard_noise(np.random.default_rng(seed), 256, 5) ** 4).mean() for seed in range(40)
    ]
    assert abs(np.mean(fourth) - 3) < 5 * np.std(fourth) / np.sqrt(40)
    assert np.std(fourth) < np.sqrt(96 / 256 / 5)  # that of independent draws
    few = standard_noise(np.random.default_rng(0), 16, 30)
    np.testing.assert_allclose((few**2).mean(axis=0), 1, rtol=1e-12)


@pytest.mark.parametrize("r", [0.5, 0.9, -0.99])
def test_mean_field_on_a_correlated_normal(r: float) -> None:
    # Its scales are sqrt(1 - r^2) of the truth, and the bound is ln(1 - r^2) / 2 below it.
    mean = np.array([3.0, -100.0])
    evaluate = normal_density(correlated(r), mean)
    start = Normal(np.zeros(2), np.ones(2))
    fit = fit_normal(evaluate, MeanField, start, np.random.default_rng(1))
    assert fit.converged
    np.testing.assert_allclose(fit.normal.mean, mean, atol=1e-2 * np.sqrt(1 - r**2))
    np.testing.assert_allclose(fit.normal.sd, np.sqrt(1 - r**2), rtol=1e-2)
    np.testing.assert_allclose(fit.elbo[0], np.log(1 - r**2) / 2, atol=1e-3 + 5 * fit.elbo[1])


@pytest.mark.parametrize("r", [0.5, -0.99])
def test_linear_response_mends_the_scales(r: float) -> None:
    evaluate = normal_density(correlated(r), np.zeros(2))
    rng = np.random.default_rng(2)
    fit = fit_normal(evaluate, MeanField, Normal(np.zeros(2), np.ones(2)), rng)
    mended = linear_response(evaluate, MeanField(2), fit.normal, rng, fit.size)
    covariance = mended.factor @ mended.factor.T
    np.testing.assert_allclose(covariance, correlated(r), rtol=3e-2)


@pytest.mark.parametrize("make", [FullRank, lambda dim: LowRank(dim, 1)], ids=["full", "low"])
def test_the_exact_normal_is_found(make: Callable[[int], Family]) -> None:
    mean = np.array([3.0, -100.0])
    covariance = correlated(0.9) * np.outer([1e-3, 10.0], [1e-3, 10.0])
    evaluate = normal_density(covariance, mean)
    start = find_mode(evaluate, np.zeros(2)).diagonal()
    fit = fit_normal(evaluate, make, start, np.random.default_rng(3))
    assert fit.converged
    factor = fit.normal.factor
    np.testing.assert_allclose(fit.normal.mean, mean, rtol=1e-4)
    np.testing.assert_allclose(factor @ factor.T, covariance, rtol=2e-2)
    assert abs(fit.elbo[0]) < 1e-3


# Giordano, Broderick and Jordan (2018): optimal normal guides of two mixtures, and their linear
# response, by quadrature.
SKEWED = mixture_density(np.array([0.5, 0.5]), np.array([0.0, 2.5]), np.array([1 / 1.5, 2.0]))
WIDE = mixture_density(np.full(3, 1 / 3), np.array([-2.0, 0.0, 2.0]), np.array([2.0, 1 / 1.5, 2.0]))


@pytest.mark.parametrize(
    ("evaluate", "mean", "variance", "response"),
    [(SKEWED, 1.3557, 2.5497, 3.2540), (WIDE, 0.0, 4.1702, 4.1703)],
    ids=["skewed", "wide"],
)
def test_mixtures_whose_optimum_is_published(
    evaluate: Evaluate, mean: float, variance: float, response: float
) -> None:
    rng = np.random.default_rng(4)
    start = Normal(np.zeros(1), np.ones(1))
    fit = fit_normal(evaluate, MeanField, start, rng, tolerance=2e-3)
    assert fit.converged
    # Errors of 0.002 sd, and 0.004 of a variance.
    np.testing.assert_allclose(fit.normal.mean, mean, atol=5e-3 * np.sqrt(variance))
    np.testing.assert_allclose(fit.normal.sd**2, variance, rtol=1e-2)
    mended = linear_response(evaluate, MeanField(1), fit.normal, rng, 2**14)
    np.testing.assert_allclose(mended.sd**2, response, rtol=2e-2)


@pytest.mark.parametrize(
    ("evaluate", "mode", "variance"),
    [(SKEWED, 0.1115, 0.8492), (WIDE, 0.0, 1.1065)],
    ids=["skewed", "wide"],
)
def test_laplace_of_these_mixtures(evaluate: Evaluate, mode: float, variance: float) -> None:
    found = find_mode(evaluate, np.zeros(1))
    assert found.converged
    np.testing.assert_allclose(found.point, mode, atol=1e-3)
    np.testing.assert_allclose(found.normal().sd ** 2, variance, rtol=1e-3)


def test_the_hessian_on_scales_apart() -> None:
    covariance = correlated(0.9) * np.outer([1e-4, 1e4], [1e-4, 1e4])
    evaluate = normal_density(covariance, np.array([1.0, 1.0]))
    found = hessian(evaluate, np.array([1.0, 1.0]), np.ones(2))
    np.testing.assert_allclose(found, -np.linalg.inv(covariance), rtol=1e-5)


def test_a_mode_that_is_none_is_not_called_one() -> None:
    def saddle(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        signs = torch.tensor([-1.0, 1.0], dtype=torch.float64)
        return (signs * vectors**2).sum(-1) / 2, signs * vectors

    assert not find_mode(saddle, np.zeros(2)).converged


def test_a_mode_in_single_precision() -> None:
    covariance = correlated(0.9) * np.outer([0.1, 10.0], [0.1, 10.0])
    mean = np.array([3.0, -10.0])
    exact = normal_density(covariance, mean)

    def rounded(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, slopes = exact(vectors.float().double())
        return (values - 1000.0).float().double(), slopes.float().double()

    found = find_mode(rounded, np.zeros(2), rounding=float(np.finfo(np.float32).eps))
    assert found.converged
    assert found.evaluations < 300
    np.testing.assert_allclose((found.point - mean) / [0.1, 10.0], 0, atol=1e-2)
    root = found.normal().factor / np.array([[0.1], [10.0]])
    np.testing.assert_allclose(root @ root.T, correlated(0.9), rtol=0.05)
    # Negative control: with the limits of double precision it goes on for as long as it may.
    lost = find_mode(rounded, np.zeros(2))
    assert lost.evaluations > 3 * found.evaluations


def test_flat_directions_are_found() -> None:
    def ridge(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Along (1, -1, 0) nothing changes."""
        total, last = vectors[:, 0] + vectors[:, 1], vectors[:, 2]
        slopes = torch.stack([-total, -total, -last], dim=1)
        return -0.5 * (total**2 + last**2), slopes

    mode = find_mode(ridge, np.array([1.0, 2.0, 3.0]))
    (direction,) = flat_directions(ridge, mode)
    np.testing.assert_allclose(np.abs(direction), [2**-0.5, 2**-0.5, 0], atol=1e-6)
    for r in (0.5, -0.99999):
        evaluate = normal_density(correlated(r), np.zeros(2))
        assert flat_directions(evaluate, find_mode(evaluate, np.ones(2))) == []


@pytest.mark.parametrize("guide", ["mean_field", "full_rank"])
def test_a_funnel_is_not_fitted_from_its_neck(guide: str) -> None:
    """Its mode is there, 10^8 times as narrow as the draws; the optimum is known.

    With q(v) = N(m, s²) the best q(x) has the variance exp(m - s²/2), and the bound is at most
    log(s / 3), at s² = 1 / (1/9 + 9/2): any correlation of v with x averages out.
    """

    def funnel() -> None:
        v = pyro.sample("v", dist.Normal(0.0, 3.0))
        with pyro.plate("directions", 9):
            pyro.sample("x", dist.Normal(0.0, (v / 2).exp()))

    method: Any = SVI(guide=guide, draws=4000)  # type: ignore[arg-type]
    posterior = pg.fit(funnel, {}, method, progress=False)
    sd = (1 / 9 + 9 / 2) ** -0.5
    assert posterior.provenance["converged"]
    assert posterior.elbo is not None
    assert posterior.elbo[0] == pytest.approx(np.log(sd / 3), abs=0.01)
    # The error that the fit allows itself, 3 %, and that of 4,000 draws.
    assert posterior["v"].std() == pytest.approx(sd, rel=0.03 + 5 / (2 * 4000) ** 0.5)
    assert "k-hat" in posterior.warnings[0]


def test_a_wrong_gradient_is_not_called_an_optimum() -> None:
    right = normal_density(correlated(0.5), np.zeros(2))

    def wrong(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, slopes = right(vectors)
        return values, slopes + 0.5

    start = Normal(np.zeros(2), np.ones(2))
    assert not fit_normal(wrong, MeanField, start, np.random.default_rng(5)).converged


def regression(x: torch.Tensor, y: torch.Tensor) -> None:
    weights = pyro.sample("weights", dist.Normal(torch.zeros(2), 10.0).to_event(1))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(x @ weights, 0.5), obs=y)


def test_every_name_fits_a_regression() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 2, dtype=torch.float64) @ torch.tensor([[1.0, 0.9], [0.0, 0.4]]).double()
    y = x @ torch.tensor([1.0, -2.0]).double() + 0.5 * torch.randn(50).double()
    precision = x.T @ x / 0.25 + torch.eye(2) / 100
    covariance = torch.linalg.inv(precision)
    mean = covariance @ x.T @ y / 0.25
    exact = covariance.diagonal().sqrt()
    independent = precision.diagonal() ** -0.5
    scales = {
        "laplace": exact,
        "full_rank": exact,
        "low_rank": exact,
        "linear_response": exact,
        "mean_field": independent,
    }
    for guide, scale in scales.items():
        posterior = pg.fit(
            regression,
            {"x": x, "y": y},
            SVI(guide=guide, draws=4000),
            progress=False,  # type: ignore[arg-type]
        )
        draws = posterior["weights"][0]
        # The mean-field guide's k-hat is about the correlation, 0.9.
        assert bool(posterior.warnings) == (guide == "mean_field")
        assert posterior.provenance["converged"]
        # Standard errors of 4,000 draws: sd / 63 of a mean, 1 / 89 of an sd.
        assert (torch.abs(draws.mean(0) - mean) < 5 * scale / 63 + 0.02 * scale).all()
        torch.testing.assert_close(draws.std(0), scale, rtol=5 / 89 + 0.02, atol=0)


def gamma_scale(y: torch.Tensor) -> None:
    pyro.sample("rate", dist.Gamma(3.0, 1.0))
    mean = pyro.sample("mean", dist.ImproperUniform(dist.constraints.real, (), ()))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def test_delta_is_the_maximum_in_the_units_of_the_model() -> None:
    y = torch.tensor([1.0, 2.0, 6.0])
    posterior = pg.fit(gamma_scale, {"y": y}, SVI(guide="delta"), progress=False)
    assert posterior["rate"].shape == (1, 1)
    # The mode of a gamma distribution is (shape - 1) / rate; that of its logarithm is higher.
    torch.testing.assert_close(posterior["rate"][0, 0].item(), 2.0, rtol=1e-5, atol=0)
    torch.testing.assert_close(posterior["mean"][0, 0].item(), 3.0, rtol=1e-5, atol=0)
    assert posterior.provenance["converged"]
    assert posterior.elbo is None
    assert posterior.is_point
    # A point has no density, and so no bound; that of the model is in its own units.
    again = posterior.sample(draws=3)
    assert again["rate"].shape[:2] == (1, 3)
    assert again.elbo is None
    assert set(again.sample_stats) == {"lp"}
    lp = posterior.sample_stats["lp"][0, 0].item()
    np.testing.assert_allclose(again.sample_stats["lp"][0].numpy(), lp, rtol=1e-10)
    rate = dist.Gamma(3.0, 1.0).log_prob(torch.tensor(2.0))
    assert lp == pytest.approx(float(rate + dist.Normal(3.0, 1.0).log_prob(y).sum()), rel=1e-6)
    with pytest.raises(ValueError, match="one point, to which no draws can be added"):
        posterior.extend(10)


def spike(y: torch.Tensor) -> None:
    scale = pyro.sample("scale", dist.ImproperUniform(dist.constraints.positive, (), ()))
    pyro.sample("y", dist.Normal(y, scale), obs=y)


def test_a_density_without_maximum_is_told() -> None:
    posterior = pg.fit(spike, {"y": torch.zeros(())}, SVI(guide="delta"), progress=False)
    assert not posterior.provenance["converged"]
    assert "mode" in posterior.warnings[0]


def two_modes() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 10.0))
    low = dist.Normal(0.1, 0.5).log_prob(x) - 40.0
    high = dist.Normal(4.0, 0.5).log_prob(x)
    pyro.factor("modes", torch.logaddexp(low, high))


def test_a_mode_of_no_weight_is_not_stayed_in() -> None:
    # The origin is in the valley of the mode at 0.1, whose weight is exp(-40).
    posterior = pg.fit(two_modes, {}, SVI(guide="full_rank"), progress=False)
    assert abs(float(posterior["x"].mean()) - 4.0) < 0.2


def heavy() -> None:
    pyro.sample("x", dist.StudentT(2.0, torch.zeros(10), 1.0).to_event(1))


def test_heavy_tails_are_told() -> None:
    posterior = pg.fit(heavy, {}, SVI(guide="full_rank"), progress=False)
    assert "k-hat" in posterior.warnings[-1]
    assert posterior.provenance["pareto_k"] > 0.7
