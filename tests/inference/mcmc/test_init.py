"""Where chains start, and with what metric."""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_gen import Posterior, fit
from ppl_gen.core import LogDensity
from ppl_gen.core.evaluation import eagerly
from ppl_gen.core.scope import isolated
from ppl_gen.diagnostics import ess_bulk, rhat
from ppl_gen.inference import NUTS, SVI
from ppl_gen.inference.mcmc.init import first_metric, start_points
from ppl_gen.models import BayesianLinearRegression


def gamma_normal() -> None:
    rate = pyro.sample("rate", dist.Gamma(30.0, 2.0))
    pyro.sample("x", dist.Normal(rate, 0.5))


def improper() -> None:
    mean = pyro.sample("mean", dist.ImproperUniform(dist.constraints.real, (), ()))
    pyro.sample("y", dist.Normal(mean, 1.0), obs=torch.tensor(3.0))


def starts(model: Any, init: Any, chains: int = 50) -> tuple[LogDensity, torch.Tensor]:
    density = LogDensity(model, {})
    with isolated(0, torch.float64):
        points, values, gradients = start_points(density, eagerly(density), chains, init)
    assert torch.isfinite(values).all()
    assert torch.isfinite(gradients).all()
    expected, slopes = eagerly(density)(points)
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(gradients, slopes)
    return density, points


def test_uniform_starts() -> None:
    _, points = starts(gamma_normal, "uniform")
    assert (points.abs() <= 2).all()
    assert points.std(0).min() > 0.8  # that of the uniform is 1.15


def test_starts_from_the_prior() -> None:
    density, points = starts(gamma_normal, "prior", chains=400)
    rate = density.constrain(points)["rate"]
    # Gamma(30, 2): mean 15, sd 2.7; five standard errors of 400 draws.
    assert rate.mean().item() == pytest.approx(15.0, abs=5 * 2.74 / 20)
    assert rate.std().item() == pytest.approx(2.74, rel=5 / 28)


def test_an_improper_prior_starts_inside_its_support() -> None:
    starts(improper, "prior")


def test_starts_near_the_mode() -> None:
    density, points = starts(gamma_normal, "map", chains=8)
    # In log(rate) the mode of Gamma(30, 2) is at 15; 0.1 of spread is added.
    centre = torch.tensor([np.log(15.0), 15.0])
    assert ((points - centre).abs() < 0.5).all()
    assert (points.std(0) > 0.03).all()
    assert density.dim == 2


def test_a_start_astronomically_far_out_is_moved() -> None:
    def explodes() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal((60 * x).exp(), 1.0), obs=torch.tensor(0.5))

    # At x = 1 the log density is -1e52 and the scale of its gradient says nothing.
    _, points = starts(explodes, "uniform")
    assert points.max() < 0.2
    posterior = fit(explodes, {}, NUTS(chains=4, draws=200, warmup=300), seed=1, progress=False)
    assert rhat(posterior["x"].numpy()) < 1.05


def regression() -> tuple[BayesianLinearRegression, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 3, generator=generator) * torch.tensor([1.0, 30.0, 0.03])
    y = x @ torch.tensor([1.0, -0.1, 2.0]) + 0.5 * torch.randn(60, generator=generator)
    return BayesianLinearRegression(num_features=3), {"x": x, "y": y}


@pytest.fixture(scope="module")
def approximate() -> Posterior:
    pair, data = regression()
    return fit(pair, data, SVI(guide="full_rank", steps=600), progress=False)


def test_a_posterior_gives_starts_and_metric(approximate: Posterior) -> None:
    pair, data = regression()
    density = LogDensity(pair, data)
    with isolated(0, torch.float64):
        points, _, gradients = start_points(density, eagerly(density), 4, approximate)
    values = {name: approximate[name].flatten(0, 1) for name in density.sites}
    vectors = density.unconstrain(values)
    assert all(bool((vectors == point).all(-1).any()) for point in points)
    metric = first_metric(density, "dense", 0, gradients[0], approximate)
    covariance = np.cov(vectors.numpy().T)
    np.testing.assert_allclose(metric.dense() @ metric.dense().T, covariance, rtol=0.02, atol=1e-4)


def test_after_a_posterior_a_short_warm_up_suffices(approximate: Posterior) -> None:
    pair, data = regression()
    method = NUTS(warmup=60, draws=500, init=approximate)
    posterior = fit(pair, data, method, progress=False)
    for site in posterior.latents:
        draws = posterior[site].reshape(4, 500, -1).numpy()
        for i in range(draws.shape[-1]):
            assert rhat(draws[..., i]) < 1.02
            assert ess_bulk(draws[..., i]) > 500


def test_a_posterior_of_another_model_is_refused() -> None:
    pair, data = regression()
    other = fit(gamma_normal, {}, NUTS(chains=1, draws=5, warmup=5), progress=False)
    with pytest.raises(KeyError, match="has no site 'noise_scale'"):
        fit(pair, data, NUTS(init=other), progress=False)


def test_an_unknown_start_names_the_choices() -> None:
    with pytest.raises(ValueError, match=r"unknown init 'priors'.*Did you mean 'prior'"):
        NUTS(init="priors")  # type: ignore[arg-type]
    assert isinstance(fit(improper, {}, NUTS(draws=5, warmup=5), progress=False), Posterior)


def test_a_density_that_depends_on_nothing_is_refused() -> None:
    def nothing() -> None:
        pyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))

    with pytest.raises(ValueError, match="the log density is the same whatever the values of 'x'"):
        fit(nothing, {}, NUTS(chains=1, draws=2, warmup=2), progress=False)
